"""What a listing leaves out, counted by ending and reason: nothing is passed over in silence."""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from medv_ray.archive.store import TROUBLE, Stored, escaped, reason_of
from medv_ray.errors import shows_names
from medv_ray.formats import ENDINGS, HEAD_BYTES, ending, format_of
from medv_ray.tables.records import ENDINGS as TABLE_ENDINGS

HIDDEN, EMPTY, NO_IMAGE, NOT_UTF8 = "hidden", "empty", "not an image", "name is not UTF-8"
INDEX, UNINDEXED = "index of DICOM files", "not in the DICOMDIR"
UNNAMED = "images that no row names"
SIDE = "beside a picture of that name"
EXAMPLES = 3
GROUPS = 6
READERS = 16
HOLDS_ROWS = (".parquet", ".pq", ".tar", ".gz", ".tgz", *TABLE_ENDINGS)
LITTER = ("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r")
DICOM_INDEX = "dicomdir"
ONLY_ENDINGS = re.compile(r"(\.[a-z][a-z0-9]{0,7})+", re.IGNORECASE)


@dataclass
class LeftOut:
    """Counts and a few names by (ending, reason)."""

    groups: dict[tuple[str, str], tuple[int, tuple[str, ...]]] = field(default_factory=dict)

    def add(self, name: str, reason: str, count: int = 1) -> None:
        """One more file, or `count` files of which `name` is not known and empty."""
        key = (short_ending(name), reason)
        before, names = self.groups.get(key, (0, ()))
        if name and len(names) < EXAMPLES:
            names = (*names, escaped(name))
        self.groups[key] = (before + count, names)

    def update(self, other: LeftOut) -> None:
        """Add another count, of a tar's members, say."""
        for key, (count, names) in other.groups.items():
            before, known = self.groups.get(key, (0, ()))
            self.groups[key] = (before + count, (known + names)[:EXAMPLES])

    @property
    def total(self) -> int:
        """Files, or members of tars."""
        return sum(count for count, _ in self.groups.values())

    def maybe_rows(self, pictures: bool) -> int:
        """Of them, those that could have been rows or hold some: no pictures that other rows could
        name, no side files of pictures, nothing hidden.

        `pictures`: every picture of this archive is a row, and no table names them.
        """
        return sum(count for key, (count, _) in self.groups.items() if _maybe_row(*key, pictures))

    def listed(self, names: Callable[[str], str] = str) -> list[dict[str, Any]]:
        """As metrics.json has it, the largest group first; `names` says what stands for a name."""
        return [
            {
                "ending": end,
                "reason": reason,
                "files": count,
                "examples": list(map(names, examples)),
            }
            for (end, reason), (count, examples) in self._ordered()
        ]

    def printed(self) -> list[dict[str, Any]]:
        """As it is printed: names only where they are shown."""
        listed = self.listed()
        if not shows_names():
            for group in listed:
                del group["examples"]
        return listed

    def __str__(self) -> str:
        """`12 files (8 .txt not an image, 3 empty, 1 .zip not an image)`."""
        words = [
            f"{count} {end} {reason}" if end else f"{count} {reason}"
            for (end, reason), (count, _) in self._ordered()
        ]
        more = f", and {len(words) - GROUPS} more kinds" if len(words) > GROUPS else ""
        files = "file" if self.total == 1 else "files"
        return f"{self.total} {files} ({', '.join(words[:GROUPS])}{more})"

    def _ordered(self) -> list[tuple[tuple[str, str], tuple[int, tuple[str, ...]]]]:
        return sorted(self.groups.items(), key=lambda item: (-item[1][0], item[0]))


def _maybe_row(end: str, reason: str, pictures: bool) -> bool:
    shut = reason.startswith(("cannot", "no regular"))
    unread = shut or reason in (EMPTY, NOT_UTF8)
    other = reason.startswith("not a ")
    if pictures:
        return unread or reason == NO_IMAGE or (other and (end in HOLDS_ROWS or end in ENDINGS))
    # what is shut and has no ending may be a folder of tables
    return (unread or other) and end in HOLDS_ROWS or shut and not end


def picture_keys(names: Iterable[str]) -> set[str]:
    """What the names of pictures' side files begin with: each name, whole and without ending."""
    return {key for name in names for key in (name, name[: len(name) - len(short_ending(name))])}


def is_side_file(name: str, keys: Container[str]) -> bool:
    """Whether a name is one of `picture_keys` and endings: `a.cls`, `a.png.xml`. `1.2.3` of a DICOM
    file is not `1` with endings."""
    first = name.rfind("/") + 2  # a name may begin with a dot
    dots = (dot for dot in range(first, len(name)) if name[dot] == ".")
    return any(name[:dot] in keys and ONLY_ENDINGS.fullmatch(name, dot) for dot in dots)


def short_ending(name: str) -> str:
    """A name's ending where it looks like one: `.113` of a DICOM file's name is none."""
    end = ending(name)
    return end if re.fullmatch(r"\.[a-z][a-z0-9]{0,7}", end) else ""


def is_hidden(name: str) -> bool:
    """Whether a picture's name is one that a system keeps for itself, beside the pictures."""
    *folders, last = name.replace("\\", "/").split("/")
    return last.startswith(".") or last.lower() in LITTER or "__MACOSX" in folders


def is_index(name: str) -> bool:
    """Whether a file is the index of a DICOM folder, which has DICOM's mark and no picture."""
    return name.rpartition("/")[2].lower() == DICOM_INDEX


def pictures_by_content(filesystem: Any, root: str, files: Sequence[Stored]) -> list[bool | str]:
    """Whether each file's first bytes are a picture's; a reason in words where it is not one.

    Reads HEAD_BYTES of each, `READERS` files at a time.
    """

    def look(file: Stored) -> bool | str:
        if not file.size:
            return EMPTY
        if is_index(file.name):
            return INDEX
        try:
            with filesystem.open_input_file(f"{root}/{file.name}") as opened:
                return format_of(opened.read(HEAD_BYTES)) is not None or NO_IMAGE
        except TROUBLE as error:
            return f"cannot be read ({reason_of(error)})"

    with ThreadPoolExecutor(READERS) as pool:
        return list(pool.map(look, files))
