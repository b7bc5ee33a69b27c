"""Fingerprints of input files: they change when a file does."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from medv_ray.archive import images
from medv_ray.archive.chunks import SourceFile
from medv_ray.archive.prior import Image
from medv_ray.archive.sources import Archive, file_path
from medv_ray.archive.store import TROUBLE, reason_of
from medv_ray.errors import DataError

EDGE_BYTES = 64 * 2**10
WORKERS = 8


def digests(archive: Archive, inputs: list[Image]) -> Iterator[tuple[SourceFile, str | DataError]]:
    """Every file with its fingerprint, computed a few files ahead."""
    if archive.by_image:
        yield archive.files[0], images.folder_digest(inputs)
        return
    with ThreadPoolExecutor(WORKERS) as pool:
        for first in range(0, len(archive.files), 8 * WORKERS):
            window = archive.files[first : first + 8 * WORKERS]
            found = pool.map(lambda file: digest_or_error(archive, file), window)
            yield from zip(window, found, strict=True)


def digest_or_error(archive: Archive, file: SourceFile) -> str | DataError:
    try:
        return fingerprint(archive, file)
    except TROUBLE as error:
        return DataError("E1105", f"{file.name}: cannot be read ({reason_of(error)}).")


def fingerprint(archive: Archive, file: SourceFile) -> str:
    """64 hex digits that change when the file does; docs/archive.md says what each kind sees."""
    filesystem, path = file_path(archive, file)
    digest = hashlib.sha256()
    with filesystem.open_input_file(path) as opened:
        if archive.settings.fingerprint == "full":
            while block := opened.read(2**20):
                digest.update(block)
            return digest.hexdigest()
        digest.update(f"{file.size} {file.mtime_ns}\n".encode())
        digest.update(opened.read(EDGE_BYTES))
        opened.seek(max(0, file.size - EDGE_BYTES))
        digest.update(opened.read(EDGE_BYTES))
    return digest.hexdigest()
