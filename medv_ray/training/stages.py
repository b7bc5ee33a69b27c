"""Recipes of the papers' training stages, and the settings of a training job.

LLaDA-MedV: Table 1 of its supplement. LLaDA-V: Table 6 of its supplement and the released scripts
`train/scripts/llada_v_*.sh`. What a source does not say is said where it stands.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)
from pydantic_core import PydanticCustomError

from medv_ray.data.conversations import Template
from medv_ray.settings import ImageSettings, LoraSettings, OnePicture, Settings

Part = Literal["projector", "language", "vision"]
Beta = Annotated[float, Field(ge=0, lt=1)]
Fills = Annotated[tuple[PositiveInt, ...], Field(min_length=1)]
PARTS: tuple[Part, ...] = ("projector", "language", "vision")


class StageSettings(Settings):
    """One stage of training: what is trained, on which form of the data, and how."""

    name: str
    """Of the recipe; stands in the manifest."""
    trainable: tuple[Part, ...] = ("projector", "language")
    """`language` is all that is neither vision tower nor projector: embeddings, head and
    image_newline too."""
    lr: PositiveFloat
    """Peak learning rate of what has none of its own."""
    projector_lr: PositiveFloat | None = None
    """Peak learning rate of the projector. None: lr."""
    vision_lr: PositiveFloat | None = None
    """Peak learning rate of the vision tower. None: lr."""
    batch_size: PositiveInt
    """Rows of a step, over all workers."""
    micro_batch_size: PositiveInt = 1
    """Rows that a worker computes at a time; batch_size is a multiple of it times the workers."""
    epochs: PositiveFloat = 1.0
    """How often each row is seen."""
    max_steps: PositiveInt | None = None
    """Ends the stage before its epochs do; the schedule then ends there too."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """AdamW, as the papers; or plain gradient descent."""
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    """AdamW's decay of the first and the second moment."""
    eps: PositiveFloat = 1e-8
    """AdamW's."""
    weight_decay: NonNegativeFloat = 0.0
    """Of matrices; biases, norms and image_newline have none."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """Of the learning rate behind the warm-up."""
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.03
    """Share of the steps in which the learning rate rises in a line."""
    clip: NonNegativeFloat = 1.0
    """Largest gradient norm; 0 does not clip."""
    template: Template = "llada"
    """Form of a conversation. `llada`: a chat with roles; `plain`: image and caption; `pairs`: bare
    question and answer."""
    system: Literal["general", "medical", "none"] = "general"
    """System sentence; see PromptSettings."""
    aspect: Literal["checkpoint", "square", "pad", "anyres_max"] = "checkpoint"
    """How a picture becomes tiles; see ImageSettings."""
    merge: Literal["checkpoint", "flat", "spatial_unpad"] = "checkpoint"
    """How tiles become image tokens. `flat` has no image_newline."""
    targets: Literal["all", "answers"] = "all"
    """`all`: LLaDA-V's, structural tokens of every message too. `answers`: what the assistant
    says."""
    answer_fill: NonNegativeInt | Fills = 0
    """Targets behind the last answer, up to this many tokens after its header. Of several lengths
    the rows of the dataset take in turn one that holds their answer. LLaDA pads answers so; LLaDA-V
    does not."""
    fill_token: Literal["end_of_text", "end_of_turn"] = "end_of_text"
    """What `answer_fill` fills with."""
    padding: Literal["hidden", "end_of_text"] = "hidden"
    """What makes the rows of a micro-batch equally long. `hidden`: nothing that is seen or learnt.
    `end_of_text`: the references' end-of-text tokens, which are targets of every template, so that
    the loss depends on stage.micro_batch_size."""
    token_after_image: Literal["reference", "training"] = "training"
    """`training` keeps it, as LLaDA-V's training does; `reference` loses it as inference does."""
    attention: Literal["full", "dialogue", "prefix"] = "full"
    """Who sees whom: all see all (the papers); each turn sees itself and earlier ones; or image,
    question and answer see themselves and what is before, so that the prefix can be cached
    exactly."""
    max_length: PositiveInt = 8192
    """Longest row in tokens, image tokens included; longer ones are refused before the first
    step."""
    gradient_checkpointing: bool = True
    """Compute activations of a layer again in the backward pass instead of keeping them."""
    image: OnePicture = ImageSettings()
    lora: LoraSettings | None = None
    seed: NonNegativeInt = 0
    """Decides the order of the rows and their noise, whatever the number of workers."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.batch_size % self.micro_batch_size:
            raise PydanticCustomError(
                "E1601",
                "batch_size={batch_size} must be a multiple of micro_batch_size={micro_batch_size}",
                {"batch_size": self.batch_size, "micro_batch_size": self.micro_batch_size},
            )
        self._template()
        if self.padding == "end_of_text" and self.attention != "full":
            raise ValueError(
                f"padding=end_of_text needs attention=full, not {self.attention}: the reference "
                "cuts attention in micro-batches of one row alone, which have no padding"
            )
        if self.image.aspect != "checkpoint":
            raise ValueError(
                f"image.aspect={self.image.aspect} cuts no picture of a stage; "
                f"use aspect={self.image.aspect}"
            )
        if not self.trainable:
            raise ValueError(f"trainable must name at least one of {', '.join(PARTS)}")
        if self.lora is not None and "language" not in self.trainable:
            raise ValueError("lora adapts the language tower: trainable must name language")
        return self

    def _template(self) -> None:
        """Without roles there are neither turns nor structural tokens."""
        if self.template == "llada":
            return
        plain = ("full", "prefix") if self.template == "plain" else ("full",)
        for name, fitting in (
            ("attention", plain),
            ("targets", ("all",)),
            ("answer_fill", (0,)),
            ("token_after_image", ("training",)),
        ):
            if getattr(self, name) not in fitting:
                text = f"template={self.template} takes no {name}={getattr(self, name)}"
                raise ValueError(f"{text}, but {' or '.join(map(str, fitting))}")

    def steps(self, num_rows: int) -> int:
        """Steps over `num_rows` rows; epochs follow each other without a gap, the rest of the last
        batch is left out."""
        whole = int(num_rows * self.epochs) // self.batch_size
        return min(whole, self.max_steps or whole)


class ShardSettings(Settings):
    """Where weights, gradients and optimizer states lie."""

    engine: Literal["zero3", "plain"] = "zero3"
    """DeepSpeed ZeRO-3 over all workers, or a plain optimizer in one process."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Of weights, activations and gradients; ZeRO-3 updates a float32 copy. The plain engine keeps
    float32 weights and computes in this one."""
    offload_optimizer: bool = False
    """Keep optimizer states and the float32 copy in host memory."""
    offload_params: bool = False
    """Keep the partitioned weights in host memory too."""
    persist_below: NonNegativeInt = 100_000
    """Tensors of fewer elements stay whole on every worker."""
    threads: PositiveInt | None = None
    """Of torch in each worker. None: 1 on a CPU worker, torch's own number beside a GPU."""


