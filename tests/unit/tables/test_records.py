"""Text tables: whatever their bytes are, a record read alone is the one that was found."""

import io
import json
import random
from functools import partial

import pytest

from medv_ray.errors import DataError
from medv_ray.tables.columns import Asked, is_row
from medv_ray.tables.json_text import strict_json
from medv_ray.tables.records import Reading, open_table, read_again

ROWS = [{"image": "0.png", "question": "a?"}, {"image": "1.png", "question": "b ä\n"}]
TABLES = {
    "a.csv": 'image,question\n0.png,a?\n1.png,"b, ""c""\nd"\n',
    "b.jsonl": "\n".join(json.dumps(row) for row in ROWS),
    "c.json": json.dumps(ROWS, ensure_ascii=False),
    "d.json": json.dumps({"version": 1, "data": ROWS}, indent=1),
    "e.json": json.dumps({"x": ROWS[0], "y": ROWS[1]}),
}


def scan(name: str, data: bytes, encoding: str | None = None):
    asked = partial(is_row, Asked())
    table = open_table(io.BytesIO(data), name, Reading(encoding), asked)
    return table, list(table.records)


def plain(values: object) -> str:
    return json.dumps(values, default=lambda odd: type(odd).__name__)


@pytest.mark.parametrize("name", list(TABLES))
@pytest.mark.parametrize("encoding", [None, "utf-16", "gb18030"])
def test_a_record_is_found_again_by_its_span(name: str, encoding: str | None) -> None:
    picks = random.Random(7)
    letters = list('ab,;\t|"\n\r é腫🫁{}[]:\\')
    for _ in range(150):
        text = TABLES[name]
        for _ in range(picks.randrange(4)):
            at = picks.randrange(len(text) + 1)
            text = text[:at] + picks.choice(letters) + text[at + picks.randrange(3) :]
        data = text.encode(encoding or "utf-8")
        try:
            table, records = scan(name, data, encoding)
        except DataError:
            continue
        for record in records:
            span = data[record.offset : record.offset + record.length]
            values, error = read_again(name, table.style, table.header, span)
            assert plain(values) == plain(record.values)
            assert (error is None) == (record.error is None)


@pytest.mark.parametrize(
    ("name", "text", "lines"),
    [
        ("a.csv", '\nimage,question\n0.png,"a\nb"\n\n1.png,c\n', [3, 6]),
        ("a.jsonl", '\n{"image": 1}\n\n{"image": 2}', [2, 4]),
        ("a.json", '[\n{"image": 1},\n\n{"image":\n2},{"image": 3}]', [2, 4, 5]),
        ("a.json", '{"n": 1,\n"data": [{"image": 1},\n{"image": 2}]}', [2, 3]),
    ],
)
def test_the_line_of_a_record(name: str, text: str, lines: list[int]) -> None:
    assert [record.line for record in scan(name, text.encode())[1]] == lines


def test_a_list_is_read_piece_by_piece() -> None:
    rows = [{"image": f"{n}.png", "note": "ü" * 3000} for n in range(800)]
    rows[400]["note"] = 'ä"]}\\' * 300_000
    data = json.dumps(rows, ensure_ascii=False).encode()
    records = scan("a.json", data)[1]
    assert [record.values["image"] for record in records] == [f"{n}.png" for n in range(800)]
    with pytest.raises(DataError, match="entry 799"):
        scan("a.json", data[:-30])


@pytest.mark.parametrize(
    ("head", "names"),
    [
        ("image,question", ("image", "question")),
        ("image;a,b;question", ("image", "a,b", "question")),
        ("a\tb\tc", ("a", "b", "c")),
        ("a|b", ("a", "b")),
        ("sep=|\na;b|image", ("a;b", "image")),
        ('"sep=;"\nimage;b', ("image", "b")),
    ],
)
def test_what_separates_columns(head: str, names: tuple[str, ...]) -> None:
    assert scan("a.csv", f"{head}\n".encode())[0].header == names


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
@pytest.mark.parametrize("gap", ["\n", " " * 2**21, "x"])
def test_what_is_behind_a_list_is_not_passed_over(name: str, gap: str) -> None:
    one = json.dumps(ROWS[:2])
    with pytest.raises(DataError, match="more behind its list of 2 entries") as caught:
        scan(name, f"{one}{gap}{one}".encode())
    assert caught.value.code == "E1105"
    assert len(scan(name, f"{one} \n\n{' ' * 2**21}".encode())[1]) == 2


def test_a_repeated_key_looks_alike_in_every_process() -> None:
    """Digests of rows are made of it."""
    first, second = (strict_json('{"a": 1, "a": 2}') for _ in range(2))
    assert first["a"] is not second["a"]
    assert repr(first) == repr(second)


COLUMNS = [
    {"image": {"0": "a.png", "1": "b.png"}, "question": {"0": "a?", "1": "b?"}},
    {"image": ["a.png"], "question": ["a?"]},
]
ROWS = [
    {"image": {"bytes": None, "path": "a.png"}},
    {"image": ["a.png", "b.png"], "question": "a?"},
    {"images": ["a.png"], "messages": [{"role": "user", "content": "a?"}]},
    {"image": {"path": "a.png"}, "question": "a?"},
    {"id": 3, "image": ["a.png"], "question": "a?"},
    {"id": True, "image": ["a.png"], "choices": ["yes", "no"], "question": "a?"},
]


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_a_table_written_column_by_column_is_refused(name: str, indent: int | None) -> None:
    for columns in COLUMNS:
        with pytest.raises(DataError, match="orient='records'"):
            scan(name, json.dumps(columns, indent=indent).encode())
    for row in ROWS if name == "a.json" or indent is None else ():
        [record] = scan(name, json.dumps(row, indent=indent).encode())[1]
        assert record.values == row
