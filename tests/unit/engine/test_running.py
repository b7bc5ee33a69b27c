"""What caches, rules and short memory change: the time that answers take, and not the answers."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from medv_ray.data.prompts import Turn
from medv_ray.diffusion.sampler import Denoising
from medv_ray.engine import Answer, Engine, Predictor, Request
from medv_ray.engine.denoisers import RowByRow
from medv_ray.engine.predictor import load_model
from medv_ray.errors import CheckpointError, DataError, explain
from medv_ray.model.cache import Cached
from medv_ray.model.denoise import FullRecompute
from medv_ray.model.medv import Medv
from medv_ray.settings import AnswerSettings, EngineSettings, ModelSettings, SamplerSettings
from tests.unit.engine.conftest import png

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

LENGTHS = {"gen_length": 8, "block_length": 4, "steps": 8, "stop": ()}
EXACT = SamplerSettings(**LENGTHS)
LOW = 0.00746
"""About what the random model's tokens have of confidence: a step commits one or several. The
factors below ask as little of the second."""


def sampler(**values: Any) -> SamplerSettings:
    return SamplerSettings(**{**LENGTHS, **values})


SAMPLERS = [
    EXACT,
    sampler(preset="fast", threshold=LOW),
    sampler(preset="turbo", threshold=LOW),
    sampler(cache="prefix"),
    sampler(cache="dual", refresh_interval=2),
    sampler(cache="dual", rule="factor", factor=2.98),
    sampler(cache="prefix", rule="factor_llada_v", factor=2.98, refresh_interval=3),
    sampler(cache="dual", cfg_scale=1.5),
    sampler(cache="prefix", rule="threshold", threshold=LOW, temperature=0.7, suffix="!"),
]
DUAL = sampler(cache="dual", refresh_interval=2)


@cache
def loaded_model(folder: Path) -> tuple[Medv, PreTrainedTokenizerFast]:
    """Once for all tests of this file: none changes a weight."""
    return load_model(ModelSettings(path=str(folder), device="cpu"))


def load(folder: Path, **engine: Any) -> Predictor:
    answer, limits = AnswerSettings(sampler=EXACT), EngineSettings(**engine)
    return Predictor(Engine(*loaded_model(folder), answer, limits))


@pytest.fixture(scope="module")
def folders(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same weights under each kind of attention."""
    made = {"full": folder}
    for attention in ("dialogue", "prefix"):
        made[attention] = tmp_path_factory.mktemp(attention) / "checkpoint"
        shutil.copytree(folder, made[attention])
        path = made[attention] / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"medv_attention": attention}))
    return made


def asking(number: int, sampler: SamplerSettings, image: int | None = 1) -> Request:
    images = () if image is None else (png(image),)
    return Request(f"question {'x' * number}?", images, seed=number, sampler=sampler)


def essence(ended: Answer | DataError) -> tuple[object, ...]:
    assert isinstance(ended, Answer), ended
    caught = (ended.token_ids, ended.token_confidence, ended.token_step, ended.forward_passes)
    return (*caught, ended.finish, ended.text)


@cache
def answered_alone(folder: Path, row: Request) -> tuple[object, ...]:
    with load(folder) as one:
        return essence(one.answer([row])[0])


def alone(folder: Path, rows: list[Request]) -> list[tuple[object, ...]]:
    return [answered_alone(folder, row) for row in rows]


@pytest.mark.parametrize("attention", ["full", "prefix", "dialogue"])
def test_company_and_order_change_nothing(folders: dict[str, Path], attention: str) -> None:
    rows = [asking(i, chosen, i % 3) for i, chosen in enumerate(SAMPLERS)]
    history = (Turn("user", "what is shown?"), Turn("assistant", "a cell"))
    rows.append(Request("and now?", (png(1),), history, 7, DUAL))
    want = alone(folders[attention], rows)
    assert len(set(want)) == len(want)
    assert {3, 4, 5} & {passes for _, _, _, passes, *_ in want}, "some steps commit several"
    for slots in (3, 10):
        with load(folders[attention], slots=slots) as together:
            assert [essence(one) for one in together.answer(rows)] == want
            # and with what these have left
            assert [essence(one) for one in together.answer(rows[::-1])] == want[::-1]
            assert together.counters.memory_waits == together.counters.memory_shortages == 0
            assert (together.counters.prompt_hits > 0) == (attention != "full")


