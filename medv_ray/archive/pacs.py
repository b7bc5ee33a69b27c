"""A PACS under one question: every instance with a picture is a row, fetched when it is scored."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from medv_ray.archive import images
from medv_ray.archive.chunks import Chunk, Draft, Row, SourceFile
from medv_ray.archive.columns import make_row
from medv_ray.archive.pacs_listing import client_of, pacs_error
from medv_ray.archive.prior import Image
from medv_ray.archive.sources import Archive
from medv_ray.dicomweb.address import parse
from medv_ray.dicomweb.client import Client, Trouble
from medv_ray.dicomweb.search import Instance
from medv_ray.errors import DataError

READERS = 4
HEAD_BYTES = 2**12
SOP_INSTANCE = re.compile(rb"\x02\x00\x03\x00UI..([0-9.]{1,64})", re.DOTALL)
"""(0002,0003) of a file's meta group, which is always explicit and little-endian."""


def draft(archive: Archive, file: SourceFile, limit: int | None) -> Draft:
    """The instances as the PACS lists them, cut into chunks."""
    result = images.draft(archive, file, limit)
    result.cuts = [
        cut._replace(at=tuple((s[0], *archive.instances[s[0]][:3], *s[3:]) for s in cut.at))
        for cut in result.cuts
    ]
    return result


def listed(archive: Archive) -> list[Image]:
    """The instances with what tells that they change. A UID's object never does (PS3.5 9), but a
    PACS may move it to another study or series, or tell another class or size of it."""
    return [Image(*image, digest_of(archive, image.name)) for image in archive.images]


def digest_of(archive: Archive, name: str) -> str:
    """64 hex digits of what the PACS tells of an instance."""
    text = f"{archive.salt} {archive.instances[name]!r}"
    return hashlib.sha256(text.encode()).hexdigest()


def iter_rows(archive: Archive, chunk: Chunk) -> Iterator[Row]:
    """The rows of a chunk. An instance that is gone or too large costs its row alone.

    Raises DataError E1107 when another one cannot be had, RunError E1107 for a PACS that does not
    answer, E1125 for one that refuses.
    """
    client = client_of(parse(archive.settings.archive).base, archive.settings.token_file)
    limit = archive.settings.max_image_bytes
    with ThreadPoolExecutor(READERS) as pool:
        fetched = list(pool.map(lambda at: fetch(client, Instance(*at[1:4]), limit), chunk.at))
    for number, (name, *_), got in zip(chunk.rows, chunk.at, fetched, strict=True):
        row = make_row(archive, chunk, number, {"id": name}, has_id=True)
        row.image_name = name
        if isinstance(got, DataError):
            row.error = row.error or got
        elif row.error is None:
            row.image = got
        yield row


def fetch(client: Client, one: Instance, limit: int) -> bytes | DataError:
    """The object of an instance, or why its row has none. Raises as `iter_rows`."""
    try:
        data = client.instance(one.path, limit)
    except Trouble as trouble:
        error = pacs_error(trouble, "E1107")
        if isinstance(error, DataError) and error.code != "E1107":
            return error
        raise error from None
    meant = SOP_INSTANCE.search(data, 0, HEAD_BYTES)
    if meant is not None and meant.group(1).decode() != one.uid:
        raise DataError("E1107", "the PACS sent another instance than the one asked for.")
    return data
