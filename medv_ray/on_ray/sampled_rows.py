"""Rows of an archive or of a prepared dataset in a seeded random order. No Ray here."""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from medv_ray.archive.accuracy import is_known
from medv_ray.archive.chunks import Chunk, Row
from medv_ray.archive.plan import Plan
from medv_ray.archive.plan import plan as make_plan
from medv_ray.archive.reading import read_rows
from medv_ray.archive.settings import ArchiveSettings
from medv_ray.archive.sources import open_archive
from medv_ray.archive.strict import kind_of
from medv_ray.data.dataset import Dataset
from medv_ray.data.slide_child import reader_of
from medv_ray.engine import Request, row_seed
from medv_ray.errors import DataError, SettingsError
from medv_ray.evaluation.recipes import Question, questions_of
from medv_ray.on_ray.chunk import request_of
from medv_ray.on_ray.score import tell
from medv_ray.prepared import INDEX
from medv_ray.settings import ImageSettings, SlideSettings

OF_ARCHIVES = (
    "questions", "question", "images", "id_column", "image_column", "question_column",
    "answer_column", "choices_column", "limit", "encoding", "max_cell_bytes",
)  # fmt: skip
"""Settings that a prepared dataset has no use for."""


class AskedRow(NamedTuple):
    """One row, ready to be asked, with its known answer if it has one."""

    id: str
    request: Request | DataError
    reference: str | None = None
    kind: str | None = None


class Rows(Protocol):
    """Rows by their number in the input."""

    def __len__(self) -> int:
        """Rows of the input."""

    def read(self, number: int) -> AskedRow:
        """One row; a bad one carries its error. Raises DataError E1107, E1114 for an input that
        changed."""

    def identity(self) -> dict[str, Any]:
        """What must be equal for a run to go on."""


class DatasetRows:
    """A split of a prepared dataset."""

    def __init__(self, dataset: Dataset, seed: int) -> None:
        self._dataset, self._seed = dataset, seed
        self._questions: list[Question] = questions_of(dataset)
        self._types = [example.answer_type for example in dataset]

    def __len__(self) -> int:
        return len(self._questions)

    def read(self, number: int) -> AskedRow:
        """As `Rows`."""
        one = self._questions[number]
        images = tuple(self._dataset.image(sha256) for sha256 in one.images)
        request = Request(one.question, images, seed=row_seed(self._seed, one.id))
        return AskedRow(one.id, request, one.answer, kind_of(one.answer, self._types[number]))

    def identity(self) -> dict[str, Any]:
        """As `Rows`."""
        return {"dataset": self._dataset.digest, "split": self._dataset.split}


class ArchiveRows:
    """An archive, as `medv score` reads it."""

    def __init__(self, plan: Plan, seed: int) -> None:
        self._plan, self._seed = plan, seed
        self._ends = list(accumulate(len(chunk.rows) for chunk in plan.chunks))

    def __len__(self) -> int:
        return self._plan.rows

    def read(self, number: int) -> AskedRow:
        """As `Rows`."""
        which = bisect_right(self._ends, number)
        chunk = self._plan.chunks[which]
        at = number - self._ends[which] + len(chunk.rows)
        [row] = read_rows(self._plan.archive, _alone(chunk, at))
        return self._asked(row)

    def _asked(self, row: Row) -> AskedRow:
        reference = row.reference if row.reference and is_known(row.reference) else None
        kind = None if reference is None else kind_of(reference, row.answer_type)
        request = row.error or request_of(row, row_seed(self._seed, row.id))
        if isinstance(request, Request):  # scoring choices would be in every time
            request = replace(request, choices=())
        return AskedRow(row.id, request, reference, kind)

    def identity(self) -> dict[str, Any]:
        """As `Rows`."""
        return self._plan.identity()


def _alone(chunk: Chunk, at: int) -> Chunk:
    """One row of a chunk: the others are not read."""
    span = slice(at, at + 1)
    return replace(chunk, rows=chunk.rows[span], at=chunk.at[span])


def open_rows(settings: ArchiveSettings, split: str, seed: int) -> Rows:
    """Of a prepared dataset, or of any archive; what is left out of that is told.

    Raises DataError E1110, E1113, E1121, SettingsError E1001.
    """
    if (Path(settings.archive) / INDEX).is_file():
        given = [name for name in OF_ARCHIVES if getattr(settings, name) != default_of(name)]
        if given:
            said = f"{', '.join(given)}: not for a prepared dataset, which is read by its split."
            raise SettingsError("E1001", said)
        return DatasetRows(Dataset.open(settings.archive, split), seed)
    reader = reader_of(ImageSettings(), SlideSettings())
    plan = make_plan(replace(open_archive(settings), slides=reader), "sample")
    tell(plan)
    return ArchiveRows(plan, seed)


def default_of(name: str) -> object:
    """Of a setting of archives."""
    return ArchiveSettings.model_fields[name].default


def sample(total: int, seed: int) -> Iterator[int]:
    """All numbers below `total`, once each, in an order that `seed` decides: a longer sample begins
    with a shorter one."""
    random_ = random.Random(seed)
    taken: set[int] = set()
    while 2 * len(taken) < total:  # few of many: no list of all of them
        number = random_.randrange(total)
        if number not in taken:
            taken.add(number)
            yield number
    rest = [number for number in range(total) if number not in taken]
    random_.shuffle(rest)
    yield from rest