@pytest.mark.parametrize("cache", ["prefix", "dual"])
@pytest.mark.parametrize("attention", ["full", "prefix", "dialogue"])
def test_refreshing_at_every_step_is_exact(
    folders: dict[str, Path], attention: str, cache: str
) -> None:
    exact, kept = (
        alone(folders[attention], [asking(i, chosen) for i in range(3)])
        for chosen in (EXACT, sampler(cache=cache, refresh_interval=1))
    )
    for mine, theirs in zip(kept, exact, strict=True):
        assert mine[0] == theirs[0]
        assert mine[2] == theirs[2]


def test_who_gets_which_denoiser(folders: dict[str, Path]) -> None:
    for attention, path in folders.items():
        with load(path) as loaded:
            for chosen in SAMPLERS:
                engine = loaded.engine
                ticket = engine.admit(asking(3, chosen))
                engine.step()
                (state,) = engine._running
                rows = state.batch.denoiser  # type: ignore[union-attr]
                assert isinstance(rows, RowByRow)
                denoiser = rows.rows[state.row]
                if chosen.cache == "none" and attention != "prefix":
                    assert type(denoiser) is FullRecompute
                    assert engine._batches.nbytes == 0
                else:
                    assert isinstance(denoiser, Cached)
                    exact = chosen.cache == "none"
                    interval = 1 if exact else chosen.refresh_interval
                    assert denoiser.kind == ("prefix" if exact else chosen.cache)
                    assert (denoiser.refresh_interval, denoiser.block_length) == (interval, 4)
                    per_position = 2 * 2 * 32 * 4  # keys and values, layers, width, float32
                    positions = denoiser.sequence_length(0, 8) * (2 if chosen.cfg_scale else 1)
                    assert engine._batches.nbytes == per_position * positions
                engine.cancel(ticket)
                engine.step()
                assert engine.idle
                assert engine._batches.nbytes == 0


def test_presets_spare_passes_and_caches_positions(folder: Path) -> None:
    loaded = load(folder)
    counters = loaded.counters

    def spent(chosen: SamplerSettings) -> tuple[int, int]:
        before = counters.forward_passes, counters.positions
        (ended,) = loaded.answer([asking(3, chosen)])
        assert isinstance(ended, Answer)
        assert len(ended.token_ids) == 8
        return counters.forward_passes - before[0], counters.positions - before[1]

    passes, positions = spent(EXACT)
    whole = positions // 8
    assert (passes, positions) == (8, 8 * whole)
    assert spent(sampler(cache="dual")) == (8, 2 * whole + 6 * 4)
    assert spent(sampler(cache="prefix")) == (8, 2 * whole + 3 * 8 + 3 * 4)
    assert spent(sampler(preset="fast", threshold=1e-6)) == (2, 2 * whole)
    assert spent(sampler(preset="turbo", threshold=1e-6)) == (2, 2 * whole)
    assert spent(sampler(cfg_scale=1.0)) == (16, 16 * whole)
    assert spent(sampler(cfg_scale=1.0, cache="dual")) == (16, 2 * (2 * whole + 6 * 4))
    loaded.close()


def test_the_watch_of_a_rule_shows_every_step(folder: Path) -> None:
    fast = sampler(preset="fast", threshold=LOW)
    with load(folder) as loaded:
        views = list(loaded.watch(asking(3, fast)))
        masks = [sum(token is None for token in view.tokens) for view in views]
        assert masks == sorted(masks, reverse=True)
        assert masks[-1] == 0
        assert len(views) < 8
        assert views[-1].answer is not None
        assert essence(views[-1].answer) == essence(loaded.answer([asking(3, fast)])[0])
        for view in views:
            sure = [p for token, p in zip(view.tokens, view.confidence, strict=True) if token]
            assert all(0 < p <= 1 for p in sure)


