"""The loss kernels against the plain version: values, gradients, memory, wrong use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from medv_kernels import loss, reference_loss, triton_loss

TYPES = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}
"""Tolerance of gradients, relative to the largest."""
pytestmark = pytest.mark.usefixtures("poison")


def inputs(
    rows: int, width: int, vocabulary: int, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rows, head, targets, weights 1 / p."""
    generator = torch.manual_seed(rows + vocabulary)
    hidden = torch.randn(rows, width, generator=generator).to(dtype)
    head = torch.randn(vocabulary, width, generator=generator).to(dtype)
    targets = torch.randint(vocabulary, (rows,), generator=generator)
    return hidden, head, targets, 1 / torch.rand(rows, generator=generator).clamp(min=0.01)


def both(
    rows: Tensor, head: Tensor, device: torch.device, run: Callable[[Any, Tensor, Tensor], Tensor]
) -> list[tuple[Tensor, ...]]:
    """Loss and the gradients of rows and head, of the plain version and of the kernels."""
    found = []
    for module, at in ((reference_loss, torch.device("cpu")), (loss, device)):
        a, b = (x.to(at, copy=True).requires_grad_() for x in (rows, head))
        value = run(module, a, b)
        (value * 1.5).sum().backward()
        found.append((value.detach().cpu(), a.grad.cpu(), b.grad.cpu()))
    return found


def check(found: list[tuple[Tensor, ...]], tolerance: float) -> None:
    for want, got in zip(*found, strict=True):
        assert want.dtype == got.dtype
        scale = float(want.abs().max()) if want.numel() else 1.0
        torch.testing.assert_close(got, want, rtol=0, atol=tolerance * max(scale, 1e-3))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("chunk", [None, 3])
@pytest.mark.parametrize(("rows", "vocabulary"), [(1, 7), (7, 1025), (4, 4100), (0, 50)])
def test_equals_the_plain_version(
    monkeypatch: pytest.MonkeyPatch,
    device: torch.device,
    rows: int,
    vocabulary: int,
    chunk: int | None,
    dtype: torch.dtype,
) -> None:
    hidden, head, targets, weights = inputs(rows, 12, vocabulary, dtype)
    if chunk:
        monkeypatch.setattr(loss, "SCRATCH_BYTES", chunk * vocabulary * dtype.itemsize)

    def run(module: Any, a: Tensor, b: Tensor) -> Tensor:
        at = a.device
        return module.linear_cross_entropy(a, b, targets.to(at), weights.to(at))

    check(both(hidden, head, device, run), TYPES[dtype])


@pytest.mark.parametrize("chunk", [None, 2])
def test_logit_size_and_a_factor_per_row(
    monkeypatch: pytest.MonkeyPatch, device: torch.device, chunk: int | None
) -> None:
    """Every row's loss has its own upstream factor; the head behind the logits gets none."""
    hidden, head, targets, factors = inputs(5, 12, 900)
    targets %= 700
    if chunk:
        monkeypatch.setattr(loss, "SCRATCH_BYTES", chunk * 700 * 4)

    def run(module: Any, a: Tensor, b: Tensor) -> Tensor:
        at = a.device
        return module.token_losses(a, b, targets.to(at), 700) * factors.to(at)

    found = both(hidden, head, device, run)
    check(found, 1e-5)
    assert found[1][2][:700].abs().sum() > 0
    assert not found[1][2][700:].any()


@pytest.mark.parametrize("dtype", TYPES)
def test_logits_and_callables(device: torch.device, dtype: torch.dtype) -> None:
    hidden, head, targets, _ = inputs(5, 12, 900, dtype)
    targets %= 800
    logits = (hidden @ head.T).to(device).requires_grad_()
    before = logits.detach().clone()
    got = loss.token_losses(logits, None, targets.to(device), 800)
    got.sum().backward()
    assert torch.equal(logits, before)  # given logits are not overwritten
    plain = before.clone().requires_grad_()
    want = reference_loss.token_losses(plain, None, targets.to(device), 800)
    want.sum().backward()
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(logits.grad, plain.grad, rtol=0, atol=TYPES[dtype])
    assert not logits.grad[:, 800:].any()

    def run(module: Any, a: Tensor, b: Tensor) -> Tensor:
        there = targets.to(a.device)
        if module is reference_loss:
            return module.token_losses(a, b, there, 800)
        return module.token_losses(a, lambda rows: rows @ b.T, there, 800)

    check(both(hidden, head, device, run), TYPES[dtype])


