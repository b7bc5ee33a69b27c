"""Scores one chunk: rows in, a written part out. No Ray here."""

from __future__ import annotations

import hashlib
import importlib
import os
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch

from medv_ray.archive.chunks import Chunk, Row
from medv_ray.archive.plan import read_rows
from medv_ray.archive.rows import Part, quarantine_record, write_part
from medv_ray.archive.sources import Archive
from medv_ray.archive.store import Store
from medv_ray.engine import Answer, Predictor, Request, row_seed
from medv_ray.errors import DataError, MedvError, RunError
from medv_ray.on_ray.options import ScoreSettings
from medv_ray.settings import AnswerSettings

CRASH_CODE = 70  # EX_SOFTWARE
PREDICTOR = "medv_ray.on_ray.chunk:load_predictor"


class Answerer(Protocol):
    """What a chunk needs of a Predictor."""

    @property
    def counters(self) -> Any:
        """An object of whole-number fields."""

    def answer(self, requests: Sequence[Request]) -> list[Answer | DataError]:
        """One answer or error a request."""

    def close(self) -> None:
        """Let go of everything."""


Announce = Callable[[int | None], None]
"""Called with a row number before the row is tried, and with None after the last."""


def load_predictor(settings: ScoreSettings) -> Answerer:
    """The predictor of a real job, on as many torch threads as an actor has cores."""
    if settings.pool.cpus >= 1:
        torch.set_num_threads(int(settings.pool.cpus))
    return Predictor.load(settings.model, settings.answer, settings.engine)


def find(path: str) -> Callable[[ScoreSettings], Answerer]:
    """The function that a `module:function` path names."""
    module, _, name = path.partition(":")
    found: Callable[[ScoreSettings], Answerer] = getattr(importlib.import_module(module), name)
    return found


