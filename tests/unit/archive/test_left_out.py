import contextlib
import errno
import inspect
import io
import json
import os
import socket
import struct
import sys
import tarfile

import pytest
from PIL import Image

from medv_ray.archive.left_out import LeftOut
from medv_ray.archive.run import Run
from medv_ray.archive.store import Store
from medv_ray.errors import DataError, RunError, SettingsError

IDENTITY = {"model": "m"}
ELEMENTS = b"\x08\x00\x05\x00CS\x0a\x00ISO_IR 100\x08\x00\x16\x00UI\x1a\x00" + b"1" * 26


def picture(kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (20, 20)).save(buffer, kind)
    return buffer.getvalue()


def files() -> dict[str, bytes]:
    """Ten kinds of files and some more, as a folder of a hospital may hold them."""
    dicom = bytes(128) + b"DICM" + ELEMENTS
    return {
        "a.png": picture("PNG"),
        "B.JPG": picture("JPEG"),
        "c.dcm": dicom,
        "d/1.2.840.113": dicom,
        "e": ELEMENTS,
        "f.svs": picture("TIFF"),
        "report.SR": dicom,
        "photo": picture("JPEG"),
        "wrong.dat": picture("WEBP"),
        "empty.png": b"",
        "notes.txt": b"BM and other words",
        "NOTES.TXT": b"words",
        "none": b"",
        "old.zip": b"PK\x03\x04rest",
        "._a.png": b"\x00\x05\x16\x07",
        "__MACOSX/a.png": b"\x00\x05\x16\x07",
        ".DS_Store": b"\0\0\0\1Bud1",
        "Thumbs.db": b"\xd0\xcf",
        "DICOMDIR": dicom,
        "q.csv": b"image,question\n",
    }


ROWS = [
    "B.JPG", "a.png", "c.dcm", "d:1.2.840.113", "e", "empty.png", "f.svs", "photo", "report.SR",
    "wrong.dat",
]  # fmt: skip
LEFT_OUT = {
    (".txt", "not an image"): 2,
    ("", "empty"): 1,
    (".zip", "not an image"): 1,
    (".png", "hidden"): 2,
    ("", "hidden"): 1,
    (".db", "hidden"): 1,
    ("", "index of DICOM files"): 1,
    (".csv", "a table that is not read"): 1,
}


def counts(planned) -> dict[tuple[str, str], int]:
    return {key: count for key, (count, _) in planned.left_out.groups.items()}


def test_every_file_of_a_folder_is_a_row_or_left_out_with_its_reason(make, tmp_path):
    for name, data in files().items():
        make.text(name, data)
    planned = make.plan(question="What?")
    assert [row.id for row in make.rows(planned)] == ROWS
    assert counts(planned) == LEFT_OUT
    assert planned.rows + planned.left_out.total == len(files())
    make.job(planned, tmp_path / "run")
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert metrics["left_out"]["files"] == 10
    assert {
        "ending": ".txt", "reason": "not an image", "files": 2,
        "examples": ["NOTES.TXT", "notes.txt"],
    } in metrics["left_out"]["groups"]  # fmt: skip


@pytest.mark.integration
def test_the_same_on_an_object_store(make, s3_server):
    from pyarrow import fs

    for name, data in files().items():
        make.text(name, data)
    s3 = fs.FileSystem.from_uri("s3://bucket/kinds")[0]
    fs.copy_files(str(make.archive), "bucket/kinds", destination_filesystem=s3)
    planned = make.plan(archive="s3://bucket/kinds", question="What?")
    assert [row.id for row in make.rows(planned)] == ROWS
    assert counts(planned) == LEFT_OUT


def test_every_member_of_a_tar_is_part_of_a_row_or_left_out(make):
    table = files()
    del table["q.csv"]
    make.tar([(f"./{name}", data, {}) for name, data in table.items()])
    planned = make.plan(question="What?")
    ids = ["a", "B", "c", "d:1.2.840.113", "e", "f", "report.SR", "photo", "wrong.dat", "empty"]
    assert [row.id for row in make.rows(planned)] == ids
    wanted = {key: count for key, count in LEFT_OUT.items() if key[0] != ".csv"}
    wanted[".txt", "a text; --question is asked of images"] = wanted.pop((".txt", "not an image"))
    assert counts(planned) == wanted


def test_a_key_of_a_name_without_ending_meets_its_text(make):
    dicom = files()["c.dcm"]
    make.tar([("s/1.2.840.113", dicom, {}), ("s/1.2.840.113.txt", b"What?", {})])
    [row] = make.rows(make.plan())
    assert (row.id, row.question, row.image, row.image_name) == (
        "s:1.2.840.113", "What?", dicom, "s/1.2.840.113",
    )  # fmt: skip


def test_a_folder_of_files_without_endings_alone(make):
    make.text("1.2.3", files()["c.dcm"])
    with pytest.raises(SettingsError, match="images only"):
        make.plan()
    assert make.plan(question="What?").rows == 1


