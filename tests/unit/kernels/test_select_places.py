"""`select` with `k`: rows that compete for k places, of which few are summed."""

import math

import pytest
import torch
from torch import Tensor

from medv_kernels import reference_odds
from medv_kernels.reference import select


def exact_odds(logits: Tensor) -> Tensor:
    """float64[n] of float32[n, V], by the definition."""
    wide = logits.double()
    best, top = wide.max(1)
    return (wide - best[:, None]).exp().scatter(1, top[:, None], 0.0).sum(1)


def rows_of(kind: str, n: int, vocabulary: int) -> Tensor:
    generator = torch.manual_seed(len(kind) + n + vocabulary)
    logits = torch.randn(n, vocabulary, generator=generator)
    if kind == "peaked":
        return logits * 4
    if kind == "confident":  # odds of 1e-12 to 1
        logits[:, vocabulary // 2] += 30 * torch.rand(n, generator=generator)
    if kind == "with infinities":
        logits[torch.rand(n, vocabulary, generator=generator) < 0.9] = -math.inf
        logits[:, vocabulary - 1] = 0.5
    return logits


@pytest.mark.parametrize("kind", ["peaked", "flat", "confident", "with infinities"])
@pytest.mark.parametrize("vocabulary", [2, 127, 128, 129, 5000])
@pytest.mark.parametrize("k", [1, 2, 11, 34, 69, 70, 71])
@pytest.mark.parametrize("slice_bytes", [2**21, 3000])
def test_the_k_smallest_are_exact_and_the_others_larger(
    kind: str, vocabulary: int, k: int, slice_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reference_odds, "SLICE_BYTES", slice_bytes)  # how large a few rows are
    logits = rows_of(kind, 70, vocabulary)
    got, want = select(logits, k=k), exact_odds(logits)
    assert torch.equal(got.token, logits.argmax(1))
    kept = want.argsort(stable=True)[:k]
    others = torch.ones(70, dtype=torch.bool).index_fill_(0, kept, False)
    torch.testing.assert_close(got.rest[kept], want[kept], rtol=1e-5, atol=1e-35)
    if others.any():
        assert got.rest[others].min() >= got.rest[kept].max()
        assert (got.rest[others] <= want[others] * (1 + 1e-5)).all()


def test_few_rows_are_summed(monkeypatch: pytest.MonkeyPatch) -> None:
    summed: list[int] = []
    real = reference_odds._odds

    def watched(logits: Tensor, *rest: object) -> Tensor:
        summed.append(len(logits))
        return real(logits, *rest)

    monkeypatch.setattr(reference_odds, "_odds", watched)
    logits = rows_of("peaked", 64, 20_000)
    select(logits, k=1)
    assert 0 < sum(summed) <= 16
    for most in (logits, rows_of("flat", 64, 20_000)):
        summed.clear()
        select(most, k=40 if most is logits else 1)
        assert sum(summed) <= 65
        summed.clear()
        select(most)
        assert sum(summed) == 64


def nearly_tied(n: int, seed: int) -> Tensor:
    """Rows of the same logits in other orders, each with a few of them an ulp or two higher."""
    generator = torch.manual_seed(seed)
    row = torch.randn(3000, generator=generator)
    row[0] = 6.0
    logits = torch.stack([row[torch.randperm(3000, generator=generator)] for _ in range(n)])
    raised = torch.randint(0, 3000, (n, 5), generator=generator)
    higher = logits.gather(1, raised)
    higher = higher + higher.abs() * torch.rand(n, 5, generator=generator) * 2e-6
    return logits.scatter(1, raised, higher.clamp(max=5.0))


@pytest.mark.parametrize("slice_bytes", [2**21, 10_000])
def test_agrees_with_float64_wherever_its_winner_leads_by_more_than_four_ulp(
    slice_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reference_odds, "SLICE_BYTES", slice_bytes)
    decided = missed = 0
    for seed in range(60):
        logits = nearly_tied(12, seed)
        p = logits.double().softmax(1).amax(1)
        first, second = p.topk(2).values.tolist()
        if first - second <= 4 * math.ulp(first):
            continue
        decided += 1
        winner = p.argmax()
        assert select(logits, k=1).rest.argmin() == winner
        missed += int(select(logits).rest.argmin() != winner)
    assert decided > 40
    assert missed > 0  # float32 alone would not do


def test_rows_without_odds_of_their_own_compete_too() -> None:
    """A token that is left out of the ranking has infinite odds, a drawn one its own."""
    logits = torch.tensor([[9.0, 1.0, 1.0], [0.0, 2.0, 1.0], [0.0, 3.0, 1.0]])
    assert select(logits, unranked=(0,), k=2).rest.tolist() == pytest.approx(
        [math.inf, math.exp(-1), math.exp(-2)]
    )
    uniform = torch.tensor([[0.5, 0.5, 1 - 1e-16]] * 3, dtype=torch.float64)
    drawn = select(logits, temperature=1.0, uniform=uniform, k=1)
    assert drawn.token.tolist() == [2, 2, 2]
    assert torch.equal(drawn.rest, select(logits, temperature=1.0, uniform=uniform).rest)


def test_given_logits_stay_as_they_are() -> None:
    logits = torch.randn(4, 300)
    before = logits.clone()
    select(logits, k=2)
    select(logits, forbidden=(0,), k=2)
    select(logits, unconditional=torch.randn(4, 300), cfg_scale=1.0, k=2)
    assert torch.equal(logits, before)
