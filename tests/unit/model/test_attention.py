"""A row of attention, against a transformer that is written out plainly in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from medv_ray.model.attention import look, shares
from medv_ray.model.llada import LanguageTower
from tests.unit.model.conftest import make_model

S = 9


def norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight.double()


def turned(x: Tensor, theta: float) -> Tensor:
    """float[S, C] by its places: coordinates i and i + C / 2 are a complex number."""
    half = x.shape[1] // 2
    number = torch.complex(x[:, :half], x[:, half:])
    speeds = [theta ** (-2 * i / x.shape[1]) for i in range(half)]
    angles = torch.tensor([[place * speed for speed in speeds] for place in range(len(x))])
    number = number * torch.polar(torch.ones_like(angles.double()), angles.double())
    return torch.cat((number.real, number.imag), dim=1)


def plain(tower: LanguageTower, embeds: Tensor, ends: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Hidden states float[S, D], and weights float[layers, S, S], mean over heads."""
    x, maps = embeds.double(), []
    sees = torch.zeros(len(x), len(x), dtype=torch.bool)
    for start, end in zip((0, *ends), ends, strict=False):
        sees[start:end, :end] = True
    for layer in tower.layers:
        own = layer.self_attn
        y = norm(x, layer.input_layernorm.weight, layer.input_layernorm.eps)
        q, k, v = (y @ m.weight.double().T for m in (own.q_proj, own.k_proj, own.v_proj))
        size, mixed, weights = own.head_dim, [], []
        shared = q.shape[1] // k.shape[1]
        for head in range(q.shape[1] // size):
            mine = slice(head * size, (head + 1) * size)
            theirs = slice(head // shared * size, (head // shared + 1) * size)
            scores = turned(q[:, mine], tower.rope_theta) @ turned(k[:, theirs], tower.rope_theta).T
            scores = (scores / math.sqrt(size)).masked_fill(~sees, -torch.inf)
            weights.append(scores.softmax(-1))
            mixed.append(weights[-1] @ v[:, theirs])
        x = x + torch.cat(mixed, 1) @ own.o_proj.weight.double().T
        y = norm(x, layer.post_attention_layernorm.weight, layer.post_attention_layernorm.eps)
        gate, up, down = (
            m.weight.double() for m in (layer.mlp.gate_proj, layer.mlp.up_proj, layer.mlp.down_proj)
        )
        gated = y @ gate.T
        x = x + (gated * gated.sigmoid() * (y @ up.T)) @ down.T
        maps.append(torch.stack(weights).mean(0))
    return norm(x, tower.norm.weight, tower.norm.eps), torch.stack(maps)


@pytest.mark.parametrize("ends", [(S,), (4, S), (2, 5, S)])
@pytest.mark.parametrize("num_layers", [1, 2, 9])
def test_row_and_state_are_those_of_plain_attention(ends: tuple[int, ...], num_layers: int) -> None:
    tower = make_model(seed=3).model
    embeds = torch.randn(S, 32, generator=torch.Generator().manual_seed(1))
    hidden, maps = plain(tower, embeds, ends)
    for place in (S - 1, ends[-2] if len(ends) > 1 else 0):
        state, row = look(tower, embeds, place, ends, num_layers)
        torch.testing.assert_close(
            row.double(), maps[-num_layers:, place].mean(0), atol=1e-5, rtol=0
        )
        torch.testing.assert_close(state.double(), hidden[place], atol=1e-4, rtol=1e-4)
        assert float(row.sum()) == pytest.approx(1)
        own = tower(embeds[None], ends=ends)[0, place]
        torch.testing.assert_close(state, own, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("ends", [(S,), (4, S)])
def test_shares_are_those_of_plain_attention(ends: tuple[int, ...]) -> None:
    tower = make_model(seed=3).model
    embeds = torch.randn(S, 32, generator=torch.Generator().manual_seed(1))
    _, maps = plain(tower, embeds, ends)
    queries, groups = torch.tensor([5, 7, 8]), torch.tensor([0, 0, 0, 1, 1, 2, 2, 3, 3])
    found = shares(tower, embeds, queries, groups, ends, reach=2)
    for layer, weights in enumerate(maps):
        mine = weights[queries]
        want = [float(mine[:, groups == group].sum(1).mean()) for group in range(4)]
        assert found.groups[layer].tolist() == pytest.approx(want, abs=1e-5)
        near = [mine[n, max(0, q - 2) : q + 3].sum() for n, q in enumerate(queries.tolist())]
        assert float(found.near[layer]) == pytest.approx(float(torch.stack(near).mean()), abs=1e-5)
        assert 0 < float(found.spread[layer]) <= 1
