"""The kernels of `select` against the reference: every option, dtype and awkward row."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from medv_kernels import fused, launch, loss, noise, reference, triton_select
from medv_kernels import select as kernel
from medv_kernels.reference import Selection
from medv_kernels.select import select

TYPES = [torch.float32, torch.bfloat16, torch.float16]
pytestmark = pytest.mark.usefixtures("poison")


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two small tiles a program, so that small rows have several tiles and several splits."""
    monkeypatch.setattr(kernel, "split", lambda rows, v: (64, 2, launch.cdiv(v, 128)))


def logits_of(rows: int, vocabulary: int, seed: int = 0, spread: float = 4.0) -> Tensor:
    return torch.randn(rows, vocabulary, generator=torch.manual_seed(seed)) * spread


def check(
    rows: Tensor, head: Tensor | None, device: torch.device, rtol: float = 1e-5, **options: Any
) -> Selection:
    """The kernel's selection, which equals the reference's of the same numbers on the CPU.

    `rtol` is wider where the logits themselves are rounded in another order.
    """
    here = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in options.items()}
    got = select(rows.to(device), None if head is None else head.to(device), **here)
    options.pop("fused", None)
    return equal(got, reference.select(rows, head, **options), rtol)


def equal(got: Selection, want: Selection, rtol: float = 1e-5) -> Selection:
    got = Selection(*(None if part is None else part.cpu() for part in got))
    assert torch.equal(got.token, want.token)
    assert (got.token.dtype, got.rest.dtype) == (torch.int64, torch.float64)
    torch.testing.assert_close(got.rest, want.rest, rtol=rtol, atol=1e-35, equal_nan=True)
    assert (got.gap is None) == (want.gap is None)
    if want.gap is not None:
        torch.testing.assert_close(got.gap, want.gap, rtol=rtol, atol=rtol, equal_nan=True)
    return got


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(
    ("rows", "vocabulary"), [(1, 1), (1, 7), (3, 63), (2, 65), (5, 300), (1, 800)]
)
def test_equals_the_reference(
    few: None, device: torch.device, rows: int, vocabulary: int, dtype: torch.dtype
) -> None:
    check(logits_of(rows, vocabulary).to(dtype), None, device, second=True)


@pytest.mark.parametrize("dtype", TYPES)
def test_real_tiles_and_odd_rows(device: torch.device, dtype: torch.dtype) -> None:
    check(logits_of(2, 4097).to(dtype), None, device, second=True, forbidden=(4096,))


def test_one_row_of_the_real_vocabulary(device: torch.device, watch: Callable) -> None:
    counted = watch(triton_select, "partials")
    logits = logits_of(1, 126_464, spread=3.0).to(torch.bfloat16)
    got = check(logits, None, device, forbidden=(126_081, 126_080, 126_346, 126_347))
    assert counted.grids == [(1, 124)]  # few rows still fill the processor
    exact = logits[0].double()
    exact[[126_081, 126_080, 126_346, 126_347]] = -math.inf
    exact = (exact - exact[got.token]).exp_().index_fill_(0, got.token, 0)
    assert float(got.rest) == pytest.approx(float(exact.sum()), rel=2e-6)


def test_splits_cover_every_column_once() -> None:
    for rows in (1, 2, 8, 63, 64, 500, 4096):
        for vocabulary in (1, 1000, 4096, 4097, 126_464):
            tile, each, splits = kernel.split(rows, vocabulary)
            assert (splits - 1) * each * tile < vocabulary <= splits * each * tile
            enough = rows * splits >= launch.PROGRAMS // 2
            assert enough or tile == kernel.TILES[-1]


def test_ties_go_to_the_lowest_id(few: None, device: torch.device) -> None:
    """In a tile, between tiles, between splits; and a row of equals."""
    pairs = [(0, 63), (0, 399), (62, 63), (63, 64), (127, 128), (192, 383), (383, 384), (399, 5)]
    logits = torch.zeros(len(pairs) + 2, 400)
    for row, pair in enumerate(pairs):
        logits[row, list(pair)] = 5.0
    logits[-1, 399] = 5.0
    got = check(logits, None, device, second=True)
    assert got.token.tolist() == [*(min(pair) for pair in pairs), 0, 399]
    assert got.gap.tolist() == [0.0] * (len(pairs) + 1) + [5.0]
    assert float(got.rest[-2]) == pytest.approx(399)


