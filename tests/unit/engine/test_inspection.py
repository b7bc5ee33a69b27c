"""Why a token: what inspecting a state says is what the denoising of that state does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from medv_ray.data.decimals import Decimals
from medv_ray.diffusion.canvas import Canvas, Span
from medv_ray.engine import Answer, Engine, Predictor, Request, inspection
from medv_ray.engine.inspection import Inspection
from medv_ray.engine.layout import MARKS, Digits, Options
from medv_ray.errors import DataError, SettingsError
from medv_ray.settings import AnswerSettings, EngineSettings, ModelSettings, SamplerSettings
from tests.unit.engine.conftest import png

L = 8
SAMPLER = SamplerSettings(gen_length=L, block_length=4, steps=8, stop=())


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[Engine]:
    settings = AnswerSettings(sampler=SAMPLER)
    model = ModelSettings(path=str(folder), device="cpu")
    with Predictor.load(model, settings, EngineSettings(slots=2)) as predictor:
        yield predictor.engine


def commits(engine: Engine, request: Request) -> Iterator[tuple[list[int | None], int, int, float]]:
    """State before, position, token and confidence of each commit of a run."""
    ticket = engine.admit(request)
    answer = None
    while answer is None:
        answer = dict(engine.step()).get(ticket)
    assert isinstance(answer, Answer)
    last = answer.last
    assert last is not None
    for position, step in enumerate(last.token_step):
        before = [i if s < step else None for i, s in zip(last.ids, last.token_step, strict=True)]
        token = last.ids[position]
        assert token is not None
        yield before, position, token, last.confidence[position]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"rule": "threshold", "threshold": 0.1},
        {"forbidden": ["<|eot_id|>", "<|endoftext|>"]},
        {"logits_eos_inf": True},
        {"remasking": "independent"},
        {"suffix": " so."},
    ],
)
@pytest.mark.parametrize("images", [(), (png(1),), (png(1), png(2))])
def test_the_first_alternative_is_what_the_step_commits(
    engine: Engine, changes: dict[str, object], images: tuple[bytes, ...]
) -> None:
    sampler = SAMPLER.changed(changes)
    request = Request("is there a lesion?", images, sampler=sampler)
    for before, position, token, confidence in commits(engine, request):
        found = engine.inspect(request, before, position)
        assert found.ids[0] == token
        assert found.probabilities[0] == pytest.approx(confidence, abs=1e-5)
        assert list(found.probabilities) == sorted(found.probabilities, reverse=True)
        assert len(set(found.ids)) == len(found.ids) == inspection.ALTERNATIVES
        assert sum(found.probabilities) <= 1 + 1e-9
        assert not set(found.ids) & set(engine.spec(sampler).excluded)
        assert len(found.images) == len(images)
    assert engine.idle


def test_a_canvas_is_kept_to(engine: Engine) -> None:
    request = Request("is it?", sampler=SAMPLER, canvas=Canvas({0: 70}, {1: {71, 72}}))
    for before, position, token, confidence in commits(engine, request):
        if position == 0:
            continue
        found = engine.inspect(request, before, position)
        assert found.ids[0] == token
        assert found.probabilities[0] == pytest.approx(confidence, abs=1e-5)
        assert position != 1 or set(found.ids) == {71, 72}
    nothing: list[int | None] = [None] * SAMPLER.gen_length
    with pytest.raises(SettingsError, match="E1001: pinned"):
        engine.inspect(Request("is it?", canvas=Canvas({99: 1})), nothing, 1)


def test_alternatives_of_a_choice_and_of_a_number_are_what_may_stand_there(engine: Engine) -> None:
    choice = Options([(71, 72), (71, 73), (74, 75)])
    number = Digits(Decimals(0, 30), tuple(range(80, 80 + len(MARKS))), 79)
    canvas = Canvas(spans=[Span((2, 3), choice.pieces), Span((4, 5), number.pieces)])
    request = Request("is it?", sampler=SAMPLER, canvas=canvas)

    def may(position: int, **known: int) -> set[int]:
        state = [known.get(f"at{i}") for i in range(L)]
        return set(engine.inspect(request, state, position).ids)

    assert may(2) == {71, 74}
    assert may(3) == {72, 73, 75}
    assert may(3, at2=71) == {72, 73}
    three, none = 80 + MARKS.index("3"), 80 + MARKS.index("0")
    assert may(5, at4=three) == {none, 79}
    # of a state that no denoising has: any
    assert len(may(3, at2=9)) == len(may(5, at4=9)) == inspection.ALTERNATIVES


def looked(
    engine: Engine, request: Request, monkeypatch: pytest.MonkeyPatch
) -> tuple[Inspection, Tensor, Tensor]:
    """An inspection, the embeddings it went over, and the row of attention."""
    seen: list[Tensor] = []

    def noting(tower: object, embeds: Tensor, *rest: object) -> tuple[Tensor, Tensor]:
        state, row = look(tower, embeds, *rest)  # type: ignore[arg-type]
        seen[:] = [embeds, row]
        return state, row

    look = inspection.look
    with monkeypatch.context() as patch:
        patch.setattr(inspection, "look", noting)
        found = engine.inspect(request, [None] * L, 5)
    return found, seen[0], seen[1]


@pytest.mark.parametrize("sizes", [[(40, 30)], [(20, 60), (64, 16), (30, 30)]])
def test_attention_lies_on_the_picture_that_it_is_told_of(
    engine: Engine, sizes: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = tuple(png(7 + i, size) for i, size in enumerate(sizes))
    request = Request("where?", pictures)
    found, embeds, row = looked(engine, request, monkeypatch)
    several, total = len(pictures) > 1, 0.0
    for data, size, one in zip(pictures, sizes, found.images, strict=True):
        tokens = engine._images.get(data, several).tokens
        side = 2  # 28 / 14 patches
        assert len(tokens) == side * side + 1, "and the end of its line"
        [start] = [
            i for i in range(len(embeds) - 3) if torch.equal(embeds[i : i + len(tokens)], tokens)
        ]
        want = row[start : start + side * side].reshape(side, side)
        torch.testing.assert_close(torch.tensor(one.weights), want)
        total += sum(map(sum, one.weights))
        width, height = size
        longer = max(size)
        left, top = (longer - width) / 2 / width, (longer - height) / 2 / height
        padded = (-left, -top, 1 + left, 1 + top) if several else (0, 0, 1, 1)
        assert one.box == pytest.approx(padded)
    assert 0 < total < 1


def test_inspecting_disturbs_nobody(engine: Engine) -> None:
    asked = Request("is there a lesion?", (png(1),), seed=3)

    def answer() -> Answer:
        ticket, ended = engine.admit(asked), None
        while ended is None:
            ended = dict(engine.step()).get(ticket)
            engine.inspect(Request("another", (png(2),)), [None] * L, 0)
        assert isinstance(ended, Answer)
        return ended

    first = Predictor(engine).answer([asked])[0]
    assert isinstance(first, Answer)
    second = answer()
    assert (first.token_ids, first.token_confidence) == (second.token_ids, second.token_confidence)


@pytest.mark.parametrize(
    ("request_", "ids", "code"),
    [
        (Request("a"), [None] * (L - 1), "E1001"),
        (Request("a"), [None] * (L + 1), "E1001"),
        (Request("a"), [None] * (L - 1) + [264], "E1001"),
        (Request("a"), [None] * (L - 1) + [10**30], "E1001"),
        (Request("a"), [5] * L, "E1001"),
        (Request(""), [None] * L, "E1301"),
        (Request("a" * 2000), [None] * L, "E1303"),
        (Request("a", (b"no picture",)), [None] * L, "E1203"),
    ],
)
def test_states_and_requests_that_are_none(
    engine: Engine, request_: Request, ids: list[int | None], code: str
) -> None:
    with pytest.raises(DataError) as caught:
        engine.inspect(request_, ids, 0)
    assert caught.value.code.startswith(code[:3])
    assert engine.idle


def test_infinite_logits(folder: Path) -> None:
    model = ModelSettings(path=str(folder), device="cpu")
    with Predictor.load(model, AnswerSettings(sampler=SAMPLER)) as predictor:
        engine = predictor.engine
        with torch.no_grad():
            engine._model.model.embed_tokens.weight[ord("!") - 33] = torch.inf
        with pytest.raises(DataError, match="E1305"):
            engine.inspect(Request("what!"), [None] * L, 0)
        engine.inspect(Request("what?"), [None] * L, 0)
