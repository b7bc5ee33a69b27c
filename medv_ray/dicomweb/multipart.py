"""multipart/related as PS3.18 8.6 uses it: objects of one answer, or of one request."""

from __future__ import annotations

import re
from collections.abc import Iterable
from email.message import Message
from email.utils import collapse_rfc2231_value

OVERHEAD = 2**16
"""Bytes that boundaries and headers around one object may take."""


class Incomplete(ValueError):
    """The body ends before its end mark."""


def media_type(header: str) -> tuple[str, dict[str, str]]:
    """A Content-Type's type and parameters, names in small letters."""
    message = Message()
    message["content-type"] = header
    values = message.get_params(failobj=[(header, "")])
    found = {name.lower(): _collapsed(value) for name, value in values[1:]}
    return message.get_content_type(), found


def _collapsed(value: str | tuple[str, str, str]) -> str:
    try:
        return collapse_rfc2231_value(value)
    except ValueError:  # no charset has that name
        return value[-1]


def first_part(body: bytes, boundary: str) -> tuple[str, bytes]:
    """Content-Type and bytes of the first part.

    Raises Incomplete where no boundary follows it, ValueError where there is none, or the
    header names none.
    """
    if not boundary:  # two hyphens at a line's beginning may stand in an object, too
        raise ValueError
    mark = b"--" + boundary.encode("ascii", errors="replace")
    begin = 0 if body.startswith(mark) else body.find(b"\r\n" + mark) + 2
    if begin == 1:  # not found
        if len(body) < OVERHEAD:
            raise Incomplete
        raise ValueError
    head_end = body.find(b"\r\n\r\n", begin)
    end = body.find(b"\r\n" + mark, head_end + 2)
    if head_end < 0 or end < 0:
        raise Incomplete
    head = body[begin + len(mark) : head_end].decode("latin-1")
    found = re.search(r"(?im)^content-type:\s*([^\r\n]+)", head)
    return media_type(found.group(1))[0] if found else "", body[head_end + 4 : end]


def related(objects: Iterable[bytes], boundary: str) -> bytes:
    """The body of a request that stores objects."""
    mark = b"--" + boundary.encode()
    parts = [mark + b"\r\nContent-Type: application/dicom\r\n\r\n" + one for one in objects]
    return b"\r\n".join([*parts, mark + b"--\r\n"])
