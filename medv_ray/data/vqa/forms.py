"""The layouts in which the public datasets come. Sources: their releases; docs/data.md says which
is which."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from medv_ray.data.dataset import Message
from medv_ray.data.vqa.entries import (
    SYSTEM_LEFT_OUT,
    Entry,
    Form,
    Read,
    Record,
    by_words,
    groups_of,
    images_of,
    kind_of_answer,
    question_entry,
    text,
    yes_no_type,
)
from medv_ray.data.vqa.files import READABLE, records_of
from medv_ray.data.vqa.pickles import load_plain
from medv_ray.data.vqa.settings import PrepareSettings
from medv_ray.errors import DataError
from medv_ray.tables.cells import IMAGE_MARK, choices_of, message_of
from medv_ray.tables.columns import NO_COLUMN, TURNS, Asked, find, listed, resolve
from medv_ray.tables.ids import id_text
from medv_ray.tables.records import Reading

FRAME = "frame_question"
OTHER_LANGUAGE = "other_language"


QUESTIONS = Asked("image", "question", NO_COLUMN, "answer")
DIALOGUES = Asked("image", "conversations", NO_COLUMN)


def _reading(settings: PrepareSettings) -> Reading:
    return Reading(settings.encoding)


def _dialogues(path: Path, settings: PrepareSettings) -> Iterator[Read]:
    return records_of(path, _reading(settings), DIALOGUES)


def _release(path: Path, settings: PrepareSettings) -> Iterator[Read]:
    return records_of(path, _reading(settings), QUESTIONS)


def _with_columns(path: Path, settings: PrepareSettings, asked: Asked) -> Iterator[Read]:
    """Records of a table. Raises DataError E1101 when the first lacks one of the columns."""
    first = True
    for read in records_of(path, _reading(settings), asked):
        if first and read.error is None:
            names = read.header or tuple(read.values)
            if set(TURNS).intersection(names):
                asked = asked._replace(answer=None)
            find(asked, names, path.name)
            first = False
        yield read


# Hugging Face: image struct, question, answer


def _find_hub(source: Path) -> dict[str, list[Path]]:
    return by_words(source, ("data/{}-*.parquet", "{}-*.parquet", "{}.parquet"))


def _hub_entry(row: Record, split: str, settings: PrepareSettings) -> Entry:
    answer = row["answer"]
    return question_entry(row["image"], row["question"], answer, answer_type=yes_no_type(answer))


HUB = Form(
    "data/{train,validation,test}-*.parquet with the columns image, question, answer",
    _find_hub,
    lambda path, settings: _with_columns(path, settings, QUESTIONS),
    _hub_entry,
    (".", "images"),
    ("open and closed are derived: this form has no answer_type; yes and no count as closed",),
)


# PathVQA's own release: pickled question lists and folders of JPEG files


def _find_pickles(source: Path) -> dict[str, list[Path]]:
    return by_words(source, ("qas/{}_vqa.pkl", "pvqa/qas/{}_vqa.pkl"))


def _pickled(path: Path, _: PrepareSettings) -> Iterator[Read]:
    rows = load_plain(path)
    if not isinstance(rows, list):
        raise DataError("E1105", f"{path.name} does not hold a list.")
    wrong = DataError("E1109", "the record is no dict.")
    for number, row in enumerate(rows):
        yield Read(number, row) if isinstance(row, dict) else Read(number, {}, wrong)


def _pathvqa_entry(row: Record, split: str, settings: PrepareSettings) -> Entry:
    name, label = text(row["img_id"]), row["label"]
    if not name:
        raise DataError("E1111", "the row names no image.")
    if not isinstance(label, dict) or not all(isinstance(n, int | float) for n in label.values()):
        raise DataError("E1109", "the label is no dict of answers and scores.")
    # one answer with score 1; were there several, the first of the best
    answer = max(label, key=label.__getitem__, default="")
    # the folder is called by the word that the image's own name begins with
    return question_entry(
        f"{name.split('_')[0]}/{name}.jpg",
        row["sent"],
        answer,
        id=id_text(row["question_id"]),
        answer_type=kind_of_answer(row.get("answer_type")),
        question_type=text(row.get("question_type")) or None,
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
    return question_entry(
        row["image_name"],
        row["question"],
        row["answer"],
        id=id_text(row["qid"]),
        answer_type=kind_of_answer(row["answer_type"]),
        question_type=text(row.get("question_type")) or None,
        groups=groups_of(row, organ="image_organ"),
    )


DATA_RAD = Form(
    "trainset.json, testset.json and images/", _find_data_rad, _release, _data_rad_entry
)


# SLAKE


def _find_slake(source: Path) -> dict[str, list[Path]]:
    return by_words(source, ("{}.json",))


def _slake_entry(row: Record, split: str, settings: PrepareSettings) -> Entry | str:
    if settings.language not in ("all", row["q_lang"]):
        return OTHER_LANGUAGE
    return question_entry(
        row["img_name"],
        row["question"],
        row["answer"],
        id=id_text(row["qid"]),
        answer_type=kind_of_answer(row["answer_type"]),
        question_type=text(row.get("content_type")) or None,
        groups=groups_of(row, modality="modality", location="location"),
    )


SLAKE = Form(
    "{train,validate,test}.json and imgs/", _find_slake, _release, _slake_entry, ("imgs", "images")
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
    # `messages` with `images` is how LLaMA-Factory and ms-swift write it
    said = row[next((name for name in (*TURNS[1:], TURNS[0]) if name in row), TURNS[1])]
    if not isinstance(said, list) or not all(isinstance(entry, dict) for entry in said):
        raise DataError("E1109", "the conversation is no list of messages.")
    messages: list[Message] = []
    inside: list[Any] = []
    system = False
    for entry in said:
        if entry.get("from", entry.get("role")) == "system":
            system = True
            continue
        message, pictures = _message(entry)
        messages.append(message)
        inside += pictures
    held = row.get("image", row.get("images"))
    if held in ([], [None], [""], None, ""):
        # of text alone, as LLaDA-V's mixes hold some; but one that marks an image has lost it
        marked = any(IMAGE_MARK in message["value"] for message in messages)
        held = inside or ([None] if marked else [])
    return Entry(
        images_of(held) if held else (),
        messages,
        id_text(row.get("id")),
        kind_of_answer(row.get("answer_type")),
        text(row.get("question_type")) or None,
        (SYSTEM_LEFT_OUT,) if system else (),
    )


def _message(entry: dict[str, Any]) -> tuple[Message, list[Any]]:
    """Of a message in either spelling of its keys, and the pictures that it holds itself. Text is
    not trimmed: see conversations.py."""
    value = entry.get("value", entry.get("content"))
    pictures: list[Any] = []
    if isinstance(value, list):
        role, value, pictures = message_of(entry)
    else:
        role = str(entry.get("from", entry.get("role")))
    role = {"user": "human", "assistant": "gpt"}.get(role, role)
    return {"from": role, "value": value if isinstance(value, str) else text(value)}, pictures


LLAVA = Form(
    "{train,val,test}.json of conversations, or one file as --source, and images/",
    _find_llava,
    _dialogues,
    _llava_entry,
)


# LLaVA-Med's open-ended benchmark


def _find_open_ended(source: Path) -> dict[str, list[Path]]:
    path = source if source.is_file() else source / OPEN_ENDED_FILE
    return {"test": [path]} if path.is_file() else {}


def _open_ended_entry(row: Record, split: str, settings: PrepareSettings) -> Entry:
    return question_entry(
        row["image"],
        row["text"],
        row["gpt4_answer"],
        id=id_text(row["question_id"]),
        answer_type="open",
        question_type=text(row.get("type")) or None,
    )


OPEN_ENDED_FILE = "llava_med_eval_qa50_qa.jsonl"
OPEN_ENDED = Form(
    f"{OPEN_ENDED_FILE}, or such a file as --source, and images/",
    _find_open_ended,
    lambda path, settings: records_of(
        path, _reading(settings), Asked("image", "text", NO_COLUMN, "gpt4_answer")
    ),
    _open_ended_entry,
    notes=("the known answer is a language model's, made from the caption; see `medv judge`",),
)


# A table of one's own


def _find_table(source: Path) -> dict[str, list[Path]]:
    if source.is_file():
        return {"train": [source]}
    return by_words(source, tuple("{}" + ending for ending in READABLE))


def _table_columns(settings: PrepareSettings) -> Asked:
    return Asked(
        settings.image_column,
        settings.question_column,
        settings.id_column or NO_COLUMN,
        settings.answer_column,
    )


def _table_records(path: Path, settings: PrepareSettings) -> Iterator[Read]:
    named = (settings.answer_type_column, settings.choices_column, *settings.group_columns)
    more = [name for name in named if name is not None]
    for read in _with_columns(path, settings, _table_columns(settings)):
        lost = [name for name in more if name not in read.values] if read.error is None else []
        if lost:
            there = listed(read.header or tuple(read.values))
            said = f"{path.name} has no column {lost[0][:30]!r}; it has {there}."
            raise DataError("E1101", said)
        yield read


def _table_entry(row: Record, split: str, settings: PrepareSettings) -> Entry:
    columns = resolve(_table_columns(settings), tuple(row))
    groups = groups_of(row, **{name: name for name in settings.group_columns})
    if columns.turns is not None:
        return _llava_entry(row, split, settings)._replace(groups=groups)
    kind, choices = settings.answer_type_column, settings.choices_column
    cells = [None if name is None else row[name] for name in columns[:4]]
    image, question, row_id, answer = cells
    allowed = choices_of(row[choices]) if choices else ()
    return question_entry(
        image,
        question,
        answer,
        id=id_text(row_id),
        answer_type=kind_of_answer(row[kind]) if kind else "closed" if allowed else None,
        choices=allowed,
        groups=groups,
    )


TABLE = Form(
    "{train,validation,test}.{csv,tsv,jsonl,json,parquet}, or one such file as --source",
    _find_table,
    _table_records,
    _table_entry,
    (".", "images"),
)
