"""Which picture of a file is meant, where a file holds several: a frame, or a page.

A part is planned by whoever knows the file's kind (`Splitter`), carried as its text through chunks
and the list of a run's inputs, and given to the decoder together with the bytes of the whole file.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, Self


class FilePart(NamedTuple):
    """A frame of a file."""

    frame: int
    """From 1, as DICOM counts."""
    of: int
    """How many frames the file had when it was planned; another number at decoding is an error."""

    @property
    def text(self) -> str:
        """One line that `parse` reads back."""
        return f"frame={self.frame}/{self.of}"

    @property
    def suffix(self) -> str:
        """What the row's id has behind the file's name; in order of frames as text, too. Empty
        where the file has nothing else."""
        return f"#frame={self.frame:0{len(str(self.of))}}" if self.of > 1 else ""

    @classmethod
    def parse(cls, text: str) -> Self:
        """The part that `text` was made of."""
        frame, _, of = text.removeprefix("frame=").partition("/")
        return cls(int(frame), int(of))


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """A part of a file and the bytes of the whole file: one object for all rows of the file."""

    data: bytes = field(repr=False)
    sha256: str
    """Of `data`, taken once a file."""
    part: FilePart


class Splitter(Protocol):
    """Tells how a file becomes rows. Safe to call from several threads."""

    @property
    def key(self) -> str:
        """What its answers depend on, apart from the file: a setting as users write it."""

    def parts(self, filesystem: Any, path: str) -> tuple[FilePart, ...]:
        """The rows of a picture file, in their order; none: the file is one row as it is.

        `filesystem` is one of pyarrow's. Raises OSError for a file that cannot be read; what is
        wrong with its content is for the decoder to say.
        """
