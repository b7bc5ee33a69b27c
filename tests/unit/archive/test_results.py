"""Rows of a run: chosen, sorted, joined, exported; old runs, unfinished runs, cells that run."""

import csv
import json
import math
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from medv_ray.archive import exports, results, rows
from medv_ray.archive.compact import compact
from medv_ray.archive.ledger import Ledger
from medv_ray.archive.results import Choice, Join, rows_of
from medv_ray.archive.rows import read_run, write_part
from medv_ray.archive.run import Run
from medv_ray.archive.store import Store
from medv_ray.cli import app
from medv_ray.errors import DataError, RunError, SettingsError
from medv_ray.schema import ANSWER_SCHEMA

IDENTITY = IDENTITY_OF_MAKE = {
    "settings": {"sampler": {"steps": 64, "gen_length": 64}},
    "model": "sha256:abc",
}


@pytest.fixture
def run(make, tmp_path) -> str:
    """Ten rows: two quarantined, one abstained; confidence falls with the row."""
    make.parquet(rows=10, id=["a", "b\n", *"cdefghi", "j\n"])
    planned = make.plan(id_column="id")
    out = str(tmp_path / "run")
    with Run.open(out, planned, IDENTITY) as opened:
        for chunk in opened.todo():
            records = make.records(planned, chunk)
            for record in records:
                record["image_paths"] = [f"pictures/{record['row']}.png"]
                if record["status"] == "answered":
                    record["confidence"] = 1 - record["row"] / 16
                if record["row"] == 5:
                    record |= {"status": "abstained", "reason": "low_confidence"}
            opened.commit(write_part(opened.store, chunk, records))
        opened.finish()
    return out


def column(found, name: str = "row") -> list:
    return [value for table in found for value in table.column(name).to_pylist()]


def test_rows_are_chosen(run):
    assert column(rows_of(run, Choice())) == list(range(10))
    assert column(rows_of(run, Choice(status="quarantined"))) == [1, 9]
    for reason in ("E1104", "bad_id"):
        assert column(rows_of(run, Choice(reason=reason))) == [1, 9]
    assert column(rows_of(run, Choice(reason="low_confidence"))) == [5]
    assert column(rows_of(run, Choice(below=0.6))) == [7, 8]
    assert column(rows_of(run, Choice(limit=3))) == [0, 1, 2]
    (none,) = rows_of(run, Choice(reason="E1203"))
    assert none.num_rows == 0
    assert none.schema.equals(ANSWER_SCHEMA)


@pytest.mark.parametrize("limit", [None, 3, 100])
def test_rows_are_sorted_and_nulls_come_last(run, limit):
    assert column(rows_of(run, Choice(sort="confidence", limit=limit)))[:3] == [8, 7, 6]
    assert column(rows_of(run, Choice(sort="-confidence", limit=limit)))[:3] == [0, 2, 3]
    assert column(rows_of(run, Choice(sort="-row", limit=limit)))[:3] == [9, 8, 7]
    by_status = column(rows_of(run, Choice(sort="status", limit=limit)))
    assert by_status[:3] == [5, 0, 2]
    if limit is None:
        assert column(rows_of(run, Choice(sort="confidence")))[-2:] == [1, 9]


def test_a_choice_that_no_run_has_is_refused(run, tmp_path):
    for choice in (
        Choice(status="done"), Choice(reason="E9999"), Choice(sort="token_ids"), Choice(sort="x"),
    ):  # fmt: skip
        with pytest.raises(SettingsError):
            list(rows_of(run, choice))
    with pytest.raises(RunError) as caught:
        list(rows_of(str(tmp_path / "nothing"), Choice()))
    assert caught.value.code == "E1507"


def test_an_unfinished_run_on_either_store(make, out):
    make.parquet(rows=10)
    make.job(make.plan(), out, stop_after=2)
    assert column(rows_of(out, Choice(sort="row"))) == list(range(8))


