"""What a job says before it scores."""

import io
import tarfile
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest

from medv_ray.archive.growth import Growth
from medv_ray.archive.plan import plan
from medv_ray.archive.pseudonyms import PrivacySettings
from medv_ray.archive.run import Run
from medv_ray.archive.settings import ArchiveSettings
from medv_ray.archive.sources import open_archive
from medv_ray.errors import RunError
from medv_ray.on_ray import score
from medv_ray.on_ray.score import tell
from medv_ray.settings import ModelSettings


@pytest.mark.parametrize("texts", [0, 1, 2])
def test_what_is_left_out_and_whether_that_is_most_of_it(tmp_path, capsys, texts):
    for name in ["a.png", *(f"{number}.txt" for number in range(texts))]:
        (tmp_path / name).write_text("x")
    tell(plan(open_archive(ArchiveSettings(archive=str(tmp_path), question="q?")), "settings"))
    said = capsys.readouterr().err
    most = "MOST OF THIS ARCHIVE IS LEFT OUT: 1 rows are scored.\n"
    files = "file" if texts == 1 else "files"
    line = f"left out: {texts} {files} ({texts} .txt not an image)\n"
    assert said == (most if texts > 1 else "") + (line if texts else "")


def test_what_could_be_no_row_is_not_most_of_an_archive(tmp_path, capsys):
    for name in ("1.png", "2.png", "3.png", "notes.doc", "more.doc"):
        (tmp_path / name).write_text("x")
    (tmp_path / "q.csv").write_text("image,question\n1.png,a?\n")
    settings = ArchiveSettings(archive=str(tmp_path))
    tell(plan(open_archive(settings), "settings"))
    said = capsys.readouterr().err
    assert said == "left out: 4 files (2 images that no row names, 2 .doc not a table file)\n"


def test_texts_of_a_tar_of_pictures_are_not_most_of_it(tmp_path, capsys):
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for name in ("1.png", "1.txt", "1.json"):
            tar.addfile(tarfile.TarInfo(name))
    tell(plan(open_archive(ArchiveSettings(archive=str(tmp_path), question="q?")), "settings"))
    assert capsys.readouterr().err.startswith("left out: 2 files (")


PICTURE = bytes.fromhex("89504e470d0a1a0a") + bytes(8)
SIDE_FILES = ("cls", "jpg", "json", "txt", "seg.npy", "jpg.xml")
"""Of a sample as img2dataset and webdataset write it; one lies before its picture."""


def shard(folder, names):
    with tarfile.open(folder / "0.tar", "w") as tar:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = len(PICTURE) if name.endswith(".jpg") else 2
            tar.addfile(info, io.BytesIO(PICTURE if name.endswith(".jpg") else b"{}"))


@pytest.mark.parametrize("kind", ["tar", "tar with questions", "folder", "table"])
def test_side_files_of_what_is_scored_are_counted_and_raise_no_alarm(tmp_path, capsys, kind):
    names = [f"{key}.{end}" for key in ("a/1.2", "b") for end in SIDE_FILES]
    settings = {"archive": str(tmp_path), "question": "q?"}
    if kind.startswith("tar"):
        shard(tmp_path, names)
    else:
        (tmp_path / "a").mkdir()
        for name in names:
            (tmp_path / name).write_bytes(PICTURE if name.endswith(".jpg") else b"{}")
    if kind == "tar with questions":
        del settings["question"]
    if kind == "table":  # which names one picture of two
        table = tmp_path.with_suffix(".csv")
        table.write_text("image,question\nb.jpg,what?\n")
        settings = {"archive": str(tmp_path), "questions": str(table)}
    made = plan(open_archive(ArchiveSettings(**settings)), "settings")
    tell(made)
    said = capsys.readouterr().err
    assert made.rows == (1 if kind == "table" else 2)
    assert said.startswith(f"left out: {made.left_out.total} files (")
    assert made.left_out.total == {"table": 11, "tar with questions": 6}.get(kind, 10)
    assert "2 .cls" in said


