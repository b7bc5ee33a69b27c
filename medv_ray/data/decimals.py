"""Which marks may stand next in a decimal number that has to lie within bounds.

Numbers are whole multiples of 10**-places: of 2 places, 314 is `3.14`. There is one way to write
each: no leading zeros, all places, no minus before zero.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Decimals:
    """Numbers from `low` to `high`, in units of 10**-places."""

    low: int
    high: int
    places: int = 0

    @property
    def width(self) -> int:
        """Marks of the longest one."""
        return max(len(self.text(self.low)), len(self.text(self.high)))

    def text(self, units: int) -> str:
        """How a number is written."""
        sign, digits = "-" * (units < 0), str(abs(units)).zfill(self.places + 1)
        cut = len(digits) - self.places
        return sign + digits[:cut] + ("." + digits[cut:] if self.places else "")

    def next(self, begun: str) -> list[str]:
        """Marks that may follow what is written; `""` where it may end there."""
        return [mark for mark in ("", *"-.0123456789") if self._possible(begun, mark)]

    def _possible(self, begun: str, mark: str) -> bool:
        """Whether a number within the bounds begins so, or is it where no mark follows."""
        body = (begun + mark).removeprefix("-")
        sign, ends = begun[:1] == "-" or not begun and mark == "-", not mark
        integer, point, fraction = body.partition(".")
        low, high = (max(1, -self.high), -self.low) if sign else (max(0, self.low), self.high)
        if not body:
            return bool(mark) and low <= high
        if not (body.replace(".", "", 1).isdigit() and integer) or integer[0] == "0" != integer:
            return False
        if len(fraction) > self.places or point and not self.places:
            return False
        if ends and (len(fraction) < self.places):
            return False
        ranges = self._ranges(integer, point, fraction, ends)
        return any(first <= high and low <= last for first, last in ranges)

    def _ranges(
        self, integer: str, point: str, fraction: str, ends: bool
    ) -> Iterator[tuple[int, int]]:
        """Sizes, in units, of the numbers that begin so: ranges of first and last."""
        more = 0 if point or ends or integer == "0" else self.width - len(integer)
        free = self.places - len(fraction)
        for digits in range(more + 1):
            first = int(integer + fraction + "0" * (digits + free))
            yield first, first + 10 ** (digits + free) - 1
