"""Sizes and merge rules of a checkpoint, read from config.json in any of its three published spellings.

LLaDA-8B (OLMo field names), LLaDA-8B-HF (LLaMA field names) and LLaDA-V / LLaDA-MedV (LLaMA names and `mm_*` fields).
No special id is read here: config.json's are stale, the tokenizer is asked by token name. `auto_map` and
`mm_vision_tower` (often a private path) are never looked at: the vision weights are in the checkpoint.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from medv_ray.errors import CheckpointError

VISION_PREFIX = "model.vision_tower.vision_tower.vision_model."
MODEL_TYPES = ("llada", "llava_llada")

# What this implementation computes. A config that says otherwise names another function and is refused.
_FIXED: dict[str, Any] = {
    "activation_type": "silu",
    "alibi": False,
    "attention_layer_norm": False,
    "bias_for_layer_norm": False,
    "block_group_size": 1,
    "block_type": "llama",
    "include_bias": False,
    "include_qkv_bias": False,
    "input_emb_norm": False,
    "layer_norm_type": "rms",
    "rope": True,
    "scale_logits": False,
    "weight_tying": False,
    "attention_bias": False,
    "hidden_act": "silu",
    "mlp_bias": False,
    "rope_scaling": None,
    "tie_word_embeddings": False,
    "mm_projector_type": "mlp2x_gelu",
    "mm_resampler_type": None,
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
            raise _bad(
                f"{self.num_attention_heads} attention heads of {self.head_dim} do not share "
                f"{self.num_key_value_heads} key-value heads of an even size"
            )

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> LanguageConfig:
        """From OLMo names when `d_model` is there, else from LLaMA names. Raises CheckpointError E1410."""
        eps, theta = _number(raw, "rms_norm_eps", 1e-5), _number(raw, "rope_theta", 500000.0)
        if "d_model" not in raw:
            heads = _size(raw, "num_attention_heads")
            return cls(
                vocab_size=_size(raw, "vocab_size"),
                hidden_size=_size(raw, "hidden_size"),
                intermediate_size=_size(raw, "intermediate_size"),
                num_hidden_layers=_size(raw, "num_hidden_layers"),
                num_attention_heads=heads,
                num_key_value_heads=_size(raw, "num_key_value_heads", heads),
                rms_norm_eps=eps,
                rope_theta=theta,
            )
        width, heads = _size(raw, "d_model"), _size(raw, "n_heads")
        return cls(
            vocab_size=_size(raw, "embedding_size", _size(raw, "vocab_size")),
            hidden_size=width,
            intermediate_size=_size(raw, "mlp_hidden_size", width * _size(raw, "mlp_ratio", 4)),
            num_hidden_layers=_size(raw, "n_layers"),
            num_attention_heads=heads,
            num_key_value_heads=_size(raw, "n_kv_heads", 1 if raw.get("multi_query_attention") else heads),
            rms_norm_eps=eps,
            rope_theta=theta,
        )


@dataclass(frozen=True)
class VisionConfig:
    """SigLIP tower as the checkpoint stores it. Defaults: SigLIP2-so400m-patch14-384 without its last layer.

    `num_hidden_layers` counts the layers kept and run. The `vision_config` of a config.json counts as SigLIP does,
    one more, because LLaDA-V always drops the last.
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

    @property
    def side(self) -> int:
        """Patches along one side of a tile; what is left over at the right and bottom edge is not seen."""
        return self.image_size // self.patch_size

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> VisionConfig:
        """From a `vision_config` entry. Raises CheckpointError E1410."""
        if raw.get("hidden_act") not in (None, "gelu_pytorch_tanh"):
            raise _bad("vision_config.hidden_act must be 'gelu_pytorch_tanh'")
        names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
        width, mlp, layers, heads = (_size(raw, name) for name in names)
        tile, patch = _size(raw, "image_size"), _size(raw, "patch_size")
        return cls(width, mlp, layers - 1, heads, tile, patch, _number(raw, "layer_norm_eps", 1e-6))

    @classmethod
    def from_shapes(cls, shapes: Mapping[str, tuple[int, ...]], tile: int | None) -> VisionConfig:
        """From the tensors' shapes: released checkpoints say nothing else about their tower.

        Args:
            shapes: of all tensors of the checkpoint, by published name.
            tile: side of a tile in pixels, where the config tells it; patches cut off some of it.

        Raises CheckpointError E1402 without the tensors, E1410 for widths whose number of heads is not known.
        """
        names = [
            "embeddings.patch_embedding.weight",
            "embeddings.position_embedding.weight",
            "encoder.layers.0.mlp.fc1.weight",
        ]
        try:
            (width, _, patch, _), (num_patches, _), (mlp, _) = (shapes[VISION_PREFIX + name] for name in names)
        except KeyError as error:
            raise CheckpointError("E1402", f"the checkpoint has no tensor {error.args[0]}.") from None
        except ValueError:
            raise CheckpointError("E1404", f"{', '.join(names)} must be of 4, 2 and 2 dimensions.") from None
        known = cls()
        if width != known.hidden_size:
            raise _bad(f"a vision tower of width {width} needs a `vision_config` entry (it gives the number of heads)")
        side = math.isqrt(num_patches)
        if tile is None or tile // patch != side:
            tile = known.image_size if known.image_size // patch == side else side * patch
        return cls(intermediate_size=mlp, image_size=tile, patch_size=patch)