class ChunkScorer:
    """Turns chunks into parts with one predictor, which `make` can make again."""

    def __init__(
        self, archive: Archive, store: Store, answer: AnswerSettings, make: Callable[[], Answerer]
    ) -> None:
        self._archive = archive
        self._store = store
        self._settings = answer
        self._make = make
        self._predictor = make()
        self._counted: Counter[str] = Counter()  # at the last look
        self._new: Counter[str] = Counter()
        self._pictures: set[bytes] = set()

    def score(self, chunk: Chunk) -> tuple[Part, dict[str, int]]:
        """Read, answer and write a chunk; the part and the reasons of its quarantined rows."""
        records = self.answer(self.read(chunk))
        return self.write(chunk, records), reasons_of(records)

    def read(self, chunk: Chunk) -> list[Row]:
        """All rows of the chunk.

        Raises DataError when the input file vanished or changed: the chunk stays open.
        """
        try:
            return read_rows(self._archive, chunk)
        except OSError as error:
            name = self._archive.files[chunk.file].name
            kind = type(error).__name__
            raise DataError("E1105", f"{name}: could not be read ({kind}).") from None

    def answer(
        self, rows: Sequence[Row], crashed: Sequence[int] = (), announce: Announce | None = None
    ) -> list[dict[str, Any]]:
        """One output record a row.

        Rows numbered in `crashed` are quarantined untried; with `announce`, rows are tried one by
        one. Raises RunError when memory is short.
        """
        records = [self._judge(row, crashed) for row in rows]
        tried = [row for row, record in zip(rows, records, strict=True) if record is None]
        ended = self._answer_each(tried, announce) if announce else self._answer(tried)
        answers = {row.row: answer for row, answer in zip(tried, ended, strict=True)}
        return [
            record or self._record(row, answers[row.row])
            for row, record in zip(rows, records, strict=True)
        ]

    def write(self, chunk: Chunk, records: Sequence[dict[str, Any]]) -> Part:
        """Write the part, durable but not committed. Raises RunError E1503, E1510, E1511."""
        return write_part(self._store, chunk, records)

    def take_counters(self) -> dict[str, int]:
        """What the predictor did since the last call; `images`: distinct pictures new to it."""
        self._count()
        new, self._new = dict(self._new), Counter()
        return new

    def _count(self) -> None:
        now = Counter(vars(self._predictor.counters))
        for name, count in now.items():
            self._new[name] += count - self._counted[name]
        self._counted = now

    def close(self) -> None:
        """End the image decoder's processes."""
        self._predictor.close()

    def _judge(self, row: Row, crashed: Sequence[int]) -> dict[str, Any] | None:
        """The record of a row that is not to be tried."""
        if row.error is not None:
            return quarantine_record(row, row.error)
        if row.row in crashed:
            error = DataError("E1504", "the row ended its worker three times.")
            return quarantine_record(row, error)
        return None

    def _request(self, row: Row) -> Request:
        images = () if row.image is None else (row.image,)
        return Request(row.question or "", images, seed=row_seed(self._settings.seed, row.id))

    def _answer(self, rows: list[Row]) -> list[Answer | DataError]:
        """All rows in one call, rows of one picture side by side."""
        digests = [self._digest(row) for row in rows]
        first = {digest: place for place, digest in reversed(list(enumerate(digests)))}
        order = sorted(range(len(rows)), key=lambda place: first[digests[place]])
        try:
            ended = self._predictor.answer([self._request(rows[place]) for place in order])
        except Exception as error:
            raise_if_fatal(error)
            self._renew()
            return self._answer_each(rows, None)
        places = sorted(range(len(rows)), key=order.__getitem__)
        return [ended[place] for place in places]

    def _digest(self, row: Row) -> bytes:
        """Of the picture; a new one is counted, so that `tower_runs` can be held against it."""
        if row.image is None:
            return b""
        digest = hashlib.sha256(row.image).digest()[:12]
        self._new["images"] += digest not in self._pictures
        self._pictures.add(digest)
        return digest

    def _answer_each(self, rows: list[Row], announce: Announce | None) -> list[Answer | DataError]:
        """Row by row, so that a defect costs the row it falls on and no other."""
        ended: list[Answer | DataError] = []
        for row in rows:
            if announce:
                announce(row.row)
                self._digest(row)
            try:
                ended += self._predictor.answer([self._request(row)])
            except Exception as error:
                raise_if_fatal(error)
                self._renew()
                ended.append(DataError("E1509", f"{type(error).__name__} in one row."))
        if announce:
            announce(None)
        return ended

    def _renew(self) -> None:
        """A predictor that raised may hold half-done rows."""
        self._count()
        self._predictor.close()
        self._predictor = self._make()
        self._counted = Counter()

    def _record(self, row: Row, ended: Answer | DataError) -> dict[str, Any]:
        if isinstance(ended, DataError):
            return quarantine_record(row, ended)
        limit = self._settings.abstain_below
        reason = None
        if not ended.text:
            reason = "empty_answer"
        elif limit is not None and ended.confidence < limit:
            reason = "low_confidence"
        return {
            "id": row.id,
            "row": row.row,
            "question": row.question,
            "reference": row.reference,
            "status": "abstained" if reason else "answered",
            "reason": reason,
            "answer": ended.text,
            "confidence": ended.confidence,
            "finish": ended.finish,
            "token_ids": ended.token_ids,
            "token_confidence": ended.token_confidence,
            "token_step": ended.token_step,
            "forward_passes": ended.forward_passes,
            "seconds": ended.seconds,
            "warnings": ended.warnings,
            "image_sha256": next(iter(ended.image_sha256), None),
            "prompt_sha256": ended.prompt_sha256,
        }


def reasons_of(records: Sequence[dict[str, Any]]) -> dict[str, int]:
    """Quarantined rows by reason."""
    return dict(Counter(str(r["reason"]) for r in records if r["status"] == "quarantined"))


def raise_if_fatal(error: Exception) -> None:
    """Errors that no other row would escape: end the job, or the process where only that helps."""
    if isinstance(error, MedvError) and not isinstance(error, DataError):
        raise error
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        raise RunError(
            "E1508", f"a worker ran out of memory ({type(error).__name__}) on one row."
        ) from None
    if isinstance(error, torch.AcceleratorError):
        os._exit(CRASH_CODE)  # the CUDA context is lost; a new process gets a new one
