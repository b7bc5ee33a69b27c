"""LLaDA's language tower: a pre-norm transformer in which every position attends to every other.

    x += W_o attention(rms(x));  x += W_down (silu(W_gate y) * W_up y), y = rms(x);  out = rms(x)

Parameter names are those of the published LLaMA-style checkpoints, below `model.`.
`ends` cuts the sequence into segments: a position sees all of its own segment and of those before
it. One segment is LLaDA's own attention; turns, or image, question and answer, are others.

Shapes: B rows, S sequence, N positions asked for, D width, H heads, K key-value heads, C width of
one head.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from medv_kernels.linear import Int8Weight, PackedWeight, linear, pack
from medv_ray.model.config import LanguageConfig
from medv_ray.model.keys import Keys

Rotary = tuple[Tensor, Tensor]
"""Cosine and sine of the rotary angles, float32[1 or B, 1, S, C] each; the sine is negative in the
first half of C, so that a rotation is x * cos + swapped halves of x * sin."""


class RMSNorm(nn.Module):
    """x / rms(x) * weight; the root mean square in float32, cast back before the weight."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """float[..., D] -> float[..., D]."""
        wide = x.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return wide.to(x.dtype) * self.weight


def rotary_table(positions: Tensor, head_dim: int, theta: float) -> Rotary:
    """Angles of int64[S] or int64[B, S] positions.

    The frequencies are made here, in float32, and are no buffer: `model.to(torch.bfloat16)` would
    round a buffer, and then far positions turn by wrong angles.
    """
    exponent = (
        torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.int64).float() / head_dim
    )
    angles = positions[..., None].float() * (1.0 / theta**exponent)  # [S, C / 2]
    if angles.dim() == 2:
        angles = angles[None]
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)


def rotate(x: Tensor, rotary: Rotary) -> Tensor:
    """Turn float[B, H, S, C] by its positions: the halves of C are the two coordinates.

    Computed in float32.
    """
    cos, sin = rotary
    wide = x.float()
    return torch.addcmul(wide * cos, wide.roll(x.shape[-1] // 2, -1), sin).to(x.dtype)


def attention_bias(attention_mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """What `scaled_dot_product_attention` takes: bool[B, 1, 1 or S, S]
    (True attends) or float[B, 1, 1 or S, S].

    Args:
        attention_mask: any[B, S] keys that may be seen, or any[B, 1, S, S]; non-zero attends. A
            4-D mask of floats is additive.
        dtype: of the queries.

    A mask without zeros is none, as in LLaDA: the unmasked kernels are faster.
    """
    if attention_mask is None:
        return None
    if attention_mask.is_floating_point() and attention_mask.dim() == 4:
        return attention_mask.to(dtype)
    allowed = attention_mask != 0
    if bool(allowed.all()):
        return None
    return allowed[:, None, None, :] if allowed.dim() == 2 else allowed


def attend(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, cuts: Sequence[tuple[int, int]]
) -> Tensor:
    """Attention of float[B, H, N, C] queries, those of each cut to the keys that it sees.

    Args:
        k, v: float[B, K, S, C].
        bias: see `attention_bias`; its last axis is S.
        cuts: (queries up to here, keys up to there), both ascending; the last is (N, S). One call
            for each, and no mask of N x S is made.
    """
    shared, start, mixed = k.shape[1] != q.shape[1], 0, []
    for stop, seen in cuts:
        part = None
        if bias is not None:
            part = bias[..., :seen] if bias.shape[2] == 1 else bias[:, :, start:stop, :seen]
        mixed.append(
            F.scaled_dot_product_attention(
                q[:, :, start:stop], k[:, :, :seen], v[:, :, :seen], part, enable_gqa=shared
            )
        )
        start = stop
    return mixed[0] if len(mixed) == 1 else torch.cat(mixed, dim=2)


def cuts_of(
    ends: Sequence[int], need: Tensor | None, start: int, asked: int
) -> list[tuple[int, int]]:
    """For `attend`: by segment, the `asked` positions from `start` on, or of these the int64[N]
    ascending ones `need`, counted from `start`."""
    if len(ends) == 1:
        return [(asked if need is None else len(need), ends[0])]
    if need is None:
        counts = [min(max(end - start, 0), asked) for end in ends]
    else:
        counts = torch.searchsorted(need, torch.tensor(ends, device=need.device) - start).tolist()
    found = zip(counts, ends, [0, *counts], strict=False)
    return [(count, end) for count, end, before in found if count > before]


class Linear(nn.Linear):
    """x W^T. After `pack`, inference reads a copy of the weight in the layout of oneDNN."""

    packed: PackedWeight | Int8Weight | None = None

    def __init__(self, wide: int, narrow: int) -> None:
        super().__init__(wide, narrow, bias=False)

    def pack(self) -> None:
        """Copy the weight into the CPU's layout where that helps; later changes do not reach it."""
        made = pack(self.weight)
        self.packed = made if isinstance(made, PackedWeight) else None

    def forward(self, x: Tensor) -> Tensor:
        """float[..., D] -> float[..., out_features]."""
        if self.packed is None or torch.is_grad_enabled():
            return F.linear(x, self.weight)
        return linear(x, self.packed)


