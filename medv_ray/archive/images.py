"""A folder of images under one question: every image is a row, or every part of it (a frame, say).

The folder counts as one file. Rows are in order of names; images that were added to a run later
come behind the earlier ones.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

from pyarrow import fs

from medv_ray.archive.chunks import CHUNK_BYTES, Chunk, Cut, Draft, Piece, Row, SourceFile
from medv_ray.archive.columns import make_row
from medv_ray.archive.listing import place_of
from medv_ray.archive.pictures import read_picture, read_slide, real_path
from medv_ray.archive.prior import Image
from medv_ray.archive.sources import Archive
from medv_ray.archive.store import TROUBLE, Stored, is_local, reason_of
from medv_ray.errors import DataError
from medv_ray.file_parts import FilePart, Splitter
from medv_ray.slide_parts import SlidePart

READERS = 8
SPLITTERS = 16
UNREADABLE = "0" * 64
"""In place of the sha256 of an image that nobody can read."""


def draft(archive: Archive, file: SourceFile, limit: int | None) -> Draft:
    """The images as the archive's listing has them, cut into chunks."""
    spots = list(islice(spots_of(archive), limit))
    cuts: list[Cut] = []
    result = Draft(rows=len(spots), cuts=cuts)
    result.ids = iter([[row_id(*spot) for spot in spots]])
    borders = [border for border in file.borders() if border <= len(spots)]
    begin, size, last = 0, 0, ""
    for row in range(len(spots) + 1):
        full = row - begin == archive.settings.chunk_rows or size > CHUNK_BYTES
        if row > begin and (full or row == len(spots) or row in borders):
            cuts.append(Cut(range(begin, row), at=tuple(spots[begin:row])))
            begin, size, last = row, 0, ""
        if row < len(spots) and spots[row][0] != last:  # parts of one file share its bytes
            last = spots[row][0]
            size += spots[row][1]
    ends = [*borders, len(spots)]
    result.proofs = [
        Piece(end - start, 0, "") for start, end in zip([0, *ends], ends, strict=False)
    ]
    return result


def spots_of(archive: Archive) -> Iterator[tuple[Any, ...]]:
    """Where each row lies: name, size and time of its file, and the text of its part if it is one
    of the file's parts."""
    for image in archive.images:
        for text in archive.parts.get(image.name, ()):
            yield (*image, text)
        if not archive.parts.get(image.name):
            yield tuple(image)


def row_id(name: str, size: int, mtime_ns: int, part: str | None = None) -> str:
    """`study/a.dcm` -> `study:a.dcm`, and `study:a.dcm#frame=07` for a part."""
    return name.replace("/", ":") + (part_of(part).suffix if part is not None else "")


def part_of(text: str) -> FilePart | SlidePart:
    """A part that a splitter planned."""
    return FilePart.parse(text) if text.startswith("frame=") else SlidePart.parse(text)


def split_up(
    archive: Archive, images: list[Image], splitter: Splitter, known: dict[str, Image]
) -> list[Image]:
    """The images with the parts that rows are to be of; those that are `known` as they are keep
    theirs, and are not opened.

    Raises DataError E1110 where a store fails.
    """
    filesystem, root = place_of(archive.images_uri)

    def one(image: Image) -> Image:
        before = known.get(image.name)
        if before is not None and image.is_same(before):
            return image._replace(parts=before.parts)
        if is_local(archive.images_uri) and real_path(root, image.name) is None:
            return image
        try:
            parts = splitter.parts(filesystem, f"{root}/{image.name}")
        except (FileNotFoundError, PermissionError):
            return image  # its row says so
        except TROUBLE as error:
            text = f"an image of the folder cannot be read ({reason_of(error)})."
            raise DataError("E1110", text) from error
        return image._replace(parts=tuple(part.text for part in parts) or None)

    with ThreadPoolExecutor(SPLITTERS) as pool:
        return list(pool.map(one, images))


def listed(archive: Archive) -> list[Image]:
    """The images of the folder with what tells that they change.

    Under `fingerprint=full` one without permission, or that has gone, counts as `UNREADABLE`; its
    row says so later. Raises DataError E1105 there where a disk or a store fails.
    """
    if archive.settings.fingerprint == "fast":
        return [Image(*image) for image in archive.images]
    with ThreadPoolExecutor(READERS) as pool:
        try:
            digests = list(pool.map(lambda image: digest_if_any(archive, image), archive.images))
        except TROUBLE as error:
            text = f"an image of the folder cannot be read ({reason_of(error)})."
            raise DataError("E1105", text) from error
    return [Image(*image, digest) for image, digest in zip(archive.images, digests, strict=True)]


def digest_if_any(archive: Archive, image: Stored) -> str:
    """`content_digest`, or `UNREADABLE`."""
    try:
        return content_digest(archive, image)
    except (FileNotFoundError, PermissionError):
        return UNREADABLE


def content_digest(archive: Archive, image: Stored) -> str:
    """64 hex digits of what an image of the folder holds."""
    filesystem, root = place_of(archive.images_uri)
    digest = hashlib.sha256()
    with filesystem.open_input_file(f"{root}/{image.name}") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def folder_digest(images: Iterable[Image]) -> str:
    """The fingerprint of a folder of images: names, sizes and times, or names and contents; and
    the parts that rows are of."""
    digest = hashlib.sha256()
    for image in sorted(images, key=lambda one: one.name):
        parts = "".join(f" {part}" for part in image.parts or ())
        state = image.sha256 or image.mtime_ns
        digest.update(f"{image.name!a} {image.size} {state}{parts}\n".encode())
    return digest.hexdigest()


def iter_rows(archive: Archive, chunk: Chunk) -> Iterator[Row]:
    """The rows of a chunk; the parts of one file share its bytes, which are read once.

    Raises DataError E1107 when one of its images is not as planned.
    """
    filesystem, root = place_of(archive.images_uri)
    files = {name: (size, mtime_ns) for name, size, mtime_ns, *_ in chunk.at}
    found = filesystem.get_file_info([f"{root}/{name}" for name in files])
    for info, (size, mtime_ns) in zip(found, files.values(), strict=True):
        if (info.type, info.size, info.mtime_ns or 0) != (fs.FileType.File, size, mtime_ns):
            raise DataError("E1107", "an image of the folder changed; its chunk is not scored.")
    last: Row | None = None
    for number, spot in zip(chunk.rows, chunk.at, strict=True):
        cells: dict[str, Any] = {"id": row_id(*spot)}
        row = make_row(archive, chunk, number, cells, has_id=True)
        row.image_name = spot[0]
        part = part_of(spot[3]) if len(spot) > 3 else None
        if isinstance(part, SlidePart):
            row.slide = part
        else:
            row.part = part
        if row.error is None:
            fill(archive, row, last)
            last = row
        yield row


def fill(archive: Archive, row: Row, last: Row | None) -> None:
    """Give the row its file's bytes, those of the `last` row where that is of the same file; of a
    slide, a picture of its part."""
    if row.slide is not None:
        try:
            row.image = read_slide(archive, str(row.image_name), row.slide)
        except DataError as error:
            row.refuse(error)
        return
    if last is not None and last.image_name == row.image_name:
        row.images, row.file_sha256, row.error = last.images, last.file_sha256, last.error
        return
    try:
        row.image, words = read_picture(archive, str(row.image_name))
        row.warnings += words
    except DataError as error:
        row.refuse(error)
    if row.image is not None and row.part is not None:
        row.file_sha256 = hashlib.sha256(row.image).hexdigest()
