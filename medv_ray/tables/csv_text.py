"""Records of csv and tsv files. The separator is found in the header line."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from medv_ray.errors import DataError
from medv_ray.tables.encoding import Lines
from medv_ray.tables.record import CELL_BYTES, IsRow, Names, Record, Style

SEPARATORS = (",", ";", "\t", "|")


class Head(NamedTuple):
    """The header line."""

    names: Names
    separator: str
    skip_blanks: bool


def read_head(lines: Lines, file: str, is_row: IsRow) -> Head:
    """The names of the columns, trimmed, and what separates them.

    Excel's line `sep=;` says it. Else it is the one of comma, semicolon, tab and bar by which
    most names are found that are asked for; among equals, the one that gives most columns.
    """
    head = next((line for line in lines if line.strip()), "")
    said = re.fullmatch(r'"?sep=(.)"?\s*', head, re.IGNORECASE)
    if said:
        head = lines.read_line()
    while head.count('"') % 2 and lines.taken < 64 and (more := lines.read_line()):
        head += more  # a quoted name may hold a line end
    found = []
    order = ("\t", *SEPARATORS) if file.lower().endswith(".tsv") else SEPARATORS
    for separator in said.group(1) if said else order:
        for skip_blanks in (False, True):
            try:
                fields: list[str] = next(
                    read_csv(io.StringIO(head, ""), separator, skip_blanks), []
                )
            except csv.Error:
                continue
            names = tuple(field.strip() for field in fields)
            blanks = skip_blanks and f"{separator} " in head
            asked = sum(is_row((name,)) for name in names)
            found.append((asked, len(names), blanks, Head(names, separator, blanks)))
    if not found:
        raise DataError("E1105", f"{file}: a quote opened in its first line does not close.")
    return max(found, key=lambda one: one[:3])[3]


def read_csv(text: Any, separator: str, skip_blanks: bool) -> Any:
    return csv.reader(text, delimiter=separator, skipinitialspace=skip_blanks, strict=True)


def scan_csv(
    lines: Lines, file: str, style: Style, header: Names, cell_bytes: int
) -> Iterator[Record]:
    # the module's own limit; cells that are asked for have one of theirs
    limit = max(CELL_BYTES, cell_bytes)
    csv.field_size_limit(limit)
    reader = read_csv(iter(lines), style.separator, style.skip_blanks)
    while True:
        offset, taken = lines.offset, lines.taken
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            large = "limit" in str(error)
            if lines.taken > taken + 1:  # other rows are inside this one
                what = f"a quote opened near line {taken + 1} does not close"
                what += f", or its cell has over {limit} characters" if large else ""
                raise DataError("E1105", f"{file}: {what}.") from None
            code = "E1112" if large else "E1109"
            message = f"a cell has over {limit} characters." if large else "it is no valid CSV."
            bad = DataError(code, f"the record: {message}")
            yield Record(offset, lines.offset - offset, taken + 1, header, {}, bad)
            continue
        if fields:
            values, wrong = csv_values(header, fields)
            yield Record(offset, lines.offset - offset, taken + 1, header, values, wrong)


def csv_values(header: Names, fields: list[str]) -> tuple[dict[str, Any], DataError | None]:
    """Cells by name. Columns without a name are nobody's: they may be there or not."""
    while len(fields) > len(header) and not fields[-1].strip():
        fields.pop()
    if len(fields) > len(header) or any(header[len(fields) :]):
        message = f"the record has {len(fields)} fields, not {len(header)}."
        return {}, DataError("E1109", message)
    return dict(zip(header, fields, strict=False)), None


def csv_record(text: str, style: Style, header: Names) -> tuple[dict[str, Any], DataError | None]:
    """The cells of one record, read alone."""
    csv.field_size_limit(max(CELL_BYTES, len(text)))
    try:
        fields = next(read_csv(io.StringIO(text, ""), style.separator, style.skip_blanks))
    except (csv.Error, StopIteration):
        return {}, DataError("E1109", "the record is no valid CSV.")
    return csv_values(header, fields)
