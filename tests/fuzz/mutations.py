"""Inputs made of sound ones by Hypothesis: bytes changed, put in, taken out, doubled, cut."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import strategies as st

TOKENS = [
    *(b"\0", b"\xff", b"\xff" * 4, b"\xff" * 8, b"\x7f\xff\xff\xff", b"\x80\0\0\0", b"\0" * 8),
    *(b"-1", b"1e999", b"NaN", b"null", b"true", b"[]", b"{}", b'""', b"9" * 30, b"[" * 50),
    *(b"../", b"\n", b"\r\n", b'"', b",", b"\t", b"\\ud800", b"\xef\xbb\xbf"),
    *(b"<image>", b"\xed\xa0\x80"),
]  # fmt: skip
HOW = ("flip", "flip", "set", "token", "take", "double", "cut", "splice")


@st.composite
def mutated(draw: st.DrawFn, seeds: Sequence[bytes]) -> bytes:
    """A seed with one to six changes."""
    data = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, max(len(data) - 1, 0)))
        how = draw(st.sampled_from(HOW))
        length = draw(st.integers(1, 16))
        if how == "flip" and data:
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif how == "set" and data:
            data[at] = draw(st.integers(0, 255))
        elif how == "token":
            token = draw(st.sampled_from(TOKENS))
            data[at : at + draw(st.sampled_from([0, len(token)]))] = token
        elif how == "take":
            del data[at : at + length]
        elif how == "double":
            data[at:at] = data[at : at + length] * draw(st.integers(1, 8))
        elif how == "cut":
            del data[at:]
        elif how == "splice":
            other = draw(st.sampled_from(seeds))
            begin = draw(st.integers(0, max(len(other) - 1, 0)))
            data[at : at + length] = other[begin : begin + 4 * length]
    return bytes(data)