def test_bmp_by_its_header_and_not_by_two_letters(make):
    header = b"BM" + bytes(12) + struct.pack("<I", 40)
    make.text("scan", header + bytes(60))
    make.text("words", b"BMI of the patients, one a line, in kilograms a square metre")
    planned = make.plan(question="What?")
    assert [row.id for row in make.rows(planned)] == ["scan"]


@pytest.mark.parametrize("settings", [{"question": "What?"}, {}])
def test_a_name_that_is_not_utf8_stops_nothing(make, settings):
    make.text("1.png", b"one")
    make.text("q.csv", "image,question\n1.png,a?\n")
    folder = os.fsencode(make.archive)
    os.mkdir(folder + b"/d\xfe")
    for name in (b"b\xff.png", b"n\xfe.txt", b"d\xfe/c.png"):
        with open(folder + b"/" + name, "wb") as file:
            file.write(b"x")
    planned = make.plan(**settings)
    assert planned.rows == 1
    groups = {name for _, names in planned.left_out.groups.values() for name in names}
    assert {"b\\xff.png", "n\\xfe.txt", "d\\xfe/c.png"} <= groups
    for name in (".png", ".txt"):
        assert counts(planned)[name, "name is not UTF-8"] in (1, 2)
    assert make.plan(questions=str(make.archive / "q.csv")).rows == 1


def test_a_member_whose_name_is_not_utf8(make):
    path = make.tar([("good.jpg", b"x", {}), ("bXd.jpg", b"y", {})])
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT, encoding="latin-1") as tar:
        for name in ("good.jpg", "b\xffd.jpg"):
            info = tarfile.TarInfo(name)
            info.size = 1
            tar.addfile(info, io.BytesIO(b"x"))
    planned = make.plan(question="What?")
    assert [row.id for row in make.rows(planned)] == ["good"]
    assert planned.left_out.listed() == [
        {"ending": ".jpg", "reason": "name is not UTF-8", "files": 1, "examples": ["b\\xffd.jpg"]}
    ]


def test_an_output_folder_with_such_a_name_is_no_run_folder(make, tmp_path):
    make.text("1.png", b"one")
    out = tmp_path / "run"
    out.mkdir()
    with open(os.fsencode(out) + b"/\xff", "wb"):
        pass
    with pytest.raises(RunError) as caught:
        Run.open(str(out), make.plan(question="q?"), IDENTITY)
    assert caught.value.code == "E1507"


def test_an_archive_whose_own_path_is_not_utf8(make):
    with pytest.raises(SettingsError) as caught:
        make.plan(archive=os.fsdecode(os.fsencode(make.archive) + b"/\xff"), question="q?")
    assert caught.value.code == "E1001"


def test_links_that_lead_back_or_nowhere(make):
    make.text("a/1.png", b"one")
    (make.archive / "a/again").symlink_to(make.archive)
    (make.archive / "b.png").symlink_to(make.archive / "gone.png")
    os.mkfifo(make.archive / "pipe.png")
    planned = make.plan(question="What?")
    assert [row.id for row in make.rows(planned)] == ["a:1.png"]
    assert counts(planned) == {
        (".png", "cannot be read (ENOENT)"): 1, (".png", "no regular file"): 1,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("pattern", "settings"),
    [
        ("", {"question": "What?"}),
        ("", {}),
        ("", {"questions": "q.csv"}),
        ("**/*.csv", {}),
        ("*/q.csv", {}),
    ],
)
def test_a_folder_that_cannot_be_listed_costs_its_own_files_alone(
    make, monkeypatch, pattern, settings
):
    for name in ("1.png", "a/1.png", "lost+found/2.png", "a/shut.d/3.png"):
        make.text(name, picture("PNG"))
    make.text("a/q.csv" if pattern else "q.csv", "image,question\n1.png,a?\n")
    shut_off(monkeypatch, "lost+found", "shut.d")
    if "questions" in settings:
        settings = {"questions": str(make.archive / settings["questions"])}
    planned = make.plan(archive=f"{make.archive}/{pattern}", **settings)
    assert planned.rows == (2 if "question" in settings else 1)
    shut = {key: count for key, count in counts(planned).items() if "EACCES" in key[1]}
    assert shut == {
        ("", "cannot be read (EACCES)"): 1,
        **({} if pattern == "*/q.csv" else {(".d", "cannot be read (EACCES)"): 1}),
    }


def test_a_top_folder_that_cannot_be_listed_is_refused(make, monkeypatch):
    make.text("1.png", b"one")
    shut_off(monkeypatch, make.archive.name)
    with pytest.raises(DataError) as caught:
        make.plan(question="What?")
    assert caught.value.code == "E1110"


