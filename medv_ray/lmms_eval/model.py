"""`lmms-eval --model llada_medv`: the engine behind lmms-eval's interface of models.

Only lmms-eval imports this module, by the manifest.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms

from medv_ray.engine import Predictor, Request
from medv_ray.engine.request import row_seed
from medv_ray.errors import DataError, SettingsError
from medv_ray.lmms_eval.generation import Asked, asked, grouped
from medv_ray.lmms_eval.pictures import encoded
from medv_ray.on_ray.options import checkpoint_defaults
from medv_ray.settings import (
    AnswerSettings,
    EngineSettings,
    ImageSettings,
    ModelSettings,
    PromptSettings,
    build,
    model_folder,
)

log = logging.getLogger(__name__)
MARK = "<image>"
AT_ONCE = 16
"""Batches of requests whose pictures are in memory together."""


class LladaMedv(lmms):  # type: ignore[misc]
    """LLaDA-MedV or LLaDA-V from a checkpoint folder."""

    is_simple = True

    def __init__(
        self,
        pretrained: str,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        device: str | None = None,
        seed: int | None = None,
        likelihood_samples: int = 128,
        ignore: str = "",
        **given: Any,
    ) -> None:
        """
        Args:
            pretrained: checkpoint folder, or `toy`.
            batch_size: requests denoised together. `auto`: as many as the engine takes by itself.
            max_batch_size: means nothing here.
            seed: None: that of torch, which lmms-eval's --seed sets.
            likelihood_samples: noisy copies of a continuation; see `Engine.log_likelihood`.
            ignore: names of gen_kwargs to leave out, joined by `+`.
            given: settings of model, sampler, prompt and image by their own names.

        Raises SettingsError E1001, E1002, CheckpointError E14xx.
        """
        super().__init__()
        self._join(device)
        groups = grouped(given)
        folder = model_folder(pretrained)
        self._recommended = checkpoint_defaults(folder).get("sampler", {})
        self._chosen = groups["sampler"]
        self._ignored = tuple(filter(None, ignore.split("+")))
        self._samples = likelihood_samples
        self._seed = torch.initial_seed() if seed is None else seed
        self._marked = False
        together = int(batch_size) if batch_size not in (None, "auto") else None
        self._batch = together or 8
        base = asked({}, self._recommended, self._chosen)
        self.predictor = Predictor.load(
            build(ModelSettings, {"path": folder, "device": self.device.type} | groups["model"]),
            AnswerSettings(
                sampler=base.sampler,
                prompt=build(PromptSettings, groups["prompt"]),
                image=build(ImageSettings, groups["image"]),
            ),
            EngineSettings(slots=together),
        )

    def _join(self, device: str | None) -> None:
        """Take this process's place among those that lmms-eval was started as."""
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            from accelerate import Accelerator

            self.accelerator = Accelerator(cpu=self.device.type == "cpu")
            self.device = self.accelerator.device
            self._rank = self.accelerator.process_index
            self._world_size = self.accelerator.num_processes
        if self.device.type == "cuda" and self.device.index is not None:
            torch.cuda.set_device(self.device)

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Answers in the order of the requests; empty for one that cannot be answered, which is
        counted in a warning. Raises SettingsError E1001, E1002."""
        return [text for text, _ in self._answers([one.args for one in requests])]

    def _answers(self, rows: Sequence[Sequence[Any]]) -> Iterator[tuple[str, DataError | None]]:
        """Of (context, gen_kwargs, doc_to_visual, doc_id, task, split) each."""
        plans = [
            asked(given, self._recommended, self._chosen, self._ignored) for _, given, *_ in rows
        ]
        seen: Counter[tuple[Any, ...]] = Counter()
        failed: Counter[str] = Counter()
        read = self.predictor.engine.text
        size = AT_ONCE * self._batch
        for start in range(0, len(rows), size):
            batch: list[tuple[Request, Asked]] = []
            for (context, _, visual, *where), plan in zip(
                rows[start : start + size], plans[start : start + size], strict=True
            ):
                request = self._request(context, visual, where, seen[(*where,)], plan)
                seen[(*where,)] += 1
                batch.append((request, plan))
            found = self.predictor.answer([request for request, _ in batch])
            for answer, (_, plan) in zip(found, batch, strict=True):
                if isinstance(answer, DataError):
                    failed[answer.reason] += 1
                    yield "", answer
                else:
                    yield plan.cut(answer.text, answer.token_ids, read), None
        if failed:
            reasons = ", ".join(f"{reason} {count}" for reason, count in failed.items())
            log.warning(
                "%d of %d requests were not answered: %s", failed.total(), len(rows), reasons
            )

    def _request(
        self, context: str, visual: Any, where: Sequence[Any], number: int, plan: Asked
    ) -> Request:
        """`number`: of the same document's requests, from 0; each draws for itself."""
        doc_id, task, split = where
        images = encoded(visual(self.task_dict[task][split][doc_id]) if callable(visual) else None)
        if context.count(MARK) > 1 and not self._marked:
            self._marked = True
            log.warning("pictures stand before the question, not where the text has %s", MARK)
        return Request(
            context.replace(MARK, "").strip(),
            images,
            seed=row_seed(self._seed, f"{task}:{split}:{doc_id}:{number}"),
            sampler=plan.sampler,
        )

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Of each continuation the bound of its log-likelihood, and whether it is the answer at
        temperature 0.

        For choices the sign is turned: of what models return there, lmms-eval 0.7 takes the
        smallest. Raises SettingsError E1001, DataError E12xx, E13xx.
        """
        plan = asked({"temperature": 0}, self._recommended, self._chosen, self._ignored)
        plan = plan._replace(sampler=plan.sampler.changed({"temperature": 0}))
        answers: dict[tuple[Any, ...], str] = {}
        found = []
        for one in requests:
            if len(one.args) != 6:
                raise SettingsError("E1001", "llada_medv has no acc_mutual_info: drop the metric.")
            context, target, visual, *where = one.args
            doc_id, task, split = where
            is_choice = isinstance(target, str)
            text = target if is_choice else target(self.task_dict[task][split][doc_id])
            request = self._request(context, visual, where, 0, plan)
            value = self.predictor.engine.log_likelihood(request, str(text), self._samples)
            key = (context, *where)
            if key not in answers:
                [answer] = self.predictor.answer([request])
                if isinstance(answer, DataError):
                    raise answer
                answers[key] = answer.text
            found.append((-value if is_choice else value, answers[key] == str(text).strip()))
        return found

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        """Raises NotImplementedError."""
        raise NotImplementedError(
            "llada_medv answers single questions: tasks of output_type generate_until_multi_round "
            "cannot be run."
        )

    def clean(self) -> None:
        """End the image decoder's child processes."""
        self.predictor.close()
        super().clean()
