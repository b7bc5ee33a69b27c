"""Cells of a row become checked text: the same rules for parquet, tables and tar members."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from medv_ray.archive.chunks import Chunk, Row
from medv_ray.archive.ids import fallback_id
from medv_ray.archive.settings import BRACES, QUESTION, ArchiveSettings, names_of
from medv_ray.archive.sources import Archive
from medv_ray.errors import DataError
from medv_ray.tables.cells import (
    cell_text,
    choices_of,
    first_exchange,
    last_exchange,
    without_marks,
)
from medv_ray.tables.columns import MESSAGES, Columns
from medv_ray.tables.ids import id_text, repeated_id

Cells = Mapping[str, Any]


def pick(columns: Columns, values: Mapping[str, Any]) -> dict[str, Any]:
    """The cells of a record that are asked for: id, image, question, reference, and dialogue,
    choices and answer_type where there is such a column."""
    wanted = (columns.id, columns.image, columns.question, columns.answer)
    found = [None if name is None else values.get(name) for name in wanted]
    cells: dict[str, Any] = dict(zip(("id", "image", "question", "reference"), found, strict=True))
    if columns.choices is not None:
        cells["choices"] = values.get(columns.choices)
    if columns.answer_type is not None:
        cells["answer_type"] = values.get(columns.answer_type)
    if columns.more:
        cells["more"] = {name: values.get(name) for name in columns.more}
    if columns.turns is None:
        return cells
    exchange = last_exchange if columns.turns == MESSAGES else first_exchange
    try:
        said = cells["dialogue"] = exchange(values.get(columns.turns))
    except DataError as error:
        cells["dialogue"] = error
    else:
        if said.pictures and cells["image"] in (None, "", []):
            cells["image"] = list(said.pictures)
    return cells


def make_row(archive: Archive, chunk: Chunk, row: int, cells: Cells, has_id: bool) -> Row:
    """A Row with checked id, question and reference; the pictures are the caller's.

    `cells` may hold id, question, reference, dialogue and choices as they came, and error: a
    DataError of the whole row.
    """
    stem = archive.files[chunk.file].stem
    result = Row(fallback_id(stem, row), chunk.file, row)
    result.error = cells.get("error")
    if result.error is not None:
        return result
    try:
        if has_id:
            name_row(archive.settings, result, cells.get("id"), row in chunk.duplicates)
    except DataError as error:
        result.error = error
    try:
        fill(archive.settings, result, cells)
    except DataError as error:
        result.error = result.error or error
    return result


def name_row(settings: ArchiveSettings, row: Row, cell: Any, repeats: bool) -> None:
    """Give the row its own id. Raises DataError E1104, E1109 for one that is no name, where ids are
    asked for."""
    try:
        own = id_text(cell)
    except DataError:
        if settings.id_column is not None:
            raise
        row.warnings += ("id_unusable",)
        return
    if own is None:
        row.warnings += ("id_missing",)
    elif repeats:
        row.id = repeated_id(own, row.id)
        row.warnings += ("id_repeated",)
    else:
        row.id = own


def fill(settings: ArchiveSettings, row: Row, cells: Cells) -> None:
    """Question, history, reference and choices. Raises DataError E1109, E1112, E1301, E1304, E1307,
    E1308."""
    said = cells.get("dialogue")
    if isinstance(said, DataError):
        raise said
    asked, reference = cells.get("question"), cells.get("reference")
    if said is not None and settings.question is None:
        asked, row.marks = said.question, said.marks
        row.history, row.system = said.history, said.system
        reference = said.reference if reference in (None, "") else reference
    kind = cells.get("answer_type")
    kind = kind.strip().lower() if isinstance(kind, str) else None
    row.answer_type = kind if kind in ("open", "closed") else None
    limit = settings.max_cell_bytes
    try:
        row.reference = cell_text(reference, "answer", limit)
    except DataError as error:
        if error.code != "E1109" or settings.answer_column is not None:
            raise
        row.warnings += ("answer_is_no_text",)  # nobody asked for it
    if settings.question is not None:
        row.question = settings.question
    elif settings.asked.question is not None:
        ask(row, asked, limit)
    more = {
        name: cell_text(cells.get("more", {}).get(name), "cell", limit)
        for name in settings.asked.more
    }
    if settings.prompt is not None:
        texts = {**more, QUESTION: row.question}
        empty = [name for name in names_of(settings.prompt) if not (texts[name] or "").strip()]
        row.warnings += tuple(f"empty_cell:{name}" for name in dict.fromkeys(empty))
        row.prompt = prompted(settings.prompt, texts)
        row.question = row.question or row.prompt
    if settings.system_column is not None:
        row.system = more[settings.system_column] or row.system
    try:
        row.choices = choices_of(cells.get("choices"), limit)
    except DataError as error:
        if settings.choices_column is not None or error.code not in ("E1109", "E1308"):
            raise
        row.warnings += ("choices_not_used",)  # nobody asked for them


def prompted(prompt: str, texts: Mapping[str, str | None]) -> str:
    """The prompt with the row's texts in it. Raises DataError E1301 where one is missing."""

    def text_of(found: re.Match[str]) -> str:
        if found[0] in ("{{", "}}"):
            return found[0][0]
        text = texts[found[1]]
        if text is None or not text.strip():
            rule = f"the column {found[1]!r}, which the prompt names, is null, empty or white space"
            raise DataError("E1301", f"{rule}.")
        return text.strip()

    return BRACES.sub(text_of, prompt)


def ask(row: Row, asked: Any, limit: int) -> None:
    """Give the row its question. Raises DataError E1109, E1112, E1301, E1304, E1307."""
    question = question_of(asked, limit)
    row.question = question  # stands in the output of a row that is refused, too
    row.question, marks = without_marks(question)
    row.marks += marks
    if row.marks:
        row.warnings += ("image_mark",)
    if not row.question.strip():
        raise DataError("E1301", "the question is nothing but the mark of an image.")


def question_of(value: Any, limit: int) -> str:
    """The question of a row. Raises DataError E1109, E1112, E1301, E1304."""
    if value is not None and not isinstance(value, str | bytes):
        raise DataError("E1109", f"the question is a {type(value).__name__}, not text.")
    text = cell_text(value, "question", limit)
    if text is None or not text.strip():
        raise DataError("E1301", "the question is null, empty or white space.")
    return text
