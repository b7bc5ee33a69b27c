"""Forward noise, and a loss that sees masked positions only."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from medv_ray.diffusion.loss import PIECE_ROWS, masked_loss, token_losses
from medv_ray.diffusion.noise import draw, forward_noise
from medv_ray.markers import IGNORE


def example(seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Hidden float[3, 10, 6], head float[20, 6], labels, masked, p_mask."""
    generator = torch.manual_seed(seed)
    hidden = torch.randn(3, 10, 6, generator=generator)
    head = torch.randn(20, 6, generator=generator)
    labels = torch.randint(0, 20, (3, 10), generator=generator)
    labels[0, :7] = IGNORE
    labels[1, 2:4] = IGNORE
    noise = forward_noise(labels, torch.tensor([0.9, 0.5, 0.3]), torch.rand(3, 10))
    return hidden, head, labels, *noise


def plain_loss(hidden: Tensor, head: Tensor, labels: Tensor, masked: Tensor, p: Tensor) -> float:
    """Row by row, in float64."""
    total = 0.0
    for b in range(len(labels)):
        targets = sum(int(label) != IGNORE for label in labels[b])
        for s in range(labels.shape[1]):
            if masked[b, s]:
                logits = (head.double() @ hidden[b, s].double()).tolist()
                ce = math.log(sum(map(math.exp, logits))) - logits[labels[b, s]]
                total += ce / float(p[b]) / targets
    return total / len(labels)


@pytest.mark.parametrize("t", [0.0, 0.25, 1.0])
def test_masks_targets_only_and_at_the_stated_rate(t: float) -> None:
    labels = torch.zeros(400, 50, dtype=torch.int64)
    labels[:, ::5] = IGNORE
    noise = forward_noise(labels, torch.full((400,), t), torch.rand(400, 50))
    assert not noise.masked[:, ::5].any()
    share = noise.masked.sum() / (labels != IGNORE).sum()
    assert float(share) == pytest.approx(0.999 * t + 0.001, abs=0.02)
    assert torch.allclose(noise.p_mask, torch.full((400,), 0.999 * t + 0.001))


def test_one_noise_level_for_the_whole_row() -> None:
    labels = torch.zeros(2, 2000, dtype=torch.int64)
    noise = forward_noise(labels, torch.tensor([0.1, 0.8]), torch.rand(2, 2000))
    assert noise.masked.float().mean(1).tolist() == pytest.approx([0.1, 0.8], abs=0.04)


def test_draws_come_from_the_generator_level_first() -> None:
    t, u = draw(2, 3, torch.Generator().manual_seed(4))
    again = torch.rand(8, generator=torch.Generator().manual_seed(4))
    assert torch.equal(torch.cat([t, u.flatten()]), again)


def test_loss_equals_the_plain_version() -> None:
    hidden, head, labels, masked, p = example()
    want = plain_loss(hidden, head, labels, masked, p)
    assert float(masked_loss(hidden, head, labels, masked, p)) == pytest.approx(want, rel=1e-5)
    logits = hidden @ head.T
    assert float(masked_loss(logits, None, labels, masked, p)) == pytest.approx(want, rel=1e-5)
    gathered = masked_loss(hidden[masked], head, labels, masked, p)
    assert float(gathered) == pytest.approx(want, rel=1e-5)


def test_rows_weigh_equally_whatever_their_length() -> None:
    """A row of many targets and one of few with the same loss per target count the same."""
    labels = torch.zeros(2, 8, dtype=torch.int64)
    labels[1, 2:] = IGNORE
    masked = labels != IGNORE
    loss = masked_loss(torch.zeros(2, 8, 5), None, labels, masked, torch.ones(2))
    assert float(loss) == pytest.approx(math.log(5))


def test_pretraining_divides_by_all_positions() -> None:
    labels = torch.zeros(2, 4, dtype=torch.int64)
    masked = torch.tensor([[True, False, False, False], [True, True, False, False]])
    p = torch.tensor([0.5, 1.0])
    loss = masked_loss(torch.zeros(2, 4, 5), None, labels, masked, p, "positions")
    assert float(loss) == pytest.approx((2 + 1 + 1) * math.log(5) / 8)


def test_poison_outside_the_masked_positions_reaches_nothing() -> None:
    hidden, head, labels, masked, p = example()
    want = masked_loss(hidden, head, labels, masked, p)
    poisoned = hidden.masked_fill(~masked[..., None], math.nan).requires_grad_()
    loss = masked_loss(poisoned, head, labels, masked, p)
    assert torch.equal(loss, want)
    loss.backward()
    assert torch.isfinite(poisoned.grad).all()
    assert not poisoned.grad[~masked].any()