def test_no_logits_are_made_twice_where_one_chunk_holds_them(
    monkeypatch: pytest.MonkeyPatch, device: torch.device, watch: Callable
) -> None:
    """And where it does not, never more of them than the bound allows."""
    made: list[tuple[int, ...]] = []
    real = torch.mm

    def watched(a: Tensor, b: Tensor, *, out: Tensor) -> Tensor:
        made.append(tuple(out.shape))
        return real(a, b, out=out)

    monkeypatch.setattr(torch, "mm", watched)
    gradient = watch(triton_loss, "gradient")
    for rows in (4, 10):
        hidden, head, targets, _ = (x.to(device) for x in inputs(rows, 8, 300))
        monkeypatch.setattr(loss, "SCRATCH_BYTES", 4 * 300 * 4)
        made.clear()
        gradient.grids.clear()
        loss.token_losses(hidden.requires_grad_(), head, targets).sum().backward()
        logits = [shape for shape in made if shape[1] == 300]
        assert logits == ([(4, 300)] if rows == 4 else [(4, 300), (4, 300), (2, 300)] * 2)
        assert gradient.grids == ([(4, 1)] if rows == 4 else [(4, 1), (4, 1), (2, 1)])


def test_a_frozen_head_gets_no_gradient(device: torch.device) -> None:
    hidden, head, targets, _ = (x.to(device) for x in inputs(3, 8, 300))
    loss.token_losses(hidden.requires_grad_(), head, targets).sum().backward()
    assert head.grad is None
    with torch.no_grad():
        assert not loss.token_losses(hidden, head, targets).requires_grad


def test_second_backward_through_kept_logits_raises(device: torch.device) -> None:
    hidden, head, targets, _ = (x.to(device) for x in inputs(3, 8, 300))
    hidden.requires_grad_()
    for head_ in (head, lambda rows: rows @ head.T):
        total = loss.token_losses(hidden, head_, targets).sum()
        total.backward(retain_graph=True)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            total.backward()


def test_a_confident_row_keeps_its_digits(device: torch.device) -> None:
    """loss = log(1 + rest) for rest = 2^-20: the row's own maximum is taken off first."""
    logits = torch.tensor([[60.0, 60.0 - 20 * 0.6931471805599453]], device=device)
    got = loss.token_losses(logits, None, torch.tensor([0], device=device))
    want = logits.double().logsumexp(1) - logits[:, 0].double()
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=0)


def test_targets_outside_the_logits_are_nan_and_never_read(device: torch.device) -> None:
    logits = torch.randn(4, 30, device=device)
    targets = torch.tensor([3, -100, 30, 10**12], device=device)
    got = loss.token_losses(logits, None, targets)
    assert got.isnan().tolist() == [False, True, True, True]


def test_rows_that_are_not_finite(device: torch.device) -> None:
    logits = torch.zeros(4, 70, device=device)
    logits[0, 3], logits[1, 3], logits[2] = torch.nan, torch.inf, -torch.inf
    logits[3, 5] = -torch.inf  # a logit of no probability is nothing wrong
    got = loss.token_losses(logits, None, torch.zeros(4, dtype=torch.int64, device=device))
    assert got.isfinite().tolist() == [False, False, False, True]


def test_float64_is_refused(device: torch.device) -> None:
    with pytest.raises(TypeError, match="float64"):
        loss.token_losses(torch.zeros(1, 2, device=device).double(), None, torch.zeros(1).long())


@pytest.mark.parametrize("reused", [False, True])
def test_logits_that_lie_column_by_column(device: torch.device, reused: bool) -> None:
    hidden, head, targets, _ = inputs(5, 12, 900)

    def run(module: Any, a: Tensor, b: Tensor) -> Tensor:
        there = targets.to(a.device)
        if reused and module is loss:
            return module.token_losses(a, lambda rows: (b @ rows.T).T, there)
        return module.token_losses((b @ a.T).T, None, there)

    check(both(hidden, head, device, run), 1e-5)
