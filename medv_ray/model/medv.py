"""The whole model: both towers, projector and head, under the published parameter names.

Shapes: B rows, S sequence, D width, V vocabulary, T tiles, I image tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from medv_ray.model.config import ModelConfig, no_vision
from medv_ray.model.keys import Keys
from medv_ray.model.llada import LanguageTower, Linear
from medv_ray.model.projector import build_projector, merge_tiles
from medv_ray.model.vision import VisionTower, scale_pixels

# Tiles that go through the vision tower at a time: an image may have 37.
TILES_PER_PASS = 8


class Medv(nn.Module):
    """LLaDA-MedV, LLaDA-V, or a text-only LLaDA when `config.vision` is None."""

    def __init__(self, config: ModelConfig, logit_size: int | None = None) -> None:
        """`logit_size` cuts the head to its first rows, as LLaDA-V does; LLaDA keeps all."""
        super().__init__()
        self.config = config
        self.logit_size = logit_size
        language, vision = config.language, config.vision
        self.model = LanguageTower(language)
        self.lm_head = nn.Linear(language.hidden_size, language.vocab_size, bias=False)
        if vision is None:
            return
        # the published names nest the tower twice
        tower = nn.ModuleDict({"vision_model": VisionTower(vision)})
        self.model.vision_tower = nn.ModuleDict({"vision_tower": tower})
        self.model.mm_projector = build_projector(vision.hidden_size, language.hidden_size)
        if "unpad" in config.mm_patch_merge_type:
            self.model.image_newline = nn.Parameter(torch.zeros(language.hidden_size))

    @property
    def head(self) -> Tensor:
        """float[V, D], rows of the language head that take part."""
        return self.lm_head.weight[: self.logit_size]

    def pack(self, limit_bytes: int) -> None:
        """Lay the language tower's matrices out for the CPU, unless they take over `limit_bytes`.

        For inference in float32 on a CPU: about 10 % faster, up to twice where torch's default
        library is slow on the CPU, for a second copy of the weights.
        """
        matrices = [module for module in self.modules() if isinstance(module, Linear)]
        if sum(module.weight.nbytes for module in matrices) <= limit_bytes:
            for module in matrices:
                module.pack()

    @property
    def device(self) -> torch.device:
        return self.lm_head.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.lm_head.weight.dtype

    def embed(self, ids: Tensor) -> Tensor:
        """int64[...] -> float[..., D]."""
        embeds: Tensor = self.model.embed_tokens(ids)
        return embeds

    def hidden(
        self,
        embeds: Tensor,
        attention_mask: Tensor | None = None,
        positions: Tensor | None = None,
        need: Tensor | None = None,
        ends: Sequence[int] | None = None,
        keys: Keys | None = None,
    ) -> Tensor:
        """Last hidden states, after the final norm: float[B, S, D] -> float[B, S, D].

        Args:
            embeds: float[B, S, D].
            attention_mask: bool[B, S] keys that may be seen, or bool[B, 1, S, S]; None lets all
                see all.
            positions: int64[S] or int64[B, S]; 0 .. S - 1 by default.
            need: int64[N], positions that are asked for; the result is float[B, N, D] then.
            ends: of segments, the last is S: each position sees its own segment and earlier ones.
            keys: of the whole sequence, when `embeds` is a window of it; see `LanguageTower`.
        """
        states: Tensor = self.model(embeds, attention_mask, positions, need, ends, keys)
        return states

    def logits(self, ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """int64[B, S] -> float[B, S, V]. For tests and training; a sampler needs few rows of it."""
        return self.hidden(self.embed(ids), attention_mask) @ self.head.T

    def image_features(self, tiles: Tensor) -> Tensor:
        """uint8[T, H, W, 3] -> float[T, N, D], projected features of each tile alone.

        Raises CheckpointError E1410 without a vision tower.
        """
        parts = torch.split(tiles, TILES_PER_PASS)
        return torch.cat([self.project(self.tower_features(part)) for part in parts])

    def tower_features(self, tiles: Tensor) -> Tensor:
        """uint8[T, H, W, 3] -> float[T, N, C] in one pass, of the vision tower's own width C.

        Raises CheckpointError E1410 without a vision tower.
        """
        if self.config.vision is None:
            raise no_vision()
        tower = self.model.get_submodule("vision_tower.vision_tower.vision_model")
        features: Tensor = tower(scale_pixels(tiles.to(self.device)).to(self.dtype))
        return features

    def project(self, features: Tensor) -> Tensor:
        """float[T, N, C] -> float[T, N, D]."""
        projected: Tensor = self.model.get_submodule("mm_projector")(features)
        return projected

    def merge(self, projected: Tensor, size_wh: tuple[int, int]) -> Tensor:
        """Image tokens float[I, D] of one image's projected tiles float[T, N, D]."""
        unpad = "unpad" in self.config.mm_patch_merge_type
        newline = self.model.get_parameter("image_newline") if unpad else None
        canvases, max_tiles = self.config.image_grid_pinpoints, self.config.max_tiles
        return merge_tiles(projected, newline, size_wh, canvases, max_tiles)

    def encode_image(self, tiles: Tensor, size_wh: tuple[int, int]) -> Tensor:
        """Image tokens float[I, D] of one image.

        Args:
            tiles: uint8[T, H, W, 3], the whole image first; one tile for `square`, `pad` and each
                of several images.
            size_wh: the image's own size in pixels, which says what of the tile map is padding.

        Raises CheckpointError E1410 without a vision tower, ValueError for tiles that do not fit
        the size.
        """
        return self.merge(self.image_features(tiles), size_wh)
