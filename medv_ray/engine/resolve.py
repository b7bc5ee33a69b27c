"""Sampler settings, which name tokens, as the ids that the sampler works on."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING

from medv_ray.data.prompts import SpecialIds, encode_markup, encode_text
from medv_ray.diffusion.spec import SampleSpec
from medv_ray.errors import SettingsError
from medv_ray.settings import SamplerSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def resolve(
    settings: SamplerSettings, tokenizer: PreTrainedTokenizerFast, special: SpecialIds
) -> SampleSpec:
    """`settings` with token names turned into ids. Raises SettingsError E1001 for an unknown
    name."""
    names = {token.content: index for index, token in tokenizer.added_tokens_decoder.items()}
    unknown = [name for name in settings.forbidden if name not in names]
    if unknown:
        raise SettingsError(
            "E1001",
            f"sampler.forbidden: {unknown[0]!r} is no special token of this tokenizer; "
            "take it out with --set sampler.forbidden=[...].",
        )
    stops = tuple(tuple(encode_markup(tokenizer, text)) for text in settings.stop)
    if not all(stops):
        raise SettingsError("E1001", "sampler.stop: an empty text can not end an answer.")
    same = {f.name for f in fields(SampleSpec)} & SamplerSettings.model_fields.keys()
    return SampleSpec(
        **{name: getattr(settings, name) for name in same},
        mask_id=special.mask,
        forbidden_ids=tuple(names[name] for name in settings.forbidden),
        stop_ids=stops,
        suffix_ids=tuple(encode_text(tokenizer, settings.suffix)),
        eos_id=special.eos,
        eot_id=special.eot,
    )
