"""A look at the validation split while a stage trains: loss, answers, and whether it gets better.

All workers take their share and come to the same figures. The loss has the same masks each time, at
noise levels spread over the rows, so that two values differ by the weights alone. Nothing that
trains is touched: no random number, no order, no cache of the training rows.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from medv_ray.archive import strict
from medv_ray.data.dataset import Dataset
from medv_ray.data.prompts import decode
from medv_ray.diffusion.spec import SampleSpec
from medv_ray.markers import IGNORE
from medv_ray.model.medv import Medv
from medv_ray.training.best import Progress
from medv_ray.training.engine import Engine
from medv_ray.training.job import TrainSettings
from medv_ray.training.objective import Outcome, Picture, Sample
from medv_ray.training.order import noise_level, spread, validation_seed
from medv_ray.training.responses import respond
from medv_ray.training.rows import naming_row
from medv_ray.training.samples import FrozenTower, Pictures, hold
from medv_ray.training.validation_rows import Encoder, ValidationRow
from medv_ray.training.watch import ShownAnswer, ValidationEvent

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SHOWN_CHARACTERS = 200
KINDS = ("open", "closed")


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
        spec: SampleSpec | None = None,
        before: Mapping[str, Any] | None = None,
    ) -> None:
        """
        Args:
            tower: the vision tower that does not learn, if there is one.
            num_rows: of the split that is trained on.
            spec: how rows are answered; None: the loss alone.
            before: see `Progress`.
        """
        self._settings, self._chosen, self._stage = settings, settings.validation, settings.stage
        self._engine, self._tokenizer = engine, tokenizer
        self._spec = spec if self._stage.template == "llada" else None
        self._one_by_one = model.config.attention != "full"
        self._num_rows = num_rows
        self._dataset = Dataset.open(settings.data, self._chosen.split)
        self._numbers = spread(len(self._dataset), self._chosen.rows)
        self._encode = Encoder(tokenizer, settings)
        self._pictures = Pictures(
            self._dataset, self._stage, model, settings.picture_cache_bytes, tower=tower
        )
        self.progress = Progress(self._chosen, len(self._numbers), self._of(), before)

    def _of(self) -> str:
        """Digest of what makes figures comparable."""
        said = {
            "by": self._chosen.best,
            "data": self._dataset.index["counts"][self._chosen.split]["sha256"],
            "rows": len(self._numbers),
            "spec": repr(self._spec) if self._spec else None,
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
        for batch in shares:
            rows = [self._row(index) for index in batch]
            outcome = Outcome(*self._engine.look([row.loss for row in rows], "loss"))
            answers = self._answers(rows)
            for index, row, loss, said in zip(
                batch, rows, outcome.by_row.tolist(), answers, strict=True
            ):
                if index not in counts:
                    continue
                counts.discard(index)
                losses[index] = loss
                kinds[index] = row.kind == "closed"
                if said is not None:
                    good = strict.is_right(said, row.reference, row.kind)
                    right[index] = good
                    cut = said[:SHOWN_CHARACTERS], row.reference[:SHOWN_CHARACTERS]
                    shown[index] = ShownAnswer(row.number, *cut, good)
        total = self._engine.sum(torch.cat((losses, right, kinds)))
        return self._event(step, num_steps, total.view(3, -1), shown, began)

    def _shares(self) -> tuple[list[list[int]], set[int]]:
        """This worker's batches of indices into the chosen rows, and which of them count. Each
        worker has as many, equally long: the last row is repeated, as passes are taken together."""
        count, workers, rank = len(self._numbers), self._engine.num_workers, self._engine.rank
        each = -(-count // workers)
        mine = [rank + workers * i for i in range(each)]
        size = self._chosen.batch_size
        indices = [min(index, count - 1) for index in mine]
        batches = [indices[first : first + size] for first in range(0, each, size)]
        return batches, {index for index in mine if index < count}

    def _row(self, index: int) -> ValidationRow:
        number = self._numbers[index]
        with naming_row(self._dataset, number):
            example = self._dataset[number]
            ids, labels, ends = self._encode(example, number)
            several = len(example.images) > 1
            pictures = tuple(self._pictures.get(digest, several) for digest in example.images)
        hold(pictures)
        seed = validation_seed(number)
        loss = Sample(
            torch.tensor(ids), torch.tensor(labels), ends, pictures, seed, noise_level(index)
        )
        reference = example.conversations[-1]["value"].strip()
        kind = strict.kind_of(reference, example.answer_type)
        prompt = None
        if self._spec is not None:
            prompt = self._prompt(ids, pictures, seed)
        return ValidationRow(number, loss, prompt, reference, kind)

    def _prompt(self, ids: Sequence[int], pictures: tuple[Picture, ...], seed: int) -> Sample:
        kept, ends = self._encode.prompt(ids)
        unlabelled = torch.full((len(kept),), IGNORE)
        return Sample(torch.tensor(kept), unlabelled, ends, pictures, seed)

    def _answers(self, rows: Sequence[ValidationRow]) -> list[str | None]:
        if self._spec is None:
            return [None] * len(rows)
        prompts = [row.prompt for row in rows if row.prompt is not None]
        seeds = [prompt.seed for prompt in prompts]
        found = respond(self._engine, prompts, self._spec, seeds, self._one_by_one)
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
        count, asked = len(self._numbers), self._spec is not None
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
            samples=tuple(shown[index] for index in first),
            **figures,
        )

    def close(self) -> None:
        """End the decoder's child processes."""
        self._pictures.close()
