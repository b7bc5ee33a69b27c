"""What goes through the engine: requests in, answers and views of the denoising out."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from medv_ray.data.canvas import Filled, Template
from medv_ray.data.images import Prepared, Refused
from medv_ray.data.prompts import Turn
from medv_ray.diffusion.canvas import Canvas
from medv_ray.engine.choices import Choice
from medv_ray.file_parts import Picture
from medv_ray.settings import SamplerSettings


@dataclass(frozen=True)
class Request:
    """One question about any number of images."""

    question: str
    images: tuple[bytes | Picture | Prepared | Refused, ...] = ()
    """Encoded files, parts of such, or what a decoder has made of them (`Engine.decode`), in the
    order of the prompt."""
    history: tuple[Turn, ...] = ()
    """Earlier turns, user first; the images belong to the first of them."""
    seed: int = 0
    """Of this row's own generator; see `row_seed`."""
    sampler: SamplerSettings | None = None
    """Overrides the engine's sampler settings."""
    system: str | None = None
    """In place of the system sentence of the prompt settings; empty: none."""
    canvas: Canvas | None = None
    """What is known of the response from the beginning."""
    template: Template | None = None
    """The answer's form, with blanks that the model fills; in place of `canvas`."""
    choices: tuple[str, ...] = ()
    """Allowed answers; `Predictor.answer` says how likely each is, beside the free answer, which
    they do not change."""


@dataclass(frozen=True)
class Answer:
    """What a request ends as. Lists run over the answer's tokens, stop sequence excluded."""

    text: str
    token_ids: tuple[int, ...]
    token_confidence: tuple[float, ...]
    """Probability of each token at the step at which it was committed."""
    token_step: tuple[int, ...]
    """The step, from 0, at which each token was committed; -1 for pinned tokens and the suffix,
    which are given."""
    forward_passes: int
    seconds: float
    """Wall time from the first look at the request to its end."""
    finish: str
    """`stop`: a stop sequence was found. `length`: all of gen_length. `cancelled`."""
    warnings: tuple[str, ...] = ()
    image_sha256: tuple[str, ...] = ()
    prompt_sha256: str = ""
    prompt_tokens: int = 0
    """Positions before the response, those of images included."""
    waited_s: float = 0.0
    """From being admitted to that look."""
    vision_s: float = 0.0
    """Of `seconds`, what decoding and the vision tower took."""
    last: View | None = None
    """All positions as they stood at the end, those behind a stop sequence included."""
    choices: tuple[Choice, ...] = ()
    """The request's, in their order."""
    positions: tuple[int, ...] = ()
    """Where its tokens stand in the response, stop sequence excluded."""
    blanks: tuple[Filled, ...] = ()
    """Of the request's template, in their order; those that an answer leaves out are not there."""

    @property
    def confidence(self) -> float:
        """Mean over the answer's tokens, or over its blanks; 0 for an answer without either."""
        found = [blank.confidence for blank in self.blanks] or self.token_confidence
        return float(np.mean(found)) if found else 0.0


@dataclass(frozen=True)
class View:
    """The response as it stands before a step; the last one carries the answer."""

    step: int
    tokens: tuple[str | None, ...]
    """Text of each position's token; None where it is still masked."""
    confidence: tuple[float, ...]
    ids: tuple[int | None, ...] = ()
    """Id of each position's token; None where it is still masked."""
    token_step: tuple[int, ...] = ()
    """The step, from 0, at which each position was committed; -1 where none was."""
    answer: Answer | None = None
    text: str | None = None
    """Of an answer with a template: what is known from the left, which only grows."""


@dataclass
class Counters:
    """What an engine has done so far."""

    decodes: int = 0
    tower_runs: int = 0
    image_hits: int = 0
    forward_passes: int = 0
    positions: int = 0
    """Positions that went through the language tower."""
    prompt_hits: int = 0
    """Requests whose beginning of the prompt was kept from another one."""
    prompt_evictions: int = 0
    memory_waits: int = 0
    """Requests that waited for room for their keys and values."""
    memory_shortages: int = 0
    """Times that fewer requests ran together from then on, because memory was short."""
    answers: int = 0


def row_seed(seed: int, row_id: str) -> int:
    """Seed of a row's generator: the first 8 bytes of sha256("seed:id"), so that order is
    nothing."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{row_id}".encode()).digest()[:8], "little") >> 1
