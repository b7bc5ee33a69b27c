"""Chunks that are decoded in front of the model: the same rows, in a small form that is exact."""

import asyncio
import hashlib
import io
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from medv_ray.archive.chunks import Chunk, Row
from medv_ray.archive.plan import plan
from medv_ray.archive.sources import open_archive
from medv_ray.archive.store import Store
from medv_ray.canvases import TileSettings
from medv_ray.data.images import Prepared, Refused, prepare
from medv_ray.errors import DataError, RunError
from medv_ray.file_parts import FilePart, Picture
from medv_ray.on_ray import actor, decode, worker
from medv_ray.on_ray.actor import ScoreChunk, Work
from medv_ray.on_ray.chunk import ChunkScorer, digest_of
from medv_ray.on_ray.decode import (
    ChunkDecoder,
    DecodeChunk,
    Decoded,
    DecodeWork,
    pack,
    unpack,
)
from medv_ray.on_ray.supervisor import CHUNK_DEATHS, DECODE, START_DEATHS, Supervisor
from medv_ray.settings import ImageSettings
from tests.integration import stub

TILES = TileSettings("anyres_max", 32, ((32, 64), (64, 32)))
IMAGE = ImageSettings()


def encoded(grey: bool = False, kind: str = "PNG", size: tuple[int, int] = (40, 24)) -> bytes:
    values = np.random.default_rng(7).integers(0, 256, (*size[::-1], 3), np.uint8)
    picture = Image.fromarray(values).convert("L" if grey else "RGB")
    buffer = io.BytesIO()
    picture.save(buffer, kind)
    return buffer.getvalue()


def decoder_of(folder: Path) -> ChunkDecoder:
    archive = plan(open_archive(stub.settings(folder).archive), "d").archive
    return ChunkDecoder(IMAGE, TILES, archive)


@pytest.fixture
def decoder(tmp_path: Path) -> ChunkDecoder:
    stub.write_archive(tmp_path / "in.parquet", ["what?"])
    return decoder_of(tmp_path)


def row(number: int, *images: bytes, error: DataError | None = None) -> Row:
    names = tuple(None for _ in images)
    return Row(f"r{number}", 0, number, "what?", images, names, error=error)


@pytest.mark.parametrize("grey", [False, True])
def test_tiles_travel_whole_and_small(decoder: ChunkDecoder, grey: bool) -> None:
    data = encoded(grey)
    sent = pack(decoder.decode([row(0, data), row(1, data)]))
    [first, second] = unpack(sent).rows
    want = prepare(data, IMAGE, TILES)
    [got] = first.pictures
    assert isinstance(got, Prepared)
    assert np.array_equal(got.tiles, want.tiles)
    assert got.tiles.flags.writeable, "torch takes no other"
    assert (got.size_wh, got.warnings, got.sha256) == (want.size_wh, want.warnings, want.sha256)
    assert second.pictures[0] is got, "a picture of two rows travels once"
    assert abs(len(sent) - want.tiles.nbytes / (3 if grey else 1)) < 1500


def test_a_bad_picture_keeps_its_error_and_its_row_the_rest(decoder: ChunkDecoder) -> None:
    bad, good = encoded()[:60], encoded(kind="JPEG")
    known = DataError("E1105", "an error of reading.")
    rows = [row(0, bad), row(1, good, good), row(2, b"x", error=known), row(3)]
    got = unpack(pack(decoder.decode(rows)))
    assert got.decodes == 2
    [refused] = got.rows[0].pictures
    assert isinstance(refused, Refused)
    with pytest.raises(DataError) as caught:
        prepare(bad, IMAGE, TILES)
    assert (refused.error.code, refused.error.detail) == (caught.value.code, caught.value.detail)
    assert digest_of(refused) == digest_of(bad)
    pair = got.rows[1].pictures
    assert [one.tiles.shape for one in pair] == [(1, 32, 32, 3)] * 2, "a group is not tiled"
    assert got.rows[2].error is not None
    assert got.rows[2].error.code == "E1105"
    assert [len(one.images) for one in got.rows] == [1, 2, 1, 0]
    assert [one.image is None for one in got.rows] == [False, False, False, True]


@pytest.mark.parametrize("other", [0, 1, 2])
def test_only_three_equal_channels_are_sent_as_one(other: int) -> None:
    tiles = np.full((1, 8, 8, 3), 9, np.uint8)
    tiles[0, 7, 7, other] = 10
    one = row(0, b"")
    one.decoded = (Prepared(tiles, (8, 8), (), "ab" * 32),)
    [[got]] = [found.pictures for found in unpack(pack(Decoded([one]))).rows]
    assert np.array_equal(got.tiles, tiles)


