"""lmms-eval's words for how an answer is made, as ours. What has no meaning here is refused by
name.

Who wins, the later over the earlier: the checkpoint's recommendation, what the task asks of any
model (`max_new_tokens`, `temperature`), `--model_args`, sampler settings in `--gen_kwargs`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from medv_ray.errors import SettingsError
from medv_ray.settings import (
    ImageSettings,
    ModelSettings,
    PromptSettings,
    SamplerSettings,
    Settings,
    build,
)

ALIASES = {"gen_steps": "steps", "cfg": "cfg_scale", "prefix_refresh_interval": "refresh_interval"}
"""Sampler settings by the names of LLaDA-V's own adapter."""
NO_EFFECT: dict[str, tuple[object, ...]] = {
    "num_beams": (None, 1),
    "repetition_penalty": (None, 1),
    "top_p": (None, 0, 1),
    "top_k": (None, 0),
}
"""What other models know, with the values that change nothing."""
NEEDS_NOISE = ("top_p", "top_k")
"""Those that change nothing at temperature 0, whatever they say."""
GROUPS: dict[str, type[Settings]] = {
    "model": ModelSettings,
    "sampler": SamplerSettings,
    "prompt": PromptSettings,
    "image": ImageSettings,
}


class Asked(NamedTuple):
    """How the answer to one request is made."""

    sampler: SamplerSettings
    max_new_tokens: int | None
    """Longer answers are cut."""
    until: tuple[str, ...]
    """Texts at the first of which an answer is cut."""

    def cut(self, text: str, ids: tuple[int, ...], read: Callable[[tuple[int, ...]], str]) -> str:
        """The answer as far as the request wants it; `read` turns token ids into text."""
        if self.max_new_tokens is not None and len(ids) > self.max_new_tokens:
            text = read(ids[: self.max_new_tokens]).strip()
        ends = [place for stop in self.until if (place := text.find(stop)) >= 0]
        return text[: min(ends, default=len(text))]


def grouped(given: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """`--model_args` by the group of settings that knows the name. Raises SettingsError E1001."""
    found: dict[str, dict[str, Any]] = {group: {} for group in GROUPS}
    for name, value in given.items():
        ours = ALIASES.get(name, name)
        group = next((g for g, kind in GROUPS.items() if ours in kind.model_fields), None)
        if group is None:
            raise SettingsError(
                "E1001", f"--model_args {name[:40]}: no setting of llada_medv has this name."
            )
        found[group][ours] = value
    return found


def asked(
    given: Mapping[str, Any],
    recommended: Mapping[str, Any],
    chosen: Mapping[str, Any],
    ignored: tuple[str, ...] = (),
) -> Asked:
    """How one request is answered.

    Args:
        given: lmms-eval's gen_kwargs.
        recommended: sampler settings of the checkpoint's config.json.
        chosen: sampler settings of `--model_args`.
        ignored: names of `given` that are left out.

    Raises SettingsError E1001, E1002.
    """
    left = {ALIASES.get(name, name): v for name, v in given.items() if name not in ignored}
    until, limit = _texts(left.pop("until", None)), _limit(left.pop("max_new_tokens", None))
    sampler = dict(recommended)
    temperature = _temperature(left.pop("do_sample", None), left.pop("temperature", None))
    if temperature is not None:
        sampler["temperature"] = temperature
    sampler |= chosen
    sampler |= {n: left.pop(n) for n in [*left] if n in SamplerSettings.model_fields}
    for name, value in left.items():
        quiet = name in NEEDS_NOISE and not sampler.get("temperature")
        if not quiet and value not in NO_EFFECT.get(name, ()):
            raise SettingsError(
                "E1001",
                f"gen_kwargs {name[:40]}={str(value)[:20]}: masked diffusion has nothing like it; "
                f"--model_args ignore={name[:40]} leaves it out.",
            )
    return Asked(build(SamplerSettings, fitted(sampler, limit)), limit, until)


def fitted(sampler: Mapping[str, Any], limit: int | None) -> dict[str, Any]:
    """Sampler settings in which gen_length, where nothing gives it, is the limit of new tokens,
    rounded up to whole blocks, and steps are shared by the blocks. One block where no
    block_length is given, and one token a step where no steps are: L = B = Z, as in the paper."""
    found = dict(sampler)
    free = "gen_length" not in found
    if free:
        found["gen_length"] = limit or SamplerSettings().gen_length
    length = found["gen_length"]
    block = found.setdefault("block_length", length)
    whole = isinstance(length, int) and isinstance(block, int) and block > 0
    if free and whole:
        length = found["gen_length"] = -(-length // block) * block
        if isinstance(found.get("steps"), int):
            found["steps"] = -(-found["steps"] * block // length) * (length // block)
    found.setdefault("steps", length)
    return found


def _temperature(do_sample: object, temperature: object) -> object:
    """None where nothing is said. Without do_sample a temperature stands for itself."""
    if do_sample is None or (do_sample and temperature is not None):
        return temperature
    return 1.0 if do_sample else 0.0


def _limit(value: object) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise SettingsError("E1001", "gen_kwargs max_new_tokens: a whole number from 1.")
    return value


def _texts(value: object) -> tuple[str, ...]:
    texts = [value] if isinstance(value, str) else [] if value is None else value
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
        raise SettingsError("E1001", "gen_kwargs until: a text or a list of texts.")
    return tuple(text for text in texts if text)
