"""Settings of a run: frozen, typed, checked before anything heavy is loaded.

One schema serves flags, `--set a.b=c`, YAML and the manifest. `extra="forbid"` makes a misspelt
name an error. Longer than a module should be, as it is that one schema.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from medv_ray import hub
from medv_ray.errors import SettingsError
from medv_ray.formats import DEFAULT
from medv_ray.setting_errors import kinds_of, refused
from medv_ray.windows import parse

TOY = Path(__file__).with_name("assets") / "medv-tiny"
"""The checkpoint that comes with the package."""
CALIBRATION = "calibration.json"
"""In a checkpoint folder, by `medv calibrate --store`; the folder's digest leaves it out."""
S = TypeVar("S", bound="Settings")
Finite = Annotated[float, Field(allow_inf_nan=False)]


def _whole_above_one(value: float) -> float:
    if value > 1 and value % 1:
        raise ValueError("above 1 it must be a whole number, as Ray gives out GPUs")
    return value


Gpus = Annotated[float, Field(ge=0), AfterValidator(_whole_above_one)]


def _frames_policy(value: str) -> str:
    if not re.fullmatch(r"first|middle|all|refuse|every:[1-9][0-9]{0,8}", value):
        raise ValueError("must be first, middle, all, every:N (every:10, say) or refuse")
    return value


class Settings(BaseModel):
    """Base of all settings objects."""

    model_config = ConfigDict(
        allow_inf_nan=False,
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        protected_namespaces=(),
    )

    @field_validator("*", mode="before")
    @classmethod
    def _no_bool_as_number(cls, value: Any, info: ValidationInfo) -> Any:
        """pydantic takes true as 1, also from YAML's `yes`."""
        kinds = kinds_of(cls.model_fields[info.field_name or ""].annotation)
        values = value if isinstance(value, list | tuple) else (value,)
        if bool not in kinds and kinds & {int, float} and any(isinstance(v, bool) for v in values):
            raise PydanticCustomError("no_number", "must be a number, not true or false")
        return value


PRESETS: dict[str, dict[str, Any]] = {
    "exact": {"rule": "schedule", "cache": "none"},
    "fast": {"rule": "threshold", "threshold": 0.9, "cache": "none"},
    "turbo": {"rule": "threshold", "threshold": 0.7, "cache": "dual", "refresh_interval": 32},
}
"""Sampler settings by the name of their speed. docs/sampler.md tells how far they agree."""
_PRESET_DEFAULTS: dict[str, Any] = {
    "rule": "schedule",
    "threshold": 0.9,
    "factor": 1.0,
    "cache": "none",
    "refresh_interval": None,
}


def indivisible(gen_length: int, block_length: int, steps: int) -> str | None:
    """What is wrong where blocks do not fill the response, or do not share its steps (E1002)."""
    blocks, rest = divmod(gen_length, block_length)
    if not rest and steps % blocks == 0:
        return None
    return (
        f"gen_length={gen_length} must be a multiple of block_length={block_length}, "
        f"and steps={steps} of the number of blocks ({blocks})"
    )


