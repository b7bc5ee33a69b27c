"""The file that a row means by a name: written on another system, with blanks, a folder too many.

Nothing here opens a file. Names are compared as they are, then in Unicode's normal form, then
without regard to case; a looser way counts only where it finds exactly one file.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from medv_ray.errors import DataError

_ELSEWHERE = re.compile(r"[A-Za-z]:/|[A-Za-z][A-Za-z0-9+.-]*://")


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _caseless(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


class Folder:
    """The names in a folder, to be found by how they look."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = frozenset(names)
        self._forms: dict[Callable[[str], str], dict[str, list[str]]] = {}

    def find(self, name: str, form: Callable[[str], str] | None) -> str | None:
        """The name that is there as it is, or the only one of this form."""
        if name in self._names or form is None:
            return name if name in self._names else None
        if form not in self._forms:
            self._forms[form] = defaultdict(list)
            for one in self._names:
                self._forms[form][form(one)].append(one)
        found = self._forms[form].get(form(name), [])
        return found[0] if len(found) == 1 else None


class Found(NamedTuple):
    """A file of the image folder."""

    path: str
    """Relative to it."""
    warnings: tuple[str, ...] = ()


def relative(name: object) -> str:
    r"""`images\test\1.jpg` -> `images/test/1.jpg`. Raises DataError E1108 for a way out."""
    if not isinstance(name, str) or "\0" in name or any("\ud800" <= c <= "\udfff" for c in name):
        raise DataError("E1108", "the image path is no text that can be a path.")
    path = name.replace("\\", "/")
    if ".." in path.split("/") or _ELSEWHERE.match(path.strip()):
        raise DataError("E1108", "the image path has '..', a drive or a URL scheme.")
    return path


def below(name: str, root: str) -> str:
    """An absolute path relative to the folder `root`, where it lies there, by links too; else as it
    is."""
    real = os.path.realpath(root)
    for base in (root, real):
        if name.startswith(base.rstrip("/") + "/"):
            return name[len(base.rstrip("/")) :].lstrip("/")
    if "\0" in name or any("\ud800" <= c <= "\udfff" for c in name):
        return name
    full = os.path.realpath(name)
    return os.path.relpath(full, real) if full.startswith(real.rstrip("/") + "/") else name


def find(name: str, folder: str, listed: Callable[[str], Folder]) -> list[Found]:
    """The file that a name means, or the files, where it is several names with `;` or `|` between.

    Args:
        folder: the image folder's own name, which may stand before the path once too often.
        listed: the names in a folder, given relative to the image folder; empty where none is.

    Empty when there is no such file. Raises DataError E1108 for a way out.
    """
    found = find_one(relative(name), folder, listed)
    if found is not None:
        return [found]
    for separator in ";|":
        parts = [part for part in name.split(separator) if part.strip()]
        if len(parts) > 1:
            several = [find_one(relative(part), folder, listed) for part in parts]
            if all(several):
                return [one for one in several if one is not None]
    return []


def find_one(path: str, folder: str, listed: Callable[[str], Folder]) -> Found | None:
    for form, warnings in ((None, ()), (_composed, ()), (_caseless, ("image_name_case",))):
        for candidate in candidates(path, folder):
            walked = walk(candidate, listed, form)
            if walked is not None:
                return Found(walked, warnings)
    return None


def candidates(path: str, folder: str) -> Iterator[str]:
    """What a path may mean: itself, without blanks around it, without what stands before it."""
    seen = set()
    for text in (path, path.strip()):
        parts = [part for part in text.split("/") if part not in ("", ".")]
        tries = [parts]
        if len(parts) > 1 and _caseless(parts[0]) == _caseless(folder):
            tries.append(parts[1:])
        for one in tries:
            joined = "/".join(one)
            if joined and joined not in seen:
                seen.add(joined)
                yield joined


def walk(
    path: str, listed: Callable[[str], Folder], form: Callable[[str], str] | None
) -> str | None:
    """A path with each part as it is really called; None when a part is not there."""
    at = ""
    for part in path.split("/"):
        name = listed(at).find(part, form)
        if name is None:
            return None
        at = f"{at}/{name}" if at else name
    return at
