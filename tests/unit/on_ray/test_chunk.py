import io
import tarfile
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from medv_ray.archive.chunks import Chunk, Row
from medv_ray.archive.plan import plan
from medv_ray.archive.rows import Part
from medv_ray.archive.settings import ArchiveSettings
from medv_ray.archive.sources import open_archive
from medv_ray.archive.store import Store
from medv_ray.data.prompts import Turn
from medv_ray.engine import Answer, Request
from medv_ray.errors import DataError, RunError
from medv_ray.on_ray.chunk import ChunkScorer, reasons_of
from medv_ray.on_ray.predictor import ReloadingPredictor, is_out_of_memory
from tests.integration import stub

Script = Callable[[Request], None]


class Recorder(stub.Stub):
    """Notes the questions of every call."""

    calls: list[list[str]] = []  # noqa: RUF012

    def answer(self, requests: Sequence[Request]) -> list[Answer | DataError]:
        self.calls.append([request.question for request in requests])
        return super().answer(requests)


def scorer_of(
    folder: Path,
    questions: list[str],
    per_image: int = 4,
    abstain: float | None = None,
    make: Callable[[], stub.Stub] = Recorder,
) -> tuple[ChunkScorer, Chunk]:
    stub.write_archive(folder / "in.parquet", questions, per_image)
    settings = stub.settings(folder, abstain_below=abstain)
    planned = plan(open_archive(settings.archive), "digest")
    Recorder.calls = []
    scorer = ChunkScorer(planned.archive, Store(settings.out), settings.answer, make)
    return scorer, planned.chunks[0]


def statuses(part: Part) -> tuple[int, int, int]:
    return part.answered, part.abstained, part.quarantined


def test_every_row_ends_once(tmp_path: Path) -> None:
    scorer, chunk = scorer_of(tmp_path, ["a", "bad", "c", "", "e"])
    part, reasons = scorer.score(chunk)
    assert statuses(part) == (3, 0, 2)
    assert reasons == {"prompt_too_long": 1, "empty_question": 1}


def test_a_row_reaches_the_engine_with_all_that_it_has(tmp_path: Path) -> None:
    """Several pictures, the turns before the question, its system message."""
    asked: list[Request] = []

    class Listener(stub.Stub):
        def answer(self, requests: Sequence[Request]) -> list[Answer | DataError]:
            asked.extend(requests)
            return super().answer(requests)

    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "<image><image>Which?"},
        {"role": "assistant", "content": "Left."},
        {"role": "user", "content": "Why?"},
    ]
    pictures = [stub.png(1), stub.png(2)]
    table = {"id": ["a", "a"], "images": [pictures, pictures], "messages": [turns, turns[:2]]}
    pq.write_table(pa.table(table), tmp_path / "in.parquet")
    settings = stub.settings(tmp_path)
    planned = plan(open_archive(settings.archive), "digest")
    scorer = ChunkScorer(planned.archive, Store(settings.out), settings.answer, Listener)
    first, second = scorer.answer(scorer.read(planned.chunks[0]))
    assert [len(request.images) for request in asked] == [2, 2]
    assert [request.question for request in asked] == ["Why?", "Which?"]
    assert asked[0].history == (Turn("user", "Which?"), Turn("assistant", "Left."))
    assert (asked[0].system, asked[1].history) == ("Be brief.", ())
    assert (first["id"], second["id"]) == ("a", "a#in:1")
    assert "image_mark" in first["warnings"]
    counters = scorer.take_counters()
    assert (counters["images"], counters["warned_image_mark"]) == (2, 2)
    assert counters["warned_id_repeated"] == 1
    assert "warned_image_mark" not in scorer.take_counters()


def test_a_raising_row_costs_only_itself(tmp_path: Path) -> None:
    scorer, chunk = scorer_of(tmp_path, ["a", "raise", "c", "raise"])
    part, reasons = scorer.score(chunk)
    assert statuses(part) == (2, 0, 2)
    assert reasons == {"internal_error": 2}


def test_a_broken_environment_ends_the_job_and_quarantines_nothing(tmp_path: Path) -> None:
    class Broken(stub.Stub):
        def answer(self, requests: Sequence[Request]) -> list[Answer | DataError]:
            raise RunError("E1513", "Pillow does not read a JPEG that is sound.")

    scorer, chunk = scorer_of(tmp_path, ["a"], make=Broken)
    with pytest.raises(RunError) as caught:
        scorer.score(chunk)
    assert (caught.value.code, caught.value.exit_code) == ("E1513", 6)
    assert not Store(str(tmp_path / "run")).listing("rows")


