"""What a cell says: pictures in all the forms that tables hold them, questions, dialogues."""

from __future__ import annotations

import ast
import base64
import binascii
import json
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from datetime import date, time
from decimal import Decimal
from types import NoneType
from typing import Any, NamedTuple

from medv_ray.errors import DataError

IMAGE_MARK = "<image>"
"""LLaVA's word for the place of a picture in a dataset's text."""
NO_ANSWERS = ("n/a", "na", "nan", "null", "none", "nil", "-", "--", "?", "#n/a", "unknown")
"""What programs and people write into an empty answer."""

_BASE64 = re.compile(r"[A-Za-z0-9+/_\s-]{40,}={0,2}\s*")
_LOOKED_AT = 1024  # characters by which base64 is told from a path
_SIGNED = ("/9j/", "_9j_", "iVBORw0KGgo", "R0lGOD", "Qk", "SUkq", "TU0AKg", "UklGR")
"""How JPEG, PNG, GIF, BMP, TIFF and WebP begin in base64; DICOM's word stands at byte 128."""
_EXACT = 2**53  # up to here a float tells whole numbers apart
_MOST_PYTHON = 2**20  # characters of a list as Python writes it
_FRONT = re.compile(rf"\s*(?:{IMAGE_MARK}\s*)+")
_BACK = re.compile(rf"\s*(?:{IMAGE_MARK[::-1]}\s*)+")
"""Of the text from its end, as a search from its beginning takes the square of a row of blanks."""
_USERS, _MODELS = ("human", "user"), ("gpt", "assistant")


class Picture(NamedTuple):
    """One picture of a row: a name, bytes, or both."""

    name: str | None
    data: bytes | None


def pictures_of(value: Any) -> list[Picture]:
    """The pictures that a cell stands for: a path, bytes, base64 with or without `data:` before it,
    a struct {bytes, path}, or a list of these, which may be written as JSON.

    Raises DataError E1111 for none, E1108 for what is no picture, E1109 for broken base64.
    """
    parts = _parts(value)
    if not parts:
        raise DataError("E1111", "the row names no image.")
    return [_picture(one) for one in parts]


def names_of(value: Any) -> list[str | None]:
    """The paths of a cell's pictures, one a picture, whatever is wrong with it."""
    return [_name(one) for one in _parts(value)]


def _parts(value: Any) -> list[Any]:
    """The cells of single pictures that a cell consists of."""
    if isinstance(value, str):
        value = written_list(value)
    return list(value) if isinstance(value, list | tuple) else [value]


def written_list(text: str) -> Any:
    """The list that a text is as JSON, or as a data frame writes it to csv (`['a.png', 'b.png']`);
    else the text. A list of numbers is a text: `[1]` may be a name."""
    found = any_list(text)
    known = found is not None and all(isinstance(one, str | dict | NoneType) for one in found)
    return found if known else text


def any_list(text: str) -> list[Any] | None:
    """The list that a text is as JSON or as Python writes it; None for another text."""
    bare = text.strip()
    if not (bare.startswith("[") and bare.endswith("]")):
        return None
    found: Any
    try:
        found = json.loads(bare)
    except (ValueError, RecursionError):
        if len(bare) > _MOST_PYTHON:
            return None
        try:
            with warnings.catch_warnings(action="ignore"):  # they would print the cell
                found = ast.literal_eval(bare)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            return None
    return found if isinstance(found, list) else None


def _name(value: Any) -> str | None:
    try:
        return _picture(value).name
    except DataError:
        path = value.get("path") if isinstance(value, Mapping) else None
        return path if isinstance(path, str) else None


def _picture(value: Any) -> Picture:
    name = None
    if isinstance(value, Mapping):
        name = value.get("path")
        name = name if isinstance(name, str) else None
        value = name if value.get("bytes") is None else value["bytes"]
    if value is None or value == "" or value != value:
        raise DataError("E1111", "the row has neither image bytes nor an image path.")
    if isinstance(value, str):
        data = from_base64(value)
        return Picture(value, None) if data is None else Picture(name, data)
    if isinstance(value, bytes):
        head = value[:_LOOKED_AT]
        is_text = head.isascii() and signed(head.decode())
        data = from_base64(value.decode("latin-1")) if is_text else None
        return Picture(name, value if data is None else data)
    raise DataError("E1108", f"an image is a {type(value).__name__}, not bytes or a path.")


