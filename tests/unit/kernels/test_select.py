"""`select` against a plain float64 version, and the cases in which a simpler one goes wrong."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from medv_kernels import reference
from medv_kernels.linear import PackedWeight, pack
from medv_kernels.reference import select


def plain(
    row: Tensor,
    forbidden: tuple[int, ...] = (),
    unranked: tuple[int, ...] = (),
    temperature: float = 0.0,
    uniform: Tensor | None = None,
) -> tuple[int, float]:
    """Token and odds of one row of logits, one number at a time."""
    logits = [-math.inf if v in forbidden else float(value) for v, value in enumerate(row)]
    scores = logits
    if temperature > 0:
        noise = [-math.log(u) if u > 0 else math.inf for u in uniform.tolist()]
        scores = [value - temperature * math.log(n) for value, n in zip(logits, noise, strict=True)]
    token = scores.index(max(scores))
    if token in unranked:
        return token, math.inf
    others = [v for v in range(len(logits)) if v != token and v not in unranked]
    return token, math.fsum(math.exp(logits[v] - logits[token]) for v in others)


def check(got: reference.Selection, rows: Tensor, **options: object) -> None:
    uniform = options.pop("uniform", None)
    for n, row in enumerate(rows.float()):
        draws = None if uniform is None else uniform[n]
        token, rest = plain(row, uniform=draws, **options)
        assert got.token[n] == token
        assert float(got.rest[n]) == pytest.approx(rest, rel=1e-5, abs=1e-35)


@pytest.mark.parametrize("vocabulary", [1, 2, 7, 511, 512, 513, 1025, 3000])
@pytest.mark.parametrize("rows", [1, 3, 65])
def test_equals_the_plain_version(rows: int, vocabulary: int) -> None:
    logits = torch.randn(rows, vocabulary, generator=torch.manual_seed(rows)) * 4
    check(select(logits), logits)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_options_equal_the_plain_version(data: st.DataObject) -> None:
    vocabulary = data.draw(st.integers(3, 40))
    ids = st.lists(st.integers(0, vocabulary - 1), max_size=vocabulary - 1, unique=True)
    forbidden, unranked = tuple(data.draw(ids)), tuple(data.draw(ids))
    values = st.integers(-6, 6)  # whole numbers, so that ties are common
    rows = data.draw(
        st.lists(st.lists(values, min_size=vocabulary, max_size=vocabulary), min_size=1, max_size=4)
    )
    logits = torch.tensor(rows, dtype=torch.float32)
    got = select(logits, forbidden=forbidden, unranked=unranked)
    check(got, logits, forbidden=forbidden, unranked=unranked)


@pytest.mark.parametrize("temperature", [0.3, 1.0])
@pytest.mark.parametrize("unranked", [(), (2, 5)])
def test_temperature_equals_the_plain_version(temperature: float, unranked: tuple) -> None:
    generator = torch.manual_seed(0)
    logits = torch.randn(70, 600, generator=generator) * 3
    uniform = torch.rand(70, 600, dtype=torch.float64, generator=generator)
    uniform[:, 3] = 0.0  # a draw of 0 never wins, and breaks nothing
    options = {"forbidden": (1,), "unranked": unranked, "temperature": temperature}
    got = select(logits, uniform=uniform, **options)
    check(got, logits, uniform=uniform, **options)
    assert not (got.token == 3).any()


def test_sampling_follows_the_softmax() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0]]).expand(20_000, 3)
    uniform = torch.rand(20_000, 3, dtype=torch.float64, generator=torch.manual_seed(0))
    token = select(logits, temperature=1.0, uniform=uniform).token
    share = torch.bincount(token, minlength=3) / 20_000
    torch.testing.assert_close(share, logits[0].softmax(0), atol=0.015, rtol=0)


def test_an_unlikely_sample_has_finite_odds_that_float32_cannot_hold() -> None:
    logits = torch.tensor([[0.0, -200.0]])
    uniform = torch.tensor([[1e-300, 1 - 1e-16]], dtype=torch.float64)
    got = select(logits, temperature=8.0, uniform=uniform)
    assert got.token.tolist() == [1]
    assert float(got.rest) == pytest.approx(math.exp(200), rel=1e-6)


@pytest.mark.parametrize("vocabulary", [600, 1024, 1500])
@pytest.mark.parametrize(("first", "second"), [(0, 599), (511, 512), (512, 513), (3, 511), (5, 6)])
def test_ties_go_to_the_lowest_id(first: int, second: int, vocabulary: int) -> None:
    logits = torch.zeros(2, vocabulary)
    logits[0, [first, second]] = 5.0
    got = select(logits)
    assert got.token.tolist() == [first, 0]
    assert float(got.rest[1]) == pytest.approx(vocabulary - 1)


def test_ranks_confident_rows_where_float32_softmax_cannot() -> None:
    """Rows whose probability rounds to 1 in float32 still rank as in float64."""
    generator = torch.manual_seed(0)
    logits = torch.randn(64, 20_000, generator=generator) * 1.5
    logits[:, 7] = logits.amax(1) + 14 + 4 * torch.randn(64, generator=generator)
    rest = select(logits).rest
    exact = (logits.double() - logits[:, 7:8].double()).exp()
    exact[:, 7] = 0
    assert torch.equal(rest.argsort(stable=True), exact.sum(1).argsort(stable=True))
    saturated = logits.softmax(1).amax(1)
    assert int((saturated == 1).sum()) > 1  # so float32 probabilities tie
    assert not torch.equal((-saturated).argsort(stable=True), rest.argsort(stable=True))


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_poisoned_logits_raise(poison: float) -> None:
    logits = torch.zeros(3, 700)
    logits[1, 650] = poison
    with pytest.raises(FloatingPointError, match="row 1 of 3"):
        select(logits)


def test_minus_infinity_is_probability_zero_and_nothing_else() -> None:
    logits = torch.tensor([[-math.inf, 1.0, -math.inf, 1.0]])
    got = select(logits)
    assert got.token.tolist() == [1]
    assert got.rest.tolist() == [1.0]


def test_a_row_without_any_possible_token_raises() -> None:
    with pytest.raises(FloatingPointError):
        select(torch.full((1, 4), -math.inf))
    with pytest.raises(FloatingPointError):
        select(torch.zeros(1, 2), forbidden=(0, 1))


def test_forbidden_ids_leave_the_sum_too() -> None:
    got = select(torch.tensor([[9.0, 1.0, 1.0, 8.0]]), forbidden=(0, 3))
    assert got.token.tolist() == [1]
    assert got.rest.tolist() == [1.0]


def test_unranked_ids_leave_only_the_sum() -> None:
    logits = torch.tensor([[9.0, 1.0, 1.0], [0.0, 1.0, 1.0]])
    got = select(logits, unranked=(0,))
    assert got.token.tolist() == [0, 1]
    assert got.rest.tolist() == [math.inf, 1.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_head_and_logits_agree(dtype: torch.dtype) -> None:
    generator = torch.manual_seed(0)
    head = torch.randn(900, 16, generator=generator).to(dtype)
    rows = torch.randn(130, 16, generator=generator).to(dtype)
    got = select(rows, head, forbidden=(4,))
    check(got, (rows @ head.T).float(), forbidden=(4,))


def test_packed_head_gives_the_same() -> None:
    generator = torch.manual_seed(0)
    head = torch.randn(900, 16, generator=generator)
    rows = torch.randn(70, 16, generator=generator)
    packed = pack(head)
    if not isinstance(packed, PackedWeight):
        pytest.skip("this torch has no oneDNN")
    assert len(packed) == 900
    for size in (None, 500):
        want, got = select(rows, head, logit_size=size), select(rows, packed, logit_size=size)
        assert torch.equal(got.token, want.token)
        torch.testing.assert_close(got.rest, want.rest, rtol=1e-4, atol=0)


def test_only_float32_is_packed() -> None:
    head = torch.zeros(8, 4, dtype=torch.bfloat16)
    assert pack(head) is head


def test_rows_of_the_head_past_the_logit_size_are_never_read() -> None:
    head = torch.randn(20, 8, generator=torch.manual_seed(0))
    rows = torch.randn(3, 8, generator=torch.manual_seed(1))
    want = select(rows, head[:15])
    head[15:] = math.nan
    got = select(rows, head, logit_size=15)
    assert torch.equal(got.token, want.token)
    assert torch.equal(got.rest, want.rest)
    logits = rows @ head.T
    assert torch.equal(select(logits, logit_size=15).token, want.token)


def test_guidance_moves_away_from_the_unconditional_logits() -> None:
    generator = torch.manual_seed(0)
    cond, free = torch.randn(2, 66, 30, generator=generator)
    want = free + 2.5 * (cond - free)
    got = select(cond, unconditional=free, cfg_scale=1.5, forbidden=(2,))
    check(got, want, forbidden=(2,))
    head = torch.randn(30, 6, generator=generator)
    cond, free = torch.randn(2, 66, 6, generator=generator)
    got = select(cond, head, unconditional=free, cfg_scale=1.5)
    check(got, free @ head.T + 2.5 * (cond @ head.T - free @ head.T))


def test_a_row_of_logits_does_not_depend_on_its_company() -> None:
    logits = torch.randn(200, 1500, generator=torch.manual_seed(0)) * 5
    together = select(logits, forbidden=(9,), unranked=(3,))
    for n in (0, 1, 63, 64, 199):
        alone = select(logits[n : n + 1], forbidden=(9,), unranked=(3,))
        assert alone.token[0] == together.token[n]
        assert alone.rest[0] == together.rest[n]  # to the last bit


def test_inputs_are_not_changed_and_no_graph_is_kept() -> None:
    logits, head = torch.randn(5, 12), torch.randn(12, 12, requires_grad=True)
    before = logits.clone()
    got = select(logits, forbidden=(1,), unranked=(2,))
    assert torch.equal(logits, before)
    assert not select(logits, head, forbidden=(0,)).rest.requires_grad
    assert got.token.dtype == torch.int64
    assert got.rest.dtype == torch.float64


def test_no_rows_give_nothing() -> None:
    got = select(torch.empty(0, 5), temperature=1.0)
    assert got.token.shape == got.rest.shape == (0,)


def test_temperature_without_draws_is_refused() -> None:
    with pytest.raises(ValueError, match="uniform"):
        select(torch.zeros(1, 5), temperature=0.5)


def test_memory_is_bounded_by_a_piece_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """No more than PIECE rows of logits are ever made."""
    heights: list[int] = []
    real = reference.linear

    def watched(rows: Tensor, head: Tensor) -> Tensor:
        heights.append(len(rows))
        return real(rows, head)

    monkeypatch.setattr(reference, "linear", watched)
    select(torch.randn(200, 4), torch.randn(50, 4))
    assert max(heights) <= reference.PIECE
    assert sum(heights) == 200


def test_gap_to_the_second_best() -> None:
    logits = torch.tensor([[1.0, 4.0, 2.5], [3.0, 3.0, 0.0], [9.0, 1.0, -math.inf]])
    assert select(logits).gap is None
    assert select(logits, second=True).gap.tolist() == [1.5, 0.0, 8.0]
    got = select(logits, second=True, forbidden=(0,), unranked=(1,))
    assert got.gap.tolist() == [1.5, 3.0, math.inf]
    uniform = torch.tensor([[1 - 1e-16, 0.5, 0.5]] * 3, dtype=torch.float64)
    got = select(logits, second=True, temperature=1.0, uniform=uniform)
    assert got.token.tolist() == [0, 0, 0]
    assert got.gap.tolist() == [-3.0, 0.0, 8.0]  # below 0: a draw chose another than the best
    assert select(logits[:0], second=True).gap.shape == (0,)


def test_unchecked_rows_without_an_answer_are_marked() -> None:
    logits = torch.zeros(5, 700)
    logits[1, 650], logits[2, 3], logits[3] = math.nan, math.inf, -math.inf
    logits[4, 650] = 5.0
    got = select(logits, check=False, second=True)
    assert got.rest.isnan().tolist() == got.gap.isnan().tolist() == [False, True, True, True, False]
    assert got.token.tolist() == [0, 0, 0, 0, 650]
    want = select(logits[4:])
    assert got.rest[4] == want.rest[0]


def test_two_kinds_of_draws_are_refused() -> None:
    rows = torch.zeros(1, 5)
    with pytest.raises(ValueError, match="not both"):
        select(rows, temperature=1.0, uniform=rows.double(), keys=torch.zeros(1).long())
