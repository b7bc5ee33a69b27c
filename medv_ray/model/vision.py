"""SigLIP's vision tower as LLaDA-V uses it: tiles in, features of the last kept layer out.

A checkpoint holds 26 of SigLIP's 27 layers. `post_layernorm` is carried along and never applied.
Parameter names are Hugging Face's, below `model.vision_tower.vision_tower.vision_model.`.
Shapes: T tiles, N patches of a tile (729), E width of the tower.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from medv_ray.model.config import VisionConfig


def scale_pixels(tiles: Tensor) -> Tensor:
    """uint8[T, H, W, 3] -> float32[T, 3, H, W] in -1..1: (x / 255 - 0.5) / 0.5."""
    # the reference rounds x * (1 / 255) from float64 once; a table does so for few values
    levels = torch.arange(256, device=tiles.device, dtype=torch.float64) * (1 / 255)
    return ((levels.float() - 0.5) / 0.5)[tiles.int()].permute(0, 3, 1, 2)


class Embeddings(nn.Module):
    """Patches through one convolution, plus a learnt position each."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.patch_embedding = nn.Conv2d(
            3, config.hidden_size, config.patch_size, stride=config.patch_size
        )
        self.position_embedding = nn.Embedding(config.side**2, config.hidden_size)

    def forward(self, pixels: Tensor) -> Tensor:
        """float[T, 3, H, W] -> float[T, N, E]."""
        patches = self.patch_embedding(pixels).flatten(2).transpose(1, 2)  # [T, N, E]
        # called, not read: a partitioned table is gathered for its own module's forward pass
        positions = torch.arange(patches.shape[1], device=patches.device)
        out: Tensor = patches + self.position_embedding(positions)
        return out


class Attention(nn.Module):
    """Multi-head attention over the patches of a tile."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (
            nn.Linear(config.hidden_size, config.hidden_size) for _ in range(4)
        )

    def forward(self, x: Tensor) -> Tensor:
        """float[T, N, E] -> float[T, N, E]."""
        q, k, v = (
            proj(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        out: Tensor = self.out_proj(
            F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        )
        return out


class MLP(nn.Module):
    """Two linear maps around a GELU in its tanh form."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """float[T, N, E] -> float[T, N, E]."""
        out: Tensor = self.fc2(F.gelu(self.fc1(x), approximate="tanh"))
        return out


class Layer(nn.Module):
    """Attention and MLP, each behind a norm and beside a residual."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.self_attn = Attention(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.mlp = MLP(config)

    def forward(self, x: Tensor) -> Tensor:
        """float[T, N, E] -> float[T, N, E]."""
        x = x + self.self_attn(self.layer_norm1(x))
        out: Tensor = x + self.mlp(self.layer_norm2(x))
        return out


class VisionTower(nn.Module):
    """float[T, 3, H, W] scaled pixels -> float[T, N, E]."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.embeddings = Embeddings(config)
        self.encoder = nn.ModuleDict(
            {"layers": nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))}
        )
        self.post_layernorm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.gradient_checkpointing = False
        """Keep only the input of each layer for the backward pass, and compute the rest again."""

    def forward(self, pixels: Tensor) -> Tensor:
        """float[T, 3, H, W] -> float[T, N, E]."""
        x: Tensor = self.embeddings(pixels)
        again = self.gradient_checkpointing and torch.is_grad_enabled()
        # a frozen tower keeps nothing anyway
        again = again and any(parameter.requires_grad for parameter in self.parameters())
        # the last layer too: what it kept would lie there through all of the language tower's work
        for layer in self.encoder["layers"]:  # type: ignore[attr-defined]  # a ModuleList iterates
            x = checkpoint(layer, x, use_reentrant=False) if again else layer(x)
        return x
