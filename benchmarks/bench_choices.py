r"""Closed questions by choices against free answers: accuracy, forward passes, answers a second.

    python benchmarks/bench_choices.py [--model DIR --data PREPARED] [--rows 400] [--timed 100]
        [--repeats 5] [--length 24]

The toy on synthetic tiles, or a model on the test split of a dataset that `jobs/prepare_vqa.py` has
prepared: the questions whose answer is yes or no. One process, one thread, L = B = Z = `--length`.
`exact` and `fast` answer freely; an answer counts when it is the reference, letters' case and a dot
aside. `choices` is the form {{answer:choice=yes|no}}, one pass a question; `likelihood` is
`Engine.choose`, what `medv eval` scores. First all rows are answered by every arm; then a repeat
takes the first `--timed` of them with each arm in turn, every time with a fresh engine whose
decoder has started: decoding, vision tower, denoising. Accuracies with 95 % intervals (bootstrap
over rows).
Prints one JSON line.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from circumstances import circumstances
from medv_ray.data import synthetic
from medv_ray.data.canvas import Template
from medv_ray.data.dataset import Dataset
from medv_ray.data.prompts import load_tokenizer
from medv_ray.engine import Answer, Engine, Predictor, Request
from medv_ray.evaluation.recipes import questions_of
from medv_ray.evaluation.statistics import interval
from medv_ray.model import weights
from medv_ray.settings import TOY, AnswerSettings, EngineSettings, SamplerSettings

CHOICES = ("yes", "no")
FORM = Template.choosing(CHOICES)
PACK_BYTES = 512 * 2**10


class Row(NamedTuple):
    """A closed question."""

    question: str
    images: tuple[bytes, ...]
    answer: str


def tiles(count: int) -> list[Row]:
    """Synthetic questions that are answered by yes or no."""
    made = synthetic.rows(20 * count, 3, split="validation")
    closed = [Row(one.question, (one.image,), one.answer) for one in made if one.answer in CHOICES]
    return closed[:count]


def prepared(folder: str, count: int) -> list[Row]:
    """The first questions of a dataset's test split that are answered by yes or no."""
    dataset = Dataset.open(folder, "test")
    closed = [one for one in questions_of(dataset) if one.answer.lower() in CHOICES][:count]
    return [
        Row(one.question, tuple(dataset.image(d) for d in one.images), one.answer.lower())
        for one in closed
    ]


def said(text: str) -> str:
    """An answer as it is compared."""
    return text.strip().rstrip(".").lower()


class Arms:
    """Ways to answer, by name: rows to texts and forward passes."""

    def __init__(self, model: str, length: int) -> None:
        folder = Path(model)
        self._tokenizer = load_tokenizer(folder)
        size = len(self._tokenizer)
        self._model = weights.load(folder, dtype=torch.float32, device="cpu", logit_size=size)
        self._model.pack(PACK_BYTES)
        self._length = length
        self.all: dict[str, Callable[[Predictor, Sequence[Row]], tuple[list[str], int]]] = {
            "exact": _free,
            "fast": _free,
            "choices": _choices,
            "likelihood": _likelihood,
        }

    def predictor(self, name: str) -> Predictor:
        """A fresh engine for an arm."""
        preset = "fast" if name == "fast" else "exact"
        n = self._length
        sampler = SamplerSettings(preset=preset, gen_length=n, block_length=n, steps=n)  # type: ignore[arg-type]
        answer = AnswerSettings(sampler=sampler)
        return Predictor(Engine(self._model, self._tokenizer, answer, EngineSettings()))


def _answered(
    predictor: Predictor, rows: Sequence[Row], form: Template | None
) -> tuple[list[str], int]:
    ended = predictor.answer([Request(r.question, r.images, template=form) for r in rows])
    answers = [one for one in ended if isinstance(one, Answer)]
    if len(answers) < len(rows):
        raise SystemExit("wrong result, not timed: a row was refused")
    return [one.text for one in answers], sum(one.forward_passes for one in answers)


def _free(predictor: Predictor, rows: Sequence[Row]) -> tuple[list[str], int]:
    return _answered(predictor, rows, None)


def _choices(predictor: Predictor, rows: Sequence[Row]) -> tuple[list[str], int]:
    texts, passes = _answered(predictor, rows, FORM)
    if not {*texts} <= {*CHOICES}:
        raise SystemExit("wrong result, not timed: an answer is none of the choices")
    return texts, passes


def _likelihood(predictor: Predictor, rows: Sequence[Row]) -> tuple[list[str], int]:
    found = [predictor.engine.choose(Request(r.question, r.images), CHOICES) for r in rows]
    best = [max(one, key=lambda c: c.log_likelihood).text for one in found]
    return best, len(rows)  # one token each: one pass


def main() -> None:
    """Prints one JSON line."""
    asked = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    asked.add_argument("--model", default=str(TOY))
    asked.add_argument("--data")
    asked.add_argument("--rows", type=int, default=400)
    asked.add_argument("--timed", type=int, default=100)
    asked.add_argument("--repeats", type=int, default=5)
    asked.add_argument("--length", type=int, default=24)
    given = asked.parse_args()
    torch.set_num_threads(1)
    rows = prepared(given.data, given.rows) if given.data else tiles(given.rows)
    made = Arms(given.model, given.length)
    arms = made.all
    figures: dict[str, dict[str, Any]] = {}
    for name, arm in arms.items():
        with made.predictor(name) as predictor:
            texts, passes = arm(predictor, rows)
        right = [float(said(text) == row.answer) for text, row in zip(texts, rows, strict=True)]
        found = interval(np.array(right))
        figures[name] = {
            "accuracy": round(statistics.mean(right), 4),
            "interval": [round(found.low, 4), round(found.high, 4)],
            "forward_passes": round(passes / len(rows), 2),
        }
    times: dict[str, list[float]] = {name: [] for name in arms}
    timed = rows[: given.timed]
    for _ in range(given.repeats):
        for name, arm in arms.items():
            with made.predictor(name) as predictor:
                arm(predictor, rows[-1:])
                start = time.perf_counter()
                arm(predictor, timed)
                times[name].append(time.perf_counter() - start)
    for name, took in times.items():
        ratios = [a / b for a, b in zip(times["exact"], took, strict=True)]
        figures[name] |= {
            "answers_per_s": round(len(timed) / statistics.median(took), 2),
            "times_exact": round(statistics.median(ratios), 2),
            "range": [round(min(ratios), 2), round(max(ratios), 2)],
        }
    about = {
        "rows": len(rows),
        "length": given.length,
        "data": "synthetic" if not given.data else "prepared",
    }
    print(json.dumps({**about, **circumstances(), "arms": figures}))


if __name__ == "__main__":
    main()
