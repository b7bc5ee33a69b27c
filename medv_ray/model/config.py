"""Sizes and merge rules of a checkpoint, read from config.json in any of its published spellings.

LLaDA-8B (OLMo field names), LLaDA-8B-HF (LLaMA field names), LLaDA-V and LLaDA-MedV (LLaMA names
and `mm_*` fields). Never looked at: special ids (config.json's are stale, the tokenizer is asked by
token name), `auto_map`, and `mm_vision_tower` (often a private path; the checkpoint has the tower).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from medv_ray.canvases import TileSettings
from medv_ray.errors import CheckpointError
from medv_ray.model.fields import bad, number, pairs, size

Shapes = Mapping[str, tuple[int, ...]]
"""Shape of each tensor of a checkpoint by its published name."""

VISION = "model.vision_tower.vision_tower.vision_model."
ATTENTION = ("full", "dialogue", "prefix")
MODEL_TYPES = ("llada", "llava_llada")

# What this implementation computes. A config that says otherwise means another function: refused.
_FIXED: dict[str, Any] = {
    "activation_type": "silu",
    "alibi": False,
    "attention_bias": False,
    "attention_layer_norm": False,
    "bias_for_layer_norm": False,
    "block_group_size": 1,
    "block_type": "llama",
    "hidden_act": "silu",
    "include_bias": False,
    "include_qkv_bias": False,
    "input_emb_norm": False,
    "layer_norm_type": "rms",
    "mlp_bias": False,
    "mm_projector_type": "mlp2x_gelu",
    "mm_resampler_type": None,
    "rope": True,
    "rope_scaling": None,
    "scale_logits": False,
    "tie_word_embeddings": False,
    "weight_tying": False,
}


@dataclass(frozen=True)
class LanguageConfig:
    """Language tower. Defaults: LLaDA-8B."""

    vocab_size: int = 126464
    hidden_size: int = 4096
    intermediate_size: int = 12288
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int = 32
    rms_norm_eps: float = 1e-5
    rope_theta: float = 500000.0

    def __post_init__(self) -> None:
        _check_heads(self.hidden_size, self.num_attention_heads)
        if self.num_attention_heads % self.num_key_value_heads or self.head_dim % 2:
            raise bad(
                f"{self.num_attention_heads} attention heads of {self.head_dim} do not share "
                f"{self.num_key_value_heads} key-value heads of an even size"
            )

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> LanguageConfig:
        """From OLMo names where there is `d_model`, else from LLaMA names.

        Raises CheckpointError E1410 for a field that is absent or out of range.
        """
        olmo = "d_model" in raw
        width = size(raw, "d_model" if olmo else "hidden_size")
        heads = size(raw, "n_heads" if olmo else "num_attention_heads")
        vocab_size = size(raw, "vocab_size")
        if olmo:
            vocab_size = size(raw, "embedding_size", vocab_size)
            mlp = size(raw, "mlp_hidden_size", width * size(raw, "mlp_ratio", 4))
            kv_heads = size(raw, "n_kv_heads", 1 if raw.get("multi_query_attention") else heads)
        else:
            mlp = size(raw, "intermediate_size")
            kv_heads = size(raw, "num_key_value_heads", heads)
        return cls(
            vocab_size=vocab_size,
            hidden_size=width,
            intermediate_size=mlp,
            num_hidden_layers=size(raw, "n_layers" if olmo else "num_hidden_layers"),
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            rms_norm_eps=number(raw, "rms_norm_eps", 1e-5),
            rope_theta=number(raw, "rope_theta", 500000.0),
        )


@dataclass(frozen=True)
class VisionConfig:
    """SigLIP tower as a checkpoint stores it. Defaults: SigLIP2-so400m-patch14-384, last layer cut.

    `num_hidden_layers` counts the layers that are kept. `vision_config` in a config.json counts one
    more, SigLIP's own number (27), because LLaDA-V always drops the last.
    """

    hidden_size: int = 1152
    intermediate_size: int = 4304
    num_hidden_layers: int = 26
    num_attention_heads: int = 16
    image_size: int = 384
    patch_size: int = 14
    layer_norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        _check_heads(self.hidden_size, self.num_attention_heads)
        if self.patch_size > self.image_size:
            raise bad(f"patches of {self.patch_size} do not fit tiles of {self.image_size} pixels")

    @property
    def side(self) -> int:
        """Patches along one side of a tile; what they leave over at the edge is not seen."""
        return self.image_size // self.patch_size

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> VisionConfig:
        """From a `vision_config` entry. Raises CheckpointError E1410."""
        if raw.get("hidden_act") not in (None, "gelu_pytorch_tanh"):
            raise bad("vision_config.hidden_act must be 'gelu_pytorch_tanh'")
        return cls(
            hidden_size=size(raw, "hidden_size"),
            intermediate_size=size(raw, "intermediate_size"),
            num_hidden_layers=size(raw, "num_hidden_layers") - 1,
            num_attention_heads=size(raw, "num_attention_heads"),
            image_size=size(raw, "image_size"),
            patch_size=size(raw, "patch_size"),
            layer_norm_eps=number(raw, "layer_norm_eps", 1e-6),
        )

    @classmethod
    def from_shapes(cls, shapes: Shapes, tile: int | None) -> VisionConfig:
        """From the tensors themselves: released checkpoints say nothing else about their tower.

        Args:
            shapes: of all tensors of the checkpoint.
            tile: side of a tile in pixels where the config tells it; patches may not cover it all.

        Raises CheckpointError E1402 without the tensors, E1404 for tensors of other dimensions,
        E1410 for a width of which the number of heads is not known.
        """
        names = ("embeddings.patch_embedding", "embeddings.position_embedding")
        keys = [f"{VISION}{name}.weight" for name in (*names, "encoder.layers.0.mlp.fc1")]
        absent = [key for key in keys if key not in shapes]
        if absent:
            raise CheckpointError("E1402", f"missing: {', '.join(absent)}.")
        conv, positions, fc1 = (shapes[key] for key in keys)
        if (len(conv), len(positions), len(fc1)) != (4, 2, 2):
            raise CheckpointError("E1404", f"{', '.join(keys)} must have 4, 2 and 2 dimensions.")
        known = cls()
        if conv[0] != known.hidden_size:
            raise bad(f"a vision tower of width {conv[0]} needs `vision_config` (number of heads)")
        side, patch = math.isqrt(positions[0]), conv[2]
        fits = [n for n in (tile, known.image_size) if n and n // patch == side]
        return cls(
            intermediate_size=fc1[0],
            image_size=fits[0] if fits else side * patch,
            patch_size=patch,
        )


@dataclass(frozen=True)
class ModelConfig:
    """A whole checkpoint. Without `vision` it is a text-only LLaDA."""

    language: LanguageConfig = field(default_factory=LanguageConfig)
    vision: VisionConfig | None = field(default_factory=VisionConfig)
    image_aspect_ratio: str = "anyres_max_4"
    image_grid_pinpoints: tuple[tuple[int, int], ...] = ()
    """Canvases (width, height) that anyres chooses from. Empty: 1..6 x 1..6 tiles, as LLaDA-V."""
    mm_patch_merge_type: str = "spatial_unpad"
    max_length: int = 8192
    """Longest sequence in tokens, image tokens and answer included."""
    attention: str = "full"
    """Who sees whom, as the model was trained: `full`, `dialogue` or `prefix` (data/segments.py).
    Ours: released checkpoints are `full`."""

    def __post_init__(self) -> None:
        if self.mm_patch_merge_type not in ("flat", "spatial_unpad"):
            given = self.mm_patch_merge_type[:40]
            raise bad(f"mm_patch_merge_type must be 'flat' or 'spatial_unpad', not {given!r}")
        if self.attention not in ATTENTION:
            given = self.attention[:40]
            raise bad(f"medv_attention must be one of {', '.join(ATTENTION)}, not {given!r}")
        if self.vision is None:
            return
        tile = self.vision.image_size
        if not self.image_grid_pinpoints:
            canvases = tuple((w * tile, h * tile) for w in range(1, 7) for h in range(1, 7))
            object.__setattr__(self, "image_grid_pinpoints", canvases)
        if any(side % tile for canvas in self.image_grid_pinpoints for side in canvas):
            raise bad(f"image_grid_pinpoints must be multiples of the tile side, {tile}")

    def tiling(self, aspect: str = "checkpoint") -> TileSettings:
        """How images are cut.

        `checkpoint` takes the rule of `image_aspect_ratio`; a name that is not known is squashed to
        a square, as the reference does. Raises CheckpointError E1410 without a vision tower.
        """
        if self.vision is None:
            raise no_vision()
        named = self.image_aspect_ratio if aspect == "checkpoint" else aspect
        rule: Literal["square", "pad", "anyres_max"] = "square"
        if named.startswith("anyres"):
            rule = "anyres_max"
        elif named == "pad":
            rule = "pad"
        return TileSettings(rule, self.vision.image_size, self.image_grid_pinpoints)

    @property
    def max_tiles(self) -> int | None:
        """N of anyres_max_N: a larger tile map is shrunk to about N tiles' worth of tokens.

        None: never shrunk. 4, LLaDA-V's own, where the checkpoint itself does not tile.
        """
        match = re.search(r"anyres_max_(\d+)", self.image_aspect_ratio)
        if match:
            return int(match[1])
        return None if "anyres" in self.image_aspect_ratio else 4

    @classmethod
    def from_json(cls, raw: Mapping[str, Any], shapes: Shapes | None = None) -> ModelConfig:
        """From a parsed config.json, and the checkpoint's tensors for what it leaves out.

        Without `shapes`, a LLaDA-V that does not describe its tower gets SigLIP2-so400m.

        Raises CheckpointError E1410 for another kind of model or a field out of range; see also
        `VisionConfig.from_shapes`.
        """
        if raw.get("model_type") not in (None, *MODEL_TYPES):
            given = str(raw["model_type"])[:40]
            raise bad(f"model_type must be one of {', '.join(MODEL_TYPES)}, not {given!r}")
        for name, wanted in _FIXED.items():
            if raw.get(name) not in (None, wanted):
                raise bad(f"{name} must be {wanted!r}, not {str(raw[name])[:40]!r}")
        pinpoints = pairs(raw, "image_grid_pinpoints")
        limit = size(raw, "max_sequence_length", 8192)
        return cls(
            language=LanguageConfig.from_json(raw),
            vision=_vision(raw, shapes, min(map(min, pinpoints), default=None)),
            image_aspect_ratio=str(raw.get("image_aspect_ratio") or "square"),
            image_grid_pinpoints=pinpoints,
            mm_patch_merge_type=str(raw.get("mm_patch_merge_type") or "flat"),
            max_length=size(raw, "tokenizer_model_max_length", limit),
            attention=str(raw.get("medv_attention") or "full"),
        )

    def to_json(self) -> dict[str, Any]:
        """A config.json that `from_json` and LLaDA-V's own loader read."""
        raw = {
            **asdict(self.language),
            "architectures": ["LLaDAModelLM"],
            "attention_bias": False,
            "hidden_act": "silu",
            "model_type": "llada",
            "rope_scaling": None,
            "tie_word_embeddings": False,
            "tokenizer_model_max_length": self.max_length,
            "use_cache": False,
        }
        if self.attention != "full":
            raw["medv_attention"] = self.attention
        if self.vision is None:
            return raw
        return raw | {
            "architectures": ["LlavaLLaDAModelLM"],
            "image_aspect_ratio": self.image_aspect_ratio,
            "image_grid_pinpoints": [list(canvas) for canvas in self.image_grid_pinpoints],
            "mm_hidden_size": self.vision.hidden_size,
            "mm_newline_position": "grid",
            "mm_patch_merge_type": self.mm_patch_merge_type,
            "mm_projector_type": "mlp2x_gelu",
            "mm_use_im_patch_token": False,
            "mm_use_im_start_end": False,
            "mm_vision_select_feature": "patch",
            "mm_vision_select_layer": -2,
            "mm_vision_tower": "google/siglip2-so400m-patch14-384",
            "model_type": "llava_llada",
            "tokenizer_padding_side": "right",
            "use_mm_proj": True,
            "vision_config": {
                **asdict(self.vision),
                "hidden_act": "gelu_pytorch_tanh",
                "model_type": "siglip_vision_model",
                "num_hidden_layers": self.vision.num_hidden_layers + 1,
            },
        }


def no_vision() -> CheckpointError:
    """What a text-only checkpoint answers to an image."""
    return CheckpointError("E1410", "the checkpoint has no vision tower and cannot see images.")


def _check_heads(width: int, heads: int) -> None:
    if width % heads:
        raise bad(f"a width of {width} does not divide into {heads} attention heads")


def _vision(raw: Mapping[str, Any], shapes: Shapes | None, tile: int | None) -> VisionConfig | None:
    given = raw.get("vision_config")
    if isinstance(given, Mapping):
        return VisionConfig.from_json(given)
    stored = any(name.startswith("model.vision_tower.") for name in shapes or ())
    if not stored and raw.get("model_type") != "llava_llada":
        return None
    return VisionConfig() if shapes is None else VisionConfig.from_shapes(shapes, tile)
