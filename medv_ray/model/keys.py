"""Keys and values of a sequence, kept between forward passes that compute only a window of it.

Shapes: B rows, K key-value heads, S sequence, W window, C width of one head.
"""

from __future__ import annotations

import copy
from typing import Protocol

import torch
from torch import Tensor

from medv_ray.model.config import LanguageConfig


def kept_bytes(language: LanguageConfig, dtype: torch.dtype, positions: int) -> int:
    """Bytes of the keys and values of so many positions in all layers."""
    width = language.num_key_value_heads * language.head_dim
    return 2 * language.num_hidden_layers * width * positions * dtype.itemsize


class Keys(Protocol):
    """Where a pass leaves its keys and values, and gets those to attend to."""

    @property
    def start(self) -> int:
        """First position of the window that the pass computes."""

    def put(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Those of the pass, float[B, K, W, C] -> those to attend to, float[B, K, S, C]."""

    def __len__(self) -> int:
        """Positions whose keys and values are there."""


class KeyValues:
    """Rotated keys and values of every layer, as far as they have been computed.

    A pass computes the positions `start` .. `start + W`, at most from the first one that is missing
    on. Theirs are put over the old ones or behind them; other positions keep what an earlier pass
    left. Source: Fast-dLLM, which keeps keys before their rotation: the same, at fixed positions.
    """

    def __init__(self, layers: int) -> None:
        self.start = 0
        """First position of the window of the coming pass."""
        self._kept: list[tuple[Tensor, Tensor] | None] = [None] * layers

    def put(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values float[B, K, S, C] of a layer, those of the window float[B, K, W, C] in
        their place. What `grown` shares is never written to."""
        kept, end = self._kept[layer], self.start + k.shape[2]
        if kept is None or self.start == 0 and end >= kept[0].shape[2]:
            self._kept[layer] = (k, v)
        elif end > kept[0].shape[2]:
            both = zip(kept, (k, v), strict=True)
            old_k, old_v = (torch.cat((old[:, :, : self.start], new), 2) for old, new in both)
            self._kept[layer] = (old_k, old_v)
        else:
            for old, new in zip(kept, (k, v), strict=True):
                old[:, :, self.start : end] = new
        return self.of(layer)

    def of(self, layer: int) -> tuple[Tensor, Tensor]:
        """Keys and values float[B, K, S, C] of a layer that has been passed."""
        found = self._kept[layer]
        assert found is not None
        return found

    def grown(self) -> KeyValues:
        """One that begins with these, for a longer sequence: the next pass starts behind them."""
        more = copy.copy(self)
        more.start, more._kept = len(self), list(self._kept)
        return more

    def __len__(self) -> int:
        """Positions whose keys and values are there."""
        return 0 if self._kept[0] is None else self._kept[0][0].shape[2]

    @property
    def nbytes(self) -> int:
        """Bytes that are held."""
        return sum(k.nbytes + v.nbytes for k, v in filter(None, self._kept))
