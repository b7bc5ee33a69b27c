import json

from medv_ray.archive.accuracy import Accuracy, accuracy, is_known
from medv_ray.archive.rows import write_part
from medv_ray.archive.run import Run

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
