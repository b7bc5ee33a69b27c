"""What the sampler is asked to do, with every token resolved to an id."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from medv_ray.errors import SettingsError
from medv_ray.settings import indivisible

Rule = Literal["schedule", "threshold", "factor", "factor_llada_v"]
"""How many tokens a step commits: see `SamplerSettings.rule`."""


@dataclass(frozen=True)
class SampleSpec:
    """Sampler settings with every token resolved to an id. Meanings: `settings.SamplerSettings`.

    Raises SettingsError E1002 when blocks or steps do not divide.
    """

    gen_length: int
    block_length: int
    steps: int
    mask_id: int
    temperature: float = 0.0
    cfg_scale: float = 0.0
    remasking: Literal["low_confidence", "random", "independent"] = "low_confidence"
    forbidden_ids: tuple[int, ...] = ()
    stop_ids: tuple[tuple[int, ...], ...] = ()
    suffix_ids: tuple[int, ...] = ()
    eos_id: int | None = None
    eot_id: int | None = None
    logits_eos_inf: bool = False
    confidence_eos_eot_inf: bool = False
    noise: Literal["needed", "reference", "keyed"] = "needed"
    rule: Rule = "schedule"
    threshold: float = 0.9
    factor: float = 1.0
    logit_size: int | None = None
    run_all_steps: bool = False
    """Run a block's steps after its last mask is gone, as LLaDA does: that changes no answer, only
    the position of a shared random generator."""

    def __post_init__(self) -> None:
        if said := indivisible(self.gen_length, self.block_length, self.steps):
            raise SettingsError("E1002", f"{said}.")
        if self.logits_eos_inf and self.eos_id is None:
            raise SettingsError("E1001", "logits_eos_inf needs the id of the end-of-text token.")
        if self.confidence_eos_eot_inf and None in (self.eos_id, self.eot_id):
            raise SettingsError("E1001", "confidence_eos_eot_inf needs the ids of both end tokens.")
        if self.rule != "schedule" and self.remasking != "low_confidence":
            raise SettingsError(
                "E1001",
                f"rule={self.rule} goes by confidence: it needs remasking=low_confidence, "
                f"not {self.remasking}.",
            )

    @property
    def steps_per_block(self) -> int:
        """Steps that a block may take; without a schedule as many as it has tokens, since a step
        commits one at least."""
        if self.rule != "schedule":
            return self.block_length
        return self.steps // (self.gen_length // self.block_length)

    @property
    def excluded(self) -> tuple[int, ...]:
        """Ids that leave argmax and softmax."""
        ids = self.forbidden_ids
        if self.logits_eos_inf and self.eos_id is not None:
            ids += (self.eos_id,)
        # Algorithm 1 fills every mask; the reference lets the model answer with the mask token
        return (*ids, self.mask_id) if self.remasking == "independent" else ids

    @property
    def unranked(self) -> tuple[int, ...]:
        """Ids that leave the softmax after the argmax, so that they are committed last.

        With temperature only end of turn does: LLaDA's assignment reaches the un-noised logits
        through an alias that exists at temperature 0 alone.
        """
        if not self.confidence_eos_eot_inf or self.eos_id is None or self.eot_id is None:
            return ()
        return (self.eot_id,) if self.temperature > 0 else (self.eos_id, self.eot_id)

    @property
    def kind(self) -> SampleSpec:
        """What rows that share a batch have in common: all but steps, threshold and factor."""
        blocks = self.gen_length // self.block_length
        return replace(self, steps=blocks, threshold=0.0, factor=0.0)