def test_tiles_and_splits_without_anything_in_them(few: None, device: torch.device) -> None:
    logits = torch.full((5, 400), -math.inf)
    logits[0, 399] = 2.0  # all splits but the last are empty
    logits[1, 0] = -300.0
    logits[2, [5, 200]] = torch.tensor([1.0, 1.5])
    logits[3] = 7.0
    logits[4, 64:70] = -1e30
    got = check(logits, None, device, second=True)
    assert got.rest[:2].tolist() == [0.0, 0.0]
    assert got.gap[:2].tolist() == [math.inf, math.inf]


def test_forbidden_and_unranked_at_the_borders(few: None, device: torch.device) -> None:
    """The winner of a tile, of a split and of the row is taken away, or only leaves the sum."""
    borders = [0, 63, 64, 127, 128, 191, 192, 383, 384, 399]
    logits = logits_of(10, 400)
    logits[torch.arange(10), borders] = 30.0
    got = check(logits, None, device, unranked=borders[::2], second=True)
    assert got.rest[::2].tolist() == [math.inf] * 5
    options = {"forbidden": borders[:5], "unranked": [*borders[3:], 77], "second": True}
    check(logits, None, device, **options)
    check(logits_of(3, 400, 1, 0.5), None, device, **options)


def test_a_split_whose_winner_is_unranked_keeps_its_sum(few: None, device: torch.device) -> None:
    logits = torch.zeros(1, 400)
    logits[0, [10, 300]] = torch.tensor([20.0, 25.0])
    got = check(logits, None, device, unranked=(10,))
    assert float(got.rest) == pytest.approx(398 * math.exp(-25), rel=1e-6)


def test_ids_that_the_logits_do_not_have_are_refused(device: torch.device) -> None:
    for name in ("forbidden", "unranked"):
        with pytest.raises(IndexError, match="400"):
            select(torch.zeros(1, 400, device=device), **{name: (400,)})


@pytest.mark.parametrize("options", [{}, {"unranked": (0, 64)}, {"temperature": 1.0}])
def test_nan_and_infinity_anywhere_are_found(
    few: None, device: torch.device, options: dict[str, Any]
) -> None:
    places = [0, 64, 250]
    logits = logits_of(7, 251)
    for row, (wrong, at) in enumerate([(w, at) for w in (math.nan, math.inf) for at in places]):
        logits[row + 1, at] = wrong
    if "temperature" in options:
        options = {**options, "keys": torch.arange(7, device=device)}
    elif not options:
        with pytest.raises(FloatingPointError, match="row 1 of 7"):
            select(logits.to(device))
    got = select(logits.to(device), check=False, second=True, **options)
    assert got.rest.isnan().tolist() == got.gap.isnan().tolist() == [False] + [True] * 6
    assert got.token[1:].tolist() == [0] * 6
    # a column that is forbidden is never looked at
    assert not select(logits.to(device), forbidden=places, check=False).rest.isnan().any()


def test_rows_without_an_answer(few: None, device: torch.device) -> None:
    nothing = torch.full((2, 300), -math.inf, device=device)
    nothing[1, 5] = 0.0
    with pytest.raises(FloatingPointError, match="row 0 of 2"):
        select(nothing)
    with pytest.raises(FloatingPointError):
        select(torch.zeros(1, 2, device=device), forbidden=(0, 1))
    for infinities in ([3], [3, 200], [3, 4]):
        logits = torch.zeros(1, 300, device=device)
        logits[0, infinities] = math.inf
        assert select(logits, check=False).rest.isnan().all()


def test_check_false_equals_the_reference(few: None, device: torch.device) -> None:
    logits = logits_of(4, 300)
    logits[1] = -math.inf
    logits[2, 7] = math.nan
    check(logits, None, device, check=False, second=True, forbidden=(3,))


