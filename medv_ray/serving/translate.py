"""From a chat request to requests of the engine: settings, pictures. `dialogue` reads messages."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from medv_ray.data.images import Prepared, inspect
from medv_ray.data.prompts import check_storable
from medv_ray.data.viewing import Viewed
from medv_ray.engine.request import Request
from medv_ray.errors import DataError, MedvError, SettingsError
from medv_ray.serving.dialogue import Dialogue
from medv_ray.serving.fetch import Fetch
from medv_ray.serving.forms import FIELDS
from medv_ray.serving.options import LimitSettings
from medv_ray.serving.protocol import (
    BadRequest,
    ChatRequest,
    PictureRequest,
    Prompted,
    shown,
)
from medv_ray.settings import ImageSettings, SamplerSettings

Decode = Callable[[bytes, bool], bytes | Prepared]
"""See `Engine.decode`."""
MAX_STRENGTH = 100.0
"""Of temperature, guidance and factor: far beyond use, and far from what overflows."""
MAX_INTEGER = 10**15
MAX_NAMES = 16
"""Stop sequences, and forbidden tokens, that a request may name."""
MAX_NAMES_BYTES = 4096


def sampler_of(base: SamplerSettings, asked: Prompted, limits: LimitSettings) -> SamplerSettings:
    """Sampler settings of a request: the endpoint's own under those that it names.

    `max_tokens` shortens or lengthens the response with as many tokens to a step as before; what is
    no whole number of blocks is rounded down. Raises BadRequest E1701 over a limit, or with the
    code of the setting's rule.
    """
    given = {name: one for name, one in (asked.diffusion or {}).items() if name not in FIELDS}
    for name in given.keys() - SamplerSettings.model_fields.keys():
        known = ", ".join([*SamplerSettings.model_fields, *FIELDS])
        rule = f"there is no such setting; there are: {known}."
        raise BadRequest("E1001", f"diffusion.{shown(name)}: {rule}", "diffusion")
    for name, value in given.items():
        if isinstance(value, int) and abs(value) > MAX_INTEGER:  # its digits would stand in errors
            raise BadRequest("E1701", f"diffusion.{name}: over {MAX_INTEGER}.", "diffusion")
    if isinstance(asked, ChatRequest):
        wanted = asked.max_completion_tokens or asked.max_tokens
        if wanted is not None:
            if not {"gen_length", "block_length", "steps"}.isdisjoint(given):
                raise BadRequest(
                    "E1701",
                    "diffusion: give max_tokens, or gen_length, block_length and steps, not both.",
                    "max_tokens",
                )
            _check(limits.max_gen_length, wanted, "max_tokens")
            given |= _lengths(base, wanted)
        warm = asked.temperature
        if warm is not None and given.setdefault("temperature", warm) != warm:
            raise BadRequest("E1701", "temperature is given twice, and differs.", "temperature")
    try:
        sampler = base.changed(given, quote=False)
    except SettingsError as error:
        rule = error.detail.removeprefix("SamplerSettings: ")
        raise BadRequest(error.code, f"diffusion.{rule}", "diffusion") from None
    _check(limits.max_gen_length, sampler.gen_length, "diffusion.gen_length")
    _check(limits.max_steps, sampler.steps, "diffusion.steps")
    _check(MAX_STRENGTH, sampler.temperature, "diffusion.temperature")
    _check(MAX_STRENGTH, sampler.cfg_scale, "diffusion.cfg_scale")
    _check(MAX_STRENGTH, sampler.factor, "diffusion.factor")
    for name in ("stop", "forbidden"):
        _check(MAX_NAMES, len(getattr(sampler, name)), f"diffusion.{name}", "the entries of ")
    texts = (sampler.suffix, *sampler.stop, *sampler.forbidden)
    try:
        size = sum(map(check_storable, texts))
    except DataError as error:
        raise BadRequest(error.code, f"diffusion: {error.detail}", "diffusion") from None
    _check(MAX_NAMES_BYTES, size, "diffusion", "the bytes of suffix, stop and forbidden in ")
    return sampler


def _lengths(base: SamplerSettings, wanted: int) -> dict[str, int]:
    several_blocks = base.block_length < base.gen_length
    block = min(base.block_length, wanted) if several_blocks else wanted
    gen_length = wanted - wanted % block
    per_step = base.gen_length / base.steps
    steps_a_block = max(1, round(block / per_step))
    steps = steps_a_block * (gen_length // block)
    return {"gen_length": gen_length, "block_length": block, "steps": steps}


def _check(limit: float, value: float, name: str, what: str = "") -> None:
    if value > limit:
        given = value if value <= MAX_INTEGER else "(over 15 digits)"
        raise BadRequest("E1701", f"{what}{name}={given}: the limit is {limit:g}.", name)


def request_of(
    dialogue: Dialogue,
    sampler: SamplerSettings,
    seed: int,
    image: ImageSettings,
    fetch: Fetch,
    decode: Decode,
) -> Request:
    """A request of the engine, its pictures decoded.

    All headers are looked at before the first picture is decoded. Raises BadRequest E1701, E1704,
    E12xx.
    """
    pictures = [
        (one.field, _picture(one.url, one.field, image, fetch)) for one in dialogue.pictures
    ]
    images = []
    for field, data in pictures:
        with _naming(field):
            images.append(decode(data, len(pictures) > 1))
    return Request(
        question=dialogue.turns[-1].text,
        images=tuple(images),
        history=tuple(dialogue.turns[:-1]),
        seed=seed,
        sampler=sampler,
        system=dialogue.system,
    )


def viewed(
    asked: PictureRequest,
    image: ImageSettings,
    fetch: Fetch,
    view: Callable[[bytes, int | None], Viewed],
) -> Viewed:
    """A picture that somebody wants to see. Raises BadRequest E1701, E1704, E12xx."""
    data = _picture(asked.image_url.url, "image_url.url", image, fetch)
    with _naming("image_url.url"):
        return view(data, asked.frame)


def _picture(url: str, field: str, image: ImageSettings, fetch: Fetch) -> bytes:
    with _naming(field):
        data = _data_of(url, field) if url[:5].lower() == "data:" else fetch(url)
        inspect(data, image)
    return data


@contextmanager
def _naming(field: str) -> Iterator[None]:
    """Let what a picture is refused for name the field it stands in."""
    try:
        yield
    except BadRequest:
        raise
    except MedvError as error:
        raise BadRequest(error.code, error.detail, field) from None


def _data_of(url: str, field: str) -> bytes:
    head, comma, encoded = url.partition(",")
    if not comma or not head.lower().endswith(";base64"):
        raise BadRequest("E1701", f"{field}: expected data:image/...;base64,... .", field)
    try:
        return base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        rule = "base64 in one piece is expected: A-Z, a-z, 0-9, +, /, = to fill up, no line breaks"
        raise BadRequest("E1701", f"{field}: {rule}.", field) from None