@pytest.mark.parametrize("kind", ["tar", "folder", "table"])
def test_files_that_could_have_been_rows_raise_the_alarm(tmp_path, capsys, kind):
    settings = {"archive": str(tmp_path), "question": "q?"}
    names = ["1.jpg", "2.raw", "2.raw.hdr", "30.raw", "1a.raw"]
    if kind == "tar":
        shard(tmp_path, names)
    elif kind == "folder":
        for name in names:
            (tmp_path / name).write_bytes(PICTURE if name.endswith(".jpg") else b"{}")
    else:
        (tmp_path / "q.csv").write_text("image,question\n1.jpg,what?\n")
        for name in ("a.parquet", "b.parquet"):
            (tmp_path / name).write_bytes(b"{}")
        settings = {"archive": str(tmp_path), "questions": f"{tmp_path}/*"}
    made = plan(open_archive(ArchiveSettings(**settings)), "settings")
    tell(made)
    said = capsys.readouterr().err
    assert said.startswith("MOST OF THIS ARCHIVE IS LEFT OUT: 1 rows are scored.\nleft out: ")


@pytest.mark.parametrize(
    "names",
    [("1", "1.2.840.1", "1.2.840.2"), ("scan.png", "scan.000", "scan.001"), ("v1.png", "v1.2.raw")],
)
def test_numbers_behind_a_picture_are_no_side_files(tmp_path, capsys, names):
    for name in names:
        (tmp_path / name).write_bytes(PICTURE if name == names[0] else b"{}")
    tell(plan(open_archive(ArchiveSettings(archive=str(tmp_path), question="q?")), "settings"))
    said = capsys.readouterr().err
    assert ("MOST OF THIS ARCHIVE" in said) == (len(names) > 2)
    assert f"{len(names) - 1} " in said
    assert "beside a picture" not in said


def test_empty_tables_beside_pictures_are_side_files(tmp_path, capsys):
    (tmp_path / "0.jpg").write_bytes(PICTURE)
    for name in ("0.json", "0.csv"):
        (tmp_path / name).touch()
    tell(plan(open_archive(ArchiveSettings(archive=str(tmp_path), question="q?")), "settings"))
    said = capsys.readouterr().err
    assert said.startswith("left out: 2 files (1 .csv beside a picture of that name, ")


def test_what_is_shut_beside_a_table_may_be_most_of_it(tmp_path, capsys):
    (tmp_path / "1.png").write_bytes(PICTURE)
    (tmp_path / "q.csv").write_text("image,question\n1.png,what?\n")
    for name in ("site1", "site2"):
        (tmp_path / name).symlink_to(tmp_path / "nowhere")
    tell(plan(open_archive(ArchiveSettings(archive=str(tmp_path))), "settings"))
    assert capsys.readouterr().err.startswith("MOST OF THIS ARCHIVE IS LEFT OUT: 1 rows")


@pytest.mark.parametrize("taken", [True, False])
def test_growth_is_said_once_the_run_takes_it(tmp_path, capsys, monkeypatch, taken):
    (tmp_path / "a.png").write_text("x")
    made = plan(open_archive(ArchiveSettings(archive=str(tmp_path), question="q?")), "settings")
    made = replace(made, growth=Growth(is_known=True, rows=1))
    settings = SimpleNamespace(
        located=lambda **_: settings,
        out="out",
        privacy=PrivacySettings(),
        model=ModelSettings(path="model"),
    )
    monkeypatch.setattr(score, "planned", lambda *_: (made, {}))

    def opened(*_, **__):
        if not taken:
            raise RunError("E1502", "another run's.")
        return nullcontext(MagicMock(open_chunks=0))

    monkeypatch.setattr(Run, "open", opened)
    with nullcontext() if taken else pytest.raises(RunError):
        score.score(settings)
    line = "added since the run began: 1 rows, to 0\n"
    assert capsys.readouterr().err == (line if taken else "")
