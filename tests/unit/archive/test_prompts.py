"""Prompts and system sentences made of a row's columns: alike from every kind of archive."""

import csv
import io
import json

import pytest

from medv_ray.archive.columns import prompted
from medv_ray.archive.rows import quarantine_record
from medv_ray.archive.settings import ArchiveSettings
from medv_ray.errors import DataError, SettingsError
from medv_ray.settings import build

PROMPT = "Modality: {modality}, {age} {{years}}. {question}"
ROWS = [
    {"question": "What?", "modality": "CT", "age": 5, "system": "Be brief."},
    {"question": "Why?", "modality": " MR {x} ", "age": 61, "system": None},
    {"question": "Where?", "modality": " ", "age": 7, "system": ""},
    {"question": "Who?", "modality": None, "age": None, "system": None},
]
WANT = [
    ("Modality: CT, 5 {years}. What?", "Be brief.", None),
    ("Modality: MR {x}, 61 {years}. Why?", None, None),
    (None, None, "E1301"),
    (None, None, "E1301"),
]


def found(planned, make):
    made = sorted(make.rows(planned), key=lambda row: row.row)
    assert [row.question for row in made] == [row["question"] for row in ROWS]
    return [
        (None if row.error else row.prompt, row.system if not row.error else None,
         row.error.code if row.error else None)
        for row in made
    ]  # fmt: skip


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "csv", "tar"])
def test_columns_of_every_kind_of_archive(make, kind):
    if kind == "parquet":
        make.parquet(
            rows=4, **{name: [row[name] for row in ROWS] for name in ("modality", "age", "system")},
            question=[row["question"] for row in ROWS],
        )  # fmt: skip
    elif kind == "tar":
        members = [(f"{n}.json", json.dumps(row).encode(), {}) for n, row in enumerate(ROWS)]
        make.tar([*members, *((f"{n}.png", b"png", {}) for n in range(4))])
    elif kind == "jsonl":
        make.text("q.jsonl", "\n".join(json.dumps({"image": "0.png", **row}) for row in ROWS))
    else:
        text = io.StringIO()
        writer = csv.DictWriter(text, ["image", *ROWS[0]])
        writer.writeheader()
        writer.writerows({"image": "0.png", **row} for row in ROWS)
        make.text("q.csv", text.getvalue())
    make.text("0.png", b"png")
    (table,) = (path for path in make.archive.iterdir() if path.suffix != ".png")
    asked = {"archive": str(table), "prompt": PROMPT, "system_column": "system"}
    planned = make.plan(**asked)
    assert found(planned, make) == WANT
    empty = [row for row in make.rows(planned) if row.error]
    assert [row.warnings for row in empty] == [
        ("empty_cell:modality",),
        ("empty_cell:modality", "empty_cell:age"),
    ]
    for row in empty:
        assert "'modality'" in row.error.detail
        assert quarantine_record(row, row.error)["warnings"] == [*row.warnings]
    assert planned.identity()["archive"]["prompt"] == PROMPT
    assert "prompt" not in make.plan(archive=str(table)).identity()["archive"], "as before"
    for lacks in ({"prompt": "{nothing}"}, {"system_column": "nothing"}):
        with pytest.raises(DataError, match=r"E1101.*no column 'nothing'.*it has .*modality"):
            make.plan(archive=str(table), **lacks)


def test_without_the_question_no_question_column_is_needed(make):
    make.text("0.png", b"png")
    make.text("q.csv", "image,modality\n0.png,CT\n")
    planned = make.plan(archive=str(make.archive / "q.csv"), prompt="Describe this {modality}.")
    [row] = make.rows(planned)
    assert (row.prompt, row.error) == ("Describe this CT.", None)


def test_a_folder_of_images_has_no_columns(make):
    make.text("0.png", b"\x89PNG\r\n\x1a\n")
    with pytest.raises(SettingsError, match="names 'modality', but a folder of images"):
        make.plan(question="What?", prompt="{modality} {question}")
    planned = make.plan(question="What?", prompt="Look: {question}")
    assert [row.prompt for row in make.rows(planned)] == ["Look: What?"]


@pytest.mark.parametrize("prompt", ["", " ", "{question", "question}", "a {} b", "{{question}"])
def test_braces_that_name_nothing_are_refused(prompt: str):
    with pytest.raises(SettingsError, match="E1001: ArchiveSettings: --prompt "):
        build(ArchiveSettings, {"archive": "x", "prompt": prompt})


def test_a_rows_text_is_no_template() -> None:
    assert prompted("{a}{b}", {"a": "{b}", "b": "{{c}}"}) == "{b}{{c}}"