@dataclass(frozen=True)
class ModelConfig:
    """A whole checkpoint. Without `vision` it is a text-only LLaDA."""

    language: LanguageConfig = field(default_factory=LanguageConfig)
    vision: VisionConfig | None = field(default_factory=VisionConfig)
    image_aspect_ratio: str = "anyres_max_4"
    image_grid_pinpoints: tuple[tuple[int, int], ...] = ()
    """Canvas sizes (width, height) that anyres chooses from. Empty: 1..6 x 1..6 tiles, as LLaDA-V."""
    mm_patch_merge_type: str = "spatial_unpad"
    max_length: int = 8192
    """Longest sequence in tokens, image tokens and answer included."""

    def __post_init__(self) -> None:
        if self.mm_patch_merge_type not in ("flat", "spatial_unpad"):
            raise _bad(f"mm_patch_merge_type must be 'flat' or 'spatial_unpad', not {self.mm_patch_merge_type[:40]!r}")
        if self.vision and not self.image_grid_pinpoints:
            sides = [self.vision.image_size * n for n in range(1, 7)]
            object.__setattr__(self, "image_grid_pinpoints", tuple((w, h) for w in sides for h in sides))
        if self.vision and any(side % self.vision.image_size for size in self.image_grid_pinpoints for side in size):
            raise _bad(f"image_grid_pinpoints must be multiples of the tile side, {self.vision.image_size}")

    @property
    def max_tiles(self) -> int | None:
        """N of anyres_max_N: the tile map is shrunk to about N tiles' worth of tokens. None: never shrunk.

        4, LLaDA-V's own, where the checkpoint is not trained with tiles and a setting asks for them.
        """
        match = re.search(r"anyres_max_(\d+)", self.image_aspect_ratio)
        if match:
            return int(match[1])
        return None if "anyres" in self.image_aspect_ratio else 4

    def tile_grid(self, size_wh: tuple[int, int]) -> tuple[int, int]:
        """(columns, rows) of the canvas that shows most of an image of this size and wastes least.

        The same choice as the tiling makes; ties go to the first canvas.
        Source: LLaDA-V mm_utils.py, select_best_resolution.
        """
        if self.vision is None:
            raise no_vision()
        width, height = size_wh

        def worth(canvas: tuple[int, int]) -> tuple[int, int]:
            scale = min(canvas[0] / width, canvas[1] / height)
            effective = min(int(width * scale) * int(height * scale), width * height)
            return effective, effective - canvas[0] * canvas[1]

        best = max(self.image_grid_pinpoints, key=worth)
        return best[0] // self.vision.image_size, best[1] // self.vision.image_size

    @classmethod
    def from_json(cls, raw: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]] | None = None) -> ModelConfig:
        """From a config.json.

        Args:
            raw: the parsed file.
            shapes: shapes of the checkpoint's tensors by published name; sizes that config.json leaves out, and
                whether a vision tower exists, are then read from them.

        Raises CheckpointError E1410 for another kind of model or a field out of range, E1402 without its tensors.
        """
        if raw.get("model_type") not in (None, *MODEL_TYPES):
            raise _bad(f"model_type must be one of {', '.join(MODEL_TYPES)}, not {str(raw['model_type'])[:40]!r}")
        for name, wanted in _FIXED.items():
            if raw.get(name) not in (None, wanted):
                raise _bad(f"{name} must be {wanted!r}, not {str(raw[name])[:40]!r}")
        pinpoints = _pinpoints(raw)
        return cls(
            language=LanguageConfig.from_json(raw),
            vision=_vision(raw, shapes, min((min(size) for size in pinpoints), default=None)),
            image_aspect_ratio=str(raw.get("image_aspect_ratio") or "square"),
            image_grid_pinpoints=pinpoints,
            mm_patch_merge_type=str(raw.get("mm_patch_merge_type") or "flat"),
            max_length=_size(raw, "tokenizer_model_max_length", _size(raw, "max_sequence_length", 8192)),
        )

    def to_json(self) -> dict[str, Any]:
        """Fields of a config.json that `from_json` and LLaDA-V's own loader read."""
        fixed = {name: _FIXED[name] for name in ("attention_bias", "hidden_act", "rope_scaling", "tie_word_embeddings")}
        raw = {
            "model_type": "llada",
            "architectures": ["LLaDAModelLM"],
            **asdict(self.language),
            **fixed,
        }
        raw |= {"tokenizer_model_max_length": self.max_length, "use_cache": False}
        if self.vision is None:
            return raw
        vision = asdict(self.vision) | {"num_hidden_layers": self.vision.num_hidden_layers + 1}
        return raw | {
            "model_type": "llava_llada",
            "architectures": ["LlavaLLaDAModelLM"],
            "image_aspect_ratio": self.image_aspect_ratio,
            "image_grid_pinpoints": [list(size) for size in self.image_grid_pinpoints],
            "mm_hidden_size": self.vision.hidden_size,
            "mm_newline_position": "grid",
            "mm_patch_merge_type": self.mm_patch_merge_type,
            "mm_projector_type": "mlp2x_gelu",
            "mm_use_im_patch_token": False,
            "mm_use_im_start_end": False,
            "mm_vision_select_feature": "patch",
            "mm_vision_select_layer": -2,
            "mm_vision_tower": "google/siglip2-so400m-patch14-384",
            "tokenizer_padding_side": "right",
            "use_mm_proj": True,
            "vision_config": vision | {"hidden_act": "gelu_pytorch_tanh", "model_type": "siglip_vision_model"},
        }