@pytest.mark.parametrize("temperature", [0.3, 2.5])
def test_uniform_draws_equal_the_reference(
    few: None, device: torch.device, temperature: float
) -> None:
    uniform = torch.rand(9, 300, dtype=torch.float64, generator=torch.manual_seed(1))
    uniform[:, 3] = 0.0  # a draw of 0 never wins, and breaks nothing
    options = {"forbidden": (1,), "unranked": (2, 5), "temperature": temperature, "second": True}
    got = check(logits_of(9, 300, spread=2.0), None, device, uniform=uniform, **options)
    assert (got.gap < 0).any()  # some draw chose another than the best
    assert not (got.token == 3).any()


def test_an_unlikely_sample_has_odds_that_float32_cannot_hold(device: torch.device) -> None:
    uniform = torch.tensor([[1e-300, 1 - 1e-16]], dtype=torch.float64, device=device)
    got = select(torch.tensor([[0.0, -200.0]], device=device), temperature=8.0, uniform=uniform)
    assert got.token.tolist() == [1]
    assert float(got.rest) == pytest.approx(math.exp(200), rel=1e-9)


@pytest.mark.parametrize("temperature", [0.3, 1.0])
def test_keys_equal_the_reference(few: None, device: torch.device, temperature: float) -> None:
    keys = noise.row_keys(5, 3, torch.arange(6))
    assert (keys < 0).any()
    assert (keys > 0).any()
    options = {"forbidden": (1,), "unranked": (2,), "temperature": temperature, "second": True}
    got = check(logits_of(6, 301, spread=2.0), None, device, keys=keys, **options)
    assert temperature < 1 or (got.gap < 0).any()


def test_a_row_with_keys_does_not_depend_on_its_company(device: torch.device) -> None:
    """Though the number of rows decides about tiles and splits."""
    logits, keys = logits_of(9, 1500).to(device), noise.row_keys(1, 2, torch.arange(9)).to(device)
    together = select(logits, temperature=1.0, keys=keys)
    for n in (0, 4, 8):
        alone = select(logits[n : n + 1], temperature=1.0, keys=keys[n : n + 1])
        assert alone.token[0] == together.token[n]
        assert float(alone.rest[0]) == pytest.approx(float(together.rest[n]), rel=1e-6)


def test_exponential_draws_near_their_ends(device: torch.device) -> None:
    """-log u to float32's precision at every size of u, the ends included."""
    special = [0, 1, 2, 2**24, 2**31, 2**32 - 1, 2**32 - 2, 2**32 - 2**10, int(0.875 * 2**32)]
    near = [int(0.875 * 2**32) + d for d in range(-300, 300, 7)]
    bits = [*special, *near, *torch.randint(2**32, (3500,)).tolist()]
    bits = torch.tensor(bits[:2048])
    got = run_exponential(bits, device)
    u = (bits.double() + 0.5) / 2**32
    want = -torch.where(u > 0.5, torch.log1p(-((2**32 - 1 - bits).double() + 0.5) / 2**32), u.log())
    torch.testing.assert_close(got.double(), want, rtol=1e-6, atol=0)


def run_exponential(bits: Tensor, device: torch.device) -> Tensor:
    import triton
    import triton.language as tl

    @triton.jit
    def write(bits, out, call: tl.constexpr, SIZE: tl.constexpr):  # type: ignore[no-untyped-def]
        i = tl.arange(0, SIZE)
        tl.store(out + i, call(tl.load(bits + i).to(tl.uint32)))

    out = torch.full(bits.shape, math.nan, dtype=torch.float32, device=device)
    write[(1,)](bits.to(device), out, triton_select.exponential, len(bits))
    return out.cpu()


def test_guidance_equals_the_reference(few: None, device: torch.device) -> None:
    cond, free = logits_of(5, 300), logits_of(5, 300, seed=1)
    options = {"unconditional": free, "cfg_scale": 1.5, "forbidden": (2,), "second": True}
    got = check(cond, None, device, 1e-4, **options)
    assert not torch.equal(got.token, reference.select(cond).token)
    free[2, 9] = -math.inf
    cond[2, 9] = -math.inf  # their difference is nothing
    with pytest.raises(FloatingPointError, match="row 2 of 5"):
        check(cond, None, device, **options)


