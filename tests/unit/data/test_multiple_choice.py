"""Multiple-choice releases in small, laid out as they are published, each with damaged records."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from medv_ray.data.dataset import Dataset, Example, row_bytes
from medv_ray.data.vqa.multiple_choice import OPTIONS_TAKEN_OUT, PICTURES_NAMED, SUBJECTS
from medv_ray.data.vqa.prepare import prepare
from medv_ray.errors import DataError
from tests.unit.data.releases import HF, picture, settings, write_images, write_json

IMAGE = HF.field("image").type


def prepared(kind: str, source: Path, split: str = "test") -> tuple[dict[str, Any], list[Example]]:
    index = prepare(settings(kind, source))
    return index, list(Dataset.open(source.parent / "out", split))


def cell(colour: int | None) -> dict[str, Any] | None:
    return None if colour is None else {"bytes": picture(colour), "path": None}


def skipped(source: Path) -> list[tuple[str, str]]:
    with (source.parent / "out" / "skipped.csv").open() as file:
        return [(row["source"], row["reason"]) for row in csv.DictReader(file)]


def pmc(source: Path) -> None:
    write_images(source / "images", "PMC1_F1.jpg", "PMC2_F1.jpg")
    (source / "images" / "bad.jpg").write_bytes(b"no picture")
    names = ["Figure_path", "Question", "Answer", *(f"Choice {a}" for a in "ABCD"), "Answer_label"]
    options = ["A:Diffuse uptake", " B: Focal uptake", "C:None", "D:A: or B"]
    rows = [
        ["PMC1_F1.jpg", "What is the uptake?", " Focal uptake", *options, "B"],
        ["PMC1_F1.jpg", "Which, is it?", "A: or B", *options, "D"],
        ["PMC2_F1.jpg", "Which?", "", *options, "E"],
        ["PMC2_F1.jpg", "Which?", "", *options, ""],
        ["PMC2_F1.jpg", "Which?", "x", "A:x", "B:x", "C:y", "D:z", "A"],
        ["PMC2_F1.jpg", "Which?", "x", "A:x", "B:", "C:y", "D:z", "A"],
        ["gone.jpg", "Which?", "", *options, "A"],
        ["bad.jpg", "Which?", "", *options, "A"],
    ]
    with (source / "test_clean.csv").open("w", newline="") as file:
        csv.writer(file).writerows([names, *rows])


def test_pmc_vqa(tmp_path: Path) -> None:
    source = tmp_path / "pmc"
    source.mkdir()
    pmc(source)
    index, (first, second) = prepared("pmc-vqa", source)
    options = ("Diffuse uptake", "Focal uptake", "None", "A: or B")
    assert (first.choices, first.conversations[1]["value"]) == (options, "Focal uptake")
    assert first.conversations[0]["value"] == "<image>\nWhat is the uptake?"
    assert second.conversations[1]["value"] == "A: or B"
    assert (first.id, first.answer_type, first.groups) == ("test-0", "closed", {})
    assert index["counts"]["test"]["answer_types"] == {"closed": 2}
    assert dict(skipped(source)) == {
        "test_clean.csv:2": "bad_row",
        "test_clean.csv:3": "no_answer",
        "test_clean.csv:4": "bad_choices",
        "test_clean.csv:5": "bad_choices",
        "test_clean.csv:6": "image_missing",
        "test_clean.csv:7": "not_an_image",
    }


def test_version_2_of_pmc_vqa_has_the_letter_in_its_answer(tmp_path: Path) -> None:
    source = tmp_path / "pmc"
    write_images(source / "figures", "PMC1_F1.jpg")
    names = ["index", "Figure_path", "Caption", "Question", *(f"Choice {a}" for a in "ABCD")]
    rows = [["0", "PMC1_F1.jpg", "c", "Which?", " A:u", " B:v", " C:w", " D:x", "C", "test"]]
    with (source / "test_2.csv").open("w", newline="") as file:
        csv.writer(file).writerows([[*names, "Answer", "split"], *rows])
    _, (row,) = prepared("pmc-vqa", source)
    assert (row.choices, row.conversations[1]["value"]) == (("u", "v", "w", "x"), "w")


def test_omnimedvqa(tmp_path: Path) -> None:
    source = tmp_path / "omni"
    write_images(source / "Images/Chest", "a.png", "b.png")
    one = {
        "dataset": "Chest", "question_id": "Chest_1", "question_type": "Modality Recognition",
        "question": "What is it?", "gt_answer": "CT", "image_path": "Images/Chest/a.png",
        "option_A": "MR", "option_B": "CT", "modality_type": "CT(Computed Tomography)",
    }  # fmt: skip
    other = {**one, "question_id": "Chest_2", "option_C": "X-ray", "option_D": "", "modality": "CT"}
    del other["modality_type"]
    bad = {**one, "question_id": "Chest_3", "gt_answer": "PET"}
    single = {key: value for key, value in one.items() if key != "option_A"}
    write_json(source / "QA_information/Open-access/Chest.json", [one, bad, single])
    nameless = {key: value for key, value in one.items() if key != "gt_answer"}
    write_json(source / "QA_information/Open-access/Other.json", [other, nameless, "text"])
    write_json(source / "QA_information/Restricted-access/Secret.json", [one])
    _, rows = prepared("omnimedvqa", source)
    assert [(row.id, row.choices) for row in rows] == [
        ("Chest_1", ("MR", "CT")),
        ("Chest_2", ("MR", "CT", "X-ray")),
    ]
    assert rows[0].groups == {"modality": "CT(Computed Tomography)", "dataset": "Chest"}
    assert rows[1].groups["modality"] == "CT"
    assert rows[0].question_type == "Modality Recognition"
    assert sorted(skipped(source)) == [
        ("Chest.json:1", "bad_row"),
        ("Chest.json:2", "bad_choices"),
        ("Other.json:1", "bad_row"),
        ("Other.json:2", "bad_row"),
    ]


def mmmu_row(number: int, **more: Any) -> dict[str, Any]:
    row = {
        "id": f"validation_Pharmacy_{number}",
        "question": "Which of <image 1> is it?",
        "options": "['It\\'s this', \"<image 2>\", 'none']",
        "explanation": "",
        **{f"image_{n}": None for n in range(1, 8)},
        "img_type": "['Chemical Structures']",
        "answer": "B",
        "topic_difficulty": "Easy",
        "question_type": "multiple-choice",
        "subfield": "Drugs",
        "image_1": cell(number),
        "image_2": cell(number + 1),
    }
    return {**row, **more}


def write_mmmu(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    fields = [(name, IMAGE if name.startswith("image_") else pa.string()) for name in rows[0]]
    pq.write_table(pa.Table.from_pylist(rows, schema=pa.schema(fields)), path)


def test_mmmu(tmp_path: Path) -> None:
    source = tmp_path / "mmmu"
    rows = [
        mmmu_row(1),
        mmmu_row(2, options="[]", question_type="open", answer="['4 mg', '4']", image_2=None),
        mmmu_row(3, options="__import__('os').abort()"),
        mmmu_row(4, options="[" * 3000 + "]" * 3000),
        mmmu_row(5, answer="?"),
        mmmu_row(6, image_1=None, image_2=None),
        mmmu_row(7, options="['a', 'a']"),
        mmmu_row(8, image_2={"bytes": b"no picture", "path": None}),
        mmmu_row(9, image_2={"bytes": None, "path": None}),
    ]
    write_mmmu(source / "Pharmacy" / "validation-00000-of-00001.parquet", rows)
    write_mmmu(source / "Accounting" / "validation-00000-of-00001.parquet", rows[:1])
    write_mmmu(source / "Pharmacy" / "test-00000-of-00001.parquet", [mmmu_row(1, answer="?")])
    write_mmmu(
        source / "Public_Health" / "dev-00000-of-00001.parquet",
        [mmmu_row(1, id="dev_Public_Health_1")],
    )
    index, found = prepared("mmmu-med", source, "validation")
    first, opened, last = found
    assert first.choices == ("It's this", "image 2", "none")
    assert [m["value"] for m in first.conversations] == [
        "<image> <image>\nWhich of image 1 is it?",
        "image 2",
    ]
    assert first.groups == {"subfield": "Drugs", "difficulty": "Easy", "subject": "Pharmacy"}
    assert (opened.answer_type, opened.choices) == ("open", ())
    assert opened.conversations[1]["value"] == "4 mg"
    assert len(last.images) == 1
    assert index["splits"] == {"train": 1, "validation": 3}
    assert [reason for _, reason in skipped(source)] == [
        "bad_row", "bad_row", "no_answer", "image_missing", "bad_choices", "not_an_image",
    ]  # fmt: skip
    assert f"validation: 3 {PICTURES_NAMED}" in index["notes"]
    assert len(SUBJECTS) == 5


def test_medxpertqa(tmp_path: Path) -> None:
    source = tmp_path / "medxpert"
    write_images(source / "images", "MM-1-a.jpeg", "MM-1-b.jpeg")
    row = {
        "id": "MM-1",
        "question": "Which artery?\nAnswer Choices: (A) C (B) D (C) A",
        "options": {"A": "C", "B": "D", "C": "A"},
        "label": "C",
        "images": ["MM-1-a.jpeg", "MM-1-b.jpeg"],
        "medical_task": "Basic Medicine",
        "body_system": "Cardiovascular",
        "question_type": "Understanding",
    }
    rows = [
        row,
        {**row, "id": "MM-2", "question": "Which?", "images": ["MM-1-a.jpeg"]},
        {**row, "id": "MM-3", "options": {"A": "C", "C": "D"}},
        {**row, "id": "MM-4", "options": ["C", "D"]},
        {**row, "id": "MM-5", "label": "CC"},
        {**row, "id": "MM-6", "images": ["MM-1-a.jpeg", "MM-9.jpeg"]},
        {**row, "id": "MM-7", "images": []},
    ]
    path = source / "MM" / "test.jsonl"
    path.parent.mkdir()
    path.write_text("\n".join([*map(json.dumps, rows), "{torn"]))
    index, (first, second) = prepared("medxpertqa-mm", source)
    assert first.conversations[0]["value"] == "<image> <image>\nWhich artery?"
    assert (first.choices, first.conversations[1]["value"]) == (("C", "D", "A"), "A")
    assert first.groups == {"task": "Basic Medicine", "body_system": "Cardiovascular"}
    assert (len(first.images), len(second.images)) == (2, 1)
    assert index["skipped"] == {"bad_row": 4, "image_missing": 2}
    assert f"test: 1 {OPTIONS_TAKEN_OUT}" in index["notes"]


def test_medframeqa(tmp_path: Path) -> None:
    source = tmp_path / "medframe"
    row = {
        "question_id": "q1", "question": "What do they show?", "options": ["a", "b", "c"],
        "correct_answer": "B", "image_1": cell(1), "image_2": cell(2), "image_3": None,
        "image_url": ["u"], "system": "nervous", "organ": "brain", "keyword": "k",
        "modality": "MRI", "video_id": "v",
    }  # fmt: skip
    rows = [
        row,
        {**row, "question_id": "q2", "image_3": cell(3), "correct_answer": "C"},
        {**row, "question_id": "q3", "options": None},
        {**row, "question_id": "q4", "options": ["a"]},
        {**row, "question_id": "q5", "correct_answer": "D"},
        {**row, "question_id": "q6", "image_2": {"bytes": b"torn", "path": None}},
    ]
    path = source / "data" / "test-00000-of-00001.parquet"
    path.parent.mkdir(parents=True)
    listed = pa.list_(pa.string())
    types = {"options": listed, "image_url": listed}
    fields = [(name, IMAGE if name[-1].isdigit() else types.get(name, pa.string())) for name in row]
    pq.write_table(pa.Table.from_pylist(rows, schema=pa.schema(fields)), path)
    index, (first, second) = prepared("medframeqa", source)
    assert (first.choices, first.conversations[1]["value"]) == (("a", "b", "c"), "b")
    assert first.groups == {"body_system": "nervous", "organ": "brain", "modality": "MRI"}
    assert (len(first.images), len(second.images)) == (2, 3)
    assert second.conversations[0]["value"].startswith("<image> <image> <image>\n")
    assert index["skipped"] == {"bad_row": 2, "bad_choices": 1, "not_an_image": 1}


@pytest.mark.parametrize(
    "kind", ["pmc-vqa", "omnimedvqa", "mmmu-med", "medxpertqa-mm", "medframeqa"]
)
def test_a_source_without_the_files_is_refused(tmp_path: Path, kind: str) -> None:
    (tmp_path / "source").mkdir()
    with pytest.raises(DataError, match=r"E1115.*none of the files looked for"):
        prepare(settings(kind, tmp_path / "source"))


def test_datasets_of_before_are_read_and_keep_their_digests(tmp_path: Path) -> None:
    """Without the two columns; and groups are not in the digest, choices are."""
    source = tmp_path / "pmc"
    source.mkdir()
    pmc(source)
    prepare(settings("pmc-vqa", source))
    folder = tmp_path / "out"
    path = folder / "test.parquet"
    rows = pq.read_table(path).to_pylist()
    plain = [{k: v for k, v in row.items() if k not in ("choices", "groups")} for row in rows]
    assert row_bytes(plain[0]) != row_bytes(rows[0])
    grouped = {**plain[0], "choices": None, "groups": [("organ", "x")]}
    assert row_bytes(plain[0]) == row_bytes(grouped)
    table = pq.read_table(path).drop_columns(["choices", "groups"])
    pq.write_table(table, path)
    old = list(Dataset.open(folder, "test"))
    assert [(one.choices, one.groups) for one in old] == [((), {})] * 2
    with pytest.raises(DataError, match="E1114"):  # they had choices
        _ = Dataset.open(folder, "test").digest


def test_groups_that_were_written_as_a_map_are_read(tmp_path: Path) -> None:
    source = tmp_path / "pmc"
    source.mkdir()
    pmc(source)
    prepare(settings("pmc-vqa", source))
    path = tmp_path / "out" / "test.parquet"
    table = pq.read_table(path)
    assert not any(pa.types.is_map(field.type) for field in table.schema)  # `datasets` reads none
    pairs = [[("organ", "brain"), ("modality", "MR")], None]
    maps = pa.array(pairs, pa.map_(pa.string(), pa.string()))
    pq.write_table(table.set_column(table.schema.get_field_index("groups"), "groups", maps), path)
    old = Dataset.open(tmp_path / "out", "test")
    assert [one.groups for one in old] == [{"organ": "brain", "modality": "MR"}, {}]
    assert old.digest


def test_choices_and_groups_of_a_table_of_ones_own(tmp_path: Path) -> None:
    source = tmp_path / "ward"
    write_images(source, "a.png")
    row = {"image": "a.png", "question": "CT or MRI?", "answer": "CT", "device": "x", "site": ""}
    rows = [
        {**row, "allowed": ["CT", "MRI"]},
        {**row, "allowed": [], "site": 3},
        {**row, "allowed": ["PET", "MRI"]},
        {**row, "allowed": ["CT"]},
    ]
    write_json(source / "test.json", rows)
    named = {"choices_column": "allowed", "group_columns": ("device", "site")}
    index = prepare(settings("table", source, **named))
    first, second = Dataset.open(tmp_path / "out", "test")
    assert (first.choices, first.groups) == (("CT", "MRI"), {"device": "x"})
    assert (first.answer_type, second.answer_type) == ("closed", None)
    assert (second.choices, second.groups) == ((), {"device": "x", "site": "3"})
    assert index["skipped"] == {"bad_choices": 2}
    with pytest.raises(DataError, match=r"E1101.*no column 'organ'"):
        prepare(settings("table", source, group_columns=("organ",)))
