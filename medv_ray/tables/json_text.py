"""Records of JSON files.

What a file is, is seen from its first characters: a list, lines, an object around a list or around
objects.
"""

from __future__ import annotations

import io
import json
import re
from collections import Counter
from collections.abc import Iterator
from itertools import chain
from typing import Any

from medv_ray.errors import DataError
from medv_ray.tables.encoding import Lines
from medv_ray.tables.record import IsRow, Names, Record

PIECE = 2**20  # characters read at once
HEAD = 4096  # characters that say what a file is
MAX_RECORD = 2**26  # characters
MAX_DIGITS = 40  # a longer number stays text


class Repeated:
    """Stands for the value of a key that its record has twice. No rule takes it for a cell."""

    def __repr__(self) -> str:
        return "Repeated()"  # the same in every process: it goes into digests


def _pairs(found: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(found)
    if len(values) < len(found):
        counts = Counter(name for name, _ in found)
        values |= {name: Repeated() for name, count in counts.items() if count > 1}
    return values


def _whole_number(digits: str) -> int | str:
    return int(digits) if len(digits) <= MAX_DIGITS else digits


DECODER = json.JSONDecoder(parse_int=_whole_number, object_pairs_hook=_pairs)
"""NaN and infinities are numbers here: a column that nobody asks for harms no row."""
_BROKEN = (ValueError, RecursionError)


def strict_json(text: str) -> Any:
    """A JSON value; a key that is given twice holds `Repeated`.

    Raises ValueError, RecursionError.
    """
    return DECODER.decode(text)


def scan_json(lines: Lines, file: str, is_row: IsRow) -> Iterator[Record]:
    """A list of objects, an object of objects, an object around a list, or an object a line."""
    offset, head = lines.offset, lines.read(HEAD)
    if re.match(r"\s*\[\s*([{\]]|$)" if is_lines(file) else r"\s*\[", head):
        return scan_values(lines, file, head, offset, 1, is_all=True)
    head += "" if head.endswith("\n") else lines.read_line()
    found = [line for line in io.StringIO(head, newline="") if line.strip()]
    while len(found) < 2 and (more := lines.read_line()):
        head += more
        found += [more] if more.strip() else []
    first, second = [parsed(line) for line in [*found, "", ""][:2]]
    if first is not None and len(found) == 1:
        check_records(first, file, is_row)
    if second is not None or (first is not None and is_row(tuple(first))):
        return scan_lines(lines, head, offset)
    head += lines.read()
    return scan_object(lines, file, head, offset, is_row)


def check_records(value: dict[str, Any], file: str, is_row: IsRow) -> None:
    """Raises DataError E1105 for a table that is written column by column: each name with all the
    cells of its column, as pandas' `to_json` and `to_dict` do unasked."""
    columns = list(value.values())
    first = columns[0] if columns and is_row(tuple(value)) else None
    if isinstance(first, dict):
        alike = all(isinstance(one, dict) and one.keys() == first.keys() for one in columns)
        by_column = alike and not first.keys() <= {"bytes", "path"}
    elif isinstance(first, list):  # a row may have several pictures, and turns
        lists = [one for one in columns if isinstance(one, list) and len(one) == len(first)]
        plain = not any(isinstance(cell, dict | list) for one in lists for cell in one)
        by_column = len(columns) > 1 and len(lists) == len(columns) and plain
    else:
        by_column = False
    if by_column:
        message = "it holds columns, not rows; write a row an object, as pandas' to_json does"
        raise DataError("E1105", f"{file}: {message} with orient='records'.")


def is_lines(file: str) -> bool:
    """Whether a file's name promises an object a line."""
    return not file.lower().endswith(".json")


def parsed(text: str) -> dict[str, Any] | None:
    """The JSON object that a text is."""
    try:
        value = strict_json(text)
    except _BROKEN:
        return None
    return value if isinstance(value, dict) else None


def scan_object(
    lines: Lines, file: str, whole: str, offset: int, is_row: IsRow
) -> Iterator[Record]:
    """A file whose first line is no row: an object around the rows, or rows that are damaged."""
    at = _space(whole, 0)
    try:
        value, end = DECODER.raw_decode(whole, at)
        if not isinstance(value, dict):
            raise ValueError("a text or a number")
    except _BROKEN:
        if is_lines(file):
            return scan_lines(lines, whole, offset)
        raise DataError("E1105", f"{file}: not a complete JSON list or object.") from None
    check_records(value, file, is_row)
    single, line = not whole[end:].strip(), 1 + whole.count("\n", 0, at)
    inner = rows_inside(value, whole, at) if single and not is_row(tuple(value)) else None
    if inner is not None:
        begin, line = offset + lines.size(whole[:inner]), 1 + whole.count("\n", 0, inner)
        return scan_values(lines, file, whole[inner:], begin, line)
    if "\n" not in whole[at:end]:
        return scan_lines(lines, whole, offset)
    if single and not is_lines(file):
        begin = offset + lines.size(whole[:at])
        return iter([json_record(whole[at:end], begin, lines.size(whole[at:end]), line)])
    message = "its JSON objects stand over several lines each; a line must hold one, or the file a"
    raise DataError("E1105", f"{file}: {message} list of them. `jq -c .` makes lines of it.")


def rows_inside(value: dict[str, Any], text: str, at: int) -> int | None:
    """Where in the text the rows of an object begin: the one list of objects that it holds, or
    itself, if its values are objects."""
    lists = [
        name
        for name, inner in value.items()
        if isinstance(inner, list) and inner and all(isinstance(one, dict) for one in inner)
    ]
    if len(lists) != 1:
        whole = value and all(isinstance(inner, dict) for inner in value.values())
        return at if whole else None
    at += 1
    while True:  # the members one by one, up to that list
        at = _space(text, at)
        name, at = DECODER.raw_decode(text, at)
        at = _space(text, _space(text, at) + 1)
        if name == lists[0]:
            return at
        at = _space(text, DECODER.raw_decode(text, at)[1]) + 1


def _space(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\r\n":
        at += 1
    return at


def scan_lines(lines: Lines, head: str, offset: int) -> Iterator[Record]:
    """An object a line; `head` is what was read of them already."""
    number = 0
    for line in chain(io.StringIO(head, newline=""), lines):
        size, number = lines.size(line), number + 1
        if line.strip():
            yield json_record(line, offset, size, number)
        offset += size


def scan_values(
    lines: Lines, file: str, buffer: str, offset: int, line: int, is_all: bool = False
) -> Iterator[Record]:
    """Members of a JSON list or object that begins in `buffer`, without holding it whole. Where it
    `is_all` that the file has, DataError E1105 for what is behind it: rows may be."""
    number = done = 0  # members, and the characters of the buffer that are behind us
    at = _space(buffer, 0)
    closing = {"[": "]", "{": "}"}[buffer[at]]
    at += 1
    size = PIECE
    while True:
        try:
            start = _member(buffer, at, closing, number)
            if start is None:
                break
            end = _member_end(buffer, start, closing)
        except (StopIteration, IndexError):
            end = len(buffer)
        except _BROKEN as error:
            end = len(buffer)
            if isinstance(error, RecursionError) or len(buffer) - at > MAX_RECORD:
                raise _incomplete(file, number) from None
        if end < len(buffer):  # else more may belong to it
            between, text = buffer[done:start], buffer[start:end]
            offset, line = offset + lines.size(between), line + between.count("\n")
            length = lines.size(text)
            yield json_record(text, offset, length, line)
            offset, line = offset + length, line + text.count("\n")
            done = at = end
            number, size = number + 1, PIECE
            continue
        more = lines.read(size)
        if not more:
            raise _incomplete(file, number)
        buffer, at, done, size = buffer[done:] + more, at - done, 0, 2 * size
    if is_all:
        check_end(lines, file, buffer[_space(buffer, at) + 1 :], number)


def check_end(lines: Lines, file: str, rest: str, number: int) -> None:
    """Raises DataError E1105 for more than blanks behind a list of `number` entries."""
    while not rest.strip():
        rest = lines.read(PIECE)
        if not rest:
            return
    message = f"there is more behind its list of {number} entries"
    raise DataError("E1105", f"{file}: {message}; a file holds one list, or an object a line.")


def _incomplete(file: str, number: int) -> DataError:
    return DataError("E1105", f"{file}: not a complete JSON list or object (entry {number}).")


def _member(buffer: str, at: int, closing: str, number: int) -> int | None:
    """Where the next member begins; None behind the last. Raises IndexError, ValueError."""
    at = _space(buffer, at)
    if buffer[at] == closing:
        return None
    if number:
        if buffer[at] != ",":
            raise ValueError("no comma")
        at = _space(buffer, at + 1)
    return at


def _member_end(buffer: str, at: int, closing: str) -> int:
    """Behind a value, or behind `"key": value`. Raises IndexError, ValueError, RecursionError."""
    if closing == "}":
        at = _space(buffer, DECODER.raw_decode(buffer, at)[1])
        if buffer[at] != ":":
            raise ValueError("no colon")
        at = _space(buffer, at + 1)
    return DECODER.raw_decode(buffer, at)[1]


def json_record(text: str, offset: int, length: int, line: int) -> Record:
    """A record from its text: an object, or `"key": object`, whose key is its id then."""
    names, values, error = json_values(text)
    return Record(offset, length, line, names, values, error)


def json_values(text: str) -> tuple[Names, dict[str, Any], DataError | None]:
    try:
        key = None
        if text.startswith('"'):
            key, end = DECODER.raw_decode(text)
            text = text[_space(text, end) + 1 :]
        record = strict_json(text)
    except _BROKEN:
        return (), {}, DataError("E1109", "the record is no valid JSON object.")
    if not isinstance(record, dict):
        kind = type(record).__name__
        return (), {}, DataError("E1109", f"the record is a {kind}, not a JSON object.")
    if key is not None:
        record.setdefault("id", key)
    return tuple(record), record, None
