"""What the cell of an id column says. An id is a name and not a key: it may stand there twice."""

from __future__ import annotations

import math
import unicodedata
from datetime import date, datetime, time
from decimal import Decimal
from uuid import UUID

from medv_ray.errors import DataError

MAX_ID_BYTES = 512


def id_text(value: object) -> str | None:
    """The name in the cell of an id column; None for a cell without one.

    Whole numbers that became floats are whole numbers; 16 bytes are a UUID. Raises DataError E1104
    for what cannot be printed, E1109 for what is no name. Never repeats the value.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, bytes):
        value = _from_bytes(value)
    elif isinstance(value, date | datetime | time):
        value = value.isoformat()
    elif isinstance(value, float | Decimal) and math.isfinite(value) and value == int(value):
        value = str(int(value))
    elif isinstance(value, int | float | Decimal | UUID) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        raise DataError("E1109", f"the id is a {type(value).__name__}, no text or number.")
    if not value.strip():
        return None
    if value.isascii() and value.isprintable() and len(value) <= MAX_ID_BYTES:
        return value
    if any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") for c in value):
        raise DataError("E1104", "the id has a control character or a lone surrogate.")
    size = len(value.encode())
    if size > MAX_ID_BYTES:
        raise DataError("E1104", f"the id has {size} bytes; at most {MAX_ID_BYTES} are allowed.")
    return value


def _from_bytes(value: bytes) -> str:
    try:
        text = value.decode()
        if text.isprintable():
            return text
    except UnicodeDecodeError:
        pass
    return str(UUID(bytes=value)) if len(value) == 16 else value.hex()


def normal(text: str) -> str:
    """The form in which ids are compared: NFC, trimmed."""
    return (text if text.isascii() else unicodedata.normalize("NFC", text)).strip()


def repeated_id(own: str, fallback: str) -> str:
    """The id of a row whose own name another row has already."""
    return f"{own}#{fallback}"