def no_vision() -> CheckpointError:
    """What a text-only checkpoint answers to an image."""
    return CheckpointError("E1410", "the checkpoint has no vision tower: it answers questions without images only.")


def _bad(rule: str) -> CheckpointError:
    return CheckpointError("E1410", f"config.json: {rule}.")


def _check_heads(width: int, heads: int) -> None:
    if width % heads:
        raise _bad(f"a width of {width} does not divide into {heads} attention heads")


def _size(raw: Mapping[str, Any], name: str, default: int | None = None) -> int:
    value = raw.get(name) if raw.get(name) is not None else default
    # the upper bound keeps a damaged file from building modules for hours
    limit = 1024 if name.endswith("layers") else 2**31
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= limit:
        raise _bad(f"{name} must be a whole number from 1 to {limit}, not {str(value)[:40]!r}")
    return value


def _number(raw: Mapping[str, Any], name: str, default: float) -> float:
    value = raw.get(name) if raw.get(name) is not None else default
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise _bad(f"{name} must be a positive number, not {str(value)[:40]!r}")
    return float(value)


def _pinpoints(raw: Mapping[str, Any]) -> tuple[tuple[int, int], ...]:
    value = raw.get("image_grid_pinpoints") or []
    try:
        sizes = tuple((int(width), int(height)) for width, height in value)
    except (TypeError, ValueError):
        sizes = ((0, 0),)
    if any(side <= 0 for size in sizes for side in size):
        raise _bad("image_grid_pinpoints must be a list of [width, height] pairs of pixels")
    return sizes


def _vision(
    raw: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]] | None, tile: int | None
) -> VisionConfig | None:
    given = raw.get("vision_config")
    if given is not None:
        if not isinstance(given, Mapping):
            raise _bad("vision_config must be a group of fields")
        return VisionConfig.from_json(given)
    stored = any(name.startswith("model.vision_tower.") for name in shapes or ())
    if not stored and raw.get("model_type") != "llava_llada":
        return None
    return VisionConfig() if shapes is None else VisionConfig.from_shapes(shapes, tile)
