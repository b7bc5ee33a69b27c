"""A form with a file, put on disk as it arrives: no more of it is held than its last piece."""

from __future__ import annotations

import asyncio
import codecs
import os
import re
import time
import uuid
from typing import Any, BinaryIO

from medv_ray.disk import disk_errors
from medv_ray.errors import MedvError
from medv_ray.serving.batch.shelf import Shelf, printable
from medv_ray.serving.guard import Receive, Refusal
from medv_ray.serving.options import BatchSettings

FIELDS = ("purpose", "expires_after[anchor]", "expires_after[seconds]")
"""Of a form, beside `file`."""
MAX_FIELD_BYTES = 1024
MAX_HEADER_BYTES = 4096
"""Of a part; a file's name is in it."""
FORM_BYTES = 2**14
"""What a form may have beside its file."""
HEAD_BYTES = 4096
"""By which a file is judged: whether it is text."""
WRITE_BYTES = 2**20
BOUNDARY = re.compile(r"""boundary="?([!-~ ]{1,70}?)"?\s*(?:;|$)""", re.I)


class Spool:
    """Takes uploads into the folder of a shelf."""

    def __init__(self, shelf: Shelf) -> None:
        self._shelf, self._settings, self._ongoing = shelf, shelf.settings, 0

    async def take(self, headers: dict[str, str], receive: Receive) -> dict[str, Any]:
        """Id, name, size and the form's other fields; the content lies in `incoming`.

        Raises Refusal for what is no such form, too large, too slow, or cut short by its client,
        and for a disk that takes it not.
        """
        settings = self._settings
        if headers.get("content-encoding", "identity").lower() != "identity":
            raise Refusal("E1710", "a compressed body is not taken.")
        announced = headers.get("content-length", "0")
        if announced.isdecimal() and int(announced[:20]) > settings.max_file_bytes + FORM_BYTES:
            raise _too_large(settings)
        if self._ongoing >= settings.uploads:
            raise Refusal("E1707", f"{settings.uploads} files arrive here already, the limit.")
        found = BOUNDARY.search(headers.get("content-type", ""))
        if found is None:
            raise Refusal("E1701", "the form names no boundary.")
        name = f"file-{uuid.uuid4().hex}"
        self._ongoing += 1
        try:
            with disk_errors("an upload"):
                return {"id": name, **await self._spooled(name, found[1].encode(), receive)}
        except BaseException as error:
            self._shelf.forget_incoming(name)
            if isinstance(error, MedvError):
                raise Refusal(error.code, error.detail) from None
            raise
        finally:
            self._ongoing -= 1

    def forget(self, taken: dict[str, Any]) -> None:
        """Remove what was taken, unless it has become a file."""
        self._shelf.forget_incoming(taken["id"])

    async def _spooled(self, name: str, boundary: bytes, receive: Receive) -> dict[str, Any]:
        path = self._shelf.incoming(name)
        with open(path, "xb", opener=lambda p, flags: os.open(p, flags, 0o600)) as file:
            form = Form(boundary, self._settings)
            deadline = time.monotonic() + self._settings.upload_seconds
            more = True
            while more:
                try:
                    left = max(deadline - time.monotonic(), 0.001)
                    message = await asyncio.wait_for(receive(), left)
                except TimeoutError:
                    rule = f"the file took over {self._settings.upload_seconds:g} s to arrive."
                    raise Refusal("E1709", rule, late=True) from None
                if message["type"] != "http.request":  # the client is gone
                    raise Refusal("E1709", "the file ended early.")
                form.feed(message.get("body", b""))
                more = message.get("more_body", False)
                if len(form.pending) >= WRITE_BYTES or not more:
                    await asyncio.to_thread(_flush, file, form.pending, not more)
            return form.finished()


def _flush(file: BinaryIO, pending: bytearray, last: bool) -> None:
    file.write(pending)
    pending.clear()
    if last:
        file.flush()
        os.fsync(file.fileno())


