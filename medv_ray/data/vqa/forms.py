"""The layouts in which the public datasets come. Sources: their releases; docs/data.md says which
is which."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from medv_ray.data.conversations import IMAGE_WORD
from medv_ray.data.vqa.entries import (
    Entry,
    Form,
    Record,
    by_words,
    image_cell,
    kind_of_answer,
    question_and_answer,
    text,
    yes_no_type,
)
from medv_ray.data.vqa.files import READERS, json_records, records_of
from medv_ray.data.vqa.pickles import load_plain
from medv_ray.data.vqa.settings import PrepareSettings
from medv_ray.errors import DataError, no_column

FRAME = "frame_question"
OTHER_LANGUAGE = "other_language"


def _json(path: Path, _: PrepareSettings) -> Iterator[Record | None]:
    return json_records(path)


def _with_columns(path: Path, names: list[str]) -> Iterator[Record | None]:
    """Records of a table. Raises DataError E1101 when the first lacks one of the columns."""
    first = True
    for row in records_of(path):
        missing = [name for name in names if row is not None and name not in row]
        if first and row is not None and missing:
            raise no_column(path.name, missing[0], names, list(row))
        first = first and row is None
        yield row


# Hugging Face: image struct, question, answer


def _find_hub(source: Path) -> dict[str, list[Path]]:
    return by_words(source, ("data/{}-*.parquet", "{}-*.parquet", "{}.parquet"))


def _hub_entry(row: Record, split: str, settings: PrepareSettings) -> Entry:
    answer = row["answer"]
    messages = question_and_answer(row["question"], answer)
    return Entry((image_cell(row["image"]),), messages, answer_type=yes_no_type(answer))


HUB = Form(
    "data/{train,validation,test}-*.parquet with the columns image, question, answer",
    _find_hub,
    lambda path, _: _with_columns(path, ["image", "question", "answer"]),
    _hub_entry,
    (".", "images"),
    ("open and closed are derived: this form has no answer_type; yes and no count as closed",),
)


# PathVQA's own release: pickled question lists and folders of JPEG files


def _find_pickles(source: Path) -> dict[str, list[Path]]:
    return by_words(source, ("qas/{}_vqa.pkl", "pvqa/qas/{}_vqa.pkl"))


def _pickled(path: Path, _: PrepareSettings) -> Iterator[Record | None]:
    rows = load_plain(path)
    if not isinstance(rows, list):
        raise DataError("E1105", f"{path.name} does not hold a list.")
    for row in rows:
        yield row if isinstance(row, dict) else None


def _pathvqa_entry(row: Record, split: str, settings: PrepareSettings) -> Entry:
    name, label = text(row["img_id"]), row["label"]
    if not name:
        raise DataError("E1111", "the row names no image.")
    if not isinstance(label, dict) or not all(isinstance(n, int | float) for n in label.values()):
        raise DataError("E1109", "the label is no dict of answers and scores.")
    # one answer with score 1; were there several, the first of the best
    answer = max(label, key=label.__getitem__, default="")
    # the folder is called by the word that the image's own name begins with
    return Entry(
        (f"{name.split('_')[0]}/{name}.jpg",),
        question_and_answer(row["sent"], answer),
        text(row["question_id"]),
        kind_of_answer(row.get("answer_type")),
        text(row.get("question_type")) or None,
    )


PATHVQA = Form(
    "qas/{train,val,test}_vqa.pkl and images/{train,val,test}/*.jpg",
    _find_pickles,
    _pickled,
    _pathvqa_entry,
    ("images", "pvqa/images"),
)


# VQA-RAD as data_RAD


def _find_data_rad(source: Path) -> dict[str, list[Path]]:
    return by_words(source, ("{}set.json",))


def _data_rad_entry(row: Record, split: str, settings: PrepareSettings) -> Entry | str:
    if row["phrase_type"] == "frame" and not settings.include_frame:
        return FRAME
    return Entry(
        (image_cell(row["image_name"]),),
        question_and_answer(row["question"], row["answer"]),
        text(row["qid"]),
        kind_of_answer(row["answer_type"]),
        text(row.get("question_type")) or None,
    )


DATA_RAD = Form("trainset.json, testset.json and images/", _find_data_rad, _json, _data_rad_entry)


# SLAKE


def _find_slake(source: Path) -> dict[str, list[Path]]:
    return by_words(source, ("{}.json",))


def _slake_entry(row: Record, split: str, settings: PrepareSettings) -> Entry | str:
    if settings.language not in ("all", row["q_lang"]):
        return OTHER_LANGUAGE
    return Entry(
        (image_cell(row["img_name"]),),
        question_and_answer(row["question"], row["answer"]),
        text(row["qid"]),
        kind_of_answer(row["answer_type"]),
        text(row.get("content_type")) or None,
    )


SLAKE = Form(
    "{train,validate,test}.json and imgs/", _find_slake, _json, _slake_entry, ("imgs", "images")
)


# LLaVA's conversations


def _find_llava(source: Path) -> dict[str, list[Path]]:
    if source.is_file():
        return {"train": [source]}
    found = by_words(source, ("{}.json", "{}_*.json", "{}.jsonl"))
    if found:
        return found
    named = ("llava_med_alignment_*.json", "llava_med_instruct_*k*.json")
    paths = [path for pattern in named for path in sorted(source.glob(pattern))]
    if len(paths) > 1:
        raise DataError("E1115", f"{len(paths)} files could be meant; give one as --source.")
    return {"train": paths} if paths else {}


def _llava_entry(row: Record, split: str, settings: PrepareSettings) -> Entry:
    # released and derived files misspell the key
    said = row["conversations"] if "conversations" in row else row["conversatons"]
    images = row.get("image")
    images = images if isinstance(images, list) else [images]
    if not isinstance(said, list) or not all(isinstance(entry, dict) for entry in said):
        raise DataError("E1109", "the conversation is no list of messages.")
    messages = [_message(entry) for entry in said]
    if images in ([], [None], [""]):
        # of text alone, as LLaDA-V's mixes hold some; but one that marks an image has lost it
        marked = any(IMAGE_WORD in message["value"] for message in messages)
        images = [None] if marked else []
    return Entry(
        tuple(image_cell(image) for image in images),
        messages,
        text(row.get("id")) or None,
        kind_of_answer(row.get("answer_type")),
        text(row.get("question_type")) or None,
    )


def _message(entry: dict[str, Any]) -> dict[str, str]:
    """Of a message in either spelling of its keys. Text is not trimmed: see conversations.py."""
    role = entry.get("from", entry.get("role"))
    value = entry.get("value", entry.get("content"))
    role = {"user": "human", "assistant": "gpt"}.get(str(role), str(role))
    return {"from": role, "value": value if isinstance(value, str) else text(value)}


LLAVA = Form(
    "{train,val,test}.json of conversations, or one file as --source, and images/",
    _find_llava,
    lambda path, _: records_of(path),
    _llava_entry,
)


# A table of one's own


def _find_table(source: Path) -> dict[str, list[Path]]:
    if source.is_file():
        return {"train": [source]}
    return by_words(source, tuple("{}" + ending for ending in READERS))


def _table_records(path: Path, settings: PrepareSettings) -> Iterator[Record | None]:
    named = [settings.image_column, settings.question_column, settings.answer_column]
    named += [name for name in (settings.id_column, settings.answer_type_column) if name]
    return _with_columns(path, named)


def _table_entry(row: Record, split: str, settings: PrepareSettings) -> Entry:
    row_id = None
    if settings.id_column is not None:
        row_id = text(row[settings.id_column])
        if not row_id:
            raise DataError("E1102", "the id is empty.")
    kind = settings.answer_type_column
    return Entry(
        (image_cell(row[settings.image_column]),),
        question_and_answer(row[settings.question_column], row[settings.answer_column]),
        row_id,
        kind_of_answer(row[kind]) if kind else None,
    )


TABLE = Form(
    "{train,validation,test}.{csv,jsonl,json,parquet}, or one such file as --source",
    _find_table,
    _table_records,
    _table_entry,
    (".", "images"),
)
