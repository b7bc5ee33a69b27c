"""Responses while a model is trained: the repository's sampler over an engine that may have sharded
its weights, so that all workers take every forward pass together."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import torch

from medv_ray.diffusion.sample import answer, blank
from medv_ray.diffusion.sampler import Denoising
from medv_ray.diffusion.spec import SampleSpec
from medv_ray.training.engine import Engine
from medv_ray.training.objective import Prompt, Response, Sample


def respond(
    engine: Engine,
    samples: Sequence[Sample],
    spec: SampleSpec,
    seeds: Sequence[int],
    one_by_one: bool = False,
) -> list[list[int]]:
    """Token ids of a response to each sample, whose ids end where it begins. Everything is computed
    in full at each step. One whose logits are not finite ends there.

    All workers call it together with as many samples, and go on until the last response is done.

    Args:
        seeds: one per sample, of what is drawn with temperature or a random remasking.
        one_by_one: whether layers run once a row, as they do where attention is cut.
    """
    prompts: list[Prompt] = engine.look(samples, "prompts")
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    lengths = [len(prompt.embeds) for prompt in prompts]
    device = prompts[0].embeds.device
    now = blank(spec, len(prompts), generators, lengths, device)
    while float(engine.sum(torch.tensor([float(not now.done)]))[0]):
        logits = engine.look(asked(prompts, now, one_by_one), "logits")
        if not now.done:
            with suppress(FloatingPointError):  # its row is at its end, the others have gone on
                now.advance(logits, None)
    return [answer(now, b).tolist() for b in range(len(prompts))]


def asked(prompts: Sequence[Prompt], now: Denoising, all_rows: bool) -> list[Response]:
    """What a step needs: of `all_rows`, also of those that need nothing, or of one at least."""
    needs = now.needs()
    some = [b for b, need in needs.items() if need] or [0]
    rows = range(len(prompts)) if all_rows else some
    suffix = torch.tensor(now.spec.suffix_ids, dtype=torch.int64, device=now.x.device)
    return [
        Response(prompts[b], torch.cat((now.x[b], suffix)), torch.tensor(needs.get(b, [])).long())
        for b in rows
    ]
