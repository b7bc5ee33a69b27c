"""Which kind of archive a listing is, and what of it lies beside the files of that kind."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple

from medv_ray.archive.left_out import (
    EMPTY,
    HIDDEN,
    NO_IMAGE,
    SIDE,
    UNNAMED,
    LeftOut,
    is_hidden,
    is_side_file,
    picture_keys,
    pictures_by_content,
)
from medv_ray.archive.listing import folder_of, place_of
from medv_ray.archive.settings import ArchiveSettings
from medv_ray.archive.store import Stored
from medv_ray.errors import DataError, SettingsError
from medv_ray.formats import ENDINGS, ending
from medv_ray.prepared import IMAGE, INDEX
from medv_ray.tables.records import ENDINGS as TABLE_ENDINGS

Kind = Literal["parquet", "table", "tar", "images", "dicomweb"]
KnownImage = tuple[Any, ...]
"""Name, size and time, and what else was planned of it."""
PARQUET_ENDINGS = (".parquet", ".pq")


class Beside(NamedTuple):
    """A file beside tables or parquet files. It is left out unless a row names it."""

    name: str
    reason: str


def sorted_out(found: Iterable[Stored], known: Mapping[str, KnownImage]) -> dict[str, list[Stored]]:
    """The files of a listing by `sort_of`."""
    sorts: dict[str, list[Stored]] = {
        name: [] for name in ("parquet", "tar", "table", "images", "hidden", "other")
    }
    for file in found:
        image = known.get(file.name)
        was_image = image is not None and image[:3] == file
        sorts["images" if was_image else sort_of(file.name)].append(file)
    return sorts


def choose(
    settings: ArchiveSettings,
    found: list[Stored],
    left_out: LeftOut,
    known: Mapping[str, KnownImage],
) -> tuple[Kind, list[Stored], list[Beside]]:
    """The kind of an archive, the files of that kind, and what lies beside them for rows to name.

    Endings decide, but for pictures: a file of another ending is looked into, where one question
    is asked of every image, and where nothing else would hold a row.
    """
    sorts = sorted_out(found, known)
    if sorts["parquet"] and sorts["tar"]:
        raise SettingsError(
            "E1001", "archive holds both parquet and tar files; choose with a pattern, '*.tar'."
        )
    names = {file.name for file in found}
    if sorts["parquet"] and INDEX in names and any(map(IMAGE.fullmatch, names)):
        raise SettingsError(
            "E1001",
            "archive is a dataset prepared for training, whose pictures have no names: give what it"
            " was made of, or use `medv eval --data`.",
        )
    kind: Kind
    if sorts["parquet"] or sorts["tar"]:
        kind = "parquet" if sorts["parquet"] else "tar"
    else:
        if settings.question is not None or not (sorts["table"] or sorts["images"]):
            look_inside(settings, sorts, left_out)
        if settings.question is not None and sorts["images"]:
            kind = "images"
        elif sorts["table"]:
            kind = "table"
        elif sorts["images"]:
            raise SettingsError(
                "E1001", "archive holds images only: give --questions FILE or --question TEXT."
            )
        else:
            for file in what_is_beside(sorts, "images"):
                left_out.add(*file)
            raise DataError("E1110", f"archive: no file that holds rows among {left_out}.")
    beside = what_is_beside(sorts, kind)
    if kind in ("parquet", "table"):
        return kind, sorts[kind], beside
    for file in beside:
        left_out.add(*file)
    return kind, sorts[kind], []


def sort_of(name: str) -> str:
    """A kind of archive by the ending of a file; `hidden`, or `other`."""
    end = ending(name)
    if end in ENDINGS:
        return "hidden" if is_hidden(name) else "images"
    if is_hidden(name):
        return "hidden"
    kind = "other"
    if end in PARQUET_ENDINGS:
        kind = "parquet"
    elif end == ".tar" or name.endswith((".tar.gz", ".tgz")):
        kind = "tar"
    elif end in TABLE_ENDINGS:
        kind = "table"
    set_aside = any(part.startswith((".", "_")) for part in name.split("/"))
    return "hidden" if set_aside and kind != "other" else kind


def look_inside(
    settings: ArchiveSettings, sorts: dict[str, list[Stored]], left_out: LeftOut
) -> None:
    """Move the pictures among files of other endings to the images; count the rest."""
    filesystem, root = place_of(folder_of(settings.archive))
    answers = pictures_by_content(filesystem, root, sorts["other"])
    looked = list(zip(sorts["other"], answers, strict=True))
    sorts["images"] += [file for file, answer in looked if answer is True]
    keys = picture_keys(file.name for file in sorts["images"]) if looked else set()
    for file, answer in looked:
        if answer is not True:
            is_side = answer in (EMPTY, NO_IMAGE) and is_side_file(file.name, keys)
            left_out.add(file.name, SIDE if is_side else str(answer))
    sorts["images"].sort()
    sorts["other"] = []


def what_is_beside(sorts: Mapping[str, list[Stored]], kind: Kind) -> list[Beside]:
    """What is no file of the archive's kind, and why."""
    names = {"parquet": "parquet", "tar": "tar", "table": "table", "images": "image"}
    result = []
    pictures = sorts.get("images", ()) if kind == "images" else ()
    keys = picture_keys(file.name for file in pictures)
    for sort, files in sorts.items():
        for file in files if sort != kind else ():
            reason = f"not a {names[kind]} file"
            if sort == "hidden":
                reason = HIDDEN
            elif sort == "images":
                reason = reason if kind == "tar" else UNNAMED
            elif is_side_file(file.name, keys):
                reason = SIDE
            elif not file.size:
                reason = EMPTY
            elif kind == "images":
                reason = NO_IMAGE if sort == "other" else "a table that is not read"
            result.append(Beside(file.name, reason))
    return result