def test_small_parts_are_put_together(run, monkeypatch):
    tables = [ANSWER_SCHEMA.empty_table(), *rows_of(run, Choice())] * 3
    assert [t.num_rows for t in results.batches(iter(tables))] == [30]
    monkeypatch.setattr(results, "BATCH_ROWS", 15)
    assert [t.num_rows for t in results.batches(iter(tables))] == [20, 10]


def test_the_pictures_path_is_in_rows_and_quarantine(run):
    assert column(rows_of(run, Choice(limit=2)), "image_paths") == [
        ["pictures/0.png"], ["pictures/1.png"],
    ]  # fmt: skip
    quarantine = pq.read_table(Path(run) / "quarantine" / "quarantine.parquet")
    assert quarantine.column("image_paths").to_pylist() == [["pictures/1.png"], ["pictures/9.png"]]


def test_runs_from_before_the_column_are_read_resumed_and_merged(make, tmp_path, monkeypatch):
    """Old parts lack it: their rows have null there, beside new ones that have it."""
    make.parquet(rows=12)
    planned, out = make.plan(), str(tmp_path / "run")
    names = [name for name in ANSWER_SCHEMA.names if name != "image_paths"]
    with monkeypatch.context() as old:
        old.setattr(rows, "ANSWER_SCHEMA", pa.schema([ANSWER_SCHEMA.field(n) for n in names]))
        make.job(planned, out, stop_after=1)
    (part,) = (Path(out) / "rows").glob("*.parquet")
    assert "image_paths" not in pq.read_schema(part).names
    assert column(read_run(out), "image_paths") == [None] * 4
    assert column(read_run(out, ["row", "image_paths"]), "image_paths") == [None] * 4
    with Run.open(out, planned, IDENTITY_OF_MAKE) as opened:
        for chunk in opened.todo():
            records = [r | {"image_paths": ["a.png"]} for r in make.records(planned, chunk)]
            opened.commit(write_part(opened.store, chunk, records))
        compact(opened.store, opened.ledger)
        opened.finish()
    assert len(Ledger.load(Store(out)).files) == 1
    assert column(read_run(out), "image_paths") == [None] * 4 + [["a.png"]] * 8


def test_names_of_pictures(make):
    make.tar([("x/a.txt", b"why?", {}), ("x/a.png", b"png", {})])
    (row,) = make.rows(make.plan())
    (path,) = rows.image_paths(row, "part-0.tar")
    assert path.startswith("part-0.tar/x/a")
    row.image_name = "b\udcff.png"
    assert rows.image_paths(row) == [r"b\xff.png"]
    row.image_name = None
    assert rows.image_paths(row) == [None]
    row.image = None
    assert rows.image_paths(row) is None


