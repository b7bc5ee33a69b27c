"""In which encoding a text table is written, and its lines with their byte lengths."""

from __future__ import annotations

import codecs
import io
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from medv_ray.errors import DataError
from medv_ray.formats import looks_like

MARKS = (  # the longer mark first: UTF-32's begins with UTF-16's
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
KNOWN = re.compile(r"ascii|utf-(8|16|32)|cp\d+|iso8859|koi8|mac|gb|big5|shift_jis|euc_")
"""Encodings in which a line has the same bytes wherever it stands: rows are found by offset."""


class Text(NamedTuple):
    """How the bytes of a table become text."""

    encoding: str
    skip: int = 0
    """Bytes of the mark at its beginning."""

    @property
    def errors(self) -> str:
        """Bytes that are none come back as they were."""
        return "surrogatepass" if self.encoding.startswith(("utf-16", "utf-32")) else ESCAPE


ESCAPE = "surrogateescape"


def known_encoding(name: str) -> str:
    """Python's name of an encoding. Raises ValueError for an unknown or unsuitable one."""
    try:
        found = codecs.lookup(name.strip()).name
    except LookupError:
        found = ""
    found = {"utf-8-sig": "utf-8", "utf-16": "utf-16-le", "utf-32": "utf-32-le"}.get(found, found)
    if not KNOWN.match(found):
        raise ValueError(f"encoding {name[:30]!r} is none; such as utf-8, latin-1, cp1252, utf-16")
    return found


def find_text(start: bytes, asked: str | None, file: str) -> Text:
    """By the mark at the beginning, else what was asked for, else UTF-8.

    Raises DataError E1120, and E1105 for what is no text, such as a spreadsheet or a picture.
    """
    for mark, encoding in MARKS:
        if start.startswith(mark):
            return Text(encoding, len(mark))
    kind = looks_like(start)
    if kind and not start.lstrip().startswith(b"<"):
        way = "Save a spreadsheet as csv, unpack what is packed."
        raise DataError("E1105", f"{file}: its bytes look like {kind}, not a table. {way}")
    if asked is not None:
        return Text(known_encoding(asked))
    nul = start[:2].find(b"\0")
    if nul >= 0 and len(start) > 1:
        likely = ("utf-16-be", "utf-16-le")[nul]
        raise DataError("E1120", f"{file}: it looks like UTF-16 without a mark: {_flag(likely)}.")
    return Text("utf-8")


def _flag(encoding: str) -> str:
    return f"--encoding {encoding}"


class Lines:
    """Lines of a table with their ends as they are, and how many bytes and lines were taken.

    Without `lenient`, bytes that are no text raise DataError E1120, which names what they may be.
    """

    def __init__(self, opened: Any, text: Text, file: str, lenient: bool) -> None:
        opened.seek(text.skip)
        self._file, self._text, self._lenient = file, text, lenient
        buffered = io.BufferedReader(opened)
        self.stream = io.TextIOWrapper(buffered, text.encoding, text.errors, newline="")
        self.offset, self.taken = text.skip, 0

    def __iter__(self) -> Iterator[str]:
        while line := self.read_line():
            yield line

    def read_line(self) -> str:
        """The next line; empty at the end."""
        try:
            line = self.stream.readline()
        except UnicodeError:
            raise self._refused(b"") from None
        self.offset += self.size(line)
        self.taken += 1 if line else 0
        return line

    def read(self, characters: int = -1) -> str:
        """So many characters, or the rest; not counted as taken."""
        try:
            return self.stream.read(characters)
        except UnicodeError:
            raise self._refused(b"") from None

    def size(self, text: str) -> int:
        """Bytes of a piece of this table."""
        if text.isascii() and self._text.encoding == "utf-8":
            return len(text)
        try:
            return len(text.encode(self._text.encoding))
        except UnicodeEncodeError:
            data = text.encode(self._text.encoding, self._text.errors)
            if self._lenient:
                return len(data)
            raise self._refused(data) from None

    def _refused(self, data: bytes) -> DataError:
        where = f"{self._file}: near line {self.taken + 1} it is not {self._text.encoding.upper()}"
        if self._text.encoding != "utf-8" or self._lenient:
            return DataError("E1120", f"{where}.")
        windows = any(0x80 <= byte <= 0x9F for byte in data)
        name, flag = ("Windows-1252", "cp1252") if windows else ("Latin-1", "latin-1")
        return DataError(
            "E1120",
            f"{where}; it may be {name}: {_flag(flag)}. "
            f"With {_flag('utf-8')} only the rows that are not UTF-8 are left out.",
        )