@cache
def kv_bytes(folder: Path, request: Request) -> int:
    with load(folder) as loaded:
        ticket = loaded.engine.admit(request)
        loaded.engine.step()
        found = loaded.engine._batches.nbytes
        loaded.engine.cancel(ticket)
        return found


def until_idle(engine: Engine) -> tuple[dict[int, Answer | DataError], list[list[int]]]:
    """Answers by ticket, in the order of their end, and which tickets had a row at each step."""
    ended: dict[int, Answer | DataError] = {}
    held = []
    while not engine.idle:
        found = engine.step()
        ended |= dict(found)
        held.append(
            sorted([*(ticket for ticket, _ in found), *(s.ticket for s in engine._running)])
        )
        assert len(held) < 500
    return ended, held


@pytest.mark.parametrize(("spare", "together"), [(-1, 1), (0, 2), (1, 2)])
def test_requests_wait_for_room_in_their_order(folder: Path, spare: int, together: int) -> None:
    rows = [asking(5, DUAL, image) for image in range(5)]
    want = alone(folder, rows)
    budget = 2 * kv_bytes(folder, rows[0]) + spare
    with load(folder, slots=4, kv_cache_bytes=budget) as tight:
        tickets = [tight.engine.admit(row) for row in rows]
        ended, held = until_idle(tight.engine)
        assert list(ended) == tickets
        assert [essence(one) for one in ended.values()] == want
        assert max(map(len, held)) == together
        assert held[0] == tickets[:together]
        assert tight.counters.memory_waits == (4 if together == 1 else 2)
        assert tight.counters.memory_shortages == 0
        assert tight.counters.tower_runs == 5


def test_nobody_overtakes_who_waits_for_room(folder: Path) -> None:
    """Also who needs no keys and values; and a row is not taken by one that waits."""
    rows = [asking(5, DUAL), asking(6, DUAL), asking(7, EXACT), asking(8, EXACT)]
    want = alone(folder, rows)
    with load(folder, slots=3, kv_cache_bytes=kv_bytes(folder, rows[0])) as tight:
        tickets = [tight.engine.admit(row) for row in rows]
        ended, held = until_idle(tight.engine)
    assert {ticket: essence(one) for ticket, one in ended.items()} == dict(
        zip(tickets, want, strict=True)
    )
    assert held[0] == tickets[:1]
    assert held[8] == tickets[1:]


def test_alone_a_request_is_never_too_big(folder: Path) -> None:
    rows = [asking(i, chosen, i % 2) for i, chosen in enumerate(SAMPLERS)]
    with load(folder, slots=9, kv_cache_bytes=0) as none:
        assert [essence(one) for one in none.answer(rows)] == alone(folder, rows)
        assert 0 < none.counters.memory_waits <= 7  # the exact one, and the first, never wait


def test_cancelling_what_waits_for_room(folder: Path) -> None:
    rows = [asking(5, DUAL, image) for image in range(3)]
    want = alone(folder, rows)
    with load(folder, slots=3, kv_cache_bytes=0) as tight:
        first, second, third = [tight.engine.admit(row) for row in rows]
        tight.engine.step()
        assert tight.engine._ready is not None
        assert tight.engine._ready.ticket == second
        assert tight.engine.view(second) is None
        tight.engine.cancel(second)
        tight.engine.cancel(second)
        ended, _ = until_idle(tight.engine)
        assert list(ended) == [first, third]
        assert [essence(one) for one in ended.values()] == [want[0], want[2]]
        # the last to wait may be the only one that is left
        first, second = [tight.engine.admit(row) for row in rows[:2]]
        tight.engine.step()
        tight.engine.cancel(first)
        assert not tight.engine.idle
        ended, _ = until_idle(tight.engine)
        assert [getattr(one, "finish", None) for one in ended.values()] == ["cancelled", "length"]
        assert essence(ended[second]) == want[1]