def packed_of(module: nn.Module) -> PackedWeight | Int8Weight | None:
    """What inference reads in place of the weight; nothing of an adapter around a Linear."""
    return module.packed if isinstance(module, Linear) and not torch.is_grad_enabled() else None


class Attention(nn.Module):
    """Multi-head attention without biases; K key-value heads are shared by H / K heads each."""

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        wide, narrow = config.hidden_size, config.num_key_value_heads * config.head_dim
        self.q_proj = Linear(wide, wide)
        self.k_proj = Linear(wide, narrow)
        self.v_proj = Linear(wide, narrow)
        self.o_proj = Linear(wide, wide)

    def forward(
        self,
        x: Tensor,
        rotary: Rotary,
        bias: Tensor | None,
        ends: Sequence[int],
        need: Tensor | None = None,
        kept: tuple[Keys, int] | None = None,
    ) -> Tensor:
        """float[B, S, D] -> float[B, S, D]; of `need` int64[N] alone float[B, N, D]. `kept`: where
        this layer's keys and values go, and the layer's number."""
        asking, turn = x, rotary
        if need is not None:
            asking, turn = x[:, need], (rotary[0][:, :, need], rotary[1][:, :, need])
            bias = bias[:, :, need] if bias is not None and bias.shape[2] > 1 else bias
        q, k, v = (
            proj(y).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)  # [B, H or K, S or N, C]
            for proj, y in ((self.q_proj, asking), (self.k_proj, x), (self.v_proj, x))
        )
        q, k = rotate(q, turn), rotate(k, rotary)
        start = 0
        if kept is not None:
            keys, layer = kept
            start = keys.start
            k, v = keys.put(layer, k, v)
        mixed = attend(q, k, v, bias, cuts_of(ends, need, start, x.shape[1]))
        out: Tensor = self.o_proj(mixed.transpose(1, 2).flatten(2))
        return out


class MLP(nn.Module):
    """SwiGLU."""

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        self.gate_proj = Linear(config.hidden_size, config.intermediate_size)
        self.up_proj = Linear(config.hidden_size, config.intermediate_size)
        self.down_proj = Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """float[B, S, D] -> float[B, S, D]."""
        gate, up = packed_of(self.gate_proj), packed_of(self.up_proj)
        if gate is not None and up is not None:
            hidden = up.product(x, times=gate.product(x, silu=True))
        else:
            hidden = F.silu(self.gate_proj(x)) * self.up_proj(x)
        out: Tensor = self.down_proj(hidden)
        return out


class Layer(nn.Module):
    """Attention and MLP, each behind a norm and beside a residual."""

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)

    def forward(
        self,
        x: Tensor,
        rotary: Rotary,
        bias: Tensor | None,
        ends: Sequence[int],
        need: Tensor | None = None,
        kept: tuple[Keys, int] | None = None,
    ) -> Tensor:
        """float[B, S, D] -> float[B, S, D]; of `need` int64[N] alone float[B, N, D]."""
        mixed = self.self_attn(self.input_layernorm(x), rotary, bias, ends, need, kept)
        x = mixed + (x if need is None else x[:, need])
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out


class LanguageTower(nn.Module):
    """Embedding table, layers and final norm."""

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        self.head_dim, self.rope_theta = config.head_dim, config.rope_theta
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.gradient_checkpointing = False
        """Keep only the input of each layer for the backward pass, and compute the rest again."""

    def forward(
        self,
        embeds: Tensor,
        attention_mask: Tensor | None = None,
        positions: Tensor | None = None,
        need: Tensor | None = None,
        ends: Sequence[int] | None = None,
        keys: Keys | None = None,
    ) -> Tensor:
        """Hidden states after the final norm, float[B, S, D].

        Args:
            embeds: float[B, S, D]; with `keys` of the window alone, from `keys.start` on.
            attention_mask: see `attention_bias`.
            positions: int64[S] or int64[B, S]; 0 .. S - 1 by default. Only differences matter.
            need: int64[N], the positions whose states are asked for; the result is float[B, N, D],
                and the last layer works for these positions only; ascending where there are `ends`.
                None: all. With `keys` they count from `keys.start`.
            ends: of the segments, ascending, the last is S; the same in every row. None: one.
            keys: of the whole sequence; takes those of the window, and is attended to.
        """
        start, end = 0, embeds.shape[1]
        if keys is not None:
            start, end = keys.start, keys.start + end
        if positions is None:
            positions = torch.arange(start, end, device=embeds.device)
        ends = ends or (end if keys is None else max(end, len(keys)),)
        rotary = rotary_table(positions, self.head_dim, self.rope_theta)
        bias = attention_bias(attention_mask, embeds.dtype)
        x = embeds
        again = self.gradient_checkpointing and torch.is_grad_enabled()
        last = len(self.layers) - 1
        for number, layer in enumerate(self.layers):
            kept = None if keys is None else (keys, number)
            if number == last:
                x = layer(x, rotary, bias, ends, need, kept)
            elif again:
                x = checkpoint(layer, x, rotary, bias, ends, use_reentrant=False)
            else:
                x = layer(x, rotary, bias, ends, None, kept)
        out: Tensor = self.norm(x)
        return out
