import io
import json
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from medv_ray.archive.accuracy import Accuracy, accuracy, is_known
from medv_ray.archive.plan import plan
from medv_ray.archive.reading import read_rows
from medv_ray.archive.rows import write_part
from medv_ray.archive.run import Run
from medv_ray.archive.settings import ArchiveSettings
from medv_ray.archive.sources import open_archive

IDENTITY = {"model": "m"}


def score(
    make, out: str, kinds=None, known=("Yes", "no", None, "no"), given=("yes ", "NO", "x", "")
):
    make.parquet(rows=4, id=list("abcd"), answer=list(known))
    planned = make.plan()
    with Run.open(out, planned, IDENTITY) as run:
        [chunk] = run.todo()
        records = make.records(planned, chunk)
        for record, reference, answer in zip(records, known, given, strict=True):
            record |= {"reference": reference, "answer": answer}
        run.commit(write_part(run.store, chunk, records))
        return run.finish(kinds)


def test_a_run_says_how_many_answers_are_the_archives_own(make, tmp_path):
    out = tmp_path / "run"
    summary = score(make, str(out), {"a": "closed", "b": "closed"})
    assert summary.accuracy == {
        "overall": Accuracy(3, 2), "closed": Accuracy(2, 2), "other": Accuracy(1, 0),
    }  # fmt: skip
    assert json.loads((out / "metrics.json").read_text())["accuracy"] == {
        "overall": {"share": 0.6667, "compared": 3, "right": 2},
        "closed": {"share": 1.0, "compared": 2, "right": 2},
        "other": {"share": 0.0, "compared": 1, "right": 0},
    }


def test_an_archive_without_answers_and_a_large_run(make, tmp_path, monkeypatch):
    assert score(make, str(tmp_path / "a"), known=(None,) * 4).accuracy == {}
    monkeypatch.setattr("medv_ray.archive.summary.MOST_ROWS", 3)
    assert score(make, str(tmp_path / "b")).accuracy is None
    assert json.loads((tmp_path / "b/metrics.json").read_text())["accuracy"] is None


def test_a_folder_without_rows(tmp_path):
    assert accuracy(str(tmp_path)) == {}


def test_empty_cells_are_no_known_answers(make, tmp_path):
    known = ["", " ", "N/A", "nan", "none", "no"]
    given = ["", "", "n/a", "yes", "None.", "no"]
    assert [is_known(text) for text in known] == [False] * 4 + [True] * 2
    found = score(make, str(tmp_path / "run"), known=known[1:5], given=given[1:5]).accuracy
    assert found == {"overall": Accuracy(1, 0)}


def test_open_and_closed_ones_by_whole_words(make, tmp_path):
    make.parquet(rows=4, id=list("abcd"), answer=["no"] * 4)
    planned = make.plan()
    rows = [  # reference, answer, answer_type
        ("no", "No, it is normal.", "closed"),
        ("no", "abnormal", "closed"),
        ("left lung", "the left lung.", "open"),
        ("yes", "Yes", None),
    ]
    with Run.open(str(tmp_path / "run"), planned, IDENTITY) as run:
        [chunk] = run.todo()
        records = make.records(planned, chunk)
        for record, row in zip(records, rows, strict=True):
            record |= dict(zip(("reference", "answer", "answer_type"), row, strict=True))
        run.commit(write_part(run.store, chunk, records))
        assert run.finish().accuracy == {
            "overall": Accuracy(4, 1), "closed": Accuracy(2, 1), "open": Accuracy(1, 1),
        }  # fmt: skip


KINDS = [" CLOSED ", "Open", "other", "", None]
KNOWN = ["closed", "open", None, None, None]


def write_parquet(folder, kinds):
    table = {"image": ["x.png"] * 5, "question": ["q?"] * 5, "answer_type": kinds}
    pq.write_table(pa.table(table), folder / "rows.parquet")


def write_csv(folder, _):
    lines = [f"x.png,q?,{kind or ''}" for kind in KINDS]
    (folder / "rows.csv").write_text("\n".join(["image,question,answer_type", *lines]))


def write_jsonl(folder, kinds):
    rows = [{"image": "x.png", "question": "q?", "answer_type": kind} for kind in kinds]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))


def write_tar(folder, kinds):
    with tarfile.open(folder / "rows.tar", "w") as file:
        for number, kind in enumerate(kinds):
            for name, data in (
                ("png", b"x"),
                ("json", json.dumps({"question": "q?", "answer_type": kind}).encode()),
            ):
                member = tarfile.TarInfo(f"{number}.{name}")
                member.size = len(data)
                file.addfile(member, io.BytesIO(data))


@pytest.mark.parametrize(
    ("write", "kinds", "known"),
    [
        *((write, KINDS, KNOWN) for write in (write_parquet, write_csv, write_jsonl, write_tar)),
        # a csv has texts only
        *((write, [[1]] * 5, [None] * 5) for write in (write_parquet, write_jsonl, write_tar)),
    ],
)
def test_a_row_has_its_archives_answer_type(tmp_path, write, kinds, known):
    write(tmp_path, kinds)
    made = plan(open_archive(ArchiveSettings(archive=str(tmp_path))), "x")
    rows = [row for chunk in made.chunks for row in read_rows(made.archive, chunk)]
    assert [row.answer_type for row in sorted(rows, key=lambda row: row.row)] == known
    assert not any(row.error and row.error.code == "E1109" for row in rows)


def test_a_column_that_stands_twice_and_is_not_asked_for(tmp_path):
    names = ["image", "question", "answer_type", "answer_type"]
    table = pa.table([["x.png"], ["q?"], ["open"], ["closed"]], names=names)
    pq.write_table(table, tmp_path / "rows.parquet")
    made = plan(open_archive(ArchiveSettings(archive=str(tmp_path))), "x")
    [row] = read_rows(made.archive, made.chunks[0])
    assert row.answer_type is None