# LLaDA-MedV, supplement, Table 1: 4 x A100 80 GB, ZeRO-3, AdamW, cosine with 3 % warm-up. The table
# lists no learning rate for the vision tower: taken as frozen. Whether images were tiled is not
# stated: the comments of its code call square the default of alignment, anyres that of finetuning.
ALIGNMENT = StageSettings(
    name="alignment",
    trainable=("projector",),
    lr=1e-3,
    batch_size=32,
    micro_batch_size=8,
    epochs=2,
    template="plain",
    aspect="square",
    merge="flat",
)
MD_SFT = StageSettings(
    name="md_sft", lr=1e-5, batch_size=8, micro_batch_size=1, epochs=4, system="medical"
)
SD_SFT_VQA_RAD = StageSettings(
    name="sd_sft_vqa_rad", lr=2e-6, batch_size=8, epochs=2, system="medical"
)
SD_SFT_SLAKE = StageSettings(
    name="sd_sft_slake", lr=2e-6, batch_size=8, epochs=10, system="medical"
)
SD_SFT_PATHVQA = StageSettings(
    name="sd_sft_pathvqa", lr=2e-6, batch_size=8, epochs=7, system="medical"
)

# LLaDA-V, supplement, Table 6 and train/scripts: 64 rows for alignment and the first finetuning,
# 256 for the later ones; the vision tower learns at 2e-6.
LLADA_V_PRETRAIN = StageSettings(
    name="llada_v_pretrain",
    trainable=("projector",),
    lr=1e-3,
    batch_size=64,
    micro_batch_size=16,
    template="plain",
    aspect="square",
    merge="flat",
)
LLADA_V_SFT = StageSettings(
    name="llada_v_sft",
    trainable=("projector", "language", "vision"),
    lr=1e-5,
    vision_lr=2e-6,
    batch_size=64,
    aspect="anyres_max",
    merge="spatial_unpad",
)
LLADA_V_SI_10M = LLADA_V_SFT.model_copy(update={"name": "llada_v_si_10m", "batch_size": 256})
LLADA_V_OV_2M = LLADA_V_SI_10M.model_copy(update={"name": "llada_v_ov_2m", "max_length": 16384})
# scripts llada_v_vw (rows of 8192 tokens) and llada_v_mix_ov_vw (16384): as the two above, on other
# data. Their frames_upbound=32 is of videos, which are not read here.
LLADA_V_VW = LLADA_V_SI_10M.model_copy(update={"name": "llada_v_vw"})
LLADA_V_MIX_OV_VW = LLADA_V_OV_2M.model_copy(update={"name": "llada_v_mix_ov_vw"})
LLADA_V_FINETUNE = LLADA_V_SFT.model_copy(update={"name": "llada_v_finetune"})

RECIPES = {
    stage.name: stage
    for stage in (
        ALIGNMENT,
        MD_SFT,
        SD_SFT_VQA_RAD,
        SD_SFT_SLAKE,
        SD_SFT_PATHVQA,
        LLADA_V_PRETRAIN,
        LLADA_V_SFT,
        LLADA_V_SI_10M,
        LLADA_V_OV_2M,
        LLADA_V_VW,
        LLADA_V_MIX_OV_VW,
        LLADA_V_FINETUNE,
    )
}
