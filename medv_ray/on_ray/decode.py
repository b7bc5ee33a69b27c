"""Decoding in actors of its own, on CPU cores in front of the actors with the model. No torch here.

A chunk stays one block from its reading to its commit: it is the unit of what a death costs and of
what Ray Data holds back. What travels of a picture are its uint8 tiles, one channel of a grey one:
442,368 or 147,456 bytes a tile of 384 x 384.
"""

from __future__ import annotations

import json
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from medv_ray.archive.chunks import Chunk, Row
from medv_ray.archive.reading import read_rows
from medv_ray.archive.sources import Archive
from medv_ray.canvases import TileSettings
from medv_ray.data.decoders import Decoders, Key, key_of
from medv_ray.data.images import Prepared, Refused
from medv_ray.errors import DataError, MedvError, RunError, is_out_of_memory
from medv_ray.on_ray.supervisor import DECODE
from medv_ray.on_ray.worker import Stopped, die_with_parent, guarded, obeyed
from medv_ray.settings import ImageSettings


class DecodeWork:
    """What a decoding actor is made of; no dataclass, as `actor.Work`."""

    def __init__(
        self, image: ImageSettings, tiles: TileSettings | None, archive: Archive, supervisor: Any
    ) -> None:
        """`tiles`: how the model's pictures are cut; None for a model that sees none."""
        self.image = image
        self.tiles = tiles
        self.archive = archive
        self.supervisor = supervisor


@dataclass(frozen=True)
class Decoded:
    """A chunk on its way to the model: its rows, or why it is not there."""

    rows: list[Row]
    decodes: int = 0
    skip: DataError | None = None


class ChunkDecoder:
    """Reads chunks and decodes their pictures, each distinct one of a chunk once. No Ray here."""

    def __init__(self, image: ImageSettings, tiles: TileSettings | None, archive: Archive) -> None:
        self._archive = archive
        self._decoders = None if tiles is None else Decoders(image, tiles)

    def read(self, chunk: Chunk) -> list[Row]:
        """All rows of the chunk. Raises DataError when its input is not there."""
        return read_rows(self._archive, chunk)

    def decode(self, rows: list[Row]) -> Decoded:
        """The rows with what their pictures have become. Raises RunError E1513."""
        made: dict[Key, Prepared | Refused] = {}
        if self._decoders is None:  # the model refuses pictures, and says so
            return Decoded(rows)
        for row in rows:
            if row.error is not None or not row.images:
                continue
            several = len(row.images) > 1
            keys = [key_of(picture, several) for picture in row.pictures]
            for key, picture in zip(keys, row.pictures, strict=True):
                if key not in made:
                    made[key] = self._attempt(self._decoders, picture, key)
            row.decoded = tuple(made[key] for key in keys)
        for row in rows:
            row.images = (b"",) * len(row.images)
        return Decoded(rows, len(made))

    def _attempt(self, decoders: Decoders, picture: Any, key: Key) -> Prepared | Refused:
        """Errors that are no picture's fault raise; a defect costs the rows it falls on, as it does
        beside the model."""
        sha256, part, several = key
        try:  # the digest is not that which a child says, where pictures are found again by it
            return replace(decoders.prepare(picture, several), sha256=sha256)
        except DataError as error:
            return Refused(error, sha256, part)
        except MedvError:
            raise
        except Exception as error:
            code, what = "E1509", "in one row."
            if is_out_of_memory(error):
                code, what = "E1306", "while a picture was decoded."
            return Refused(DataError(code, f"{type(error).__name__} {what}"), sha256, part)

    def close(self) -> None:
        """End the decoders' processes."""
        if self._decoders is not None:
            self._decoders.close()


def pack(decoded: Decoded) -> bytes:
    """As it travels, from one of the job's own processes to another."""
    places: dict[int, int] = {}
    pictures: list[Prepared | Refused] = []
    rows = []
    for row in decoded.rows:
        for one in row.decoded:
            if id(one) not in places:
                places[id(one)] = len(pictures)
                pictures.append(one)
        rows.append((replace(row, decoded=()), [places[id(one)] for one in row.decoded]))
    small = [one if isinstance(one, Refused) else _small(one) for one in pictures]
    return pickle.dumps((rows, small, decoded.decodes, decoded.skip), protocol=5)


def unpack(data: bytes) -> Decoded:
    """What `pack` was given."""
    rows, small, decodes, skip = pickle.loads(data)
    pictures = [one if isinstance(one, Refused) else _full(one) for one in small]
    for row, places in rows:
        row.decoded = tuple(pictures[place] for place in places)
    return Decoded([row for row, _ in rows], decodes, skip)


def _small(picture: Prepared) -> Prepared:
    """A grey picture with one of its three equal channels."""
    red, green, blue = (picture.tiles[..., channel] for channel in range(3))
    if np.array_equal(red, green) and np.array_equal(red, blue):
        return replace(picture, tiles=red[..., None].copy())
    return picture


def _full(picture: Prepared) -> Prepared:
    if picture.tiles.shape[-1] == 1:
        return replace(picture, tiles=np.repeat(picture.tiles, 3, axis=-1))
    return picture


class DecodeChunk:
    """Batch in: one chunk as JSON. Out: the same, and what `pack` makes of its rows.

    Two threads, locks and orders as in `actor.ScoreChunk`: one chunk is read while another one is
    decoded.
    """

    def __init__(self, work: DecodeWork) -> None:
        self._supervisor = work.supervisor
        context = ray.get_runtime_context()
        self._me = str(context.get_actor_id())
        self._turn = threading.Lock() if context.was_current_actor_reconstructed else nullcontext()
        self._reading = ThreadPoolExecutor(1)
        self._decoding = ThreadPoolExecutor(1)
        die_with_parent()
        self._decoder: ChunkDecoder = guarded(self._supervisor, self._load, work)

    def __call__(self, batch: pa.Table) -> pa.Table:
        text = str(batch.column("chunk")[0].as_py())
        data = b""
        if text:  # a source that was run again has nothing for a finished chunk
            chunk = Chunk.from_json(json.loads(text)["chunk"])
            data = guarded(self._supervisor, self._handle, chunk)
        decoded = pa.array([data], pa.large_binary())
        return pa.table({"chunk": [text if data else ""], "decoded": decoded})

    def _load(self, work: DecodeWork) -> ChunkDecoder:
        why = ray.get(self._supervisor.born.remote(self._me, DECODE))
        if why:
            raise RunError("E1508", why)
        made = ChunkDecoder(work.image, work.tiles, work.archive)
        self._supervisor.ready.remote(self._me, DECODE)
        return made

    def _handle(self, chunk: Chunk) -> bytes:
        """Nothing when the job ends."""
        with self._turn:
            try:
                knows = isinstance(self._turn, nullcontext)
                if not knows:
                    self._ask(chunk)
                rows = self._reading.submit(self._decoder.read, chunk).result()
                if knows:
                    self._ask(chunk)
                decoded = self._decoding.submit(self._decoder.decode, rows).result()
            except Stopped:
                return b""
            except DataError as error:
                decoded = Decoded([], skip=error)
            data = pack(decoded)
            # waits, so that a worker that dies at once has said so
            ray.get(self._supervisor.decoded.remote(chunk.source_key))
            return data

    def _ask(self, chunk: Chunk) -> None:
        obeyed(ray.get(self._supervisor.start.remote(chunk.source_key, DECODE)))
