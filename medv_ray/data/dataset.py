"""A prepared dataset: the folder by which preparation hands rows to training.

    dataset.json             format, name, splits, counts, skipped, notes, licence
    <split>.parquet          one row per conversation, the columns of SCHEMA, pages with checksums
    images/<2 hex>/<sha256>  encoded bytes, one file per distinct image

Written by `dataset_writer.write_dataset`. Messages name files, row numbers and digests, never what
a row says.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from medv_ray.errors import DataError
from medv_ray.prepared import INDEX

FORMAT = 1
MAX_INDEX_BYTES = 2**24
GROUP_ROWS = 256
"""Rows of a row group: what a random access reads."""
KEPT_BYTES = 2**28
"""Row groups in memory, as Arrow tables; at least one is kept."""

Message = dict[str, str]

GROUPS = pa.list_(pa.struct([("name", pa.string()), ("value", pa.string())]))
"""Not a map: Hugging Face `datasets` reads none."""

SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("images", pa.list_(pa.string())),  # sha256 of the encoded bytes, in hex
        pa.field(
            "conversations", pa.list_(pa.struct([("from", pa.string()), ("value", pa.string())]))
        ),
        pa.field("answer_type", pa.string()),  # open | closed, null where the source does not say
        pa.field("question_type", pa.string()),
        pa.field("source", pa.string()),  # file and row number that it came from
        pa.field("choices", pa.list_(pa.string())),  # allowed answers; null where none are known
        pa.field("groups", GROUPS),  # modality, organ, ...: for tables
    ]
)

FORMER = (
    pa.schema([field for field in SCHEMA if field.name not in ("choices", "groups")]),
    pa.schema([*list(SCHEMA)[:-1], pa.field("groups", pa.map_(pa.string(), pa.string()))]),
)
"""Columns of datasets that earlier releases prepared; they are read as ever."""


class Example(NamedTuple):
    """One row of a split."""

    id: str
    conversations: list[Message]
    """{"from": "human" | "gpt", "value": text} by turns; `<image>` marks where an image goes."""
    images: tuple[str, ...]
    """Digests, for `Dataset.image`."""
    answer_type: str | None = None
    question_type: str | None = None
    choices: tuple[str, ...] = ()
    """Allowed answers, the right one among them."""
    groups: Mapping[str, str] = MappingProxyType({})
    """What tables are split by: modality, organ and others."""


class Dataset:
    """One split, by random access: at most KEPT_BYTES of rows are held, and no image.

    Safe to read from several threads.
    """

    def __init__(self, folder: Path, split: str, index: dict[str, Any]) -> None:
        """As `open`, which reads the index."""
        self.folder, self.split, self.index = folder, split, index
        self._name = f"{split}.parquet"
        try:
            self._file = pq.ParquetFile(
                folder / self._name, page_checksum_verification=True, pre_buffer=False
            )
        except (OSError, pa.ArrowException) as error:
            raise _changed(f"{self._name} is missing or damaged", error) from None
        if self._file.schema_arrow not in (SCHEMA, *FORMER):
            raise DataError("E1113", f"{self._name} has other columns than a dataset's.")
        footer = self._file.metadata
        rows = [footer.row_group(n).num_rows for n in range(footer.num_row_groups)]
        self._starts: list[int] = [0, *accumulate(rows)]
        listed = index["splits"][split]
        if self._starts[-1] != listed:
            raise _changed(f"{self._name} has {self._starts[-1]} rows, {INDEX} says {listed}")
        self._kept: OrderedDict[int, pa.Table] = OrderedDict()
        self._used_bytes = 0
        self._lock = threading.Lock()

    @classmethod
    def open(cls, path: str | Path, split: str = "train") -> Dataset:
        """Raises DataError E1113 (no dataset, or no such split) or E1114 (damaged)."""
        folder = Path(path)
        index = read_index(folder)
        if split not in index["splits"]:
            found = ", ".join(index["splits"])
            raise DataError("E1113", f"the dataset has no split {split[:20]!r}; it has {found}.")
        return cls(folder, split, index)

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, row: int) -> Example:
        """Raises IndexError outside 0 .. len - 1, and DataError E1114 for a damaged row group."""
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        number = bisect_right(self._starts, row) - 1
        table = self._group(number).slice(row - self._starts[number], 1)
        (cells,) = self._cells(number, table)
        return Example(
            cells["id"],
            cells["conversations"],
            tuple(cells["images"]),
            cells["answer_type"],
            cells["question_type"],
            tuple(cells.get("choices") or ()),
            dict(map(_pair, cells.get("groups") or ())),
        )

    def __iter__(self) -> Iterator[Example]:
        return (self[row] for row in range(len(self)))

    def image(self, sha256: str) -> bytes:
        """Encoded bytes of an image of this dataset. Raises DataError E1114 (missing, changed)."""
        path = image_path(self.folder, sha256)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise _changed(f"image {sha256[:12]} cannot be read", error) from None
        if hashlib.sha256(data).hexdigest() != sha256:
            raise _changed(f"the bytes of image {sha256[:12]} are not those that were prepared")
        return data

    @property
    def digest(self) -> str:
        """sha256 of the split's rows, images by their digests. Reads the whole split.

        Raises DataError E1114 when the rows are not those that were written.
        """
        state = hashlib.sha256()
        for number in range(len(self._starts) - 1):
            for cells in self._cells(number, self._read(number)):
                state.update(row_bytes(cells))
        if state.hexdigest() != self.index["counts"][self.split]["sha256"]:
            raise _changed(f"the rows of {self._name} are not those that were prepared")
        return state.hexdigest()

    def _group(self, number: int) -> pa.Table:
        with self._lock:
            found = self._kept.get(number)
            if found is None:
                found = self._kept[number] = self._read(number)
                self._used_bytes += found.nbytes
                while self._used_bytes > KEPT_BYTES and len(self._kept) > 1:
                    self._used_bytes -= self._kept.popitem(last=False)[1].nbytes
            self._kept.move_to_end(number)
            return found

    def _read(self, number: int) -> pa.Table:
        try:
            return self._file.read_row_group(number, use_threads=False)
        except (OSError, pa.ArrowException) as error:
            raise self._damaged(number, error) from None

    def _cells(self, number: int, table: pa.Table) -> list[dict[str, Any]]:
        """Rows of the group as Python values."""
        try:
            rows: list[dict[str, Any]] = table.to_pylist()
        except UnicodeDecodeError as error:
            raise self._damaged(number, error) from None
        return rows

    def _damaged(self, number: int, error: Exception) -> DataError:
        first, end = self._starts[number : number + 2]
        return _changed(f"{self._name} is damaged in rows {first} to {end - 1}", error)


def read_index(folder: Path) -> dict[str, Any]:
    """dataset.json, checked. Raises DataError E1113 or E1114."""
    path = folder / INDEX
    if not path.is_file():
        raise DataError("E1113", f"the folder has no {INDEX}.")
    try:
        if path.stat().st_size > MAX_INDEX_BYTES:
            raise ValueError
        index = json.loads(path.read_bytes())
        good = all(
            re.fullmatch(r"\w[\w-]{0,63}", split)
            and isinstance(rows, int)
            and isinstance(index["counts"][split]["sha256"], str)
            for split, rows in index["splits"].items()
        )
        version = index["format"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _changed(f"{INDEX} is damaged", error) from None
    if version != FORMAT:
        raise DataError(
            "E1113", f"the dataset has format {str(version)[:20]}; this version reads {FORMAT}."
        )
    if not good:
        raise _changed(f"{INDEX} is damaged")
    return dict(index)


def image_path(folder: Path, sha256: str) -> Path:
    """Where an image lies. Raises DataError E1114 for what is no digest."""
    if not re.fullmatch(r"[0-9a-f]{64}", sha256):
        raise _changed("an image is named by something else than a digest")
    return folder / "images" / sha256[:2] / sha256


def row_bytes(cells: dict[str, Any]) -> bytes:
    """A row as the digest takes it.

    Choices are in it where the row has some, so that datasets of before keep their digests. Groups
    are not: they change nothing of what is asked.
    """
    said = [[entry["from"], entry["value"]] for entry in cells["conversations"]]
    others: Sequence[Any] = [cells[n] for n in ("answer_type", "question_type", "source")]
    others = [*others, list(cells["choices"])] if cells.get("choices") else others
    return json.dumps([cells["id"], list(cells["images"]), said, *others]).encode() + b"\n"


def _pair(group: Any) -> tuple[str, str]:
    """Name and value; what a map holds is a pair already."""
    return group if isinstance(group, tuple) else (group["name"], group["value"])


def _changed(what: str, error: Exception | None = None) -> DataError:
    kind = f" ({type(error).__name__})" if error is not None else ""
    return DataError("E1114", f"{what}{kind}. Copy or prepare the dataset again.")
