"""Memory of one GPU, before anything is allocated.

ZeRO-3's states per trained parameter (Rajbhandari et al. 2020, mixed precision): bf16 weight 2
bytes, bf16 gradient 2, fp32 master weight 4, AdamW's two moments 8; all are split over the GPUs.
With the optimizer on the host, gradients go there too and are kept in fp32 (DeepSpeed's own
estimate, `runtime/zero/stage3.py`: 16 bytes; 18 with the weights). The plain engine has fp32
weights and gradients, the moments, and bf16 copies of the weights while it computes.

Legend: D width, F width of the MLP, V vocabulary, E width of the vision tower.
"""

from __future__ import annotations

from dataclasses import dataclass

from medv_ray.model.config import ModelConfig
from medv_ray.training.flops import Parameters, count_parameters, trained_parameters
from medv_ray.training.stages import ShardSettings, StageSettings

# stage3_max_live_parameters and sub_group_size of `zero.deepspeed_config`
MAX_LIVE_PARAMETERS = 10**9
SUB_GROUP = 10**9
# CUDA context, library workspaces, NCCL buffers, fragmentation: an allowance, not measured
RESERVE_BYTES = 2 * 10**9
# of a frozen tower: TrainSettings.device_cache_bytes, and 16 rows ahead of five tiles each
FEATURES_BYTES = 2**29 + 16 * 5 * 729 * 1152 * 2
# of a logit: bf16 2, float32 4, and the gradients of both
LOGIT_BYTES = 12


@dataclass(frozen=True)
class Memory:
    """Bytes on each GPU; `host` over all machines."""

    weights: float
    gradients: float
    optimizer: float
    """fp32 master weights and moments."""
    gathered: float
    """Weights that are whole at a time, and the gradient of the largest trained part."""
    activations: float
    logits: float
    step: float
    """fp32 gradients of a sub-group while the optimizer steps; activations are gone by then."""
    reserve: float
    host: float

    @property
    def states(self) -> float:
        return self.weights + self.gradients + self.optimizer

    @property
    def peak(self) -> float:
        work = self.gathered + self.activations + self.logits
        return self.states + max(work, self.step) + self.reserve


def plan_memory(
    model: ModelConfig,
    stage: StageSettings,
    shard: ShardSettings,
    *,
    gpus: int,
    length: int,
    tiles: int,
    head_rows: int,
) -> Memory:
    """Memory of a GPU that computes `micro_batch_size` rows at a time.

    Args:
        length: tokens of a row, image tokens included.
        head_rows: positions of a row that go through the head at once, at most: its targets (all
            of them are masked at t = 1), or `length` for logits everywhere.
    """
    count, trained = count_parameters(model), trained_parameters(model, stage)
    moments = 8 if stage.optimizer == "adamw" else 0
    rows = stage.micro_batch_size
    activations = rows * activation_bytes(model, stage, length, tiles)
    frozen = model.vision is not None and "vision" not in stage.trainable
    reserve = RESERVE_BYTES + (FEATURES_BYTES if frozen else 0)
    logits = LOGIT_BYTES * model.language.vocab_size * rows * head_rows
    if shard.engine == "plain":
        return Memory(
            weights=4 * count.total,
            gradients=4 * trained,
            optimizer=moments * trained,
            gathered=2 * count.total,
            activations=activations,
            logits=logits,
            step=0,
            reserve=reserve,
            host=0,
        )
    on_gpu, on_host = not shard.offload_optimizer, shard.offload_params
    whole = gpus == 1 and not on_host  # nothing to gather
    live = 0 if whole else 2 * min(MAX_LIVE_PARAMETERS, count.total)
    return Memory(
        weights=0 if on_host else 2 * count.total / gpus,
        gradients=2 * trained / gpus if on_gpu else 0,
        optimizer=(4 + moments) * trained / gpus if on_gpu else 0,
        gathered=live + 2 * _largest_trained(count, stage),
        activations=activations,
        logits=logits,
        step=4 * min(SUB_GROUP, trained / gpus) if on_gpu else 0,
        reserve=reserve,
        host=(0 if on_gpu else (8 + moments) * trained) + (2 * count.total if on_host else 0),
    )


def _largest_trained(count: Parameters, stage: StageSettings) -> int:
    if "language" in stage.trainable and stage.lora is None:
        return max(count.head, count.layer)
    return count.projector if "projector" in stage.trainable else 0


def activation_bytes(model: ModelConfig, stage: StageSettings, length: int, tiles: int) -> float:
    """Bytes that one row's forward pass keeps for its backward pass, in bf16.

    Checkpointed, each layer keeps its input alone, and one layer at a time everything. That is,
    per token, 20 D + 4 (width of the keys) + 8 F in the language tower, and 16 E + 4 F in a trained
    vision tower; counted by autograd's hooks. A frozen tower keeps nothing, and where the language
    tower is frozen it keeps a little less than this.
    """
    language, vision = model.language, model.vision
    narrow = language.num_key_value_heads * language.head_dim
    layer = 20 * language.hidden_size + 4 * narrow + 8 * language.intermediate_size
    kept = 2 * language.hidden_size
    depth = language.num_hidden_layers
    checkpointing = stage.gradient_checkpointing
    total = length * (depth * kept + layer if checkpointing else depth * layer)
    if vision is None:
        return float(total)
    patches = tiles * vision.side**2
    # the projector's inputs and its GELU's
    total += patches * (2 * vision.hidden_size + 4 * language.hidden_size)
    if "vision" in stage.trainable:
        inside = 16 * vision.hidden_size + 4 * vision.intermediate_size
        layers = vision.num_hidden_layers
        kept = 2 * vision.hidden_size
        total += patches * (layers * kept + inside if checkpointing else layers * inside)
    return float(total)
