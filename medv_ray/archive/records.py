"""Records of question tables: found by byte span, and parsed into cells by one set of rules."""

from __future__ import annotations

import codecs
import csv
import io
import json
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

from medv_ray.archive.chunks import SourceFile
from medv_ray.archive.sources import Archive, ArchiveSettings, ending, file_path
from medv_ray.errors import DataError

TURNS = ("conversations", "conversatons")  # the second is a typing error of published files
MARK = "<image>"
ENCODING: dict[str, Any] = {"encoding": "utf-8", "errors": "surrogateescape"}


class Span(NamedTuple):
    """One record of a table."""

    offset: int
    length: int
    cells: dict[str, Any]


def scan(archive: Archive, file: SourceFile) -> Iterator[tuple[tuple[str, ...], Span]]:
    """All records of a table with the names of its columns. Raises DataError E1105."""
    filesystem, path = file_path(archive, file)
    with filesystem.open_input_file(path) as opened:
        start = opened.read(4)
        opened.seek(0)
        if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            raise DataError("E1105", f"{file.name}: UTF-16; a table is UTF-8.")
        skip = len(codecs.BOM_UTF8) if start.startswith(codecs.BOM_UTF8) else 0
        opened.seek(skip)
        if ending(file.name) == ".csv":
            yield from scan_csv(archive.settings, file, opened, skip)
        elif ending(file.name) == ".json" and first_character(opened, skip) != b"{":
            yield from scan_list(archive.settings, file, opened.read(), skip)
        else:
            yield from scan_lines(archive.settings, opened, skip)


def first_character(opened: Any, skip: int) -> bytes:
    character: bytes = opened.read(4096).lstrip()[:1]
    opened.seek(skip)
    return character


class Lines:
    """Lines of a table with their ends as they are, and how many bytes have been taken."""

    def __init__(self, opened: Any, offset: int) -> None:
        self.text = io.TextIOWrapper(io.BufferedReader(opened), newline="", **ENCODING)
        self.offset = offset
        self.taken = 0

    def __iter__(self) -> Iterator[str]:
        for line in self.text:
            self.offset += len(line.encode(**ENCODING))
            self.taken += 1
            yield line


def scan_csv(
    settings: ArchiveSettings, file: SourceFile, opened: Any, skip: int
) -> Iterator[tuple[tuple[str, ...], Span]]:
    lines = Lines(opened, skip)
    reader = csv.reader(iter(lines), strict=True)
    header: tuple[str, ...] | None = None
    while True:
        offset, taken = lines.offset, lines.taken
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if lines.taken > taken + 1 or header is None:  # other rows are inside this one
                raise DataError(
                    "E1105", f"{file.name}: a quote opened near line {taken + 1} does not close."
                ) from error
            cells: dict[str, Any] = {"error": error}
            yield header, Span(offset, lines.offset - offset, cells)
            continue
        if header is None:
            header = tuple(field.strip() for field in fields)
            if len(set(header)) != len(header):
                raise DataError("E1109", f"{file.name}: two columns have the same name.")
        elif fields:
            cells = csv_cells(settings, header, fields)
            yield header, Span(offset, lines.offset - offset, cells)


def scan_lines(
    settings: ArchiveSettings, opened: Any, skip: int
) -> Iterator[tuple[tuple[str, ...], Span]]:
    lines = Lines(opened, skip)
    offset = skip
    for line in lines:
        if line.strip():
            names, cells = parse_json(settings, line)
            yield names, Span(offset, lines.offset - offset, cells)
        offset = lines.offset


