"""Rows side by side against the denoiser that computes each alone."""

import pytest
import torch

from medv_ray.model.batched import Batched
from medv_ray.model.cache import Cached
from medv_ray.model.denoise import FullRecompute

L, W, MASK = 8, 4, 60
LENGTHS = (9, 3, 14)
SUFFIX = (5, 6)


@pytest.fixture
def prompts(toy):
    return [torch.randn(n, 32, generator=torch.Generator().manual_seed(n)) for n in LENGTHS]


def filled(toy, prompts, keep=True):
    batch = Batched(toy, 4, 16, L, SUFFIX, keep)
    for kept in (*batch.keys, *batch.values):
        kept.fill_(1e4)  # what nobody wrote must not be seen
    for row, prompt in zip((2, 0, 3), prompts, strict=True):
        batch.enter(row, prompt)
    return batch


def responses(seed):
    return torch.randint(0, 59, (3, L), generator=torch.Generator().manual_seed(seed))


def close(got, want):
    torch.testing.assert_close(got, want, atol=2e-5, rtol=1e-5)


@torch.inference_mode()
@pytest.mark.parametrize("keep", [True, False])
def test_whole_rows_equal_each_alone(toy, prompts, keep):
    batch, x = filled(toy, prompts, keep), responses(1)
    want = FullRecompute(toy, prompts, SUFFIX)(x, torch.ones(3, L, dtype=torch.bool))
    close(batch.full([2, 0, 3], x).flatten(0, 1), want)
    assert batch.computed == sum(LENGTHS) + 3 * (L + len(SUFFIX))
    close(batch.full([0], x[1:2])[0], want[L : 2 * L])


@torch.inference_mode()
def test_windows_see_what_was_kept(toy, prompts):
    """Rows in different blocks; a refresh of one leaves the others as they are."""
    batch, x = filled(toy, prompts), responses(2)
    alone = [
        Cached(toy, [prompt], SUFFIX, kind="dual", block_length=W, refresh_interval=3)
        for prompt in prompts
    ]
    blocks = (0, 4, 4)
    need = torch.zeros(3, L, dtype=torch.bool)
    for row, start in enumerate(blocks):
        need[row, start : start + W] = True
    batch.full([2, 0, 3], x)
    for one, row, which in zip(alone, x, need, strict=True):
        one(row[None], which[None])
    for seed in (3, 4):
        x = responses(seed)
        at, tokens = torch.zeros(4, W, dtype=torch.int64), torch.zeros(4, W, dtype=torch.int64)
        for b, row, start in zip((2, 0, 3), x, blocks, strict=True):
            at[b] = torch.arange(start, start + W)
            tokens[b] = row[start : start + W]
        got = batch.window(tokens, at)
        for b, one, row, which in zip((2, 0, 3), alone, x, need, strict=True):
            close(got[b], one(row[None], which[None]))
    assert alone[0].computed == LENGTHS[0] + L + len(SUFFIX) + 2 * W, "and these were windows"
    x = responses(5)
    close(batch.full([0], x[1:2])[0, 4:], alone[1](x[1:2], need[1:2]))


@torch.inference_mode()
def test_a_row_forgets_its_last_row(toy, prompts):
    batch, x = filled(toy, prompts), responses(6)
    batch.full([2, 0, 3], x)
    batch.enter(2, prompts[1])
    want = FullRecompute(toy, [prompts[1]], SUFFIX)(x[:1], torch.ones(1, L, dtype=torch.bool))
    close(batch.full([2], x[:1])[0], want)


@torch.inference_mode()
def test_a_row_that_was_not_finite_leaves_nothing(toy, prompts):
    """Its keys lie where the next row, with a shorter prompt, has padding."""
    batch, x = filled(toy, prompts), responses(6)
    batch.enter(3, torch.full((14, 32), torch.nan))
    batch.full([3], x[:1])
    batch.enter(3, prompts[1])
    assert batch.full([3, 2], x[:2])[0].isfinite().all(), "beside a longer one"
    at = torch.arange(W).expand(4, W)
    assert batch.window(x[:1, :W].expand(4, W), at)[3].isfinite().all()


def test_bytes_of_a_row_are_told_before(toy):
    batch = Batched(toy, 3, 16, L, SUFFIX, keep=True)
    assert batch.nbytes == 3 * Batched.kept_bytes(toy, 16 + L + len(SUFFIX))
    assert Batched(toy, 3, 16, L).nbytes == 0


@torch.inference_mode()
def test_a_window_of_some_rows_leaves_the_others_alone(toy, prompts):
    """And equals a window of all, for them."""
    x = responses(2)
    batch, other = filled(toy, prompts), filled(toy, prompts)
    for one in (batch, other):
        one.full([2, 0, 3], x)
    before = [kept.clone() for kept in (*batch.keys, *batch.values)]
    at = torch.arange(W).expand(4, W)
    tokens = torch.zeros(4, W, dtype=torch.int64)
    tokens[[2, 0, 3]] = responses(7)[:, :W]
    want = other.window(tokens, at)
    close(batch.window(tokens[[3]], at[:1], [3])[0], want[3])
    for kept, old in zip((*batch.keys, *batch.values), before, strict=True):
        assert torch.equal(kept[[0, 1, 2]], old[[0, 1, 2]])
        assert not torch.equal(kept[3], old[3])


@torch.inference_mode()
def test_rows_without_their_prompts(toy, prompts):
    """For guidance: the mask token stands at every given position."""
    batch = Batched(toy, 4, 16, L, SUFFIX, keep=True, unconditional_id=MASK)
    for row, prompt in zip((2, 0, 3), prompts, strict=True):
        batch.enter(row, prompt)
    x = responses(1)
    blind = FullRecompute(toy, prompts, SUFFIX).unconditional(MASK)
    want = blind(x, torch.ones(3, L, dtype=torch.bool))
    close(batch.full([2, 0, 3], x).flatten(0, 1), want)
