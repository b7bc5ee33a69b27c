"""The rows of a chunk, read from the file that it was planned from."""

from __future__ import annotations

from collections.abc import Iterator

from medv_ray.archive import cursor, images, pacs, tables, tars
from medv_ray.archive.chunks import Chunk, Row
from medv_ray.archive.sources import Archive, check_unchanged
from medv_ray.archive.store import TROUBLE, reason_of
from medv_ray.errors import DataError

READ = {
    "parquet": cursor.iter_rows, "table": tables.iter_rows, "tar": tars.iter_rows,
    "images": images.iter_rows, "dicomweb": pacs.iter_rows,
}  # fmt: skip


def read_rows(archive: Archive, chunk: Chunk) -> list[Row]:
    """All rows of a chunk, in the order of `chunk.rows`. See `iter_rows`."""
    return list(iter_rows(archive, chunk))


def iter_rows(archive: Archive, chunk: Chunk) -> Iterator[Row]:
    """The rows of a chunk one by one; a bad row carries its error.

    Raises DataError E1107 when the file vanished or is not the one that was planned: the chunk must
    then not be committed.
    """
    file = archive.files[chunk.file]
    try:
        if not archive.by_image:
            check_unchanged(archive, file)
        yield from READ[archive.kind](archive, chunk)
    except TROUBLE as error:
        text = f"{file.name} cannot be read at the moment ({reason_of(error)})."
        raise DataError("E1107", text) from error
