import json
import tracemalloc

import pytest

from medv_ray.archive import id_hashes, images
from medv_ray.archive.chunks import Chunk
from medv_ray.archive.reading import read_rows
from medv_ray.errors import DataError


def keys(planned):
    return [chunk.key for chunk in planned.chunks]


def test_keys_stay_while_nothing_changes_and_change_with_file_and_settings(make):
    path = make.parquet(rows=8)
    before = make.plan()
    assert keys(make.plan()) == keys(before)
    assert not set(keys(make.plan("other settings"))) & set(keys(before))
    assert [c.source_key for c in make.plan("other settings").chunks] == [
        c.source_key for c in before.chunks
    ]
    path.touch()
    assert not set(keys(make.plan())) & set(keys(before))


def test_a_full_fingerprint_sees_content_and_not_time(make):
    path = make.parquet(rows=8)
    before = make.plan(fingerprint="full")
    path.touch()
    assert keys(make.plan(fingerprint="full")) == keys(before)
    data = bytearray(path.read_bytes())
    data[4] ^= 1
    path.write_bytes(data)
    assert keys(make.plan(fingerprint="full")) != keys(before)


def test_one_unreadable_image_costs_its_own_row_alone(make, monkeypatch):
    for name in ("a.png", "b.png", "gone.png"):
        make.text(name, name.encode())
    real = images.content_digest

    def digest(archive, image):
        if image.name != "a.png":
            raise PermissionError if image.name == "b.png" else FileNotFoundError
        return real(archive, image)

    settings = {"question": "What?", "fingerprint": "full"}
    before = make.plan(**settings)
    monkeypatch.setattr(images, "content_digest", digest)
    planned = make.plan(**settings)
    assert planned.rows == 3
    assert keys(planned) == keys(make.plan(**settings)) != keys(before)


def test_equal_files_under_two_names_are_two_sets_of_rows(make):
    path = make.parquet("a.parquet", rows=4)
    (make.archive / "b.parquet").write_bytes(path.read_bytes())
    assert len(set(keys(make.plan(fingerprint="full")))) == 2


def test_chunks_survive_json_and_name_no_row_content(make):
    make.text("1.png", b"one")
    make.text("q.csv", "id,image,question\nSECRET,1.png,SECRET?\n" * 1)
    planned = make.plan(questions=str(make.archive / "q.csv"))
    for chunk in planned.chunks:
        said = json.dumps(chunk.to_json())
        assert "SECRET" not in said
        assert Chunk.from_json(json.loads(said)) == chunk
        assert read_rows(planned.archive, Chunk.from_json(json.loads(said)))[0].id == "SECRET"


def test_limit_cuts_across_files(make):
    for name in ("a", "b", "c"):
        make.parquet(f"{name}.parquet", rows=6)
    planned = make.plan(limit=8)
    assert planned.rows == 8
    assert [f.rows for f in planned.files] == [6, 2]
    assert [row.id for row in make.rows(planned)] == [*(f"a:{r}" for r in range(6)), "b:0", "b:1"]


def test_a_folder_of_images_under_one_question(make):
    for name in ("b.png", "a/2.JPG", "a/1.jpg", ".hidden.png", "read.me"):
        make.text(name, name)
    planned = make.plan(question="What is it?")
    rows = make.rows(planned)
    assert [(row.id, row.question, row.image) for row in rows] == [
        ("a:1.jpg", "What is it?", b"a/1.jpg"),
        ("a:2.JPG", "What is it?", b"a/2.JPG"),
        ("b.png", "What is it?", b"b.png"),
    ]
    assert planned.ignored == 2
    (make.archive / "b.png").write_bytes(b"changed")
    with pytest.raises(DataError) as caught:
        make.rows(planned)
    assert caught.value.code == "E1107"
    assert make.plan(question="What is it?").files[0].digest != planned.files[0].digest


@pytest.mark.integration
def test_archives_on_an_object_store(make, s3_server):
    from pyarrow import fs

    make.parquet("p/a.parquet", rows=6)
    make.text("t/1.png", b"one")
    make.text("t/q.csv", "image,question\n1.png,a?\nno.png,b?\n")
    make.tar([(f"{k}.jpg", b"%d" % k, {}) for k in range(6)], "x.tar")
    s3 = fs.FileSystem.from_uri("s3://bucket/in")[0]
    fs.copy_files(str(make.archive), "bucket/in", destination_filesystem=s3)
    codes = lambda rows: [r.error.code if r.error else None for r in rows]  # noqa: E731

    planned = make.plan(archive="s3://bucket/in/p")
    assert [row.id for row in make.rows(planned)] == [f"a:{r}" for r in range(6)]
    assert keys(make.plan(archive="s3://bucket/in/p")) == keys(planned)
    planned = make.plan(archive="s3://bucket/in/t", questions="s3://bucket/in/t/q.csv")
    assert codes(make.rows(planned)) == [None, "E1111"]
    planned = make.plan(archive="s3://bucket/in/x.tar", question="q?")
    assert [row.image for row in make.rows(planned)] == [b"%d" % k for k in range(6)]
    planned = make.plan(archive="s3://bucket/in/t", question="q?")
    assert [row.id for row in make.rows(planned)] == ["1.png"]
    assert "bucket" not in json.dumps(planned.identity())

    uri = f"s3://testing:testing@bucket/in/p/*.parquet?endpoint_override={s3_server}&scheme=http"
    planned = make.plan(archive=uri)
    assert [row.id for row in make.rows(planned)] == [f"a:{r}" for r in range(6)]
    s3.delete_file("bucket/in/p/a.parquet")
    with pytest.raises(DataError) as caught:
        make.rows(planned)
    assert caught.value.code == "E1107"
    with pytest.raises(DataError) as caught:
        make.plan(archive="s3://bucket/nothing")
    assert caught.value.code == "E1110"


def test_memory_of_planning_does_not_grow_with_the_rows(make, monkeypatch):
    monkeypatch.setattr(id_hashes, "HELD", 2**11)
    monkeypatch.setattr(id_hashes, "COMPARED", 2**11)
    peaks = []
    for rows in (9_000, 9_000, 21_000):  # over a batch; the first time, modules are loaded
        make.parquet(rows=rows, id=[f"study-{row}" for row in range(rows)], answer=None)
        tracemalloc.start()
        planned = make.plan(chunk_rows=8)
        assert sum(1 for _ in planned.chunks) == len(planned.chunks) == rows / 8
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[2] < peaks[1] + 2**17  # 12,000 hashes more have 2^17.6 bytes, 1,500 chunks 2^19
