"""A folder of images under one question: every image is a row.

The folder counts as one file. Rows are in order of names; images that were added to a run later
come behind the earlier ones.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from pyarrow import fs

from medv_ray.archive.chunks import CHUNK_BYTES, Chunk, Cut, Draft, Piece, Row, SourceFile
from medv_ray.archive.columns import make_row
from medv_ray.archive.listing import place_of
from medv_ray.archive.pictures import read_image
from medv_ray.archive.prior import Image
from medv_ray.archive.sources import Archive
from medv_ray.archive.store import TROUBLE, Stored, reason_of
from medv_ray.errors import DataError

READERS = 8


def draft(archive: Archive, file: SourceFile, limit: int | None) -> Draft:
    """The images as the archive's listing has them, cut into chunks."""
    images = archive.images[:limit]
    result = Draft(rows=len(images))
    result.ids = iter([[image.name.replace("/", ":") for image in images]])
    borders = [border for border in file.borders() if border <= len(images)]
    begin, size = 0, 0
    for row, image in enumerate([*images, None]):
        full = row - begin == archive.settings.chunk_rows or size > CHUNK_BYTES
        if row > begin and (full or image is None or row in borders):
            at = tuple(tuple(one) for one in images[begin:row])
            result.cuts.append(Cut(range(begin, row), at=at))
            begin, size = row, 0
        size += image.size if image is not None else 0
    ends = [*borders, len(images)]
    result.proofs = [
        Piece(end - start, 0, "") for start, end in zip([0, *ends], ends, strict=False)
    ]
    return result


def listed(archive: Archive) -> list[Image]:
    """The images of the folder with what tells that they change.

    Raises DataError E1105 for one that cannot be read, under `fingerprint=full`.
    """
    if archive.settings.fingerprint == "fast":
        return [Image(*image) for image in archive.images]
    with ThreadPoolExecutor(READERS) as pool:
        try:
            digests = list(pool.map(lambda image: content_digest(archive, image), archive.images))
        except TROUBLE as error:
            text = f"an image of the folder cannot be read ({reason_of(error)})."
            raise DataError("E1105", text) from error
    return [Image(*image, digest) for image, digest in zip(archive.images, digests, strict=True)]


def content_digest(archive: Archive, image: Stored) -> str:
    """64 hex digits of what an image of the folder holds."""
    filesystem, root = place_of(archive.images_uri)
    digest = hashlib.sha256()
    with filesystem.open_input_file(f"{root}/{image.name}") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def folder_digest(images: Iterable[Image]) -> str:
    """The fingerprint of a folder of images: names, sizes and times, or names and contents."""
    digest = hashlib.sha256()
    for image in sorted(images):
        digest.update(f"{image.name!a} {image.size} {image.sha256 or image.mtime_ns}\n".encode())
    return digest.hexdigest()


def iter_rows(archive: Archive, chunk: Chunk) -> Iterator[Row]:
    """The rows of a chunk. Raises DataError E1107 when one of its images is not as planned."""
    filesystem, root = place_of(archive.images_uri)
    found = filesystem.get_file_info([f"{root}/{name}" for name, _, _ in chunk.at])
    for info, (_, size, mtime_ns) in zip(found, chunk.at, strict=True):
        if (info.type, info.size, info.mtime_ns or 0) != (fs.FileType.File, size, mtime_ns):
            raise DataError("E1107", "an image of the folder changed; its chunk is not scored.")
    for number, (name, _, _) in zip(chunk.rows, chunk.at, strict=True):
        cells: dict[str, Any] = {"id": name.replace("/", ":")}
        row = make_row(archive, chunk, number, cells, has_id=True)
        row.image_name = name
        if row.error is None:
            try:
                row.image = read_image(archive, name)
            except DataError as error:
                row.refuse(error)
        yield row
