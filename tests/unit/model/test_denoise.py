"""Denoiser 1: what it returns, and that a row does not depend on its company."""

import pytest
import torch

from medv_ray.markers import IMAGE_SLOT
from medv_ray.model.denoise import FullRecompute, Prompt, splice, splice_ends

MASK, L = 60, 6


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randint(0, 59, shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def prompts(toy):
    """Text alone, one image, two images, nothing at all; all of different lengths."""
    images = [torch.randn(n, 32, generator=torch.Generator().manual_seed(n)) for n in (17, 5)]
    slot = torch.tensor([IMAGE_SLOT])
    return [
        Prompt(draw(1, 9)),
        Prompt(torch.cat((draw(2, 3), slot, draw(3, 4))), (images[0],)),
        Prompt(torch.cat((slot, slot, draw(4, 2))), (images[0], images[1])),
        Prompt(draw(5, 0)),
    ]


def test_splice_puts_images_in_the_order_of_their_slots(toy):
    first, second = torch.full((2, 32), 1.0), torch.full((3, 32), 2.0)
    ids = torch.tensor([7, IMAGE_SLOT, 8, IMAGE_SLOT])
    text = toy.embed(torch.tensor([7, 8]))
    want = torch.cat((text[:1], first, text[1:], second))
    assert torch.equal(splice(toy, ids, [first, second]), want)
    with pytest.raises(ValueError, match="2 image slots in the prompt and 1 images"):
        splice(toy, ids, [first])
    assert splice(toy, ids[:0], []).shape == (0, 32)


def test_ends_move_by_the_images_before_them():
    ids = torch.tensor([5, IMAGE_SLOT, 6, IMAGE_SLOT, 7])
    images = [torch.zeros(3, 1), torch.zeros(10, 1)]
    assert splice_ends(ids, images, range(1, 6)) == (1, 4, 5, 15, 16)


def test_the_denoiser_returns_needed_rows_of_the_whole_sequence(toy, prompts):
    suffix = (11, 12)
    denoiser = FullRecompute(toy, prompts, suffix)
    x, need = draw(6, 4, L), draw(7, 4, L) % 2 == 0
    need[3] = False
    want = []
    for b, prompt in enumerate(prompts):
        embeds = torch.cat(
            (
                splice(toy, prompt.ids, prompt.images),
                toy.embed(torch.cat((x[b], torch.tensor(suffix)))),
            )
        )
        assert denoiser.sequence_length(b, L) == len(embeds)
        start = denoiser.prompt_length(b)
        want.append(toy.hidden(embeds[None])[0, start : start + L][need[b]])
    got = denoiser(x, need)
    assert got.shape == (int(need.sum()), 32)
    # the denoiser's last layer works on fewer rows at a time: the same up to rounding
    torch.testing.assert_close(got, torch.cat(want), atol=1e-5, rtol=1e-5)
    assert torch.equal(denoiser.head, toy.head)


def test_nothing_needed_is_nothing_computed(toy, prompts, monkeypatch):
    denoiser = FullRecompute(toy, prompts)
    monkeypatch.setattr(toy, "hidden", lambda *_, **__: pytest.fail("computed"))
    assert denoiser(draw(1, 4, L), torch.zeros(4, L, dtype=torch.bool)).shape == (0, 32)


@pytest.mark.parametrize("company", [[0], [1, 0], [0, 2, 3], [3, 1, 0], [0, 0, 0]])
def test_on_cpu_a_row_is_the_same_to_the_bit_in_any_company(toy, prompts, company):
    x = draw(8, 4, L)
    need = torch.ones(1, L, dtype=torch.bool)
    alone = FullRecompute(toy, [prompts[0]], (3,))(x[:1], need)
    denoiser = FullRecompute(toy, [prompts[i] for i in company], (3,))
    got = denoiser(x[company], need.expand(len(company), -1)).reshape(len(company), L, -1)
    assert torch.equal(got[company.index(0)], alone)


def test_rows_in_one_padded_batch_agree_with_rows_alone(toy, prompts):
    x, need = draw(9, 4, L), torch.ones(4, L, dtype=torch.bool)
    alone = FullRecompute(toy, prompts, (3,))(x, need)
    together = FullRecompute(toy, prompts, (3,), together=True)(x, need)
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)
    same = FullRecompute(toy, [prompts[1]] * 2, together=True)(x[:2], need[:2])
    torch.testing.assert_close(
        same[:L], FullRecompute(toy, [prompts[1]])(x[:1], need[:1]), atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("together", [False, True])
def test_passes_of_several_rows(toy, prompts, together, monkeypatch):
    """One for all where they run together; a row that needs nothing takes part in none."""
    passes, hidden = [], toy.hidden
    count = lambda *args, **named: passes.append(1) or hidden(*args, **named)  # noqa: E731
    monkeypatch.setattr(toy, "hidden", count)
    need = draw(2, 4, L) % 3 > 0
    need[2] = False
    denoiser = FullRecompute(toy, prompts, (5,), together=together)
    found = denoiser(draw(1, 4, L), need)
    assert len(found) == int(need.sum())
    assert len(passes) == (1 if together else 3)
    assert denoiser.computed == sum(denoiser.sequence_length(b, L) for b in (0, 1, 3))


def test_the_unconditional_denoiser_sees_no_prompt_image_or_suffix(toy, prompts):
    x, need = draw(4, 2, L), torch.ones(2, L, dtype=torch.bool)
    denoiser = FullRecompute(toy, prompts[1:3], (5, 6))
    blind = denoiser.unconditional(MASK)
    got = blind(x, need)
    for b in range(2):
        ids = torch.full((denoiser.sequence_length(b, L),), MASK)
        start = denoiser.prompt_length(b)
        ids[start : start + L] = x[b]
        want = toy.hidden(toy.embed(ids)[None])[0, start : start + L]
        # the denoiser's last layer works for fewer places, which some CPUs round otherwise
        torch.testing.assert_close(got.reshape(2, L, -1)[b], want)
    assert not torch.allclose(denoiser(x, need), got)


def test_embeddings_may_stand_for_a_prompt(toy, prompts):
    x, need = draw(4, 2, L), torch.ones(2, L, dtype=torch.bool)
    embeds = [splice(toy, prompt.ids, prompt.images) for prompt in prompts[1:3]]
    assert torch.equal(
        FullRecompute(toy, embeds)(x, need), FullRecompute(toy, prompts[1:3])(x, need)
    )
