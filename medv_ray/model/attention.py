"""What positions look at: a row of the last layers' attention, for a page that shows it, and shares
by group of positions in every layer.

Computed beside the tower's own attention, which never makes its weights. Shapes: S sequence,
N queries, G groups, D width, H heads, K key-value heads, C width of one head.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from medv_ray.model.llada import LanguageTower, Layer, Rotary, rotary_table, rotate


@torch.no_grad()
def look(
    tower: LanguageTower, embeds: Tensor, position: int, ends: tuple[int, ...], num_layers: int
) -> tuple[Tensor, Tensor]:
    """One position's last hidden state, and what it attends to.

    Args:
        embeds: float[S, D].
        position: in the whole sequence, of the last segment.
        ends: see `LanguageTower`.
        num_layers: of the last ones, whose attention is averaged, over heads as well.

    Returns: float[D] after the final norm, and float32[S] that sums to one.
    """
    x = embeds[None]
    positions = torch.arange(len(embeds), device=embeds.device)
    rotary = rotary_table(positions, tower.head_dim, tower.rope_theta)
    rows: list[Tensor] = []
    first = max(0, len(tower.layers) - num_layers)
    for number, layer in enumerate(tower.layers):
        assert isinstance(layer, Layer)
        if number >= first:
            rows.append(_row(layer, x, rotary, position))
        x = layer(x, rotary, None, ends)
    return tower.norm(x)[0, position], torch.stack(rows).mean(0)


class Shares(NamedTuple):
    """Where the attention of some queries goes, by layer; means over heads and queries."""

    groups: Tensor
    """float32[layers, G], shares that sum to one."""
    near: Tensor
    """float32[layers], the share of positions at most so far away, the query's own among them."""
    spread: Tensor
    """float32[layers], exp(entropy) / S: 1 where all positions weigh the same."""


@torch.no_grad()
def shares(
    tower: LanguageTower,
    embeds: Tensor,
    queries: Tensor,
    groups: Tensor,
    ends: tuple[int, ...],
    reach: int,
) -> Shares:
    """How the attention of some positions divides.

    Args:
        embeds: float[S, D].
        queries: int64[N], of the last segment.
        groups: int64[S], the group of each position, from 0 to the largest.
        ends: see `LanguageTower`.
        reach: how far away is near.
    """
    x = embeds[None]
    at = torch.arange(len(embeds), device=embeds.device)
    rotary = rotary_table(at, tower.head_dim, tower.rope_theta)
    members = torch.nn.functional.one_hot(groups).float()  # [S, G]
    is_near = (at[None] - queries[:, None]).abs() <= reach  # [N, S]
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    for layer in tower.layers:
        assert isinstance(layer, Layer)
        weights = _weights(layer, x, rotary, queries)  # [H, N, S]
        entropy = -torch.special.xlogy(weights, weights).sum(-1)  # [H, N]
        mean = weights.mean(0)  # [N, S]
        near = (mean * is_near).sum(-1).mean()
        found.append(((mean @ members).mean(0), near, (entropy.exp() / len(at)).mean()))
        x = layer(x, rotary, None, ends)
    return Shares(*(torch.stack(part) for part in zip(*found, strict=True)))


def _row(layer: Layer, x: Tensor, rotary: Rotary, position: int) -> Tensor:
    """float32[S], mean over heads of one query's attention."""
    at = torch.tensor([position], device=x.device)
    return _weights(layer, x, rotary, at).mean(0)[0]


def _weights(layer: Layer, x: Tensor, rotary: Rotary, at: Tensor) -> Tensor:
    """float32[H, N, S], softmax(q k / sqrt(C)) of the queries int64[N]."""
    attention = layer.self_attn
    y = layer.input_layernorm(x)
    q = attention.q_proj(y[:, at]).unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)
    k = attention.k_proj(y).unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)
    q = rotate(q, (rotary[0][:, :, at], rotary[1][:, :, at]))  # [1, H, N, C]
    k = rotate(k, rotary).repeat_interleave(q.shape[1] // k.shape[1], dim=1)  # [1, H, S, C]
    scores = (q.float() @ k.float().transpose(-1, -2)) / attention.head_dim**0.5
    weights: Tensor = scores.softmax(-1)[0]
    return weights