class SamplerSettings(Settings):
    """Reverse process. Defaults: the VQA setting of LLaDA-MedV (supplement A.2, L = B = Z)."""

    preset: Literal["exact", "fast", "turbo", "custom"] = "exact"
    """`exact` gives the reference's tokens; `fast` and `turbo` give most of them, sooner. A preset
    fills what is not given of rule, threshold, cache and refresh_interval; with other values than
    its own it is recorded as `custom`."""
    gen_length: PositiveInt = 64
    """L, response tokens; every answer is denoised at this length."""
    block_length: PositiveInt = 64
    """Smaller than gen_length gives semi-autoregressive order, left to right."""
    steps: PositiveInt = 64
    """Z, forward passes over the whole response; each block gets its share."""
    temperature: Annotated[NonNegativeFloat, Field(allow_inf_nan=False)] = 0.0
    """0 takes the most likely token; above 0, Gumbel noise of this strength is added."""
    cfg_scale: Annotated[NonNegativeFloat, Field(allow_inf_nan=False)] = 0.0
    """Classifier-free guidance; above 0, a second forward pass without prompt and image per
    step."""
    remasking: Literal["low_confidence", "random", "independent"] = "low_confidence"
    """Which tokens are kept at a step: the most confident, random ones, or each on its own with
    probability 1 - s/t (Algorithm 1 of the LLaDA-MedV supplement, taken literally)."""
    stop: tuple[str, ...] = ("<|eot_id|>",)
    """Token strings that end the answer (LLaDA-V's rule: cut at the first one found)."""
    forbidden: tuple[str, ...] = (
        "<|endoftext|>",
        "<|startoftext|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
    )
    """Special tokens that are never chosen and leave the softmax. Default: LLaDA-V's four; LLaDA
    has none."""
    suffix: str = ""
    """Text after the masked positions; given, never overwritten, and part of the answer."""
    logits_eos_inf: bool = False
    """LLaDA's option: end of text is never chosen and leaves the softmax."""
    confidence_eos_eot_inf: bool = False
    """LLaDA's option: end of text and end of turn are committed last (with temperature, end of turn
    only)."""
    noise: Literal["needed", "reference", "keyed"] = "needed"
    """Where temperature or random remasking draws: at needed positions only; at every position of
    the sequence as the reference does, which costs `sequence x vocabulary` draws a step and matches
    a seeded reference run, its order among exact ties included; or `keyed`: with temperature, each
    number from seed, step, position and token alone, made where the logits are. On a GPU no draw
    crosses the bus then."""
    rule: Literal["schedule", "threshold", "factor", "factor_llada_v"] = "schedule"
    """How many tokens a step commits: as many as `steps` say (the references); all of confidence
    `threshold` or more (Fast-dLLM); or by rank r, while confidence is 1 - factor / (r + 1) or more:
    among the block's masks (Fast-dLLM), or all masks (LLaDA-V, which calls the factor threshold).
    One at least. All but `schedule` go on until a block is full, whatever `steps`."""
    threshold: Annotated[Finite, Field(gt=0, le=1)] = 0.9
    """For rule=threshold. Fast-dLLM's default."""
    factor: Annotated[Finite, Field(ge=0)] = 1.0
    """For rule=factor and factor_llada_v. The value of LLaDA-V's demo."""
    cache: Literal["none", "prefix", "dual"] = "none"
    """Keys and values kept from step to step, which approximates: of what is before the block
    (LLaDA-V), or of all but the block (Fast-dLLM's dual cache). Models whose attention cuts the
    prompt off keep the prompt's in any case, exactly."""
    refresh_interval: PositiveInt | None = None
    """With a cache, every so many steps of a block all positions are computed. None: only when a
    block begins."""

    @model_validator(mode="before")
    @classmethod
    def _fill_preset(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        name = values.get("preset", "exact")
        chosen = PRESETS.get(name) if isinstance(name, str) else None
        if chosen is None:  # custom, or an error that the field tells
            return values
        filled = {**chosen, **values}
        ours = {name: filled.get(name, default) for name, default in _PRESET_DEFAULTS.items()}
        known = {"preset": "exact"} | filled
        return known if ours == _PRESET_DEFAULTS | chosen else known | {"preset": "custom"}

    @model_validator(mode="after")
    def _blocks_divide(self) -> Self:
        if said := indivisible(self.gen_length, self.block_length, self.steps):
            raise PydanticCustomError("E1002", "{said}", {"said": said})
        if self.rule != "schedule" and self.remasking != "low_confidence":
            raise PydanticCustomError(
                "E1001",
                "rule={rule} (preset={preset}) commits by confidence: it needs "
                "remasking=low_confidence, not {remasking}",
                {"rule": self.rule, "preset": self.preset, "remasking": self.remasking},
            )
        return self

    def changed(self, given: dict[str, Any], quote: bool = True) -> SamplerSettings:
        """These settings with others over them. A preset among those fills what it governs anew.

        Raises SettingsError E1001, E1002, which repeats a wrong value only with `quote`.
        """
        under = self.model_dump()
        if "preset" in given:
            under = {name: v for name, v in under.items() if name not in _PRESET_DEFAULTS}
        return build(SamplerSettings, under | given, quote)


class PromptSettings(Settings):
    """How question and image become token ids."""

    system: Literal["general", "medical", "none"] = "general"
    """Which system sentence: LLaDA-V's (also the default of LLaDA-MedV's demo), LLaDA-MedV's own,
    or none."""
    token_after_image: Literal["reference", "training"] = "reference"
    """The reference loses the first token after the image at inference (the newline) and keeps it
    in training.
    `reference` matches published results of released checkpoints; `training` matches how they were
    trained."""
    question_suffix: str = ""
    """Appended to every question, e.g. " Answer concisely in English." as in LLaDA-MedV's demo."""
    max_question_bytes: PositiveInt = 16_384
    """Longer questions are quarantined, never cut. UTF-8 bytes."""


class ImageSettings(Settings):
    """What counts as an acceptable image and how it becomes tiles."""

    aspect: Literal["checkpoint", "square", "pad", "anyres_max"] = "checkpoint"
    """`square` squashes to one tile, `pad` pads to a square first, `anyres_max` adds tiles as
    LLaDA-V's
    anyres_max_4; `checkpoint` takes what the checkpoint's config says."""
    formats: tuple[str, ...] = DEFAULT
    """Pillow's names of the formats that may be decoded, and DICOM, which needs the extra
    `medv-ray[dicom]`."""
    max_bytes: PositiveInt = 256 * 2**20
    """Encoded size limit."""
    max_pixels: PositiveInt = 89_478_485
    """Width x height by the header, checked before decoding. Default: Pillow's own warning
    limit."""
    min_side: PositiveInt = 16
    """Shortest side in pixels."""
    max_aspect: PositiveFloat = 50.0
    """Longest side over shortest side."""
    frames: Annotated[str, AfterValidator(_frames_policy)] = "first"
    """Files of several frames or pages: `first` or `middle` take one, which `warnings` tells;
    `refuse` quarantines. `all`, and `every:N` (the first, and every Nth behind it) make each a row,
    of the images of a folder that `medv score` asks one question about."""
    window: str = "file"
    """How grey DICOM values become grey: `file` is the file's own first window, `number:2` its
    second; `lung`, `brain` or another preset (CT alone), or `level/width` (40/400)."""
    overlays: Literal["draw", "ignore"] = "draw"
    """Overlay planes of DICOM files (groups 60xx), which may hold text."""
    burned_in: Literal["refuse", "flag"] = "refuse"
    """DICOM files that say that annotation is burned in: quarantine, or say so in `warnings`."""
    maps: Literal["skip", "draw"] = "skip"
    """DICOM segmentations and dose grids: quarantined as no pictures, or shown."""
    background: Annotated[int, Field(ge=0, le=255)] = 255
    """Grey on which transparent pixels are composited. 255 is white, as figures are printed."""
    decode_seconds: PositiveFloat = 10.0
    """CPU time of one picture, or time in which nothing moves, after which the decoder's child
    process is killed; ten times as long on the clock where it hardly gets a core."""
    decode_bytes: PositiveInt = 2 * 2**30
    """Address space of the decoder's child process."""

    @field_validator("window")
    @classmethod
    def _is_a_window(cls, value: str) -> str:
        try:
            parse(value)
        except ValueError as error:
            raise PydanticCustomError("no_window", "{reason}", {"reason": str(error)}) from None
        return value


class SlideSettings(Settings):
    """How slides of a folder of images are read: as one picture each, or in tiles."""

    read: Literal["thumbnail", "tiles"] = "thumbnail"
    """`thumbnail`: the whole slide in one row; without the extra `medv-ray[wsi]`, its first page as
    of any other TIFF or DICOM file. `tiles`: a row for each tile that shows tissue; needs the
    extra."""
    thumbnail_side: Annotated[int, Field(ge=16, le=8192)] = 1536
    """Longer side of a thumbnail in pixels."""
    magnification: Annotated[Finite | None, Field(gt=0)] = None
    """Of tiles: power of an objective, 10 or 20, say. The slide is shrunk to it."""
    mpp: Annotated[Finite | None, Field(gt=0)] = None
    """Of tiles, in place of magnification: micrometres a pixel."""
    assume_mpp: Annotated[Finite | None, Field(gt=0)] = None
    """Micrometres a pixel of a slide's finest level where the file says neither these nor its
    magnification."""
    tile: Annotated[int, Field(ge=32, le=4096)] = 512
    """Side of a tile in pixels of the magnification asked for."""
    overlap: NonNegativeInt = 0
    """Pixels that a tile shares with the next one."""
    tissue: Annotated[Finite, Field(ge=0, le=1)] = 0.25
    """Least share of a tile that shows tissue; 0 takes every tile and does not look."""
    most_tiles: PositiveInt | None = None
    """Of a slide with more tiles, so many are taken, evenly over it. None: all."""
    associated: tuple[Literal["label", "macro", "thumbnail"], ...] = ()
    """Images beside the scan that get a row each. Label and macro may show patient data: none is
    read unless it is named here."""
    seconds: PositiveFloat = 60.0
    """For one look at a slide (its plan, a thumbnail, a tile): CPU time, or time in which nothing
    moves, as `image.decode_seconds`, after which the reader's child process is ended."""

    @model_validator(mode="after")
    def _one_resolution(self) -> Self:
        if self.read == "tiles" and (self.magnification is None) == (self.mpp is None):
            raise ValueError(
                "slides.read=tiles needs slides.magnification or slides.mpp, and not both"
            )
        if self.overlap >= self.tile:
            raise ValueError(f"overlap={self.overlap} must be less than tile={self.tile}")
        return self


def _one_picture(image: ImageSettings) -> ImageSettings:
    if image.frames == "all" or image.frames.startswith("every:"):
        raise ValueError(
            f"frames={image.frames} makes several rows of a file: `medv score` does so with a "
            "folder of images; here a file is one picture: first, middle or refuse"
        )
    return image


OnePicture = Annotated[ImageSettings, AfterValidator(_one_picture)]
"""Where a file cannot become several rows."""


class ModelSettings(Settings):
    """Which checkpoint, and how it is held."""

    path: Annotated[str, Field(min_length=1)]
    """Folder with config.json, tokenizer and safetensors; local, or `org/name@revision` of the
    hub."""
    adapter: str | None = None
    """Folder of a LoRA adapter that was trained on these weights, local or of the hub. It is used
    unmerged."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Weights and activations; RoPE tables and softmax stay float32."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` takes CUDA when torch sees it; in a scoring job, when `pool.num_gpus` is above 0."""
    logit_size: Literal["checkpoint", "tokenizer"] = "tokenizer"
    """Rows of the language head that take part: all, as LLaDA does, or len(tokenizer) as LLaDA-V's
    loader does."""
    quantisation: Literal["none", "int8", "int4"] = "none"
    """Weight-only, of the language tower's matrices: int8 with a scale for each row, int4 with one
    for each group of a row. Needs the extra `medv-ray[quant]`; int4 needs dtype=bfloat16."""
    group_size: Literal[32, 64, 128] = 128
    """Of int4: weights of a row that share a scale. It divides each matrix's input width."""

    @model_validator(mode="after")
    def _int4_in_bfloat16(self) -> Self:
        if self.quantisation == "int4" and self.dtype != "bfloat16":
            raise ValueError(
                f"quantisation=int4 multiplies in bfloat16, not {self.dtype}: set "
                "model.dtype=bfloat16, or quantisation=int8"
            )
        return self


class EngineSettings(Settings):
    """How many answers are denoised side by side, and what is kept between them."""

    slots: PositiveInt | None = None
    """Requests that are denoised together. None: 8 on a GPU, 1 on a CPU, where batching buys
    nothing."""
    image_cache_bytes: NonNegativeInt = 2**30
    """Image features kept for repeated images, least recently used first out. 0 keeps none."""
    kv_cache_bytes: NonNegativeInt | None = None
    """Keys and values of all requests together; one that finds no room waits, unless it is alone.
    None: 4 GiB on a CPU, half of what a GPU has free once the model is loaded."""


class LoraSettings(Settings):
    """Low-rank adapters on the language tower, in place of its own weights."""

    rank: PositiveInt = 16
    """Columns of the first matrix, rows of the second."""
    alpha: PositiveFloat = 32.0
    """The product of both matrices is scaled by alpha / rank."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of an adapter's inputs that a training step leaves out."""
    targets: Annotated[
        tuple[
            Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
            ...,
        ],
        Field(min_length=1),
    ] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    """Matrices of each layer that get an adapter."""


class AnswerSettings(Settings):
    """Everything that decides an answer, apart from the model and the row. Its digest is part of
    each chunk's key."""

    sampler: SamplerSettings = SamplerSettings()
    prompt: PromptSettings = PromptSettings()
    image: ImageSettings = ImageSettings()
    seed: NonNegativeInt = 0
    """With temperature or random remasking, each row draws from sha256(seed, row id)."""
    abstain_below: Annotated[Finite | None, Field(ge=0, le=1)] = None
    """Mean confidence of the answer's tokens under which the row is `abstained`. None: only empty
    answers are."""


def model_folder(model: str) -> str:
    """A local folder: `toy` is the checkpoint that comes with the package, `org/name@revision` one
    of the hub's, which is fetched. Raises SettingsError E1001, and as `hub.fetched`."""
    if model == "toy":
        return str(TOY)
    asked = hub.reference(model)
    return model if asked is None else hub.fetched(asked)


def build(cls: type[S], values: dict[str, Any], quote: bool = True) -> S:
    """`cls(**values)` with a SettingsError that names field, value and rule instead of pydantic's
    own; without `quote`, only field and rule."""
    try:
        return cls.model_validate(values)
    except ValidationError as error:
        raise refused(cls, error, quote) from None


def identity_digest(identity: dict[str, Any]) -> str:
    """64 hex digits of what must be equal for a run to go on."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def override(values: dict[str, Any], assignments: Iterable[str]) -> dict[str, Any]:
    """Apply `a.b=c` assignments to a nested dict, which is not changed. Values are JSON where they
    parse as JSON.

    Raises SettingsError for an assignment without '=' or a path through a value that is no group.
    """
    result: dict[str, Any] = json.loads(json.dumps(values))
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        *groups, leaf = path.strip().split(".")
        if not equals or not leaf:
            raise SettingsError(
                "E1001", f"--set {assignment[:60]!r}: expected name=value, e.g. sampler.steps=32."
            )
        node = result
        for group in groups:
            if node.get(group) is None:  # a group that is left out until one of its values is set
                node[group] = {}
            node = node[group]
            if not isinstance(node, dict):
                raise SettingsError(
                    "E1001", f"--set {assignment[:60]!r}: {group!r} is a value, not a group."
                )
        if leaf == "preset":  # what another layer has set of it would make it a custom one
            for name in _PRESET_DEFAULTS:
                node.pop(name, None)
        try:
            node[leaf] = json.loads(text)
        except (ValueError, RecursionError):  # no JSON, a number of thousands of digits, too deep
            node[leaf] = text
    return result
