"""Scores one chunk: rows in, a written part out. No Ray here."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, cast

from medv_ray.archive.chunks import Chunk, Row
from medv_ray.archive.mapping import write_chunk
from medv_ray.archive.pseudonyms import Pseudonyms
from medv_ray.archive.reading import read_rows
from medv_ray.archive.rows import Part, image_paths, quarantine_record, tile_record, write_part
from medv_ray.archive.sources import Archive
from medv_ray.archive.store import Store
from medv_ray.data.canvas import Template
from medv_ray.data.images import Prepared, Refused
from medv_ray.data.prompts import Role, Turn
from medv_ray.engine import Answer, Request, row_seed
from medv_ray.errors import DataError
from medv_ray.file_parts import Picture
from medv_ray.on_ray import blanks
from medv_ray.on_ray.predictor import Failed, ReloadingPredictor, RowPredictor
from medv_ray.settings import AnswerSettings

MOST_PICTURES = 2**18
"""Digests that are kept to count distinct pictures, about 100 bytes each; then all are forgotten. A
picture that comes back after so many others is counted again, and as the image cache holds far
fewer, the vision tower runs again too: the two numbers stay comparable."""

Announce = Callable[[int | None], None]
"""Called with a row number before the row is tried, and with None after the last."""


class ChunkScorer:
    """Turns chunks into parts with one predictor, which `make` can make again."""

    def __init__(
        self,
        archive: Archive,
        store: Store,
        answer: AnswerSettings,
        make: Callable[[], RowPredictor],
        pseudonyms: Pseudonyms | None = None,
        template: Template | None = None,
    ) -> None:
        """`template`: the answers' form."""
        self._archive = archive
        self._store = store
        self._settings = answer
        self._pseudonyms = pseudonyms
        self._template, self._blanks = template, blanks.fields(template)
        self._predictor = ReloadingPredictor(make)
        self._new_pictures = 0
        self._pictures: set[bytes] = set()
        self._warnings: Counter[str] = Counter()

    def score(self, chunk: Chunk) -> tuple[Part, dict[str, int]]:
        """Read, answer and write a chunk; the part and the reasons of its quarantined rows."""
        records = self.answer(self.read(chunk))
        return self.write(chunk, records), reasons_of(records)

    def read(self, chunk: Chunk) -> list[Row]:
        """All rows of the chunk.

        Raises DataError when the input vanished, changed or cannot be read: the chunk stays open.
        """
        return read_rows(self._archive, chunk)

    def answer(
        self, rows: Sequence[Row], crashed: Sequence[int] = (), announce: Announce | None = None
    ) -> list[dict[str, Any]]:
        """One output record a row.

        Rows numbered in `crashed` are quarantined untried; with `announce`, rows are tried one by
        one. Raises RunError E1508 when memory is short whatever the row.
        """
        self._warnings.update(f"warned_{word}" for row in rows for word in row.warnings)
        records = [self._judge(row, crashed) for row in rows]
        tried = [row for row, record in zip(rows, records, strict=True) if record is None]
        ended = self._answer_each(tried, announce) if announce else self._answer(tried)
        answers = {row.row: answer for row, answer in zip(tried, ended, strict=True)}
        return [
            {**(record or self._record(row, answers[row.row])), "image_paths": self._paths(row)}
            for row, record in zip(rows, records, strict=True)
        ]

    def _paths(self, row: Row) -> list[str | None] | None:
        """Where the row's pictures lie inside the archive."""
        shard = self._archive.files[row.file].name if self._archive.kind == "tar" else None
        return image_paths(row, shard)

    def write(self, chunk: Chunk, records: Sequence[dict[str, Any]]) -> Part:
        """Write the part, durable but not committed. Raises RunError E1503, E1510, E1511."""
        if self._pseudonyms is not None:
            if self._pseudonyms.mapping:
                write_chunk(self._store, chunk.source_key, records, self._pseudonyms)
            records = [self._pseudonyms.hide(record) for record in records]
        return write_part(self._store, chunk, records, self._blanks)

    def take_counters(self) -> dict[str, int]:
        """What the predictor did since the last call; `images`: distinct pictures new to it;
        `warned_*`: rows by what was changed to read them."""
        counted = self._predictor.take_counters()
        counted.update(self._warnings)
        self._warnings.clear()
        counted["images"], self._new_pictures = self._new_pictures, 0
        return dict(counted)

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
        request = request_of(row, row_seed(self._settings.seed, row.id))
        return replace(request, template=self._template)

    def _answer(self, rows: list[Row]) -> list[Answer | DataError]:
        """All rows in one call, rows of one picture side by side."""
        digests = [self._digest(row) for row in rows]
        first = {digest: index for index, digest in reversed(list(enumerate(digests)))}
        order = sorted(range(len(rows)), key=lambda index: first[digests[index]])
        ended = self._predictor.answer([self._request(rows[index]) for index in order])
        if isinstance(ended, Failed):
            return self._answer_each(rows, None)
        back = sorted(range(len(rows)), key=order.__getitem__)
        return [ended[index] for index in back]

    def _digest(self, row: Row) -> bytes:
        """Of the pictures; new ones are counted, so that `tower_runs` can be held against it."""
        digests = [digest_of(picture) for picture in row.pictures]
        for digest in digests:
            if digest not in self._pictures:
                if len(self._pictures) == MOST_PICTURES:
                    self._pictures.clear()
                self._pictures.add(digest)
                self._new_pictures += 1
        return b"".join(digests)

    def _answer_each(self, rows: list[Row], announce: Announce | None) -> list[Answer | DataError]:
        """Row by row, so that a defect costs the row it falls on and no other."""
        ended: list[Answer | DataError] = []
        for row in rows:
            if announce:
                announce(row.row)
                self._digest(row)
            ended.append(self._predictor.answer_alone(self._request(row)))
        if announce:
            announce(None)
        return ended

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
            "frame": row.frame,
            **tile_record(row),
            "question": row.question,
            "reference": row.reference,
            "answer_type": row.answer_type,
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
            "warnings": [*row.warnings, *ended.warnings],
            "image_sha256": " ".join(ended.image_sha256) or None,
            "prompt_sha256": ended.prompt_sha256,
            **choices_record(ended),
            **blanks.record(ended.blanks, self._blanks),
        }


def choices_record(ended: Answer) -> dict[str, Any]:
    """The columns about a row's choices."""
    if not ended.choices:
        return {}
    return {
        "choices": [one.text for one in ended.choices],
        "choice_probabilities": [one.probability for one in ended.choices],
        "choice": max(ended.choices, key=lambda one: one.log_likelihood).text,
    }


def request_of(row: Row, seed: int = 0) -> Request:
    """What is asked of the engine for a row."""
    history = tuple(Turn(cast(Role, role), text) for role, text in row.history)
    return Request(
        row.prompt or row.question or "",
        row.pictures,
        history,
        seed=seed,
        system=row.system,
        choices=row.choices,
    )


def digest_of(picture: bytes | Picture | Prepared | Refused) -> bytes:
    """12 bytes, other ones for other parts of one file; the same ones once it is decoded."""
    if isinstance(picture, bytes):
        return hashlib.sha256(picture).digest()[:12]
    if picture.part is None:
        return bytes.fromhex(picture.sha256)[:12]
    return hashlib.sha256(f"{picture.sha256} {picture.part.text}".encode()).digest()[:12]


def reasons_of(records: Sequence[dict[str, Any]]) -> dict[str, int]:
    """Quarantined rows by reason."""
    return dict(Counter(str(r["reason"]) for r in records if r["status"] == "quarantined"))
