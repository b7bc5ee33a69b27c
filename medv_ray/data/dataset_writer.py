"""Writes a prepared dataset: rows are streamed, and the folder appears whole or not at all."""

from __future__ import annotations

import contextlib
import csv
import fcntl
import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from medv_ray.data.dataset import FORMAT, GROUP_ROWS, SCHEMA, Message, image_path, row_bytes
from medv_ray.disk import disk_error
from medv_ray.errors import DataError, RunError
from medv_ray.files import sync
from medv_ray.prepared import INDEX

SKIPPED = "skipped.csv"
LOCK = ".medv-dataset.lock"


class Row(NamedTuple):
    """A row to write."""

    id: str
    images: tuple[bytes, ...]
    """Encoded bytes, checked before."""
    conversations: Sequence[Message]
    answer_type: str | None = None
    question_type: str | None = None
    source: str = ""
    choices: tuple[str, ...] = ()
    groups: Mapping[str, str] = MappingProxyType({})


class Skip(NamedTuple):
    """A row that is left out, and why."""

    source: str
    """File and row number."""
    reason: str
    """A word of the error catalogue, or of the reader that left it out on purpose."""
    line: int | None = None
    """Of the file, from 1; of parquet and pickles, the row from 0."""
    cause: str = ""
    """In words, without anything of the row."""


