"""Parameters of a checkpoint and FLOPs of a training row, from the shapes in its config.

    matrix product    2 x parameters x tokens
    attention         4 x layers x width x tokens^2, scores and mix; every position sees every other
    backward          as much as forward for what comes before, once more for trained weights
    recomputation     one forward more where activations are not kept; not of the head

Legend: S tokens of a row, D width, F width of the MLP, V vocabulary, N patches of a tile.
"""

from __future__ import annotations

from dataclasses import dataclass

from medv_ray.model.config import LanguageConfig, ModelConfig, VisionConfig
from medv_ray.settings import LoraSettings
from medv_ray.training.stages import StageSettings


@dataclass(frozen=True)
class Parameters:
    """Numbers of parameters of a checkpoint's parts."""

    layer: int
    """One layer of the language tower, its norms included."""
    layers: int
    """How many of them."""
    embedding: int
    head: int
    extra: int
    """Final norm and image_newline."""
    projector: int
    vision: int

    @property
    def language(self) -> int:
        """All that is neither vision tower nor projector."""
        return self.layer * self.layers + self.embedding + self.head + self.extra

    @property
    def total(self) -> int:
        return self.language + self.projector + self.vision


def layer_matrices(config: LanguageConfig) -> int:
    """Parameters of one layer's seven matrices."""
    wide, narrow = config.hidden_size, config.num_key_value_heads * config.head_dim
    return 2 * wide * (wide + narrow) + 3 * wide * config.intermediate_size


def count_parameters(model: ModelConfig) -> Parameters:
    """As many as `Medv(model)` has."""
    language, vision = model.language, model.vision
    width = language.hidden_size
    newline = width if vision is not None and "unpad" in model.mm_patch_merge_type else 0
    return Parameters(
        layer=layer_matrices(language) + 2 * width,
        layers=language.num_hidden_layers,
        embedding=language.vocab_size * width,
        head=language.vocab_size * width,
        extra=width + newline,
        projector=0 if vision is None else (vision.hidden_size + 1) * width + (width + 1) * width,
        vision=0 if vision is None else _vision_parameters(vision),
    )


def _vision_parameters(vision: VisionConfig) -> int:
    width, mlp = vision.hidden_size, vision.intermediate_size
    attention = 4 * (width + 1) * width
    layer = attention + 2 * width * mlp + mlp + width + 4 * width
    patches = 3 * vision.patch_size**2 * width + width + vision.side**2 * width
    return layer * vision.num_hidden_layers + patches + 2 * width


def adapter_parameters(language: LanguageConfig, lora: LoraSettings) -> int:
    """Parameters of the low-rank adapters on every layer."""
    wide, mlp = language.hidden_size, language.intermediate_size
    narrow = language.num_key_value_heads * language.head_dim
    sides = {
        "q_proj": 2 * wide, "k_proj": wide + narrow, "v_proj": wide + narrow, "o_proj": 2 * wide,
        "gate_proj": wide + mlp, "up_proj": wide + mlp, "down_proj": wide + mlp,
    }  # fmt: skip
    return lora.rank * sum(sides[name] for name in lora.targets) * language.num_hidden_layers


def trained_parameters(model: ModelConfig, stage: StageSettings) -> int:
    """Parameters that have a gradient."""
    count = count_parameters(model)
    # the vision tower's post_layernorm is never applied
    unused = 0 if model.vision is None else 2 * model.vision.hidden_size
    parts = {
        "projector": count.projector, "vision": count.vision - unused, "language": count.language,
    }  # fmt: skip
    if stage.lora is not None:
        parts["language"] = adapter_parameters(model.language, stage.lora)
    return sum(parts[name] for name in stage.trainable)


@dataclass(frozen=True)
class RowShape:
    """What decides the FLOPs of a row."""

    length: float
    """S, image tokens included."""
    tiles: float
    """Runs of the vision tower."""
    head_rows: float
    """Positions that go through the language head: the masked ones, or all S."""


@dataclass(frozen=True)
class RowFlops:
    """FLOPs of one row through forward and backward pass."""

    language: float
    """Layers of the language tower, attention included."""
    head: float
    images: float
    """Vision tower and projector."""

    @property
    def total(self) -> float:
        return self.language + self.head + self.images


def row_flops(
    model: ModelConfig, stage: StageSettings, row: RowShape, recompute: bool | None = None
) -> RowFlops:
    """FLOPs of one training row.

    Args:
        recompute: count the second forward pass of gradient checkpointing. None: where the stage
            has it. False: what the model needs whatever is recomputed, for model-FLOPs utilisation.

    Two small things are left out: attention in a frozen tower counts its backward pass like a
    matrix with frozen weights (it takes twice that: 1 % of a row), and tower and projector of a
    stage with frozen vision count once, forward (the projector's backward pass: 0.2 %). Low-rank
    adapters are not counted (0.6 % at rank 16).
    """
    again = stage.gradient_checkpointing if recompute is None else recompute
    trained = "language" in stage.trainable and stage.lora is None
    passes = 2 + trained + again
    image_passes = 3 + again if "vision" in stage.trainable else 1
    language, vision = model.language, model.vision
    depth, width = language.num_hidden_layers, language.hidden_size
    matrices = 2 * layer_matrices(language) * depth * row.length
    attention = 4 * depth * width * row.length**2
    return RowFlops(
        language=passes * (matrices + attention),
        head=(2 + trained) * 2 * language.vocab_size * width * row.head_rows,
        images=0.0 if vision is None else image_passes * row.tiles * tile_flops(vision, width),
    )


def tile_flops(vision: VisionConfig, hidden_size: int) -> float:
    """FLOPs of one tile through vision tower and projector, forward."""
    width, patches = vision.hidden_size, vision.side**2
    layer = 4 * width**2 + 2 * width * vision.intermediate_size
    convolution = 3 * vision.patch_size**2 * width
    projector = width * hidden_size + hidden_size**2
    attention = 4 * vision.num_hidden_layers * width * patches**2
    products = layer * vision.num_hidden_layers + convolution + projector
    return 2.0 * patches * products + attention