def from_base64(text: str) -> bytes | None:
    """The bytes of a picture that is written as base64; None for what is a path."""
    body = text.strip()
    if body[:5].lower() == "data:":
        head, _, body = body.partition(",")
        if not head.lower().endswith(";base64"):
            raise DataError("E1108", "the image is a data URL that is not base64.")
    elif not signed(body):
        return None
    body = "".join(body.split()).rstrip("=").translate({ord("-"): "+", ord("_"): "/"})
    try:
        return base64.b64decode(body + "=" * (-len(body) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise DataError("E1109", "the image is base64 that is cut or damaged.") from None


def signed(text: str) -> bool:
    """Whether a text begins like a picture in base64."""
    if text[:5].lower() == "data:":
        return True
    if not _BASE64.fullmatch(text[:_LOOKED_AT]):
        return False
    return text.startswith(_SIGNED) or _dicom(text)


def _dicom(text: str) -> bool:
    start = "".join(text[:200].split())[:176]
    try:
        return base64.b64decode(start)[128:132] == b"DICM"
    except binascii.Error:
        return False


# texts


def cell_text(value: Any, what: str, limit: int | None = None) -> str | None:
    """Text of a cell; numbers and dates become theirs, NaN and blanks nothing.

    Whole numbers that became floats beside an empty cell are whole numbers. Raises DataError E1109,
    E1112, E1304.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, bytes):
        try:
            value = value.decode()
        except UnicodeDecodeError:
            raise DataError("E1304", f"the {what} is not UTF-8.") from None
    if isinstance(value, float) and math.isinf(value):
        raise DataError("E1109", f"the {what} is no finite number.")
    if isinstance(value, float | Decimal) and -_EXACT < value < _EXACT and value == int(value):
        value = int(value)
    if isinstance(value, Decimal):
        value = format(value, "f")  # not 1E-7
    if isinstance(value, int | float | date | time):
        return str(value)
    if not isinstance(value, str):
        raise DataError("E1109", f"the {what} is a {type(value).__name__}, not text.")
    if limit is not None and len(value) > limit:
        message = f"the {what} has {len(value)} characters; --max-cell-bytes is {limit}."
        raise DataError("E1112", message)
    if "\0" in value or any("\ud800" <= c <= "\udfff" for c in value):
        raise DataError("E1304", f"the {what} holds a NUL or a lone surrogate.")
    return value if value.strip() else None


def choices_of(value: Any, limit: int | None = None) -> tuple[str, ...]:
    """Allowed answers, trimmed, of a list, which may be written as JSON or as Python writes it; of
    an empty cell or list none.

    Raises DataError E1109 for what is no list and for a choice that is no text, E1308 for choices
    that cannot be compared, E1112, E1304.
    """
    if isinstance(value, str | bytes):
        text = cell_text(value, "list of choices", limit)
        value = None if text is None else any_list(text)
        if text is not None and value is None:
            raise DataError("E1109", "the choices are a text that is no list.")
    if value is None or value != value:
        return ()
    if not isinstance(value, list | tuple):
        raise DataError("E1109", f"the choices are a {type(value).__name__}, not a list.")
    named = ((f"choice {number}", one) for number, one in enumerate(value, 1))
    return distinct([(cell_text(one, name, limit) or "").strip() for name, one in named])


def distinct(choices: Sequence[str]) -> tuple[str, ...]:
    """The same choices. Raises DataError E1308 for a single one, blanks and repetitions."""
    if len(choices) == 1:
        raise DataError("E1308", "there is one choice; two are needed to compare.")
    earlier: set[str] = set()
    for number, one in enumerate(choices, 1):
        if not one:
            raise DataError("E1308", f"choice {number} is empty.")
        if one in earlier:
            raise DataError("E1308", f"choice {number} is an earlier one again.")
        earlier.add(one)
    return tuple(choices)


def without_marks(text: str) -> tuple[str, int]:
    """A question without LLaVA's `<image>` at its ends, and how many there were.

    Raises DataError E1307 for one in the middle: pictures stand before the question.
    """
    if IMAGE_MARK not in text:
        return text, 0
    front = _FRONT.match(text)
    bare = text[front.end() :] if front else text
    back = _BACK.match(bare[::-1])
    bare = bare[: len(bare) - back.end()] if back else bare
    if IMAGE_MARK in bare:
        raise DataError("E1307", "the question has '<image>' inside its text.")
    return bare, text.count(IMAGE_MARK)


def check_marks(marks: int, pictures: int) -> None:
    """One mark may stand for all pictures. Raises DataError E1109 for another number."""
    if marks > 1 and marks != pictures:
        raise DataError("E1109", f"the text marks {marks} images and the row has {pictures}.")


class Dialogue(NamedTuple):
    """A conversation, as far as it is asked."""

    question: Any
    """Of `conversations` with its marks."""
    reference: Any
    history: tuple[tuple[str, str], ...] = ()
    """(role, text) of the turns before the question: user and assistant."""
    system: str | None = None
    marks: int = 0
    pictures: tuple[Any, ...] = ()
    """Of messages that hold their pictures themselves."""


def first_exchange(turns: Any) -> Dialogue:
    """Of LLaVA's `conversations`: what the human says first, and what the model says first."""
    return Dialogue(_spoken(turns, _USERS), _spoken(turns, _MODELS))


def _spoken(turns: Any, roles: tuple[str, ...]) -> Any:
    for turn in turns if isinstance(turns, list) else ():
        if isinstance(turn, Mapping) and turn.get("from", turn.get("role")) in roles:
            return turn.get("value", turn.get("content"))
    return None


def last_exchange(messages: Any) -> Dialogue:
    """Of `messages`: the last turn of the user, what follows it as the reference, and the turns
    before it.

    Raises DataError E1109 for what is no dialogue, E1307 for a picture behind the first turn.
    """
    if isinstance(messages, str):
        messages = written_list(messages)
    turns: list[tuple[str, str]] = []
    pictures: list[Any] = []
    marks, system = 0, None
    for message in messages if isinstance(messages, list | tuple) else [None]:
        role, text, inside = message_of(message)
        pictures += inside
        if role == "system":
            system = text if system is None else f"{system}\n{text}"
            continue
        if role == "user":
            text, count = without_marks(text)
            if count and any(one == "user" for one, _ in turns):
                raise DataError("E1307", "a picture stands in a later turn; the first has them.")
            marks += count
        turns.append((role, text))
    last = max((i for i, (role, _) in enumerate(turns) if role == "user"), default=None)
    if last is None:
        return Dialogue(None, None)
    after = [text for role, text in turns[last + 1 :]]
    reference = "\n".join(after) or None
    return Dialogue(turns[last][1], reference, tuple(turns[:last]), system, marks, tuple(pictures))


def message_of(message: Any) -> tuple[str, str, list[Any]]:
    """Role, text and pictures of one message. Raises DataError E1109."""
    if not isinstance(message, Mapping):
        raise DataError("E1109", "the messages are no list of objects with role and content.")
    said = message.get("role", message.get("from"))
    roles = dict.fromkeys(_USERS, "user") | dict.fromkeys(_MODELS, "assistant")
    role = {**roles, "system": "system"}.get(said if isinstance(said, str) else "")
    content = message.get("content", message.get("value"))
    if role is None:
        raise DataError("E1109", "a message's role is none of user, assistant and system.")
    if isinstance(content, str):
        return role, content, []
    if not isinstance(content, list | tuple):
        raise DataError("E1109", "a message's content is no text.")
    pieces, pictures = [], []
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind == "text" and isinstance(part.get("text"), str):
            pieces.append(part["text"])
        elif kind in ("image", "image_url"):
            held = part.get("image", part.get("image_url", part.get("path")))
            held = held.get("url") if isinstance(held, Mapping) and "url" in held else held
            pictures += [] if held is None else [held]  # else the row's own column has it
            pieces.append(IMAGE_MARK)
        else:
            raise DataError("E1109", "a part of a message is neither text nor image.")
    return role, "\n".join(pieces), pictures


def is_no_answer(text: str) -> bool:
    """Whether an answer looks like an empty cell."""
    return text.strip().lower() in NO_ANSWERS