def write_dataset(
    folder: str | Path,
    name: str,
    splits: Mapping[str, Iterable[Row | Skip]],
    *,
    licence: str = "",
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """Write `splits` and return the content of dataset.json.

    Everything goes to `<folder>.tmp`, is synced, and renamed. A dataset of the same name that is
    there already is replaced. Left-out rows are listed in skipped.csv. `notes` may grow while
    splits are read. Raises DataError E1110 for a
    split of which no row is left; RunError E1501 (another job writes there), E1503 (disk full),
    E1507 (the folder holds something else), E1511 (cannot be written).
    """
    folder = Path(folder).absolute()
    with _disk_errors():
        if _replaced(folder).exists() and not folder.exists():  # a kill between two renames
            _replaced(folder).rename(folder)
        check_target(folder, name)
    with _disk_errors(), _own(folder.with_name(folder.name + ".tmp")) as partial:
        counts: dict[str, Any] = {}
        held: dict[str, set[bytes]] = {}
        with (partial / SKIPPED).open("w", newline="") as file:
            left_out = csv.writer(file)
            left_out.writerow(["split", "source", "reason", "line", "cause"])
            for split, rows in splits.items():
                counts[split], held[split] = _write_split(partial, split, rows, left_out)
        total: Counter[str] = Counter()
        for entry in counts.values():
            total.update(entry["skipped"])
        index = {
            "format": FORMAT,
            "name": name,
            "splits": {split: entry["rows"] for split, entry in counts.items()},
            "counts": counts,
            "skipped": dict(total),
            "notes": [*notes, *_shared(held)],
            "licence": licence,
        }
        (partial / INDEX).write_text(json.dumps(index, indent=1) + "\n")
        _sync(partial)
        check_target(folder, name)
        _publish(partial, folder)
    return index


def check_target(folder: Path, name: str) -> None:
    """Raises RunError E1507 for a folder that holds anything but a dataset of this name."""
    if not folder.is_dir():
        if folder.exists():
            raise RunError("E1507", "the output is a file; a folder is needed.")
        return
    if not any(folder.iterdir()):
        return
    try:
        there = json.loads((folder / INDEX).read_bytes())["name"]
    except (OSError, ValueError, KeyError, TypeError):
        raise RunError("E1507", "the output folder is not empty and holds no dataset.") from None
    if there != name:
        raise RunError(
            "E1507", f"the output folder holds the dataset {str(there)[:40]!r}, not {name!r}."
        )


def _write_split(
    partial: Path, split: str, rows: Iterable[Row | Skip], left_out: Any
) -> tuple[dict[str, Any], set[bytes]]:
    """Counts of a split, and the digests of its images."""
    skipped: Counter[str] = Counter()
    types: Counter[str] = Counter()
    images: set[bytes] = set()
    seen: set[bytes] = set()
    answered: dict[bytes, bytes] = {}  # what was asked of which images, and the first answers
    state, written, repeated, contradicting = hashlib.sha256(), 0, 0, 0
    batch: list[dict[str, Any]] = []
    with pq.ParquetWriter(
        partial / f"{split}.parquet", SCHEMA, compression="zstd", write_page_checksum=True
    ) as writer:
        for row in rows:
            if isinstance(row, Skip):
                skipped[row.reason] += 1
                left_out.writerow([split, row.source, row.reason, row.line, row.cause])
                continue
            digests = [_store(partial, data) for data in row.images]
            groups = [{"name": name, "value": value} for name, value in row.groups.items()]
            younger = {"choices": row.choices or None, "groups": groups or None}
            cells = {**row._asdict(), "images": digests, **younger}
            state.update(row_bytes(cells))
            images.update(bytes.fromhex(digest) for digest in digests)
            said = _short((digests, row.conversations))
            repeated += said in seen
            seen.add(said)
            asked, replies = _halves(row.conversations)
            contradicting += answered.setdefault(_short((digests, asked)), replies) != replies
            types[row.answer_type or "unknown"] += 1
            written += 1
            batch.append(cells)
            if len(batch) == GROUP_ROWS:
                _flush(writer, batch)
        _flush(writer, batch)
    if not written:
        why = ", ".join(f"{reason} {count}" for reason, count in skipped.items()) or "it has none"
        raise DataError("E1110", f"split {split}: no row is left ({why}).")
    counts = {
        "rows": written,
        "images": len(images),
        "answer_types": dict(types),
        "repeated": repeated,  # same images and words as an earlier row; kept
        "contradicting": contradicting,  # same images and questions, other answers; kept
        "skipped": dict(skipped),
        "sha256": state.hexdigest(),
    }
    return counts, images


def _short(value: object) -> bytes:
    return hashlib.blake2b(repr(value).encode(), digest_size=12).digest()


def _halves(conversation: Sequence[Message]) -> tuple[list[str], bytes]:
    """What the human says, and a digest of the answers; case and blanks do not count."""
    words: dict[bool, list[str]] = {True: [], False: []}
    for message in conversation:
        plain = " ".join(message["value"].casefold().split())
        words[message["from"] == "human"].append(plain)
    return words[True], _short(words[False])


def _flush(writer: pq.ParquetWriter, batch: list[dict[str, Any]]) -> None:
    if batch:
        writer.write_table(pa.Table.from_pylist(batch, schema=SCHEMA), row_group_size=GROUP_ROWS)
        batch.clear()


def _store(partial: Path, data: bytes) -> str:
    digest = hashlib.sha256(data).hexdigest()
    path = image_path(partial, digest)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return digest


def _shared(held: dict[str, set[bytes]]) -> Iterator[str]:
    """What the reader of a score should know: pictures that a model saw in training."""
    for split, images in held.items():
        common = len(images & held.get("train", set())) if split != "train" else 0
        if common:
            yield f"{common} of the {len(images)} images of {split} occur in train too"


@contextlib.contextmanager
def _own(partial: Path) -> Iterator[Path]:
    """An empty folder of this process alone; what a dead writer left is removed."""
    partial.mkdir(parents=True, exist_ok=True)
    if any(partial.iterdir()) and not (partial / LOCK).exists():
        raise RunError("E1507", "a folder <out>.tmp is there and is not ours; move it away.")
    with (partial / LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError("E1501", "another job prepares a dataset there.") from None
        for path in partial.iterdir():
            if path.name != LOCK:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        try:
            yield partial
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise


def _sync(partial: Path) -> None:
    """Everything on disk, in one pass at the end: most of it was written back by then."""
    for path in [*partial.rglob("*"), partial]:
        sync(path)


def _replaced(folder: Path) -> Path:
    """Where the dataset before stands until the new one has its name."""
    return folder.with_name(f".{folder.name}.replaced")


def _publish(partial: Path, folder: Path) -> None:
    old = _replaced(folder)
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    partial.rename(folder)
    (folder / LOCK).unlink()
    shutil.rmtree(old, ignore_errors=True)
    sync(folder.parent)


@contextlib.contextmanager
def _disk_errors() -> Iterator[None]:
    """Failures of the disk in words of the catalogue."""
    try:
        yield
    except OSError as error:
        raise disk_error("the dataset", error) from None
