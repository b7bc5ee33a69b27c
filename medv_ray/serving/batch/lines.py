"""The lines of a batch file: read one by one, looked over before the first is asked."""

from __future__ import annotations

import json
from array import array
from codecs import BOM_UTF8
from collections.abc import Iterator
from hashlib import blake2b
from typing import Annotated, Any, BinaryIO, Literal, NamedTuple

import numpy as np
from pydantic import Field

from medv_ray.errors import MedvError
from medv_ray.serving.guard import MAX_STRUCTURE, is_within_structure
from medv_ray.serving.protocol import BadRequest, Wire, parse
from medv_ray.serving.replies import error_object

ENDPOINTS = ("/v1/chat/completions", "/v1/responses")
"""What a line may ask."""
MAX_ID_CHARS = 512
PIECE = 2**16


class BatchLine(Wire):
    """One line of a batch file, as OpenAI has it."""

    custom_id: Annotated[str, Field(min_length=1, max_length=MAX_ID_CHARS)]
    """Comes back with the answer; no two lines have the same."""
    method: Literal["POST"]
    url: Literal["/v1/chat/completions", "/v1/responses"]
    body: dict[str, Any]
    """As the route takes it, but for `stream`."""


class Raw(NamedTuple):
    """A line as it lies in the file."""

    number: int
    """From 1."""
    end: int
    """The offset behind it."""
    data: bytes | None
    """Without its end; None: longer than the limit."""


class Survey(NamedTuple):
    """What was found in a whole file."""

    total: int
    """Lines that hold something."""
    repeats: bytearray
    """By a line's number: 1 where an earlier line has its custom_id."""


class BadLine(MedvError):
    """A line that is never asked."""

    def __init__(self, detail: str, param: str | None = None, custom_id: str | None = None) -> None:
        super().__init__("E1715", detail)
        self.param, self.custom_id = param, custom_id


def read_lines(file: BinaryIO, limit: int, number: int = 0, end: int = 0) -> Iterator[Raw]:
    """Lines from `end` on, where line `number` ended. A longer one than `limit` bytes is read past,
    and never held."""
    file.seek(end)
    while piece := file.readline(limit + 1):
        number, end = number + 1, end + len(piece)
        data: bytes | None = piece.removesuffix(b"\n").removesuffix(b"\r")
        if len(piece) > limit and not piece.endswith(b"\n"):
            data = None
            while piece and not piece.endswith(b"\n"):
                piece = file.readline(PIECE)
                end += len(piece)
        if number == 1 and data is not None:
            data = data.removeprefix(BOM_UTF8)
        yield Raw(number, end, data)


def survey(path: str, limit: int) -> Survey:
    """Count lines, and find those whose custom_id an earlier one has.

    Holds 24 bytes a line, and no line. Raises OSError.
    """
    total, last = 0, 0
    numbers, digests = array("Q"), bytearray()
    with open(path, "rb") as file:
        for raw in read_lines(file, limit):
            last = raw.number
            if is_blank(raw):
                continue
            total += 1
            custom_id = _custom_id(raw.data)
            if custom_id is not None:
                numbers.append(raw.number)
                digests += blake2b(custom_id.encode("utf-8", "replace"), digest_size=16).digest()
    repeats = bytearray(last + 1)
    keys = np.frombuffer(digests, np.uint64).reshape(-1, 2)
    order = np.lexsort((keys[:, 1], keys[:, 0]))  # stable: of equal ones the earlier line is first
    keys = keys[order]
    again = order[1:][(keys[1:] == keys[:-1]).all(axis=1)]
    np.frombuffer(repeats, np.uint8)[np.frombuffer(numbers, np.uint64)[again]] = 1
    return Survey(total, repeats)


def is_blank(raw: Raw) -> bool:
    """Whether a line holds nothing; it is counted nowhere."""
    return raw.data is not None and not raw.data.strip()


def _custom_id(data: bytes | None) -> str | None:
    """As far as it can be read, of a line that may be bad."""
    try:
        found = json.loads(data or b"").get("custom_id")
    except (ValueError, AttributeError, RecursionError):
        return None
    return found if isinstance(found, str) and found and len(found) <= MAX_ID_CHARS else None


def read(raw: Raw, is_repeat: bool, endpoint: str | None, limit: int) -> BatchLine:
    """A line that may be asked. `endpoint`: the only url, if there is only one.

    Raises BadLine, which names the line's number, the field and the rule.
    """
    where = f"line {raw.number}"
    if raw.data is None:
        raise BadLine(f"{where} has over {limit} bytes, the limit.")
    if not is_within_structure(raw.data):
        raise BadLine(f"{where} has more than {MAX_STRUCTURE} values.")
    custom_id = _custom_id(raw.data)
    try:
        line = parse(BatchLine, raw.data, "it")
    except BadRequest as error:
        raise BadLine(f"{where}: {error.detail}", error.param, custom_id) from None
    if is_repeat:
        rule = "an earlier line has the same one"
        raise BadLine(f"{where}: custom_id: {rule}.", "custom_id", custom_id)
    if endpoint is not None and line.url != endpoint:
        rule = f"the batch's endpoint is {endpoint}"
        raise BadLine(f"{where}: url: {rule}.", "url", custom_id)
    if line.body.get("stream"):
        rule = "a batch's answers are whole; leave it out"
        raise BadLine(f"{where}: body.stream: {rule}.", "body.stream", custom_id)
    return line


def answered(
    name: str, raw: Raw, custom_id: str, request_id: str, status: int, body: dict[str, Any]
) -> bytes:
    """A line of the output file, or, with an error's status, of the error file."""
    response = {"status_code": status, "request_id": request_id, "body": body}
    error = None
    if status != 200:
        error = {**body["error"], "line": raw.number}
    return _line(name, custom_id, response, error)


def refused(name: str, raw: Raw, error: BadLine) -> bytes:
    """A line of the error file for one that was not asked."""
    shown = error_object(error.code, error.detail, error.param)
    return _line(name, error.custom_id, None, {**shown, "line": raw.number})


def not_run(name: str, raw: Raw, why: Literal["cancelled", "expired"]) -> bytes:
    """A line of the error file for one that the batch's end came before."""
    rule = {
        "cancelled": "the batch was cancelled before this line was answered.",
        "expired": "the completion_window ended before this line was answered.",
    }[why]
    shown = error_object("E1716", f"line {raw.number}: {rule}") | {"type": f"batch_{why}"}
    return _line(name, _custom_id(raw.data), None, {**shown, "line": raw.number})


def _line(
    name: str, custom_id: str | None, response: dict[str, Any] | None, error: dict[str, Any] | None
) -> bytes:
    whole = {"id": name, "custom_id": custom_id, "response": response, "error": error}
    return json.dumps(whole, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"
