"""From a conversation to the token ids, labels and segments that a stage trains on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from medv_ray.data.conversations import encode_conversation
from medv_ray.data.dataset import Dataset
from medv_ray.data.prompts import SpecialIds
from medv_ray.data.segments import assistant_header, segment_ends, spoken
from medv_ray.errors import DataError
from medv_ray.markers import IGNORE
from medv_ray.settings import PromptSettings
from medv_ray.training.stages import StageSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@contextmanager
def naming_row(dataset: Dataset, row: int) -> Iterator[None]:
    """Put the dataset's row number in front of what a DataError says."""
    try:
        yield
    except DataError as error:
        raise DataError(error.code, f"row {row} of {dataset.split}: {error.detail}") from None


class Row(NamedTuple):
    """One conversation as a stage sees it."""

    ids: list[int]
    """IMAGE_SLOT at each image."""
    labels: list[int]
    """As many: the id itself where it is a target, else IGNORE."""
    ends: tuple[int, ...]
    """Of the segments of attention, as indices in `ids`."""


class RowEncoder:
    """Encodes conversations by a stage's template, targets, filling and attention."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, stage: StageSettings) -> None:
        self._tokenizer, self._stage = tokenizer, stage
        self._special = SpecialIds.of(tokenizer)
        self._header = assistant_header(tokenizer)
        self._prompt = PromptSettings(system=stage.system)
        self._drop = stage.token_after_image == "reference"
        end = "eot" if stage.fill_token == "end_of_turn" else "eos"
        self._fill = int(getattr(self._special, end))

    def __call__(
        self, conversation: Sequence[Mapping[str, str]], num_images: int, number: int
    ) -> Row:
        """`number` is the row's in the dataset. Raises DataError E1109 or E1304 for a malformed
        conversation."""
        stage = self._stage
        ids, labels = encode_conversation(
            self._tokenizer, conversation, self._prompt, num_images, stage.template, self._drop
        )
        if stage.template == "llada":
            ids, labels = self._fit(ids, labels, number)
        ends = segment_ends(ids, stage.attention, self._header, self._special.eot)
        return Row(ids, labels, ends)

    def _fit(self, ids: list[int], labels: list[int], number: int) -> tuple[list[int], list[int]]:
        """The chat template's ids and labels as the stage wants them."""
        stage, said = self._stage, spoken(ids, self._header, self._special.eot)
        if stage.targets == "answers":
            labels = [IGNORE] * len(ids)
            for first, end in said:
                labels[first:end] = ids[first:end]
        length = len(ids) - said[-1][0]
        filling = [self._fill] * (fill_length(stage.answer_fill, length, number) - length)
        ids, labels = ids + filling, labels + filling
        return ids, labels


def fill_length(fills: int | Sequence[int], length: int, number: int) -> int:
    """Up to where row `number` fills its last answer of `length` tokens; less than `length`: not at
    all."""
    if isinstance(fills, int):
        return fills
    holding = [fill for fill in fills if fill >= length] or [0]
    return holding[number % len(holding)]