def test_records_name_their_pictures(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "part-7.tar", "w") as tar:
        for name, data in (("a/1.txt", b"why"), ("a/1.png", b"picture"), ("a/2.txt", b"bad")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    settings = ArchiveSettings(archive=str(tmp_path / "part-7.tar"))
    planned = plan(open_archive(settings), "digest")
    answer = stub.settings(tmp_path).answer
    scorer = ChunkScorer(planned.archive, Store(str(tmp_path / "run")), answer, Recorder)
    (chunk,) = planned.chunks
    good, bad = scorer.answer(scorer.read(chunk))
    assert good["image_paths"][0].startswith("part-7.tar/a/1")
    assert bad["status"] == "quarantined"
    assert bad["image_paths"][0].startswith("part-7.tar/a/2")


def test_low_confidence_abstains(tmp_path: Path) -> None:
    scorer, chunk = scorer_of(tmp_path, ["a", "b"], abstain=0.7)
    assert statuses(scorer.score(chunk)[0]) == (0, 2, 0)


def test_a_row_that_takes_all_memory_is_tried_again_alone_and_costs_only_itself(
    tmp_path: Path,
) -> None:
    scorer, chunk = scorer_of(tmp_path, ["a", "memory", "c"])
    part, reasons = scorer.score(chunk)
    assert statuses(part) == (2, 0, 1)
    assert reasons == {"out_of_memory": 1}
    assert Recorder.calls == [["a", "memory", "c"], ["a"], ["memory"], ["memory"], ["c"]]


def test_memory_that_the_first_rows_all_lack_ends_the_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first_rows = 2  # each costs two collections of a test process' whole heap
    monkeypatch.setattr("medv_ray.on_ray.predictor.FIRST_ROWS", first_rows)
    questions = ["memory"] * first_rows
    scorer, chunk = scorer_of(tmp_path, questions)
    with pytest.raises(RunError, match="E1508"):
        scorer.score(chunk)
    scorer, chunk = scorer_of(tmp_path, ["a", *questions[1:]])
    assert statuses(scorer.score(chunk)[0]) == (1, 0, first_rows - 1)


def test_an_error_of_no_row_ends_the_job(tmp_path: Path) -> None:
    scorer, chunk = scorer_of(tmp_path, ["a", "fatal"])
    with pytest.raises(RunError, match="nothing works"):
        scorer.score(chunk)


@pytest.mark.parametrize(
    "error",
    [MemoryError(), torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")],
)
def test_a_model_that_does_not_fit_is_told_as_memory(error: Exception) -> None:
    def make() -> stub.Stub:
        raise error

    with pytest.raises(RunError, match="E1508.*while it loaded"):
        ReloadingPredictor(make)


def test_memory_of_the_cpu_comes_as_a_plain_runtime_error() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(10**16)
    assert is_out_of_memory(caught.value)
    assert not is_out_of_memory(RuntimeError("shapes do not match"))


@pytest.mark.parametrize("word", ["raise", "memory"])
def test_there_are_never_two_models(tmp_path: Path, word: str) -> None:
    alive: weakref.WeakSet[stub.Stub] = weakref.WeakSet()

    class Large(Recorder):
        def __init__(self) -> None:
            super().__init__()
            assert not alive, "the old model is still there"
            alive.add(self)
            self.cycle = self  # as modules and hooks have them

    scorer, chunk = scorer_of(tmp_path, ["a", word, "c"], make=Large)
    assert statuses(scorer.score(chunk)[0]) == (2, 0, 1)


def test_digests_of_pictures_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medv_ray.on_ray.chunk.MOST_PICTURES", 3)
    scorer, chunk = scorer_of(tmp_path, list("abcdefgh"), per_image=1)
    scorer.score(chunk)
    assert scorer.take_counters()["images"] == 8
    assert len(scorer._pictures) <= 3


def test_announced_rows_are_tried_one_by_one(tmp_path: Path) -> None:
    scorer, chunk = scorer_of(tmp_path, ["a", "b", "c"])
    said: list[int | None] = []
    records = scorer.answer(scorer.read(chunk), crashed=[1], announce=said.append)
    assert said == [0, 2, None]
    assert Recorder.calls == [["a"], ["c"]]
    assert statuses(scorer.write(chunk, records)) == (2, 0, 1)
    assert reasons_of(records) == {"worker_crash": 1}


def test_rows_of_one_picture_stand_together(tmp_path: Path) -> None:
    scorer, chunk = scorer_of(tmp_path, list("abcdef"), per_image=1)
    stub.write_archive(tmp_path / "in.parquet", list("abcdef"), per_image=1)
    pictures = {"a": b"one", "b": b"two"}
    rows = [Row(str(i), 0, i, q, (pictures[q],)) for i, q in enumerate("abab")]
    ended = scorer._answer(rows)
    assert Recorder.calls == [["a", "a", "b", "b"]]
    seeds = [scorer._request(row).seed % 97 for row in rows]
    assert [e.text for e in ended if isinstance(e, Answer)] == [f"yes {seed}" for seed in seeds]


def test_a_vanished_file_leaves_the_chunk_open(tmp_path: Path) -> None:
    scorer, chunk = scorer_of(tmp_path, ["a"])
    (tmp_path / "in.parquet").unlink()
    with pytest.raises(DataError, match="E1107"):
        scorer.score(chunk)


def test_counters_are_told_once(tmp_path: Path) -> None:
    scorer, chunk = scorer_of(tmp_path, ["a", "b"])
    scorer.score(chunk)
    assert scorer.take_counters() == {"images": 1, "decodes": 1, "tower_runs": 1, "answers": 2}
    assert scorer.take_counters() == {"images": 0, "decodes": 0, "tower_runs": 0, "answers": 0}