def test_confident_rows_rank_as_float64_does(device: torch.device) -> None:
    logits = logits_of(24, 4096, spread=1.5)
    logits[:, 7] = logits.amax(1) + 14 + 4 * torch.randn(24, generator=torch.manual_seed(1))
    rest = select(logits.to(device)).rest.cpu()
    exact = (logits.double() - logits[:, 7:8].double()).exp()
    exact[:, 7] = 0
    torch.testing.assert_close(rest, exact.sum(1), rtol=2e-6, atol=0)
    assert torch.equal(rest.argsort(stable=True), exact.sum(1).argsort(stable=True))
    assert int((logits.softmax(1).amax(1) == 1).sum()) > 1  # where float32 probabilities tie


def test_nothing_cancels_when_a_later_tile_wins(few: None, device: torch.device) -> None:
    """A rising row: each tile's winner is put back into the sum when the next tile beats it."""
    logits = torch.arange(400.0)[None] * 0.5
    got = check(logits, None, device, second=True)
    assert float(got.rest) == pytest.approx(1 / math.expm1(0.5), rel=1e-6)
    assert got.gap.tolist() == [0.5]


def test_views_and_logit_size(few: None, device: torch.device) -> None:
    wide = logits_of(4, 700).to(device)
    wide[:, 300:] = math.nan
    want = reference.select(wide[:, :300].cpu())
    equal(select(wide, logit_size=300), want)
    equal(select(wide[:, :300]), want)
    equal(select(wide[:, :300].T.contiguous().T), want)
    both = torch.stack([wide[:, :300], wide[:, :300]], dim=1)
    equal(select(both[:, 1]), want)  # rows with a gap between them


def test_offsets_are_64_bits_wide(device: torch.device) -> None:
    """Rows more than 2^31 elements apart: memory that is reserved and hardly touched."""
    stride = 2**30 + 64  # fits 32 bits itself, twice of it does not
    if device.type == "cuda" and torch.cuda.get_device_properties(device).total_memory < 6 * 2**30:
        pytest.skip("needs 5 GB")
    store = torch.empty_strided((3, 32), (stride, 1), dtype=torch.bfloat16, device=device)
    rows = logits_of(3, 32).to(torch.bfloat16)
    for n in range(3):
        store[n].copy_(rows[n])
    equal(select(store), reference.select(rows))