def scan_list(
    settings: ArchiveSettings, file: SourceFile, data: bytes, skip: int
) -> Iterator[tuple[tuple[str, ...], Span]]:
    text = data.decode(**ENCODING)
    del data
    decoder = json.JSONDecoder(parse_int=str)
    position, offset = 0, skip

    def advance(to: int) -> None:
        nonlocal position, offset
        offset += len(text[position:to].encode(**ENCODING))
        position = to

    def space(at: int) -> int:
        while at < len(text) and text[at] in " \t\r\n":
            at += 1
        return at

    try:
        at = space(0)
        if text[at : at + 1] != "[":
            raise ValueError("no list")
        at = space(at + 1)
        while text[at : at + 1] != "]":
            end = decoder.raw_decode(text, at)[1]
            advance(at)
            begin = offset
            advance(end)
            names, cells = parse_json(settings, text[at:end])
            yield names, Span(begin, offset - begin, cells)
            at = space(end)
            if text[at : at + 1] == ",":
                at = space(at + 1)
            elif text[at : at + 1] != "]":
                raise ValueError("no comma")
    except (ValueError, RecursionError) as error:
        raise DataError(
            "E1105", f"{file.name}: not a complete JSON list (near byte {offset})."
        ) from error


def parse(
    settings: ArchiveSettings, file: str, header: tuple[str, ...], text: str
) -> dict[str, Any]:
    """The cells of one record as `draft` found them: id, question, reference, image, or error."""
    if ending(file) != ".csv":
        return parse_json(settings, text)[1]
    try:
        fields = next(csv.reader(io.StringIO(text, newline=""), strict=True))
        return csv_cells(settings, header, fields)
    except (csv.Error, StopIteration):
        return {"error": DataError("E1109", "the record is no valid CSV.")}


def parse_json(settings: ArchiveSettings, text: str) -> tuple[tuple[str, ...], dict[str, Any]]:
    """The keys of a JSON record, and its cells."""
    try:
        record = strict_json(text)
    except (ValueError, RecursionError):
        return (), {"error": DataError("E1109", "the record is no valid JSON object.")}
    if not isinstance(record, dict):
        kind = type(record).__name__
        return (), {"error": DataError("E1109", f"the record is a {kind}, not a JSON object.")}
    return tuple(record), json_cells(settings, record)


def csv_cells(
    settings: ArchiveSettings, header: tuple[str, ...], fields: list[str]
) -> dict[str, Any]:
    if len(fields) != len(header):
        told = f"the record has {len(fields)} fields, not {len(header)}."
        return {"error": DataError("E1109", told)}
    return pick(settings, dict(zip(header, fields, strict=True)))


def json_cells(settings: ArchiveSettings, record: dict[str, Any]) -> dict[str, Any]:
    cells = pick(settings, record)
    turns = next((record[name] for name in TURNS if name in record), None)
    if turns is not None and settings.question_column not in record:
        cells["question"] = spoken(turns, ("human", "user"))
        cells["reference"] = cells.get("reference") or spoken(turns, ("gpt", "assistant"))
        if isinstance(cells["question"], str):
            cells["question"] = cells["question"].replace(MARK, "", 1).strip()
    return cells


def pick(settings: ArchiveSettings, record: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": record.get(settings.id_column or "id"),
        "image": record.get(settings.image_column),
        "question": record.get(settings.question_column),
        "reference": record.get(settings.answer_column or "answer"),
    }


def spoken(turns: Any, roles: tuple[str, ...]) -> Any:
    """What the first of these roles says first, in LLaVA's keys or in the chat ones."""
    for turn in turns if isinstance(turns, list) else ():
        if isinstance(turn, dict) and turn.get("from", turn.get("role")) in roles:
            return turn.get("value", turn.get("content"))
    return None


def strict_json(text: str) -> Any:
    """JSON of finite numbers without repeated keys. Raises ValueError, RecursionError."""

    def refuse(name: str) -> None:
        raise ValueError(f"{name} is no JSON")

    def finite(digits: str) -> float:
        if math.isinf(float(digits)):
            raise ValueError("a number is too large")
        return float(digits)

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("a key is given twice")
        return found

    return json.loads(text, parse_constant=refuse, parse_float=finite, object_pairs_hook=unique)