def test_without_any_mask_the_loss_is_zero_and_trains_nothing() -> None:
    hidden = torch.randn(1, 4, 3, requires_grad=True)
    head = torch.randn(5, 3, requires_grad=True)
    labels = torch.zeros(1, 4, dtype=torch.int64)
    loss = masked_loss(hidden, head, labels, torch.zeros(1, 4, dtype=torch.bool), torch.ones(1))
    loss.backward()
    assert float(loss.detach()) == 0
    assert not hidden.grad.any()


def test_gradient_of_a_single_row_is_as_exact_as_of_many() -> None:
    """One masked row against a tall head: a running float32 sum would lose the fifth digit."""
    generator = torch.manual_seed(0)
    head = torch.randn(120_000, 16, generator=generator)
    rows = 0.1 * torch.randn(1, 1, 16, generator=generator)
    labels, masked = torch.full((1, 1), 77), torch.ones(1, 1, dtype=torch.bool)
    grads = []
    for dtype in (torch.float32, torch.float64):
        leaf = rows.detach().to(dtype).clone().requires_grad_()
        logits = torch.nn.functional.linear(leaf, head.to(dtype))
        if dtype == torch.float32:
            masked_loss(leaf, head, labels, masked, torch.ones(1)).backward()
        else:
            torch.nn.functional.cross_entropy(logits[0], labels[0]).backward()
        grads.append(leaf.grad.double())
    torch.testing.assert_close(grads[0], grads[1], rtol=0, atol=4e-6)


@pytest.mark.parametrize("num_rows", [0, 1, PIECE_ROWS, 2 * PIECE_ROWS + 3])
@pytest.mark.parametrize("logit_size", [None, 11])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [False, True])
def test_token_losses_are_torchs(
    num_rows: int, logit_size: int | None, dtype: torch.dtype, bias: bool
) -> None:
    """The loss is float32 in both; the logits and their gradient have the head's dtype. A module
    may have a bias, which sees the padding rows too; a matrix stands for one without."""
    generator = torch.manual_seed(0)
    rows = (3 * torch.randn(num_rows, 6, generator=generator)).to(dtype).requires_grad_()
    head = torch.nn.Linear(6, 20, bias, dtype=dtype)
    targets = torch.randint(0, 11, (num_rows,), generator=generator)
    weights = torch.rand(num_rows, generator=generator)
    logits = head(rows)[:, :logit_size]
    want = functional.cross_entropy(logits.float(), targets, reduction="none")
    want_grads = torch.autograd.grad((want * weights).sum(), [rows, *head.parameters()])
    got = token_losses(rows, head if bias else head.weight, targets, logit_size)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)
    grads = torch.autograd.grad((got * weights).sum(), [rows, *head.parameters()])
    for grad, wanted in zip(grads, want_grads, strict=True):
        torch.testing.assert_close(grad, wanted)


def test_a_sure_rows_loss_keeps_its_digits() -> None:
    """1e-7 beside logits of 40: the largest logit is taken away before anything is summed."""
    rows = torch.tensor([[40.0, 24.0], [-40.0, -56.0]])
    got = token_losses(rows, torch.eye(2), torch.tensor([0, 0]))
    assert got.tolist() == pytest.approx([math.log1p(math.exp(-16))] * 2, rel=0.1)


def test_gradients_by_finite_differences() -> None:
    """Through a checkpoint, which makes the logits again for each backward pass of gradcheck."""
    generator = torch.manual_seed(0)
    rows = torch.randn(11, 4, dtype=torch.float64, generator=generator, requires_grad=True)
    head = torch.randn(9, 4, dtype=torch.float64, generator=generator, requires_grad=True)
    targets = torch.randint(0, 7, (11,), generator=generator)

    def losses(rows: Tensor, head: Tensor) -> Tensor:
        made = checkpoint(token_losses, rows, head, targets, 7, use_reentrant=False)
        assert isinstance(made, Tensor)
        return made

    assert torch.autograd.gradcheck(losses, (rows, head))


def test_a_second_backward_pass_is_refused() -> None:
    """The logits are gone; a wrong gradient would be silent."""
    rows = torch.randn(2, 4, requires_grad=True)
    loss = token_losses(rows, torch.randn(5, 4), torch.tensor([0, 1])).sum()
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_given_logits_are_left_alone() -> None:
    logits = torch.randn(2, 5, requires_grad=True)
    before = logits.detach().clone()
    token_losses(logits, None, torch.tensor([0, 1])).sum().backward()
    assert torch.equal(logits, before)


def test_logits_exist_once() -> None:
    """Peak of all allocations of loss and backward pass, over the size of the logits."""
    rows, head = torch.randn(64, 8, requires_grad=True), torch.randn(20_000, 8)
    targets = torch.arange(64)
    logits = 64 * 20_000 * 4
    with torch.profiler.profile(profile_memory=True) as traced:
        token_losses(rows, head, targets).sum().backward()
    assert traced.profiler is not None
    events = [e for e in traced.profiler.kineto_results.events() if e.name() == "[memory]"]
    alive = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        alive += event.nbytes()
        most = max(most, alive)
    assert logits <= most < 1.2 * logits
