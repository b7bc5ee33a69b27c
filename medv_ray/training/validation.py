"""A look at the validation split while a stage trains: loss, answers, and whether it gets better.

All workers take their share and come to the same figures. The loss has the same masks each time, at
noise levels spread over the rows, so that two values differ by the weights alone. Nothing that
trains is touched: no random number, no order, no cache of the training rows.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from medv_ray.data.dataset import Dataset, Example
from medv_ray.data.prompts import SpecialIds, decode
from medv_ray.data.segments import assistant_header, prompt_ends, spoken
from medv_ray.diffusion.spec import SampleSpec
from medv_ray.errors import DataError, SettingsError
from medv_ray.markers import IGNORE
from medv_ray.model.config import ModelConfig
from medv_ray.model.medv import Medv
from medv_ray.training.engine import Engine
from medv_ray.training.job import TrainSettings, ValidationSettings
from medv_ray.training.lengths import ImageTokens
from medv_ray.training.loop import Verdict
from medv_ray.training.objective import Outcome, Picture, Sample
from medv_ray.training.order import noise_level, spread, validation_seed
from medv_ray.training.responses import respond
from medv_ray.training.rows import RowEncoder, naming_row
from medv_ray.training.samples import FrozenTower, Pictures, hold
from medv_ray.training.survey import Survey, survey
from medv_ray.training.watch import ShownAnswer, ValidationEvent

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SHOWN_CHARACTERS = 200
KINDS = ("open", "closed")
Rule = Callable[[str, str], bool]
"""Whether an answer is right, given the reference."""


class Answering(NamedTuple):
    """How rows are answered and judged: what the rooms of engine and evaluation hand in."""

    spec: SampleSpec
    rules: Mapping[str, Rule]
    """Of `open` and `closed` questions."""


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


class Progress:
    """Which validation was best, over all parts of a run; stands in each checkpoint's manifest."""

    def __init__(
        self, chosen: ValidationSettings, of: str, before: Mapping[str, Any] | None
    ) -> None:
        """
        Args:
            of: what must be equal for two validations to compare.
            before: what the checkpoint says that the run goes on from.
        """
        self._by, self._patience = chosen.best, chosen.patience
        kept = dict(before) if before is not None and before.get("of") == of else {}
        self.best: dict[str, Any] | None = kept.get("best")
        self.last: dict[str, Any] | None = kept.get("last")
        self.waited: int = kept.get("waited", 0)
        self.ended: bool = kept.get("ended", False)
        self._of = of

    def add(self, figures: dict[str, Any]) -> Verdict:
        """The next validation's figures."""
        # JSON has no word for what is not finite
        figures = {n: v if math.isfinite(v or 0) else None for n, v in figures.items()}
        self.last = figures
        better = self._value(figures) > self._value(self.best)
        if better:
            self.best = figures
        self.waited = 0 if better else self.waited + 1
        self.ended = self._patience is not None and self.waited >= self._patience
        return Verdict(better, self.ended)

    def _value(self, figures: Mapping[str, Any] | None) -> float:
        """The more the better."""
        value = None if figures is None or self._by == "none" else figures[self._by]
        if value is None or not math.isfinite(value):
            return -math.inf
        return -float(value) if self._by == "loss" else float(value)

    def to_json(self) -> dict[str, Any]:
        """For the manifest."""
        return {
            "of": self._of,
            "by": self._by,
            "best": self.best,
            "last": self.last,
            "waited": self.waited,
            "ended": self.ended,
        }