class Form:
    """What comes of a form's bytes: short fields, and a file's content piece by piece."""

    def __init__(self, boundary: bytes, settings: BatchSettings) -> None:
        # here, as nothing but an upload needs it
        from python_multipart.multipart import MultipartParser

        self.pending = bytearray()
        """Of the file, not written yet."""
        self._settings = settings
        self._fields: dict[str, bytearray] = {}
        self._filename: str | None = None
        self._bytes, self._lines, self._head = 0, 0, b""
        self._header, self._value, self._header_bytes = bytearray(), bytearray(), 0
        self._into: str | None = None
        self._disposition = b""
        self._ended = False
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._part,
                "on_header_field": self._header_field,
                "on_header_value": self._header_value,
                "on_header_end": self._header_end,
                "on_headers_finished": self._headers_finished,
                "on_part_data": self._data,
                "on_end": self._end,
            },
        )

    def feed(self, data: bytes) -> None:
        """Raises Refusal."""
        from python_multipart.exceptions import FormParserError

        try:
            self._parser.write(data)
        except FormParserError:
            raise Refusal("E1701", "the body is no form that can be read.") from None

    def finished(self) -> dict[str, Any]:
        """What is known of the form. Raises Refusal where it is no file to be kept."""
        if not self._ended:
            raise Refusal("E1701", "the form ends before its last boundary.")
        if self._filename is None:
            raise _of_field("file", "is missing")
        if not self._head:
            raise _of_field("file", "it is empty")
        if not _is_text(self._head, self._bytes):
            rule = "this is no text in UTF-8; a batch file has a JSON object a line"
            raise _of_field("file", rule)
        fields = {name: value.decode("utf-8", "replace") for name, value in self._fields.items()}
        return {"filename": printable(self._filename), "bytes": self._bytes, "fields": fields}

    def _part(self) -> None:
        self._into, self._disposition, self._header_bytes = None, b"", 0

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._limit_header(end - start)
        self._header += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._limit_header(end - start)
        self._value += data[start:end]

    def _limit_header(self, more: int) -> None:
        self._header_bytes += more
        if self._header_bytes > MAX_HEADER_BYTES:
            raise Refusal(
                "E1701", f"a part of the form has over {MAX_HEADER_BYTES} bytes of headers."
            )

    def _header_end(self) -> None:
        if bytes(self._header).lower() == b"content-disposition":
            self._disposition = bytes(self._value)
        self._header.clear()
        self._value.clear()

    def _headers_finished(self) -> None:
        from python_multipart.multipart import parse_options_header

        _, options = parse_options_header(self._disposition)
        name = options.get(b"name", b"").decode("utf-8", "replace")
        if name == "file" and self._filename is None:
            self._filename = options.get(b"filename", b"file").decode("utf-8", "replace")
        elif name not in FIELDS or name in self._fields:
            known = ", ".join(("file", *FIELDS))
            raise Refusal("E1701", f"the form has another field, or one twice; known: {known}.")
        else:
            self._fields[name] = bytearray()
        self._into = name

    def _data(self, data: bytes, start: int, end: int) -> None:
        piece = data[start:end]
        if self._into != "file":
            field = self._fields[self._into or ""]
            field += piece
            if len(field) > MAX_FIELD_BYTES:
                raise _of_field(str(self._into), f"over {MAX_FIELD_BYTES} bytes")
            return
        self._bytes += len(piece)
        if self._bytes > self._settings.max_file_bytes:
            raise _too_large(self._settings)
        self._lines += piece.count(b"\n")
        if self._lines > self._settings.max_lines:
            limit = self._settings.max_lines
            raise _of_field("file", f"it has over {limit} lines, the limit")
        if len(self._head) < HEAD_BYTES:  # without the blank lines before it
            self._head = (self._head + piece).lstrip()[:HEAD_BYTES]
        self.pending += piece

    def _end(self) -> None:
        self._ended = True


def _too_large(settings: BatchSettings) -> Refusal:
    return _of_field("file", f"it has over {settings.max_file_bytes} bytes, the limit", "E1703")


def _of_field(name: str, rule: str, code: str = "E1701") -> Refusal:
    return Refusal(code, f"{name}: {rule}.", param=name)


def _is_text(head: bytes, size: int) -> bool:
    """Whether a file begins like one; single lines that are none are said one by one later."""
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head, final=size <= len(head))
    except UnicodeDecodeError:
        return False
    return b"\0" not in head