RUNS = ["=1+1", "+A1", "-A1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "=cmd|' /C calc'!A0", "\uff1d1"]
PLAIN = ["yes", "-5", "+3.25", "-1e-3", ".5", "a=b", "", "'=x", " x", "3-4", "1,2", 'say "x"', None]


def test_no_cell_of_a_csv_runs(tmp_path):
    text = pa.chunked_array([pa.array(RUNS + PLAIN, pa.string())])
    assert exports.guarded(text).to_pylist() == ["'" + value for value in RUNS] + PLAIN
    table = pa.table(
        {
            "=head": text,
            "number": pa.array([-0.5] * len(text), pa.float32()),
            "whole": pa.array([-3] * len(text)),
            "paths": pa.array([["=a", None, "b"]] * len(text), pa.list_(pa.string())),
            "token_ids": pa.array([[1]] * len(text)),
            "bytes": pa.array([b"x"] * len(text)),
            "more": pa.array([{"x": 1}] * len(text)),
        }
    )
    path = tmp_path / "out.csv"
    assert exports.write_csv(str(path), iter([table, table])) == 2 * len(text)
    with path.open(newline="") as file:
        header, *lines = csv.reader(file)
    assert header == ["'=head", "number", "whole", "paths", "more"]
    assert [line[0] for line in lines] == 2 * (["'" + v for v in RUNS] + [v or "" for v in PLAIN])
    assert {tuple(line[1:]) for line in lines} == {("-0.5", "-3", "'=a |  | b", '{"x": 1}')}


def test_exports_have_the_same_rows(run, tmp_path):
    choice = Choice(sort="row")
    files = {kind: str(tmp_path / f"out.{kind}") for kind in ("csv", "jsonl", "parquet")}
    for kind, write in (
        ("csv", exports.write_csv),
        ("jsonl", exports.write_jsonl),
        ("parquet", exports.write_parquet),
    ):
        assert write(files[kind], rows_of(run, choice)) == 10
    (want,) = rows_of(run, choice)
    assert pq.read_table(files["parquet"]).equals(want)
    lines = [json.loads(line) for line in Path(files["jsonl"]).read_text().splitlines()]
    assert lines == want.to_pylist()
    with open(files["csv"], newline="") as file:
        cells = list(csv.DictReader(file))
    assert [cell["id"] for cell in cells] == want.column("id").to_pylist()
    assert cells[3]["image_paths"] == "pictures/3.png"
    assert float(cells[3]["confidence"]) == 0.8125
    assert "token_ids" not in cells[0]
    assert not list(tmp_path.glob("*.tmp"))


def test_an_export_of_no_rows_has_its_columns(run, tmp_path):
    path = str(tmp_path / "out.csv")
    assert exports.write_csv(path, rows_of(run, Choice(reason="E1203"))) == 0
    assert Path(path).read_text().startswith('"id","file","row","image_paths"')


def test_an_export_that_fails_leaves_nothing(run, tmp_path):
    def failing():
        yield from rows_of(run, Choice())
        raise RunError("E1506", "damaged.")

    with pytest.raises(RunError):
        exports.write_jsonl(str(tmp_path / "out.jsonl"), failing())
    assert not list(tmp_path.glob("out*"))
    with pytest.raises(RunError) as caught:
        exports.write_csv(str(tmp_path / "no" / "folder.csv"), rows_of(run, Choice()))
    assert caught.value.code == "E1511"


def test_no_number_breaks_the_json(tmp_path):
    pairs = pa.array([[("a", math.nan)], [("b", 3.0)]], pa.map_(pa.string(), pa.float64()))
    table = pa.table({"x": [math.nan, 1.0], "y": [[math.inf], [2.0]], "z": pairs})
    exports.write_jsonl(str(tmp_path / "x"), iter([table]))
    lines = (tmp_path / "x").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"x": None, "y": [None], "z": [["a", None]]},
        {"x": 1.0, "y": [2.0], "z": [["b", 3.0]]},
    ]


def test_a_date_that_python_has_not_ends_no_export(tmp_path):
    days = pa.array([1, 3_000_000], pa.int32()).cast(pa.date32())
    table = pa.table({"day": days, "days": pa.ListArray.from_arrays([0, 1, 2], days)})
    exports.write_jsonl(str(tmp_path / "x"), iter([table]))
    lines = list(map(json.loads, (tmp_path / "x").read_text().splitlines()))
    assert lines[0] == {"day": "1970-01-02", "days": ["1970-01-02"]}
    assert lines[1] == {"day": "a date out of range", "days": ["a date out of range"]}
    exports.write_csv(str(tmp_path / "y"), iter([table]))


RECORDS = [{"key": "a", "age": "007", "status": "x"}, {"key": "h", "age": "8", "status": "y"}]
TABLES = {
    "t.csv": 'key,age,status\na,"007",x\nh,8,y\nzz,9,z\n',
    "t2.csv": "key;age;status\na;007;x\nh;8;y\n",
    "t.tsv": "key\tage\tstatus\na\t007\tx\nh\t8\ty\n",
    "t.jsonl": "".join(json.dumps(record) + "\n" for record in RECORDS),
    "t.json": json.dumps(RECORDS),
}


@pytest.mark.parametrize("name", TABLES)
def test_a_table_is_joined_by_id(run, tmp_path, name):
    path = tmp_path / name
    path.write_text(TABLES[name])
    (found,) = map(Join(exports.read_table(str(path)), "key").add, rows_of(run, Choice()))
    assert found.column("age").to_pylist() == ["007", *[None] * 6, "8", None, None]
    assert found.column("table.status").to_pylist()[7] == "y"
    assert found.column("status").to_pylist()[7] == "answered"


