"""What a reader makes of one record: the same shape for every dataset."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from medv_ray.data.dataset import Message
from medv_ray.errors import DataError
from medv_ray.tables.cells import IMAGE_MARK, cell_text, check_marks, pictures_of, without_marks

if TYPE_CHECKING:
    from medv_ray.data.vqa.settings import PrepareSettings

Record = Mapping[str, Any]


class Read(NamedTuple):
    """A record as it was found."""

    line: int
    """Of the file, from 1, on which it begins; of parquet and pickles, the row from 0."""
    values: Record
    error: DataError | None = None
    """What is wrong with the record as a whole."""
    header: tuple[str, ...] = ()
    """Columns of a csv, as they stand there."""


SPLITS = {
    "train": ("train",),
    "validation": ("validation", "validate", "val"),
    "test": ("test",),
}
"""Our names of the splits, and the words by which releases call them."""


MARK_TAKEN_OUT = "questions had LLaVA's mark <image> at an end; it was taken out"
SYSTEM_LEFT_OUT = "dialogues had a system message; a stage's own prompt settings take its place"


class Entry(NamedTuple):
    """One record, its texts cleaned, its images not looked at yet."""

    images: tuple[bytes | str, ...]
    """Encoded bytes, or a path relative to the release's image folder."""
    messages: list[Message]
    id: str | None = None
    """None where the release has no ids: split and row number make one."""
    answer_type: str | None = None
    question_type: str | None = None
    remarks: tuple[str, ...] = ()
    """Words for what was changed on the way, to be counted."""
    choices: tuple[str, ...] = ()
    """Allowed answers, the right one among them."""
    groups: Mapping[str, str] = MappingProxyType({})
    """What tables are split by; no empty values."""


class Form(NamedTuple):
    """One layout in which a dataset is published."""

    expects: str
    """The files, for the message when they are not there."""
    find: Callable[[Path], dict[str, list[Path]]]
    """Files of each split that a source (a folder or a file) has."""
    records: Callable[[Path, PrepareSettings], Iterator[Read]]
    """Records of one file in order. Raises DataError when the file cannot be read."""
    entry: Callable[[Record, str, PrepareSettings], Entry | str]
    """An Entry, or the word for why this record is left out on purpose. Raises DataError when
    something is wrong with it; a KeyError is a missing field."""
    image_folders: tuple[str, ...] = ("images", ".")
    """Where image paths are looked up, relative to the source."""
    notes: tuple[str, ...] = ()
    """What the user of the dataset should know."""


def question_entry(image: object, question: object, answer: object, **more: Any) -> Entry:
    """Of a question with its answer; LLaVA's `<image>` at its ends is taken out.

    Raises DataError E1108, E1109, E1111, E1117, E1301, E1307.
    """
    images = images_of(image)
    asked, answered = text(question), text(answer)
    asked, marks = without_marks(asked)
    check_marks(marks, len(images))
    if not asked:
        raise DataError("E1301", "the question is empty.")
    if not answered:
        raise DataError("E1117", "the answer is empty.")
    messages = [
        {"from": "human", "value": f"{front(len(images))}{asked}"},
        {"from": "gpt", "value": answered},
    ]
    remarks = (MARK_TAKEN_OUT,) if marks else ()
    return Entry(images, messages, remarks=remarks, **more)


def groups_of(row: Record, /, **fields: str) -> dict[str, str]:
    """Groups by name of the values of a row's fields, where it has them. Raises DataError E1109,
    E1304."""
    found = {name: text(row.get(field)) for name, field in fields.items()}
    return {name: value for name, value in found.items() if value}


def front(images: int) -> str:
    """What marks so many images before a question."""
    return " ".join([IMAGE_MARK] * images) + "\n"


def text(value: object) -> str:
    """Trimmed text, as `cell_text` has it; nothing as nothing. Raises DataError E1109, E1304."""
    return (cell_text(value, "text") or "").strip()


def images_of(value: object) -> tuple[bytes | str, ...]:
    """Of a cell: bytes, path, base64, Hugging Face's struct of bytes and path, or a list of these.

    Raises DataError E1108, E1109 and E1111.
    """
    found: list[bytes | str] = []
    for name, data in pictures_of(value):
        one = data or name
        if not one:
            raise DataError("E1111", "the row names no image.")
        found.append(one)
    return tuple(found)


def kind_of_answer(value: object) -> str | None:
    """A release's answer_type (OPEN, "CLOSED ", yes/no, other, number) as open or closed."""
    word = text(value).lower()
    return {"yes/no": "closed", "other": "open", "number": "open"}.get(word, word or None)


def yes_no_type(answer: object) -> str:
    """Where a release has no answer_type: yes and no are closed."""
    return "closed" if text(answer).lower().rstrip(".") in ("yes", "no") else "open"


def by_words(folder: Path, patterns: Sequence[str]) -> dict[str, list[Path]]:
    """Files of each split by patterns in which `*` was put as {}: the first pattern and word that
    match."""
    found = {}
    for split, words in SPLITS.items():
        for pattern in (pattern.format(word) for word in words for pattern in patterns):
            paths = sorted(path for path in folder.glob(pattern) if path.is_file())
            if paths:
                found[split] = paths
                break
    return found