def test_a_childs_word_for_the_digest_is_not_taken(
    decoder: ChunkDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = encoded()
    lie = replace(prepare(data, IMAGE, TILES), sha256="0" * 64)
    monkeypatch.setattr("medv_ray.data.decoders.Decoders.prepare", lambda *_: lie)
    [got] = decoder.decode([row(0, data)]).rows
    assert got.pictures[0].sha256 == hashlib.sha256(data).hexdigest()


def test_a_part_of_a_file_stays_one(decoder: ChunkDecoder) -> None:
    frames = [Image.new("RGB", (32, 32), (shade, 0, 9)) for shade in (10, 200)]
    buffer = io.BytesIO()
    frames[0].save(buffer, "TIFF", save_all=True, append_images=frames[1:])
    data, part = buffer.getvalue(), FilePart(2, 2)
    one = row(0, data)
    one.part, one.file_sha256 = part, "ab" * 32
    before = digest_of(one.pictures[0])
    [got] = unpack(pack(decoder.decode([one]))).rows
    [picture] = got.pictures
    assert (picture.part, picture.sha256) == (part, "ab" * 32)
    assert picture.tiles[0, 0, 0].tolist() == [200, 0, 9]
    assert digest_of(picture) == before
    assert isinstance(one.part, FilePart)
    assert not isinstance(picture, Picture)


def test_what_is_no_pictures_fault(decoder: ChunkDecoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """A broken environment ends the job; a defect is the row's, and the others come through."""

    def broken(*_: object) -> Prepared:
        raise RunError("E1513", "no decoder starts.")

    monkeypatch.setattr("medv_ray.data.decoders.Decoders.prepare", broken)
    with pytest.raises(RunError, match="E1513"):
        decoder.decode([row(0, encoded())])

    def defect(*_: object) -> Prepared:
        raise KeyError("a patient's name")

    monkeypatch.setattr("medv_ray.data.decoders.Decoders.prepare", defect)
    [got] = decoder.decode([row(0, encoded())]).rows
    assert str(got.pictures[0].error) == str(DataError("E1509", "KeyError in one row."))

    def short(*_: object) -> Prepared:
        raise MemoryError

    monkeypatch.setattr("medv_ray.data.decoders.Decoders.prepare", short)
    [got] = decoder.decode([row(0, encoded())]).rows
    assert got.pictures[0].error.code == "E1306"


def test_an_input_that_is_not_there_is_said_behind(decoder: ChunkDecoder) -> None:
    skipped = unpack(pack(Decoded([], skip=DataError("E1107", "a file changed."))))
    assert skipped.skip is not None
    assert skipped.skip.code == "E1107"


def test_a_model_without_a_tower_gets_the_files(tmp_path: Path) -> None:
    stub.write_archive(tmp_path / "in.parquet", ["what?"])
    archive = plan(open_archive(stub.settings(tmp_path).archive), "d").archive
    data = encoded()
    got = unpack(pack(ChunkDecoder(IMAGE, None, archive).decode([row(0, data)])))
    assert got.rows[0].pictures == (data,)


def test_the_same_records_either_way(tmp_path: Path) -> None:
    stub.write_archive(tmp_path / "in.parquet", ["a", "bad", "c", "", "e"], per_image=2)
    settings = stub.settings(tmp_path)
    planned = plan(open_archive(settings.archive), "d")
    chunk: Chunk = planned.chunks[0]

    def scorer() -> ChunkScorer:
        return ChunkScorer(planned.archive, Store(settings.out), settings.answer, stub.Stub)

    alone, behind = scorer(), scorer()
    decoder = decoder_of(tmp_path)
    want = alone.answer(alone.read(chunk))
    got = behind.answer(unpack(pack(decoder.decode(decoder.read(chunk)))).rows)
    assert got == want
    assert alone.take_counters()["images"] == behind.take_counters()["images"] == 3


class Here:
    """A supervisor whose methods are called at once, in this process."""

    def __init__(self) -> None:
        self.of = Supervisor(9, 9)

    def __getattr__(self, name: str) -> SimpleNamespace:
        method = getattr(self.of, name)
        return SimpleNamespace(remote=lambda *given: asyncio.run(method(*given)))


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Here:
    """Actors without Ray."""
    context = SimpleNamespace(get_actor_id=lambda: "me", was_current_actor_reconstructed=False)
    fake = SimpleNamespace(get=lambda found: found, get_runtime_context=lambda: context)
    for module in (actor, decode, worker):
        monkeypatch.setattr(module, "ray", fake)
    for module in (actor, decode):
        monkeypatch.setattr(module, "die_with_parent", lambda: None)
    return Here()


def test_a_chunk_goes_from_actor_to_actor(tmp_path: Path, here: Here) -> None:
    stub.write_archive(tmp_path / "in.parquet", ["a", "bad", "c"], per_image=2)
    settings = stub.settings(tmp_path)
    planned = plan(open_archive(settings.archive), "d")
    text = json.dumps({"number": 3, "chunk": planned.chunks[0].to_json()})
    decoding = DecodeWork(IMAGE, TILES, planned.archive, here)
    first = DecodeChunk(decoding)
    second = ScoreChunk(Work(settings, planned.archive, here, stub.STUB, decoding=decoding))
    table = first(pa.table({"chunk": [text]}))
    assert not here.of._of[DECODE]._chunks, "no death counts against it any more"
    assert table.column_names == ["chunk", "decoded"]
    assert second({name: table[name].to_numpy() for name in table.column_names}) == {"done": [1]}
    [result] = [json.loads(one) for one in asyncio.run(here.of.results()) or ()]
    assert result["number"] == 3
    assert (result["part"]["answered"], result["part"]["quarantined"]) == (2, 1)
    assert result["counters"]["decodes"] == 2 + 2, "the stub claims two of its own"
    # a file that changed meanwhile is said by the one that commits
    stub.write_archive(tmp_path / "in.parquet", ["another"])
    table = first(pa.table({"chunk": [text]}))
    second({name: table[name].to_numpy() for name in table.column_names})
    [result] = [json.loads(one) for one in asyncio.run(here.of.results()) or ()]
    assert result["skip"][0] == "E1107"


def test_a_job_that_stops_leaves_its_chunks_for_the_next_run(tmp_path: Path, here: Here) -> None:
    stub.write_archive(tmp_path / "in.parquet", ["a"])
    planned = plan(open_archive(stub.settings(tmp_path).archive), "d")
    text = json.dumps({"number": 0, "chunk": planned.chunks[0].to_json()})
    first = DecodeChunk(DecodeWork(IMAGE, TILES, planned.archive, here))
    asyncio.run(here.of.stop())
    table = first(pa.table({"chunk": [text]}))
    assert table.to_pylist() == [{"chunk": "", "decoded": b""}]


def test_a_decoder_after_a_dead_one_says_first_what_it_tries(
    tmp_path: Path, here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its chunk may end it while it is read; one that ended too many is for the next run."""
    stub.write_archive(tmp_path / "in.parquet", ["a"])
    planned = plan(open_archive(stub.settings(tmp_path).archive), "d")
    chunk = planned.chunks[0]
    text = json.dumps({"number": 0, "chunk": chunk.to_json()})
    work = DecodeWork(IMAGE, TILES, planned.archive, here)
    context = decode.ray.get_runtime_context()
    context.was_current_actor_reconstructed = True
    monkeypatch.setattr(ChunkDecoder, "read", lambda *_: pytest.fail("read before it was said"))
    for _ in range(CHUNK_DEATHS + 1):
        asyncio.run(here.of.start(chunk.source_key, DECODE))
    table = DecodeChunk(work)(pa.table({"chunk": [text]}))
    skip = unpack(table["decoded"][0].as_py()).skip
    assert skip is not None
    assert skip.code == "E1508"
    assert table["chunk"].to_pylist() == [text], "the next actor says it"


def test_decoders_that_die_while_they_load_end_the_job(tmp_path: Path, here: Here) -> None:
    stub.write_archive(tmp_path / "in.parquet", ["a"])
    planned = plan(open_archive(stub.settings(tmp_path).archive), "d")
    for _ in range(START_DEATHS):
        asyncio.run(here.of.born("me", DECODE))
    with pytest.raises(RunError, match="E1508"):
        DecodeChunk(DecodeWork(IMAGE, TILES, planned.archive, here))
    assert asyncio.run(here.of.report())["fatal"][1] == "E1508"


def test_a_broken_environment_is_reported_and_ends_the_job(
    tmp_path: Path, here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> Prepared:
        raise RunError("E1513", "no decoder starts.")

    monkeypatch.setattr("medv_ray.data.decoders.Decoders.prepare", broken)
    stub.write_archive(tmp_path / "in.parquet", ["a"])
    planned = plan(open_archive(stub.settings(tmp_path).archive), "d")
    text = json.dumps({"number": 0, "chunk": planned.chunks[0].to_json()})
    with pytest.raises(RunError, match="E1513: the job's driver says more"):
        DecodeChunk(DecodeWork(IMAGE, TILES, planned.archive, here))(pa.table({"chunk": [text]}))
    fatal = asyncio.run(here.of.report())["fatal"]
    assert fatal == ("RunError", "E1513", "no decoder starts.")
