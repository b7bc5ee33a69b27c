"""What one position looks at: a row of the last layers' attention, for a page that shows it.

Computed beside the tower's own attention, which never makes its weights. Shapes: S sequence,
D width, H heads, K key-value heads, C width of one head.
"""

from __future__ import annotations

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


def _row(layer: Layer, x: Tensor, rotary: Rotary, position: int) -> Tensor:
    """float32[S], mean over heads of softmax(q k / sqrt(C)) of one query."""
    attention, here = layer.self_attn, slice(position, position + 1)
    y = layer.input_layernorm(x)
    q = attention.q_proj(y[:, here]).unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)
    k = attention.k_proj(y).unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)
    q = rotate(q, (rotary[0][:, :, here], rotary[1][:, :, here]))  # [1, H, 1, C]
    k = rotate(k, rotary).repeat_interleave(q.shape[1] // k.shape[1], dim=1)  # [1, H, S, C]
    scores = (q.float() @ k.float().transpose(-1, -2)) / attention.head_dim**0.5
    weights: Tensor = scores.softmax(-1)  # [1, H, 1, S]
    return weights[0].mean(0)[0]