def test_kept_beginnings_give_way_to_requests(folders: dict[str, Path]) -> None:
    rows = [asking(i, DUAL, i // 2 % 2) for i in range(8)]  # images 0 0 1 1 0 0 1 1
    want = alone(folders["prefix"], rows)
    one = kv_bytes(folders["prefix"], rows[7])
    caught = []
    for budget in (one, 2 * one, 2**30):
        with load(folders["prefix"], kv_cache_bytes=budget) as loaded:
            tickets, ended = [loaded.engine.admit(row) for row in rows], {}
            while not loaded.engine.idle:
                ended |= dict(loaded.engine.step())
                batches = loaded.engine._batches
                assert batches.nbytes + batches.prompts.nbytes <= budget
            assert [essence(ended[ticket]) for ticket in tickets] == want
            caught.append((loaded.counters.prompt_hits, loaded.counters.prompt_evictions))
    assert caught[2] == (6, 0)
    assert caught[0][0] < caught[1][0] <= 6
    assert caught[0][1] > 0


def raising(original: Callable[..., Any], fails: Callable[..., bool]) -> Callable[..., Any]:
    """`original`, short of memory where `fails` says so of the arguments."""

    def call(*args: Any, **named: Any) -> Any:
        if fails(*args):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return original(*args, **named)

    return call


@pytest.fixture
def room_for(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Sets how many requests may run together before memory runs out, when a batch has stepped."""
    limit = [1000]

    def advance(self: Engine) -> None:
        original(self)
        if len(self._running) > limit[0]:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    original = Engine._advance
    monkeypatch.setattr(Engine, "_advance", advance)
    return lambda number: limit.__setitem__(0, number)


def test_out_of_memory_halves_the_slots_and_changes_no_answer(
    folder: Path, room_for: Callable[[int], None], caplog: pytest.LogCaptureFixture
) -> None:
    rows = [asking(i, SAMPLERS[i % len(SAMPLERS)], i % 3) for i in range(10)]
    want = alone(folder, rows)
    with load(folder, slots=7) as short, caplog.at_level(logging.DEBUG, "medv_ray"):
        tickets = [short.engine.admit(row) for row in rows]
        short.engine.step()  # all seven have gone a step when memory runs out
        room_for(2)
        ended, held = until_idle(short.engine)
        assert {ticket: essence(one) for ticket, one in ended.items()} == dict(
            zip(tickets, want, strict=True)
        )
        assert short.counters.memory_shortages == 2  # 7, 3, 1
        assert [len(step) for step in held[:3]] == [0, 0, 1]
        assert max(map(len, held)) == 1
        assert short.counters.answers == 10
        caught = [record.getMessage() for record in caplog.records]
        assert caught == [f"out of memory: {n} requests together from now on" for n in (3, 1)]
        assert [essence(one) for one in short.answer(rows[:3])] == want[:3]
        assert short.counters.memory_shortages == 2


def test_the_cancelled_stay_so_when_memory_runs_out(
    folder: Path, room_for: Callable[[int], None]
) -> None:
    rows = [asking(i, DUAL, i % 2) for i in range(5)]
    want = alone(folder, rows)
    budget = 3 * kv_bytes(folder, rows[4])
    with load(folder, slots=4, kv_cache_bytes=budget) as short:
        engine = short.engine
        tickets = [engine.admit(row) for row in rows]
        engine.step()
        engine.step()
        assert engine._ready is not None
        engine.cancel(tickets[1])
        room_for(1)
        ended = dict(engine.step())
        assert list(ended) == [tickets[1]]
        got = ended[tickets[1]]
        assert isinstance(got, Answer)
        assert (got.finish, len(got.token_ids)) == ("cancelled", 2)
        more, held = until_idle(engine)
        assert list(more) == [tickets[0], *tickets[2:]]
        assert [essence(one) for one in more.values()] == [want[0], *want[2:]]
        assert held[0] == tickets[:1]
        assert short.counters.memory_waits == 1  # the fourth, once
        assert short.counters.memory_shortages == 1


@pytest.mark.parametrize("chosen", [EXACT, SAMPLERS[2], DUAL])
def test_out_of_memory_in_the_middle_of_a_step(
    folder: Path, chosen: SamplerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some have moved on, some have not, and a layer has keys that the next one lacks."""
    rows = [asking(i, chosen, i % 2) for i in range(3)]
    want = alone(folder, rows)
    with load(folder, slots=3) as short:
        count = [0]

        def fourth(*_: Any) -> bool:
            count[0] += 1
            return count[0] == 4

        with monkeypatch.context() as patch:
            patch.setattr(Denoising, "propose", raising(Denoising.propose, fourth))
            assert [essence(one) for one in short.answer(rows)] == want
        assert short.counters.memory_shortages == 1
    with load(folder, slots=2) as short:
        layer = short.engine._model.model.layers[1]
        count[0] = 0
        with monkeypatch.context() as patch:
            patch.setattr(layer, "forward", raising(layer.forward, fourth))
            assert [essence(one) for one in short.answer(rows)] == want
        assert short.counters.memory_shortages == 1


@pytest.mark.parametrize("chosen", [EXACT, DUAL])
def test_out_of_memory_alone_is_an_error_that_the_engine_survives(
    folder: Path, chosen: SamplerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [asking(i, chosen) for i in range(3)]
    want = alone(folder, rows)
    with load(folder) as short:
        layer, count = short.engine._model.model.layers[1], [0]

        def third(*_: Any) -> bool:
            count[0] += 1
            return count[0] == 3

        monkeypatch.setattr(layer, "forward", raising(layer.forward, third))
        with pytest.raises(torch.OutOfMemoryError):
            short.answer(rows)
        assert [essence(one) for one in short.answer(rows)] == want
        assert short.counters.memory_shortages == 0
        # who goes on without cancelling gets whole answers too
        count[0] = 0
        tickets = [short.engine.admit(row) for row in rows]
        short.engine.step()
        short.engine.step()
        with pytest.raises(torch.OutOfMemoryError):
            short.engine.step()
        ended, _ = until_idle(short.engine)
        assert list(ended) == tickets
        assert [essence(one) for one in ended.values()] == want


def test_out_of_memory_in_the_vision_tower_waits_for_a_free_slot(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [asking(i, SAMPLERS[i], i) for i in range(5)]
    want = alone(folder, rows)
    with load(folder, slots=4) as short:
        engine, model = short.engine, short.engine._model
        crowded = lambda *_: len(engine._running) >= 2  # noqa: E731
        encode = raising(model.encode_image, crowded)
        monkeypatch.setattr(model, "encode_image", encode)
        tickets = [engine.admit(row) for row in rows]
        ended, held = until_idle(engine)
        assert {ticket: essence(one) for ticket, one in ended.items()} == dict(
            zip(tickets, want, strict=True)
        )
        assert list(dict.fromkeys(ticket for step in held for ticket in step)) == tickets
        assert held[0] == tickets[:2]
        assert max(map(len, held)) == 2
        assert short.counters.memory_shortages == 1
        monkeypatch.setattr(model, "encode_image", raising(encode, lambda *_: True))
        with pytest.raises(torch.OutOfMemoryError):
            short.answer([asking(1, EXACT, 9)])
        assert engine.idle
        assert essence(short.answer(rows[:1])[0]) == want[0]  # its features are kept


def test_a_tokenizer_without_mask_is_refused_by_name(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "checkpoint"
    shutil.copytree(folder, other)
    path = other / "tokenizer.json"
    path.write_text(path.read_text().replace("<|mdm_mask|>", "<|pad|>"))
    with pytest.raises(
        CheckpointError, match=r"E1408: .* no special token <\|mdm_mask\|>"
    ) as caught:
        load(other)
    assert "tokenizer that came with the weights" in explain(caught.value.code)
