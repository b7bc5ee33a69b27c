"""Rows side by side against the door that computes each alone."""

import pytest
import torch

from medv_ray.model.cache import Cached
from medv_ray.model.denoise import FullRecompute
from medv_ray.model.slots import Slots

L, W, MASK = 8, 4, 60
LENGTHS = (9, 3, 14)
SUFFIX = (5, 6)


@pytest.fixture
def prompts(toy):
    return [torch.randn(n, 32, generator=torch.Generator().manual_seed(n)) for n in LENGTHS]


def filled(toy, prompts, keep=True):
    slots = Slots(toy, 4, 16, L, SUFFIX, keep)
    for kept in (*slots.keys, *slots.values):
        kept.fill_(1e4)  # what nobody wrote must not be seen
    for slot, prompt in zip((2, 0, 3), prompts, strict=True):
        slots.enter(slot, prompt)
    return slots


def responses(seed):
    return torch.randint(0, 59, (3, L), generator=torch.Generator().manual_seed(seed))


def close(got, want):
    torch.testing.assert_close(got, want, atol=2e-5, rtol=1e-5)


@torch.inference_mode()
@pytest.mark.parametrize("keep", [True, False])
def test_whole_rows_equal_each_alone(toy, prompts, keep):
    slots, x = filled(toy, prompts, keep), responses(1)
    want = FullRecompute(toy, prompts, SUFFIX)(x, torch.ones(3, L, dtype=torch.bool))
    close(slots.full([2, 0, 3], x).flatten(0, 1), want)
    assert slots.computed == sum(LENGTHS) + 3 * (L + len(SUFFIX))
    close(slots.full([0], x[1:2])[0], want[L : 2 * L])


@torch.inference_mode()
def test_windows_see_what_was_kept(toy, prompts):
    """Rows in different blocks; a refresh of one leaves the others as they are."""
    slots, x = filled(toy, prompts), responses(2)
    doors = [
        Cached(toy, [prompt], SUFFIX, kind="dual", block_length=W, refresh_interval=3)
        for prompt in prompts
    ]
    blocks = (0, 4, 4)
    need = torch.zeros(3, L, dtype=torch.bool)
    for row, start in enumerate(blocks):
        need[row, start : start + W] = True
    slots.full([2, 0, 3], x)
    for door, row, which in zip(doors, x, need, strict=True):
        door(row[None], which[None])
    for seed in (3, 4):
        x = responses(seed)
        at, tokens = torch.zeros(4, W, dtype=torch.int64), torch.zeros(4, W, dtype=torch.int64)
        for slot, row, start in zip((2, 0, 3), x, blocks, strict=True):
            at[slot] = torch.arange(start, start + W)
            tokens[slot] = row[start : start + W]
        got = slots.window(tokens, at)
        for slot, door, row, which in zip((2, 0, 3), doors, x, need, strict=True):
            close(got[slot], door(row[None], which[None]))
    assert doors[0].computed == LENGTHS[0] + L + len(SUFFIX) + 2 * W, "and these were windows"
    x = responses(5)
    close(slots.full([0], x[1:2])[0, 4:], doors[1](x[1:2], need[1:2]))


@torch.inference_mode()
def test_a_slot_forgets_its_last_row(toy, prompts):
    slots, x = filled(toy, prompts), responses(6)
    slots.full([2, 0, 3], x)
    slots.enter(2, prompts[1])
    want = FullRecompute(toy, [prompts[1]], SUFFIX)(x[:1], torch.ones(1, L, dtype=torch.bool))
    close(slots.full([2], x[:1])[0], want)


@torch.inference_mode()
def test_a_row_that_was_not_finite_leaves_nothing(toy, prompts):
    """Its keys lie where the next row, with a shorter prompt, has padding."""
    slots, x = filled(toy, prompts), responses(6)
    slots.enter(3, torch.full((14, 32), torch.nan))
    slots.full([3], x[:1])
    slots.enter(3, prompts[1])
    assert slots.full([3, 2], x[:2])[0].isfinite().all(), "beside a longer one"
    at = torch.arange(W).expand(4, W)
    assert slots.window(x[:1, :W].expand(4, W), at)[3].isfinite().all()


def test_bytes_of_a_slot_are_told_before(toy):
    slots = Slots(toy, 3, 16, L, SUFFIX, keep=True)
    assert slots.nbytes == 3 * Slots.kept_bytes(toy, 16 + L + len(SUFFIX))
    assert Slots(toy, 3, 16, L).nbytes == 0
