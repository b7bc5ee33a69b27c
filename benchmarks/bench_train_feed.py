r"""A training step beside a slow decoder: rows made in the step's own time, and by a thread ahead.

    python benchmarks/bench_train.py --slow-decoder [--steps 6] [--repeats 5]

Set-up: random weights, a language tower of 14 M parameters, the toy's vision tower, frozen; steps
of 8 rows with a picture each, no picture twice. So most of a step is spent in torch, as on a GPU.
The project's decoder, in its child process, with a wait that makes each picture take `share` of
what a row of the step takes (0.5, 1 and 2). Arms, in turn in one process: `step` (rows are there),
`make` (rows alone: read, decoded, through the tower), `own_time` (prefetch_rows=0) and `prefetch`
(16). Before anything is timed, losses of three of them are compared bit by bit.

A figure is seconds of a step; the first step, which waits for the first rows, is left out.
`over_slower` is `prefetch` over the slower of `step` and `make`. Prints one JSON line a share.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from itertools import islice
from pathlib import Path

import torch

from circumstances import circumstances
from medv_ray.data import decode_child, synthetic
from medv_ray.data.conversations import on_one_image
from medv_ray.data.dataset import Dataset
from medv_ray.data.dataset_writer import Row, write_dataset
from medv_ray.data.images import Prepared
from medv_ray.data.prompts import SpecialIds, load_tokenizer
from medv_ray.model import weights
from medv_ray.model.medv import Medv
from medv_ray.settings import TOY
from medv_ray.training import samples as making
from medv_ray.training.checkpoint import Checkpoints
from medv_ray.training.job import TrainSettings
from medv_ray.training.loop import Saving, fit
from medv_ray.training.objective import Sample
from medv_ray.training.order import worker_positions
from medv_ray.training.run import build_model, make_engine, make_objective
from medv_ray.training.samples import Samples
from medv_ray.training.stages import ShardSettings, StageSettings

ROWS, AHEAD = 8, 16
SHARES = (0.5, 1.0, 2.0)
NEVER = 10**9


class SlowDecoder(decode_child.Decoder):
    """The project's, which takes `seconds` more for each picture."""

    seconds = 0.0

    def prepare(self, data: bytes) -> Prepared:
        made = super().prepare(data)
        time.sleep(self.seconds)
        return made


class Bench:
    """One stage on one dataset; each arm begins with the same weights."""

    def __init__(self, folder: Path, num_steps: int) -> None:
        stage = StageSettings(
            name="feed", lr=1e-3, batch_size=ROWS, micro_batch_size=2, warmup_ratio=0,
            gradient_checkpointing=False, seed=1,
        )  # fmt: skip
        self._folder, self._num_steps = folder, num_steps
        write_base(folder / "base")
        self.settings = TrainSettings(
            model=str(folder / "base"), data=str(folder / "data"), out=str(folder / "out"),
            stage=stage, shard=ShardSettings(engine="plain", dtype="float32"),
        )  # fmt: skip
        write_dataset(folder / "data", "feed", {"train": rows(num_steps * ROWS)})
        self._dataset, self._tokenizer = Dataset.open(folder / "data"), load_tokenizer(str(TOY))

    def arm(self, prefetch_rows: int, ready: bool = False) -> tuple[float, list[float]]:
        """Seconds of a step, and the losses. `ready`: rows are made before the first step."""
        stage = self.settings.stage
        model = build_model(self.settings, "cpu")
        made = Samples(self._dataset, self._tokenizer, stage, model, 0)
        special = SpecialIds.of(self._tokenizer)
        engine = make_engine(make_objective(model, special, stage), self.settings)
        saving = Saving(Checkpoints(self._folder / "checkpoints", 1), NEVER, {})
        with closing(made):
            kept = {p: made(p) for p in self._positions()} if ready else {}
            made.prefetch(self._positions(), prefetch_rows)

            def sample(position: int) -> Sample:
                return kept[position] if ready else made(position)

            losses, times = [], []
            for report in islice(fit(engine, sample, stage, NEVER, saving), self._num_steps):
                losses.append(report.loss)
                times.append(time.perf_counter())
        return (times[-1] - times[0]) / (len(times) - 1), losses

    def make(self) -> float:
        """Seconds in which the rows of a step are made, with nothing beside."""
        model = build_model(self.settings, "cpu")
        made = Samples(self._dataset, self._tokenizer, self.settings.stage, model, 0)
        with closing(made):
            found = []
            for position in self._positions():
                made(position)
                found.append(time.perf_counter())
        # the first row waits for the decoder's child process
        return (found[-1] - found[0]) / (len(found) - 1) * ROWS

    def _positions(self) -> Iterator[int]:
        return worker_positions(range(self._num_steps), ROWS, 0, 1)


def write_base(folder: Path) -> None:
    """Random weights with the toy's tokenizer and vision tower."""
    torch.manual_seed(0)
    toy = weights.load(TOY).config
    language = replace(
        toy.language, hidden_size=384, intermediate_size=1536, num_hidden_layers=6,
        num_attention_heads=6, num_key_value_heads=6,
    )  # fmt: skip
    model = Medv(replace(toy, language=language))
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.05)
    weights.save(model, folder, TOY)


def rows(number: int) -> Iterator[Row]:
    for row in synthetic.rows(number, seed=4, per_image=1):
        yield Row(row.id, (row.image,), on_one_image([(row.question, row.answer)]))


def measure(num_steps: int, repeats: int) -> Iterator[dict[str, object]]:
    """Check, then the arms in turn, for each share. Raises SystemExit for other losses."""
    torch.set_num_threads(1)
    making.Decoder = SlowDecoder  # type: ignore[misc]
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), num_steps)
        SlowDecoder.seconds = 0.0
        (_, own), (_, ahead), (alone, ready) = bench.arm(0), bench.arm(AHEAD), bench.arm(0, True)
        if not own == ahead == ready:
            raise SystemExit(f"wrong result, not timed: losses {own} and {ahead}")
        plain = bench.make()
        for share in SHARES:
            SlowDecoder.seconds = max(0.0, (share * alone - plain) / ROWS)
            took: dict[str, list[float]] = {}
            for _ in range(repeats):
                for name, seconds in (
                    ("step", bench.arm(0, True)[0]),
                    ("make", bench.make()),
                    ("own_time", bench.arm(0)[0]),
                    ("prefetch", bench.arm(AHEAD)[0]),
                ):
                    took.setdefault(name, []).append(seconds)
            middle = {name: statistics.median(values) for name, values in took.items()}
            yield {
                "bench": "training_beside_a_slow_decoder",
                "rows": ROWS,
                "steps": num_steps,
                "share": share,
                "step_s": {
                    name: {"median": middle[name], "min": min(values), "max": max(values)}
                    for name, values in took.items()
                },
                "over_slower": middle["prefetch"] / max(middle["step"], middle["make"]),
                "own_time_over_prefetch": middle["own_time"] / middle["prefetch"],
                "losses_equal": True,
                "threads": torch.get_num_threads(),
                **circumstances(),
            }
