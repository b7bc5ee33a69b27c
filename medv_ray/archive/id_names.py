"""The ids of a whole plan, those of an earlier plan's rows first."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import chain, islice
from typing import Any

from medv_ray.archive import parquet
from medv_ray.archive.entries import Entry
from medv_ray.archive.ids import IdCensus, numbered
from medv_ray.archive.prior import Prior
from medv_ray.archive.sources import Archive
from medv_ray.errors import DataError
from medv_ray.tables.ids import normal


class IdNames:
    """Counts ids, those of an earlier plan's rows first: what is new takes no name from them."""

    def __init__(self, archive: Archive, prior: Prior) -> None:
        self._stems: dict[int, list[str]] = {}
        for file in archive.files:
            since = file.pieces[0].generation if file.pieces else prior.generation + 1
            self._stems.setdefault(since, []).append(file.stem)
        self._next = prior.generation + 1
        self._kept = {name: file.stem for name, file in prior.files.items() if file.pieces}
        coming = self._stems.get(self._next, ()) if self._next else ()
        self.census = IdCensus(self._stems.get(0, ()), coming)
        self._waiting: list[tuple[int, Entry, int, int, Iterable[Any]]] = []
        self._new: list[Entry] = []

    def take(self, entry: Entry) -> None:
        """The ids of a file; what was added to a run later waits for the earlier rows."""
        if self._next and entry.pieces and entry.pieces[0].generation == self._next:
            self._new.append(entry)
        ids, entry.draft.ids = entry.draft.ids, None  # which hold the file's index
        if ids is None:
            return
        values: Iterator[Any] = chain.from_iterable(ids)
        row = 0
        for number, piece in enumerate(entry.pieces):
            if not piece.generation:
                self._add(entry, number, row, islice(values, piece.rows))
            elif len(entry.pieces) == 1:
                self._waiting.append((piece.generation, entry, number, row, values))
            else:
                mine = list(islice(values, piece.rows))
                self._waiting.append((piece.generation, entry, number, row, mine))
            row += piece.rows

    def take_waiting(self) -> None:
        """The ids that wait, in the order in which their rows were added."""
        ordered = sorted(self._waiting, key=lambda one: one[0])
        for since, entry, number, row, values in ordered:
            if since < self._next:
                self.census.know(self._stems.get(since, ()))
                self._add(entry, number, row, values)
        self._rename()
        self.census.know(entry.file.stem for entry in self._new)
        for since, entry, number, row, values in ordered:
            if since == self._next:
                self._add(entry, number, row, values)

    def _rename(self) -> None:
        """A new file takes no stem that the id of an earlier row looks made of."""
        taken = self.census.used | {normal(stem) for stem in self._kept.values()}
        for entry in self._new:
            if entry.file.name not in self._kept:
                stem = next(s for s in numbered(entry.file.stem) if normal(s) not in taken)
                entry.file = replace(entry.file, stem=stem)
                taken.add(normal(stem))

    def _add(self, entry: Entry, number: int, row: int, values: Iterable[Any]) -> None:
        self.census.start_file(entry.file.stem, row)
        entry.ordinals[number] = len(self.census)
        try:
            self.census.add(values)
        except parquet.BROKEN:
            self.census.drop_file()
            entry.ordinals.clear()
            entry.fail(DataError("E1105", f"{entry.file.name}: the id column does not decode."))