def test_a_folder_of_a_run_that_cannot_be_listed_is_not_taken_for_empty(tmp_path, monkeypatch):
    (tmp_path / "rows/a").mkdir(parents=True)
    shut_off(monkeypatch, "a")
    with pytest.raises(RunError) as caught:
        Store(str(tmp_path)).listing()
    assert caught.value.code == "E1511"


def test_folders_deeper_than_pythons_stack(make, monkeypatch):
    make.text("1.png", b"one")
    monkeypatch.chdir(make.archive)
    for _ in range(400):  # not 1000: what removes them again has a frame a folder
        os.mkdir("d")
        os.chdir("d")
    usual = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack(0)) + 300)
    try:
        planned = make.plan(question="What?")
    finally:
        sys.setrecursionlimit(usual)
    assert [row.id for row in make.rows(planned)] == ["1.png"]


def test_a_table_that_is_a_pipe_is_named_as_one(make):
    make.text("1.png", b"one")
    os.mkfifo(make.archive / "q.csv")
    with pytest.raises(DataError, match=r"left out: 1 file \(1 \.csv no regular file\)"):
        make.plan(questions=str(make.archive / "q.csv"))


def test_a_row_that_names_a_socket(make):
    with socket.socket(socket.AF_UNIX) as one, contextlib.chdir(make.archive):
        one.bind("1.png")
        make.text("q.csv", "image,question\n1.png,a?\n")
        (row,) = make.rows(make.plan())
    assert (row.error.code, row.error.detail) == ("E1108", "the image path is not a regular file.")


def shut_off(monkeypatch, *names: str) -> None:
    """Folders of these names as a user without rights finds them; a test may run as root."""
    real = os.scandir

    def scandir(path):
        if os.path.basename(path) in names:
            raise PermissionError(errno.EACCES, "denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)


def test_images_that_no_row_names_are_counted(make):
    for name in ("1.png", "2.png", "3.png", "notes.doc"):
        make.text(name, name)
    make.text("q.csv", "image,question\n1.png,a?\nno.png,b?\n")
    planned = make.plan()
    assert counts(planned) == {("", "images that no row names"): 2, (".doc", "not a table file"): 1}


def test_nothing_but_what_is_left_out(make):
    make.text("a.txt", "x")
    make.text("b.zip", "x")
    with pytest.raises(DataError, match=r"2 files \(1 \.txt not an image, 1 \.zip not an image\)"):
        make.plan(question="What?")


def test_the_line_for_a_person():
    found = LeftOut()
    for number in range(8):
        found.add(f"{number}.txt", "not an image")
    for name in ("x", "y", "z"):
        found.add(name, "empty")
    found.add("a.zip", "not an image")
    assert str(found) == "12 files (8 .txt not an image, 3 empty, 1 .zip not an image)"
    assert found.listed()[0]["examples"] == ["0.txt", "1.txt", "2.txt"]


def test_pictures_beside_rows_that_hold_theirs(make):
    make.parquet(rows=2)
    for name in ("1.png", "2.png", "notes.txt"):
        make.text(name, name)
    assert counts(make.plan()) == {
        ("", "images that no row names"): 2, (".txt", "not a parquet file"): 1,
    }  # fmt: skip


def test_a_named_picture_without_an_ending_is_not_left_out(make):
    make.text("scan", picture("PNG"))
    make.text("1.png", b"one")
    make.text("2.png", b"two")
    make.text("q.csv", "image,question\nscan,a?\n1.png,b?\n")
    assert counts(make.plan()) == {("", "images that no row names"): 1}
    images = make.archive / "images"
    make.text("images/scan", picture("PNG"))
    found = counts(make.plan(images=str(images)))
    assert found == {("", "images that no row names"): 2, ("", "not a table file"): 1}


def test_a_folder_of_questions_beside_its_images(make, tmp_path):
    make.parquet("q/b.parquet")
    for name in ("q/note.txt", "q/._a.csv", "i/1.png", "i/2.png", "i/._1.png", "i/more.txt"):
        make.text(name, name)
    make.text("q/a.csv", "image,question\n1.png,a?\n")
    planned = make.plan(archive=str(make.archive / "i"), questions=str(make.archive / "q"))
    assert planned.rows == 1
    assert not planned.unreadable
    assert counts(planned) == {
        (".parquet", "not a table file"): 1, (".txt", "not a table file"): 1,
        (".csv", "hidden"): 1, ("", "images that no row names"): 1, (".png", "hidden"): 1,
        (".txt", "not an image"): 1,
    }  # fmt: skip


def test_questions_inside_the_folder_of_images_count_once(make):
    for name in ("1.png", "2.png"):
        make.text(name, name)
    table = make.text("_q.csv", "image,question\n1.png,a?\n")
    assert counts(make.plan(questions=str(table))) == {("", "images that no row names"): 1}
    make.text("q.csv", "image,question\n1.png,a?\n")
    found = counts(make.plan(questions=str(make.archive)))
    assert found == {("", "images that no row names"): 1, (".csv", "hidden"): 1}