class Validator:
    """Looks at the same rows each time it is called. `close` ends the decoder's processes."""

    def __init__(
        self,
        settings: TrainSettings,
        engine: Engine,
        tokenizer: PreTrainedTokenizerFast,
        model: Medv,
        tower: FrozenTower | None,
        num_rows: int,
        answering: Answering | None = None,
        before: Mapping[str, Any] | None = None,
    ) -> None:
        """
        Args:
            tower: the vision tower that does not learn, if there is one.
            num_rows: of the split that is trained on.
            answering: None: the loss alone.
            before: see `Progress`.
        """
        self._settings, self._chosen, self._stage = settings, settings.validation, settings.stage
        self._engine, self._tokenizer = engine, tokenizer
        self._answering = answering if self._stage.template == "llada" else None
        self._one_by_one = model.config.attention != "full"
        self._num_rows = num_rows
        self._dataset = Dataset.open(settings.data, self._chosen.split)
        self._numbers = spread(len(self._dataset), self._chosen.rows)
        self._encode = Encoder(tokenizer, settings)
        self._pictures = Pictures(
            self._dataset, self._stage, model, settings.picture_cache_bytes, tower=tower
        )
        self.progress = Progress(self._chosen, self._of(), before)

    def _of(self) -> str:
        """Digest of what makes figures comparable."""
        said = {
            "by": self._chosen.best,
            "data": self._dataset.index["counts"][self._chosen.split]["sha256"],
            "rows": len(self._numbers),
            "spec": repr(self._answering.spec) if self._answering else None,
        }
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:16]

    def due(self, step: int, num_steps: int) -> bool:
        """Whether a validation follows this update."""
        return step % (self._chosen.every or num_steps) == 0 or step == num_steps

    def __call__(self, step: int, num_steps: int) -> ValidationEvent:
        """All workers call it together. Raises DataError, with the row, as `Samples` does."""
        began = time.perf_counter()
        shares, counts = self._shares()
        losses = torch.zeros(len(self._numbers), dtype=torch.float64)
        right = torch.zeros(len(self._numbers), dtype=torch.float64)
        kinds = torch.zeros(len(self._numbers), dtype=torch.float64)  # 1: closed
        shown: dict[int, ShownAnswer] = {}
        for places in shares:
            rows = [self._row(place) for place in places]
            outcome = Outcome(*self._engine.look([row.loss for row in rows], "loss"))
            answers = self._answers(rows)
            for place, row, loss, said in zip(
                places, rows, outcome.by_row.tolist(), answers, strict=True
            ):
                if place not in counts:
                    continue
                counts.discard(place)
                losses[place] = loss
                kinds[place] = row.kind == "closed"
                if said is not None and self._answering is not None:
                    good = self._answering.rules[row.kind](said, row.reference)
                    right[place] = good
                    cut = said[:SHOWN_CHARACTERS], row.reference[:SHOWN_CHARACTERS]
                    shown[place] = ShownAnswer(row.number, *cut, good)
        total = self._engine.sum(torch.cat((losses, right, kinds)))
        return self._event(step, num_steps, total.view(3, -1), shown, began)

    def _shares(self) -> tuple[list[list[int]], set[int]]:
        """This worker's batches of places among the chosen rows, and which of them count. Each
        worker has as many, equally long: the last row is repeated, as passes are taken together."""
        count, workers, rank = len(self._numbers), self._engine.num_workers, self._engine.rank
        each = -(-count // workers)
        mine = [rank + workers * i for i in range(each)]
        size = self._chosen.batch_size
        places = [min(place, count - 1) for place in mine]
        batches = [places[first : first + size] for first in range(0, each, size)]
        return batches, {place for place in mine if place < count}

    def _row(self, place: int) -> ValidationRow:
        number = self._numbers[place]
        with naming_row(self._dataset, number):
            example = self._dataset[number]
            ids, labels, ends = self._encode(example, number)
            several = len(example.images) > 1
            pictures = tuple(self._pictures.get(digest, several) for digest in example.images)
        hold(pictures)
        seed = validation_seed(number)
        loss = Sample(
            torch.tensor(ids), torch.tensor(labels), ends, pictures, seed, noise_level(place)
        )
        reference = example.conversations[-1]["value"].strip()
        prompt = None
        if self._answering is not None:
            prompt = self._prompt(ids, pictures, seed)
        return ValidationRow(number, loss, prompt, reference, kind_of(example, reference))

    def _prompt(self, ids: Sequence[int], pictures: tuple[Picture, ...], seed: int) -> Sample:
        kept, ends = self._encode.prompt(ids)
        unlabelled = torch.full((len(kept),), IGNORE)
        return Sample(torch.tensor(kept), unlabelled, ends, pictures, seed)

    def _answers(self, rows: Sequence[ValidationRow]) -> list[str | None]:
        if self._answering is None:
            return [None] * len(rows)
        prompts = [row.prompt for row in rows if row.prompt is not None]
        seeds = [prompt.seed for prompt in prompts]
        spec = self._answering.spec
        found = respond(self._engine, prompts, spec, seeds, self._one_by_one)
        return [decode(self._tokenizer, ids) for ids in found]

    def _event(
        self,
        step: int,
        num_steps: int,
        total: torch.Tensor,
        shown: Mapping[int, ShownAnswer],
        began: float,
    ) -> ValidationEvent:
        losses, right, closed = total
        count, asked = len(self._numbers), self._answering is not None
        of = {"closed": closed > 0, "open": closed == 0}
        rows = {kind: int(of[kind].sum()) for kind in KINDS}

        def share(chosen: torch.Tensor) -> float | None:
            return float(right[chosen].mean()) if asked and bool(chosen.any()) else None

        figures: dict[str, Any] = {
            "step": step,
            "rows": count,
            "loss": float(losses.mean()),
            "accuracy": share(closed >= 0),
            **{f"accuracy_{kind}": share(of[kind]) for kind in KINDS},
            **{f"rows_{kind}": rows[kind] if asked else 0 for kind in KINDS},
        }
        verdict = self.progress.add(figures)
        first = sorted(shown)[: self._chosen.samples]
        return ValidationEvent(
            total_steps=num_steps,
            epoch=step * self._stage.batch_size / self._num_rows,
            best=verdict.best,
            ended=verdict.ended and step < num_steps,
            seconds=time.perf_counter() - began,
            samples=tuple(shown[place] for place in first),
            **figures,
        )

    def close(self) -> None:
        """End the decoder's child processes."""
        self._pictures.close()


def kind_of(example: Example, reference: str) -> str:
    """`closed` where the dataset says so; where it says nothing, of yes and no."""
    if example.answer_type in KINDS:
        return str(example.answer_type)
    return "closed" if reference.casefold().rstrip(".") in ("yes", "no") else "open"
