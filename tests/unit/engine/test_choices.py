"""Choices against the formula, written out once more, and the toy's own answers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from medv_ray.data import synthetic
from medv_ray.diffusion.spec import SampleSpec
from medv_ray.engine import Predictor, Request
from medv_ray.engine.choices import check, score
from medv_ray.errors import DataError, SettingsError
from medv_ray.model.denoise import FullRecompute
from medv_ray.settings import TOY, AnswerSettings, ModelSettings, SamplerSettings

V, L, MASK = 20, 6, 19


class Fixed:
    """Hidden states that depend on position and on all tokens of the response."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(4)
        self.head = torch.randn(V, 8, generator=generator)
        self.table = torch.randn(L, V, 8, generator=generator)
        self.calls = 0

    def __call__(self, x: torch.Tensor, need: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        mixed = self.table[torch.arange(L), x[0]].sum(0)
        return (self.table[:, 0] + mixed)[need[0]]

    def unconditional(self, mask_id: int) -> Fixed:
        raise AssertionError

    def prompt_length(self, b: int) -> int:
        return 0


def spec(**more: object) -> SampleSpec:
    given = {"stop_ids": ((7,),), "forbidden_ids": (3,), **more}
    return SampleSpec(gen_length=L, block_length=L, steps=L, mask_id=MASK, **given)  # type: ignore[arg-type]


def by_hand(tokens: list[int]) -> float:
    """The log-likelihood of tokens, each taken where it is likeliest among those left."""
    denoise, x, total = Fixed(), [MASK] * L, 0.0
    left = set(range(len(tokens)))
    while left:
        need = torch.ones(1, L, dtype=torch.bool)
        logits = (denoise(torch.tensor([x]), need) @ denoise.head.T).double()
        logits[:, [3, MASK]] = -math.inf
        odds = logits.softmax(1)
        best = max(left, key=lambda i: float(odds[i, tokens[i]]))
        total += math.log(float(odds[best, tokens[best]]))
        x[best] = tokens[best]
        left.remove(best)
    return total


def test_longer_choices_are_taken_token_by_token() -> None:
    ids = [[1, 2], [4], [5, 6, 8]]
    denoise = Fixed()
    found = score(denoise, spec(), ["a", "b", "c"], ids)
    want = [by_hand([*one, 7]) for one in ids]
    assert [one.log_likelihood for one in found] == pytest.approx(want)
    total = sum(map(math.exp, want))
    assert [one.probability for one in found] == pytest.approx([math.exp(w) / total for w in want])
    assert [one.text for one in found] == ["a", "b", "c"]
    assert denoise.calls == 1 + sum(len(one) for one in ids), "the first pass is shared"


def test_choices_of_one_token_take_one_pass() -> None:
    denoise = Fixed()
    found = score(denoise, spec(), ["a", "b"], [[1], [2]])
    assert denoise.calls == 1
    assert [one.log_likelihood for one in found] == pytest.approx([by_hand([1]), by_hand([2])])


def test_a_stop_sequence_that_is_forbidden_is_left_out() -> None:
    found = score(Fixed(), spec(stop_ids=((3,),)), ["a", "b"], [[1, 2], [4]])
    assert found[0].log_likelihood == pytest.approx(by_hand([1, 2]))


@pytest.mark.parametrize(
    ("ids", "said"),
    [
        ([[1], []], "choice 2 has no text"),
        ([[1], [2, 4], [1]], "choice 3 has the tokens of an earlier one"),
        ([[1], [4, 3]], "choice 2 has a token of sampler.forbidden"),
        ([[1, 2, 4, 5, 6, 8]], "choice 1 has 6 tokens, too many for 6"),
        ([[1]], "two choices at least"),
    ],
)
def test_choices_that_cannot_be_compared(ids: list[list[int]], said: str) -> None:
    with pytest.raises(DataError, match=said):
        check(["x"] * len(ids), ids, spec())


def test_nan_is_an_error() -> None:
    denoise = Fixed()
    denoise.head[2, 0] = math.nan
    with pytest.raises(DataError, match="E1305"):
        score(denoise, spec(), ["a", "b"], [[1], [2]])


@pytest.fixture(scope="module")
def toy() -> Iterator[Predictor]:
    sampler = SamplerSettings(gen_length=8, block_length=8, steps=8)
    settings = AnswerSettings(sampler=sampler)
    with Predictor.load(ModelSettings(path=str(TOY)), settings) as predictor:
        yield predictor


def test_the_toy_chooses_what_it_answers(toy: Predictor) -> None:
    rows = list(synthetic.rows(40, 7, split="validation"))
    for row in rows:
        others = {other.answer for other in rows if other.question_type == row.question_type}
        choices = sorted(others | {"zzz"})
        found = toy.engine.choose(Request(row.question, (row.image,)), choices)
        best = max(found, key=lambda one: one.probability)
        assert best.text == row.answer
        assert best.probability > 0.5
        assert sum(one.probability for one in found) == pytest.approx(1)
        assert min(found, key=lambda one: one.probability).text == "zzz"


def test_choices_beside_answers_change_no_bit_of_them(toy: Predictor) -> None:
    """A row whose choices are bad is an error; the rows beside it are answered as ever."""
    rows = list(synthetic.rows(4, 7, split="validation"))
    plain = [Request(row.question, (row.image,), seed=3) for row in rows]
    pairs = [("yes", "no"), (), ("yes", "x" * 4000), ("no", "yes")]
    asked = [replace(one, choices=pair) for one, pair in zip(plain, pairs, strict=True)]
    want, found = toy.answer(plain), toy.answer(asked)
    assert [getattr(one, "code", None) for one in found] == [None, None, "E1308", None]
    for free, one, pair in zip(want, found, pairs, strict=True):
        if isinstance(one, DataError):
            continue
        assert replace(one, choices=(), seconds=0, waited_s=0, vision_s=0) == replace(
            free, seconds=0, waited_s=0, vision_s=0
        )
        assert tuple(choice.text for choice in one.choices) == pair
    assert [round(sum(one.probability for one in found[i].choices), 9) for i in (0, 3)] == [1, 1]
    assert found[0].choices[0].log_likelihood != found[0].choices[1].log_likelihood


def test_the_likelihood_of_an_answer(toy: Predictor) -> None:
    """Of one token it is that token's own, exactly; of several a bound that its seed decides."""
    row = next(row for row in synthetic.rows(40, 7, split="validation") if row.answer == "yes")
    request = Request(row.question, (row.image,), seed=3)
    engine = toy.engine
    [[token]] = engine._processor.ids_of(["yes"])
    one = replace(engine.spec(None), gen_length=1, block_length=1, steps=1)
    prompt, embeds, _ = engine._processor.prompt(request, one)
    denoiser = FullRecompute(engine._model, [prompt if prompt.ends else embeds])
    hidden = denoiser(torch.tensor([[one.mask_id]]), torch.ones(1, 1, dtype=torch.bool))
    want = float((hidden @ denoiser.head.T).double().log_softmax(1)[0, token])
    assert engine.log_likelihood(request, "yes", 1) == pytest.approx(want, abs=1e-4)
    assert engine.log_likelihood(request, " yes ", 4) == pytest.approx(want, abs=1e-4)
    several = [engine.log_likelihood(replace(request, seed=n), "left lung", 4) for n in (1, 1, 2)]
    assert several[0] == several[1] != several[2]
    assert engine.log_likelihood(request, "yes", 1) > engine.log_likelihood(request, "no", 1)
    with pytest.raises(SettingsError, match="num_samples=0 must be 1"):
        engine.log_likelihood(request, "yes", 0)
    with pytest.raises(DataError, match="E1308"):
        engine.log_likelihood(request, " ")