def test_a_table_is_joined_by_the_order_of_the_input(make, run):
    path = str(make.archive / "a.parquet")
    table = exports.read_table(path)
    assert "image" not in table.column_names  # bytes
    join = results.joined(run, path, table, "row")
    (found,) = map(join.add, rows_of(run, Choice(sort="-row", limit=2)))
    assert found.column("table.question").to_pylist() == [
        "what is a.parquet 9?",
        "what is a.parquet 8?",
    ]
    with pytest.raises(SettingsError, match="no input file"):
        results.joined(run, "elsewhere/b.parquet", table, "row")


def test_joins_that_mean_nothing_are_refused(run, tmp_path):
    table = pa.table({"id": ["a", "a", "b"], "x": [1, 2, 3]})
    with pytest.raises(SettingsError, match="1 rows have a value of another row"):
        Join(table, "id")
    with pytest.raises(SettingsError, match="the table has id, x"):
        Join(table, "patient")
    (tmp_path / "t.xlsx").write_bytes(b"PK")
    with pytest.raises(SettingsError, match="csv"):
        exports.read_table(str(tmp_path / "t.xlsx"))
    (tmp_path / "t.csv").write_text("a,b\n1,2,3\n")
    with pytest.raises(DataError) as caught:
        exports.read_table(str(tmp_path / "t.csv"))
    assert caught.value.code == "E1105"
    assert str(tmp_path) not in str(caught.value)


def test_texts_that_look_like_times_stay_texts(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text('{"key": "2024-01-01 10:00:00", "n": 1}\n')
    assert exports.read_table(str(path)).to_pylist() == [{"key": "2024-01-01 10:00:00", "n": 1}]


def medv(*arguments: str):
    return CliRunner().invoke(app, ["rows", *arguments])


def test_the_command_shows_and_writes(run, tmp_path):
    shown = medv(run, "--status", "quarantined", "--reason", "E1104")
    assert shown.exit_code == 0
    assert "pictures/1.png" in shown.stdout
    assert "quarantined, E1104 bad_id" in shown.stdout
    assert "2 rows." in shown.stderr
    assert "there may be more" in medv(run, "--limit", "2").stderr
    table = tmp_path / "mine.csv"
    table.write_text("id,age\na,7\n")
    files = [str(tmp_path / f"out.{kind}") for kind in ("csv", "jsonl", "parquet")]
    both = medv(
        run, "--csv", files[0], "--jsonl", files[1], "--parquet", files[2], "--join", str(table)
    )
    assert both.exit_code == 0
    assert both.stdout == ""
    assert "10 rows written (--parquet)" in both.stderr
    assert pq.read_table(files[2]).column("age").to_pylist()[0] == "7"
    assert "7" in medv(run, "--join", str(table), "--limit", "1").stdout


def test_the_command_refuses_what_would_do_harm(run, tmp_path):
    table = tmp_path / "mine.csv"
    table.write_text("id,age\na,7\n")
    for arguments in (
        ["--csv", str(table), "--join", str(table)],
        ["--parquet", f"{run}/rows/mine.parquet"],
        ["--limit", "0"],
        ["--reason", "E9"],
    ):
        message = medv(run, *arguments)
        assert message.exit_code == 2
        assert "E1001" in message.stderr
    assert table.read_text() == "id,age\na,7\n"
    assert medv(str(tmp_path), "--limit", "1").exit_code == 2


def test_control_characters_do_not_reach_the_terminal(make, tmp_path):
    make.parquet(rows=1, question=["\x1b[31mred\x07 [bold]x[/bold]"])
    out = str(tmp_path / "run")
    make.job(make.plan(), out)
    message = medv(out).stdout
    assert "\x1b" not in message
    assert "\x07" not in message
    assert "[bold]x" in message


STRINGS = [
    pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string()),
    pa.dictionary(pa.int8(), pa.large_string()),
]  # fmt: skip


