"""How a stage's validation answers: sampler settings, resolved by the engine, which training may
not import."""

from __future__ import annotations

from medv_ray.data.prompts import SpecialIds, load_tokenizer
from medv_ray.diffusion.spec import SampleSpec
from medv_ray.engine.resolve import resolve
from medv_ray.errors import SettingsError
from medv_ray.on_ray.options import checkpoint_defaults
from medv_ray.settings import SamplerSettings, build
from medv_ray.training.job import TrainSettings


def with_sampler(settings: TrainSettings) -> TrainSettings:
    """With the sampler settings of the validation's answers filled in: what the base recommends,
    else preset=fast, under what is given. A recommended cache is left out.

    Raises SettingsError E1001, E1002.
    """
    if not asks(settings):
        return settings
    given = settings.validation.sampler
    own = {} if given is None else given.model_dump(exclude_unset=True)
    advice = checkpoint_defaults(settings.model).get("sampler") or {"preset": "fast"}
    sampler = build(SamplerSettings, advice | own)
    if "cache" not in own:
        bare = {"cache": "none", "refresh_interval": None}
        sampler = build(SamplerSettings, sampler.model_dump() | bare)
    for name, fitting in (("cache", "none"), ("cfg_scale", 0)):
        value = getattr(sampler, name)
        if value != fitting:
            text = f"validation.sampler.{name}={value}: validation computes every step in full, and"
            raise SettingsError(
                "E1001", f"{text} once; use --set validation.sampler.{name}={fitting}."
            )
    validation = settings.validation.model_copy(update={"sampler": sampler})
    return settings.model_copy(update={"validation": validation})


def spec_of(settings: TrainSettings) -> SampleSpec | None:
    """Of settings with a sampler; None where the loss alone is looked at.

    Raises SettingsError E1001 for a token that the base's tokenizer does not have, CheckpointError
    E14xx for the tokenizer.
    """
    sampler = settings.validation.sampler
    if not asks(settings) or sampler is None:
        return None
    tokenizer = load_tokenizer(settings.model)
    return resolve(sampler, tokenizer, SpecialIds.of(tokenizer))


def asks(settings: TrainSettings) -> bool:
    """Whether validation answers questions."""
    chosen = settings.validation
    return chosen.every is not None and chosen.answers and settings.stage.template == "llada"
