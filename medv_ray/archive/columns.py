"""Cells of a row become checked text: the same rules for parquet, tables and tar members."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from medv_ray.archive.chunks import Chunk, Row
from medv_ray.archive.ids import fallback_id, id_problem
from medv_ray.archive.sources import Archive, ArchiveSettings
from medv_ray.errors import DataError, no_column

Cells = Mapping[str, Any]


class Columns(NamedTuple):
    """Names of the columns that a file has; None for one that it has not and need not have."""

    id: str | None
    image: str
    question: str | None
    answer: str | None


def find_columns(settings: ArchiveSettings, names: list[str], file: str) -> Columns:
    """The columns of a file. Raises DataError E1101 for a missing one that was asked for."""

    def required(column: str) -> str:
        if column not in names:
            told = (settings.image_column, settings.question_column)
            optionals = (settings.id_column or "id", settings.answer_column or "answer")
            raise no_column(file, column, told + optionals, names)
        return column

    def optional(column: str | None, default: str) -> str | None:
        if column is not None:
            return required(column)
        return default if default in names else None

    return Columns(
        id=optional(settings.id_column, "id"),
        image=required(settings.image_column),
        question=None if settings.question is not None else required(settings.question_column),
        answer=optional(settings.answer_column, "answer"),
    )


def make_row(archive: Archive, chunk: Chunk, row: int, cells: Cells, has_id: bool) -> Row:
    """A Row with checked id, question and reference; the image is the caller's.

    `cells` may hold id, question, reference as they came, and error: a DataError of the whole row.
    """
    stem = archive.files[chunk.file].stem
    result = Row(fallback_id(stem, row), chunk.file, row)
    result.error = cells.get("error")
    if has_id and result.error is None:
        result.error = id_problem(cells.get("id"))
        if result.error is None and row in chunk.duplicates:
            result.error = DataError("E1103", "the id belongs to another row already.")
        if result.error is None:
            result.id = str(cells["id"])
    if "error" in cells:
        return result
    try:
        result.question = question_of(archive.settings, cells)
        result.reference = text_of(cells.get("reference"), "answer")
    except DataError as error:
        result.error = result.error or error
    return result


def question_of(settings: ArchiveSettings, cells: Cells) -> str:
    """The question of a row. Raises DataError E1109, E1301, E1304."""
    if settings.question is not None:
        return settings.question
    value = cells.get("question")
    if value is not None and not isinstance(value, str | bytes):
        raise DataError("E1109", f"the question is a {type(value).__name__}, not text.")
    text = text_of(value, "question")
    if text is None or not text.strip():
        raise DataError("E1301", "the question is null, empty or white space.")
    return text


def text_of(value: Any, what: str) -> str | None:
    """Text of a cell; numbers become their decimal form. Raises DataError E1109, E1304."""
    if value is None:
        return None
    if isinstance(value, bytes):
        try:
            value = value.decode()
        except UnicodeDecodeError:
            raise DataError("E1304", f"the {what} is not UTF-8.") from None
    if isinstance(value, bool | int | float):
        return str(value)
    if not isinstance(value, str):
        raise DataError("E1109", f"the {what} is a {type(value).__name__}, not text.")
    if "\0" in value or any("\ud800" <= c <= "\udfff" for c in value):
        raise DataError("E1304", f"the {what} holds a NUL or a lone surrogate.")
    return value