@pytest.mark.parametrize("kind", STRINGS, ids=str)
def test_text_of_any_type_is_guarded(tmp_path, kind):
    plain = pa.array(["=1+1", "yes", None])
    text = (
        plain.dictionary_encode().cast(kind) if pa.types.is_dictionary(kind) else plain.cast(kind)
    )
    path = tmp_path / "out.csv"
    exports.write_csv(str(path), iter([pa.table({"x": text})]))
    with path.open(newline="") as file:
        assert [line[0] if line else "" for line in csv.reader(file)] == ["x", "'=1+1", "yes", ""]


LIKE_SCORED = {
    "utf16.csv": ("key,age\na,ä7\n".encode("utf-16"), None),
    "latin.csv": ("key,age\na,ä7\n".encode("latin-1"), "latin-1"),
    "trailing.csv": ("key,age\na,ä7,\nh,8,,\n".encode(), None),
    "said.csv": ("sep=;\nkey;age\na;ä7\n".encode(), None),
    "blanks.csv": ("key, age\na, ä7\n".encode(), None),
    "bars.csv": ("key|age\na|ä7\n".encode(), None),
    "unnamed.csv": (",key,age,\n0,a,ä7,\n".encode(), None),
    "wrapped.json": (json.dumps({"data": [{"key": "a", "age": "ä7"}]}).encode(), None),
    "keys.ndjson": (b'{"key": "a", "age": "\xc3\xa47", "x": [1]}\n{"key": "h", "x": "y"}\n', None),
    "bad.jsonl": (b'{"key": "a", "age": "\xc3\xa47"}\n{"key": \n', None),
}


def test_a_single_dialogue_is_one_row(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text(json.dumps({"messages": [{"role": "user", "content": "a?"}], "n": 1}) + "\n")
    table = exports.read_table(str(path))
    assert (table.num_rows, table.column_names) == (1, ["messages", "n"])


@pytest.mark.parametrize("name", LIKE_SCORED)
def test_tables_that_score_can_be_joined(run, tmp_path, name):
    data, encoding = LIKE_SCORED[name]
    path = tmp_path / name
    path.write_bytes(data)
    table = exports.read_table(str(path), "key", encoding)
    assert {"key", "age"} <= set(table.column_names) <= {"key", "age", "x"}
    join = Join(table, "key")
    (found,) = map(join.add, rows_of(run, Choice()))
    assert found.column("age").to_pylist()[0] == "ä7"
    assert join.partners == sum(key in ("a", "h") for key in table.column("key").to_pylist())


@pytest.mark.parametrize(
    "kind", [pa.binary(16), pa.binary(), pa.dictionary(pa.int8(), pa.binary())], ids=str
)
def test_ids_of_bytes_meet_as_when_they_are_scored(make, tmp_path, kind):
    plain = pa.array([bytes(15) + b"\1", b"\xff" * 16], pa.binary())
    ids = plain.dictionary_encode().cast(kind) if pa.types.is_dictionary(kind) else plain.cast(kind)
    make.parquet(rows=2, id=plain)
    out, path = str(tmp_path / "run"), str(tmp_path / "t.parquet")
    make.job(make.plan(), out)
    pq.write_table(pa.table({"study": ids, "age": [7, 8]}), path)
    (found,) = map(Join(exports.read_table(path, "study"), "study").add, rows_of(out, Choice()))
    assert found.column("age").to_pylist() == [7, 8]


def test_the_command_says_how_many_rows_have_a_partner(run, tmp_path):
    table = tmp_path / "mine.csv"
    table.write_bytes("id,Größe\na,7\nzz,8\n".encode("latin-1"))
    said = medv(run, "--join", str(table), "--encoding", "latin-1").stderr
    assert "1 of 10 rows have a row in the table of --join." in said
    files = ["--csv", str(tmp_path / "o.csv"), "--jsonl", str(tmp_path / "o.jsonl")]
    said = medv(run, "--join", str(table), "--encoding", "cp1252", *files).stderr
    assert said.count("1 of 10 rows") == 2
    assert medv(run, "--join", str(table), "--encoding", "none").exit_code == 2
    assert "E1120" in medv(run, "--join", str(table)).stderr