@pytest.mark.parametrize("forced", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_head(device: torch.device, watch: Callable, forced: bool, dtype: torch.dtype) -> None:
    if forced and dtype == torch.bfloat16 and device.type == "cpu":
        pytest.skip("the interpreter's product of bfloat16 is wrong")
    counted, direct = watch(fused, "partials"), watch(triton_select, "partials")
    head = logits_of(300, 40, 1, 1.0).to(dtype)
    rows = logits_of(19, 40, 2, 1.0).to(dtype)
    options = {"forbidden": (4, 128), "unranked": (7, 299), "fused": forced}
    check(rows, head, device, 1e-4, **options)
    check(rows, head, device, 1e-4, logit_size=250, forbidden=(4,), fused=forced)
    assert (len(counted.grids), len(direct.grids)) == ((2, 0) if forced else (0, 2))


def test_fused_finds_what_is_not_finite(device: torch.device) -> None:
    head, rows = logits_of(300, 16, 1).to(device), logits_of(3, 16, 2).to(device)
    head[200] = math.nan
    for options in ({}, {"unranked": (200,)}):
        with pytest.raises(FloatingPointError, match="row 0 of 3"):
            select(rows, head, fused=True, **options)
    select(rows, head, fused=True, forbidden=(200,))


def test_fused_is_used_only_where_it_was_measured(
    monkeypatch: pytest.MonkeyPatch, device: torch.device
) -> None:
    assert fused.FUSED_ROWS == {}
    rows, head = torch.ones(3, 8, device=device), torch.ones(20, 8, device=device)
    assert not fused.pays(rows)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Some GPU")
    monkeypatch.setattr(fused, "FUSED_ROWS", {"Some GPU": 3})
    on_gpu = torch.empty(3, 8, device="meta") if device.type == "cpu" else rows
    assert fused.pays(on_gpu) == (device.type == "cuda")
    for options in ({"temperature": 1.0, "keys": torch.zeros(3)}, {"second": True}):
        with pytest.raises(ValueError, match="fused"):
            select(rows, head, fused=True, **options)
    with pytest.raises(ValueError, match="needs the head"):
        select(rows, fused=True)


def test_scratch_is_bounded(monkeypatch: pytest.MonkeyPatch, device: torch.device) -> None:
    made: list[tuple[int, ...]] = []
    real = torch.mm

    def watched(a: Tensor, b: Tensor, *, out: Tensor) -> Tensor:
        made.append(tuple(out.shape))
        return real(a, b, out=out)

    head, rows = logits_of(200, 8, 1), logits_of(23, 8, 2)
    monkeypatch.setattr(torch, "mm", watched)
    monkeypatch.setattr(kernel, "SCRATCH_BYTES", 4 * 200 * 10)
    check(rows, head, device, 1e-4)
    assert made == [(10, 200), (10, 200), (3, 200)]
    made.clear()
    check(rows, head, device, 1e-4, unconditional=rows.flip(0), cfg_scale=1.0)
    assert {shape[0] for shape in made} == {5, 3}
    monkeypatch.setattr(kernel, "SCRATCH_BYTES", 1)
    check(rows[:2], head, device, 1e-4)


@pytest.mark.parametrize("dtype", TYPES)
def test_logits_of_an_odd_vocabulary_begin_at_even_addresses(
    device: torch.device, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Products are slow otherwise; 126,349, which LLaDA-V cuts to, is odd."""
    made: list[Tensor] = []
    real = torch.mm

    def watched(a: Tensor, b: Tensor, *, out: Tensor) -> Tensor:
        made.append(out)
        return real(a, b, out=out)

    monkeypatch.setattr(torch, "mm", watched)
    head, rows = (logits_of(n, 8, n).to(device, dtype) for n in (211, 5))
    select(rows, head, logit_size=201, unconditional=rows, cfg_scale=1.0)
    loss.token_losses(rows, head, torch.zeros(5, device=device).long(), 201)
    assert [out.shape for out in made] == [(5, 201)] * 3
    assert all(out[1:].data_ptr() % 16 == out.data_ptr() % 16 == 0 for out in made)


def test_no_rows_give_nothing(device: torch.device) -> None:
    for head in (None, torch.zeros(5, 5, device=device)):
        got = select(torch.zeros(0, 5, device=device), head, second=True, temperature=1.0)
        assert got.token.shape == got.rest.shape == got.gap.shape == (0,)


def test_inputs_are_not_changed(few: None, device: torch.device) -> None:
    logits = logits_of(3, 300).to(device)
    before = logits.clone()
    select(logits, forbidden=(1,), unranked=(2,), unconditional=logits, cfg_scale=1.0)
    assert torch.equal(logits, before)


def test_wrong_use_is_refused(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = torch.zeros(1, 5, device=device)
    with pytest.raises(ValueError, match="uniform"):
        select(rows, temperature=0.5)
    with pytest.raises(ValueError, match="not both"):
        select(rows, temperature=0.5, uniform=rows.double(), keys=torch.zeros(1).long())
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(RuntimeError, match="reference"):
        select(rows.cpu())


def test_draws_of_any_layout(few: None, device: torch.device) -> None:
    """A slice of keys, draws column by column, one row of draws for all."""
    logits = logits_of(4, 300)
    keys = noise.row_keys(1, 2, torch.arange(8))[::2]
    assert not keys.is_contiguous()
    check(logits, None, device, temperature=1.0, keys=keys)
    draws = torch.rand(300, 4, dtype=torch.float64, generator=torch.manual_seed(1))
    check(logits, None, device, temperature=1.0, uniform=draws.T)
    check(logits, None, device, temperature=1.0, uniform=draws.T[:1].expand(4, 300))
