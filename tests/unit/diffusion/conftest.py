"""A denoiser whose hidden rows are logits, and an independent sampler to compare with."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

VOCABULARY, MASK = 12, 11


class TableDenoiser:
    """Logits that depend on the whole row of x, made by a small fixed random net.

    The head is the identity, so hidden rows are logits. `calls` counts forward passes, `rows` what
    they returned; `poison` is added to the logits.
    """

    def __init__(
        self, seed: int = 0, prompt: int = 0, poison: float = 0.0, bias: Tensor | None = None
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.embed = torch.randn(VOCABULARY, 8, generator=generator)
        self.place = torch.randn(64, 8, generator=generator)
        self.out = torch.randn(8, VOCABULARY, generator=generator) * 2
        self.out[:, MASK] = 0.0
        self.bias = torch.zeros(VOCABULARY) if bias is None else bias
        self.prompt, self.poison = prompt, poison
        self.head = torch.eye(VOCABULARY)
        self.calls, self.rows = 0, 0

    def logits(self, x: Tensor) -> Tensor:
        """float32[L, V] of one row int64[L]."""
        tokens = self.embed[x]
        mixed = torch.tanh(tokens + tokens.mean(0) + self.place[: len(x)])
        return mixed @ self.out + self.bias + self.poison

    def __call__(self, x: Tensor, need: Tensor) -> Tensor:
        self.calls += 1
        out = torch.cat([self.logits(x[b])[need[b]] for b in range(len(x))])
        self.rows += len(out)
        return out

    def unconditional(self, mask_id: int) -> TableDenoiser:
        denoiser = TableDenoiser(99, self.prompt)
        return denoiser

    def prompt_length(self, b: int) -> int:
        return self.prompt


def plain_sample(denoiser: TableDenoiser, spec: Any) -> list[list[int]]:
    """States before each step and the last, of one row; LLaDA-V's algorithm, number by number.

    Only low_confidence at temperature 0, without guidance; every rule.
    """
    x, states = [spec.mask_id] * spec.gen_length, []
    stop: int | None = None
    steps = spec.steps // (spec.gen_length // spec.block_length)
    if spec.rule != "schedule":
        steps = spec.block_length
    for start in range(0, spec.gen_length, spec.block_length):
        if stop is not None and start >= stop:
            break
        block = range(start, start + spec.block_length)
        left = sum(x[i] == spec.mask_id for i in block)
        counts = [left // steps + (i < left % steps) for i in range(steps)]
        for count in counts:
            over = block if stop is None else range(stop)
            if not any(x[i] == spec.mask_id for i in over):
                break
            states.append(list(x))
            limit = block.stop if stop is None else stop
            able = [i for i in range(limit) if x[i] == spec.mask_id]
            best = {i: plain_choice(denoiser.logits(torch.tensor(x))[i], spec) for i in able}
            ranked = sorted(able, key=lambda i, best=best: (best[i][1], i))
            if spec.rule != "schedule":
                later = spec.rule == "factor_llada_v"
                num_masks = x.count(spec.mask_id) if later else len(able)
                count = plain_count([best[i][1] for i in ranked], spec, num_masks)
            for i in ranked[:count]:
                x[i] = best[i][0]
            stop = plain_stop(x, spec.stop_ids, stop)
    return [*states, list(x)]


def plain_count(rests: list[float], spec: Any, num_masks: int) -> int:
    """How many of the ranked positions a step takes by rule=threshold or a factor.

    Source: Fast-dLLM get_transfer_index and get_transfer_index_dynamic; LLaDA-V's, which ranks
    `num_masks` and gives those that may not be committed -inf.
    """
    sure = [1 / (1 + rest) for rest in rests]
    if spec.rule == "threshold":
        return max(1, sum(p >= spec.threshold for p in sure))
    sure += [-math.inf] * (num_masks - len(sure))
    bounds = [-math.inf, *(1 - spec.factor / (rank + 1) for rank in range(2, num_masks + 1))]
    taken = 0
    while taken < num_masks and sure[taken] >= bounds[taken]:
        taken += 1
    if taken == num_masks - 1:
        taken += 1
    return min(taken, len(rests))


def plain_choice(logits: Tensor, spec: Any) -> tuple[int, float]:
    values = [
        -math.inf if v in spec.forbidden_ids else float(value) for v, value in enumerate(logits)
    ]
    token = values.index(max(values))
    rest = math.fsum(
        math.exp(value - values[token]) for v, value in enumerate(values) if v != token
    )
    return token, rest


def plain_stop(x: list[int], sequences: Any, stop: int | None) -> int | None:
    for sequence in sequences:
        size = len(sequence)
        for i in range(len(x) - size + 1):
            if tuple(x[i : i + size]) == tuple(sequence):
                stop = i if stop is None else min(stop, i)
                break
        if stop is not None:
            return stop
    return None


@pytest.fixture(scope="session")
def denoiser() -> Callable[..., TableDenoiser]:
    return TableDenoiser


@pytest.fixture(scope="session")
def plain() -> Callable[[TableDenoiser, Any], list[list[int]]]:
    return plain_sample
