"""Rows of the validation split: how they are encoded, and what is wrong with them beforehand."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from typing import TYPE_CHECKING, NamedTuple

from medv_ray.data.dataset import Dataset, Example
from medv_ray.data.prompts import SpecialIds
from medv_ray.data.segments import assistant_header, prompt_ends, spoken
from medv_ray.diffusion.spec import SampleSpec
from medv_ray.errors import DataError, SettingsError
from medv_ray.model.config import ModelConfig
from medv_ray.training.job import TrainSettings
from medv_ray.training.lengths import ImageTokens
from medv_ray.training.objective import Sample
from medv_ray.training.order import spread
from medv_ray.training.rows import RowEncoder
from medv_ray.training.survey import Survey, survey

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class ValidationRow(NamedTuple):
    """A row of the split, encoded."""

    number: int
    """Of the split."""
    loss: Sample
    prompt: Sample | None
    """What stands before the last answer; None where answers are not looked at."""
    reference: str
    kind: str


class Encoder:
    """Encodes rows as the stage does, and where the last answer begins."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, settings: TrainSettings) -> None:
        self._encode = RowEncoder(tokenizer, settings.stage)
        self._attention = settings.stage.attention
        self._header, self._eot = assistant_header(tokenizer), SpecialIds.of(tokenizer).eot

    def __call__(self, example: Example, row: int) -> tuple[list[int], list[int], tuple[int, ...]]:
        """Token ids, labels and ends of the row."""
        found = self._encode(example.conversations, len(example.images), row)
        return found.ids, found.labels, found.ends

    def prompt(self, ids: Sequence[int]) -> tuple[list[int], tuple[int, ...]]:
        """Ids in front of the last answer, and the ends of the segments within them."""
        kept = list(ids[: spoken(ids, self._header, self._eot)[-1][0]])
        return kept, prompt_ends(kept, self._attention, self._header, self._eot)


def check_validation(
    settings: TrainSettings,
    tokenizer: PreTrainedTokenizerFast,
    config: ModelConfig,
    spec: SampleSpec | None = None,
) -> Survey | None:
    """What is wrong with the validation rows, before anything starts; None without validation.

    Raises SettingsError E1001 for settings that do not fit, DataError E1113 for a split that is not
    there and as `survey` for its rows, which must have an answer each.
    """
    chosen = settings.validation
    if chosen.every is None:
        return None
    if chosen.split == settings.split:
        text = f"validation.split={chosen.split} is the split that is trained on; name another"
        raise SettingsError("E1001", f"{text} with --set validation.split=...")
    if chosen.best == "accuracy" and settings.stage.template != "llada":
        text = f"validation.best=accuracy: stage.template={settings.stage.template} asks no"
        raise SettingsError("E1001", f"{text} questions; use validation.best=loss.")
    try:
        dataset = Dataset.open(settings.data, chosen.split)
    except DataError as error:
        ways = "--set validation.split=NAME takes another; without --validate-every there is none"
        raise DataError(error.code, f"validation: {error.detail.rstrip('.')}. {ways}.") from None
    assert dataset.digest  # it is read once, whole
    rows = spread(len(dataset), chosen.rows)
    encode = Encoder(tokenizer, settings)
    canvas = spec.gen_length + len(spec.suffix_ids) if spec is not None else 0

    def longer(example: Example, number: int) -> tuple[list[int], list[int]]:
        """The row, or its prompt with the answer's canvas where that is longer."""
        ids, labels, _ = encode(example, number)
        asked = [*encode.prompt(ids)[0], *[0] * canvas] if canvas else []
        return (ids if len(ids) >= len(asked) else asked), labels

    stage = settings.stage
    limits = (stage.max_length, "stage.max_length"), (config.max_length, "the model's own limit")
    most, limit = min(limits)
    if canvas:
        limit += f"; an answer takes {canvas}"
    with closing(ImageTokens(dataset, stage, config)) as image_tokens:
        return survey(dataset, longer, image_tokens, most, limit, rows)
