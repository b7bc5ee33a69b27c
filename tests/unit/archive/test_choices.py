"""Allowed answers of rows: read alike from every kind of archive, bad ones cost their row."""

import csv
import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from medv_ray.archive import rows
from medv_ray.archive.exports import write_csv
from medv_ray.archive.ledger import Ledger
from medv_ray.archive.rows import read_run, write_part
from medv_ray.archive.run import Run
from medv_ray.archive.store import Store
from medv_ray.errors import DataError
from medv_ray.schema import ANSWER_SCHEMA
from medv_ray.tables.cells import choices_of

CELLS = [["yes", "no"], None, [], ["yes"], ["a", " a "], ["a", ""], ["a", None], ["1", "2"]]
WANT = [
    (("yes", "no"), None), ((), None), ((), None), ((), "E1308"), ((), "E1308"), ((), "E1308"),
    ((), "E1308"), (("1", "2"), None),
]  # fmt: skip


def found(planned, make):
    made = sorted(make.rows(planned), key=lambda row: row.row)
    return [(row.choices, row.error.code if row.error else None) for row in made]


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "csv", "python", "tar"])
def test_choices_of_every_kind_of_archive(make, kind):
    if kind == "parquet":
        make.parquet(rows=len(CELLS), choices=CELLS)
    elif kind == "tar":
        said = [{"question": "q?", "choices": cell} for cell in CELLS]
        members = [(f"{n}.json", json.dumps(one).encode(), {}) for n, one in enumerate(said)]
        make.tar([*members, *((f"{n}.png", b"png", {}) for n in range(len(CELLS)))])
    elif kind == "jsonl":
        lines = [{"image": "0.png", "question": "q?", "choices": cell} for cell in CELLS]
        make.text("q.jsonl", "\n".join(map(json.dumps, lines)))
    else:
        text = io.StringIO()
        writer = csv.writer(text)
        writer.writerow(["image", "question", "choices"])
        write = json.dumps if kind == "csv" else repr
        writer.writerows(["0.png", "q?", "" if one is None else write(one)] for one in CELLS)
        make.text("q.csv", text.getvalue())
    make.text("0.png", b"png")
    planned = make.plan(archive=str(one_table(make)), choices_column="choices")
    assert found(planned, make) == WANT
    unasked = found(make.plan(archive=str(one_table(make))), make)
    assert unasked == [(choices, None) for choices, _ in WANT]


def one_table(make) -> Path:
    (table,) = (path for path in make.archive.iterdir() if path.suffix != ".png")
    return table if table.suffix in (".jsonl", ".csv") else make.archive


def test_a_column_of_another_name_and_none(make):
    make.parquet(rows=2, options=[["a", "b"], ["c", "d"]], choices=[["x"], ["x"]])
    assert found(make.plan(choices_column="options"), make) == [
        (("a", "b"), None),
        (("c", "d"), None),
    ]
    assert found(make.plan(choices_column="none"), make) == [((), None)] * 2
    assert found(make.plan(), make) == [((), None)] * 2
    assert found(make.plan(choices_column="choices"), make) == [((), "E1308")] * 2
    with pytest.raises(DataError, match=r"E1101.*no column 'antworten'"):
        make.plan(choices_column="antworten")


def test_a_column_of_that_name_that_can_hold_no_choices_is_left_alone(make):
    make.parquet(rows=2, choices=[1, 2])
    assert found(make.plan(), make) == [((), None)] * 2
    with pytest.raises(DataError, match=r"E1109.*'choices' is int64"):
        make.plan(choices_column="choices")


def test_a_text_that_nobody_asked_for_costs_no_row(make):
    """A column may have this name and say something else."""
    make.parquet(rows=2, choices=["A) yes B) no", "[x"])
    rows = sorted(make.rows(make.plan()), key=lambda row: row.row)
    assert [(row.choices, row.error) for row in rows] == [((), None)] * 2
    assert [row.warnings for row in rows] == [("choices_not_used",)] * 2
    assert found(make.plan(choices_column="choices"), make) == [((), "E1109")] * 2


def test_a_table_without_the_column_has_the_identity_that_it_had(make):
    make.parquet(rows=2)
    assert "choices_column" not in make.plan().identity()["archive"]
    assert make.plan(choices_column="none").identity()["archive"]["choices_column"] == "none"


@pytest.mark.parametrize(
    ("cell", "want"),
    [
        ("[1, 2.5]", ("1", "2.5")),
        ('["yes", "no"]', ("yes", "no")),
        (b'["yes", "no"]', ("yes", "no")),
        (float("nan"), ()),
        (" ", ()),
        ("[]", ()),
        ("yes, no", "E1109"),
        ({"A": "yes"}, "E1109"),
        (3, "E1109"),
        ([["a"], "b"], "E1109"),
        (["a\0", "b"], "E1304"),
        (["a" * 9, "b"], "E1112"),
    ],
)
def test_cells(cell, want):
    if isinstance(want, tuple):
        assert choices_of(cell, 16) == want
        return
    with pytest.raises(DataError) as raised:
        choices_of(cell, 8)
    assert raised.value.code == want


def test_choices_that_are_no_utf8_cost_their_row(make):
    make.parquet(rows=3, choices=pa.array([["a", "b"]] * 3, pa.list_(pa.binary())))
    path = make.archive / "a.parquet"
    table = pq.read_table(path)
    texts = pa.array([[b"a", b"b"], [b"\xff", b"b"], [b"c", b"d"]], pa.list_(pa.binary()))
    where = table.column_names.index("choices")
    as_text = pa.ListArray.from_arrays(texts.offsets, texts.values.view(pa.string()))
    pq.write_table(table.set_column(where, "choices", as_text), path)
    assert found(make.plan(), make) == [(("a", "b"), None), ((), "E1304"), (("c", "d"), None)]


IDENTITY_OF_MAKE = {"settings": {"sampler": {"steps": 64, "gen_length": 64}}, "model": "sha256:abc"}
NEW = ("choices", "choice_probabilities", "choice")


def test_runs_from_before_choices_are_read_resumed_and_exported(make, tmp_path, monkeypatch):
    make.parquet(rows=8)
    planned, out = make.plan(), str(tmp_path / "run")
    names = [name for name in ANSWER_SCHEMA.names if name not in NEW]
    with monkeypatch.context() as old:
        old.setattr(rows, "ANSWER_SCHEMA", pa.schema([ANSWER_SCHEMA.field(n) for n in names]))
        make.job(planned, out, stop_after=1)
    scored = {"choices": ["a", "b"], "choice_probabilities": [0.25, 0.75], "choice": "b"}
    with Run.open(out, planned, IDENTITY_OF_MAKE) as opened:
        for chunk in opened.todo():
            records = [one | scored for one in make.records(planned, chunk)]
            opened.commit(write_part(opened.store, chunk, records))
        opened.finish()
    assert Ledger.load(Store(out)).counts()["rows"] == 8
    table = pa.concat_tables(read_run(out)).sort_by("row")
    assert table.column("choice").to_pylist() == [None] * 4 + ["b"] * 4
    assert write_csv(str(tmp_path / "out.csv"), iter([table])) == 8
    with (tmp_path / "out.csv").open() as file:
        last = list(csv.DictReader(file))[-1]
    assert [last[name] for name in NEW] == ["a | b", "[0.25, 0.75]", "b"]
