"""The form that a request asks its answer in: choices, a canvas, or JSON of a schema."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from medv_ray.data.canvas import Template
from medv_ray.data.json_schema import template_of
from medv_ray.errors import DataError
from medv_ray.serving.options import LimitSettings
from medv_ray.serving.protocol import BadRequest, ChatRequest, Prompted

FIELDS = ("canvas", "choices", "json_schema")
"""Of `diffusion`, beside the sampler's settings."""
Asked = dict[str, tuple[Callable[[Any], Template], Any]]


def form_of(asked: Prompted, limits: LimitSettings) -> Template | None:
    """None for free text. Raises BadRequest E1309, E1701 that name the field."""
    given = _given(asked, limits)
    if len(given) > 1:
        raise BadRequest("E1701", f"give one of {' and '.join(given)}.", [*given][0])
    if isinstance(asked, ChatRequest) and asked.top_logprobs and "diffusion.choices" not in given:
        rule = "of choices alone; /v1/inspect has the alternatives of a position"
        raise BadRequest("E1701", f"top_logprobs: {rule}.", "top_logprobs")
    if not given:
        return None
    if isinstance(asked, ChatRequest) and asked.stops:
        raise BadRequest("E1701", "stop: an answer that has a form is not cut.", "stop")
    [(field, (made, value))] = given.items()
    try:
        return made(value)
    except DataError as error:
        raise BadRequest(error.code, f"{field}: {error.detail}", field) from None


def _given(asked: Prompted, limits: LimitSettings) -> Asked:
    given = _of_diffusion(asked, limits)
    if isinstance(asked, ChatRequest):
        given |= _of_request(asked, given)
    return given


def _of_diffusion(asked: Prompted, limits: LimitSettings) -> Asked:
    found: Asked = {}
    for name in FIELDS:
        value, field = (asked.diffusion or {}).get(name), f"diffusion.{name}"
        if value is None:
            continue
        if name == "canvas":
            if not isinstance(value, str):
                raise BadRequest("E1701", f"{field}: a text is expected.", field)
            size = len(value.encode(errors="replace"))
            if size > limits.max_text_bytes:
                rule = f"{size} bytes; the limit is {limits.max_text_bytes}"
                raise BadRequest("E1701", f"{field}: {rule}.", field)
            found[field] = (Template.parse, value)
        elif name == "choices":
            if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
                raise BadRequest("E1701", f"{field}: a list of texts is expected.", field)
            found[field] = (Template.choosing, value)
        else:
            found[field] = (template_of, value)
    return found


def _of_request(asked: ChatRequest, given: Asked) -> Asked:
    kind = asked.response_format
    if kind is None or kind.type == "text":
        return {}
    if kind.json_schema is not None:
        return {"response_format": (template_of, kind.json_schema.schema_)}
    if "diffusion.json_schema" not in given:
        field = "response_format.type"
        rule = "json_object needs diffusion.json_schema; or take the type json_schema"
        raise BadRequest("E1701", f"{field}: {rule}.", field)
    return {}


def check_place(asked: Prompted, limits: LimitSettings, placed: Callable[[int], object]) -> None:
    """Raises BadRequest E1309 for a form that has no place in an answer: it is longer than the
    endpoint lets one be, say. `placed` is given that length."""
    try:
        placed(limits.max_gen_length)
    except DataError as error:
        [field] = _given(asked, limits)
        raise BadRequest(error.code, f"{field}: {error.detail}", field) from None
