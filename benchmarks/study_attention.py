r"""Accuracy after each stage of the demonstration, and full, dialogue and prefix attention at equal
steps.

    python jobs/finetune_pathvqa.py --demo --out RUN
    python benchmarks/study_attention.py --run RUN [--seeds 3]

Stage 3 of the demonstration once for each attention and seed (order of the rows and noise), with
the plain engine on one thread; exact match on the demonstration's held-out rows. One JSON line for
each.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import get_args

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch

from benchmarks.circumstances import circumstances
from medv_ray.data import synthetic
from medv_ray.on_ray.tune_demo import HELD_OUT_ROWS, STAGES, exact_match
from medv_ray.settings import TOY
from medv_ray.training import run
from medv_ray.training.check import check
from medv_ray.training.export import export
from medv_ray.training.job import TrainSettings
from medv_ray.training.stages import ShardSettings, StageSettings

ATTENTION = get_args(StageSettings.model_fields["attention"].annotation)


def finetuned(folder: Path, data: Path, stage: StageSettings) -> tuple[Path, float]:
    """The folder that a stage leaves, and the mean loss of its last 25 steps."""
    settings = TrainSettings(
        model=str(TOY),
        data=str(data),
        out=str(folder / "run"),
        stage=stage,
        shard=ShardSettings(engine="plain", dtype="float32"),
        watch=(),
    )
    identity = check(settings)
    run.begin(settings, identity)
    losses = [report.loss for report in run.train_worker(settings, identity)]
    export(settings, folder / "model")
    return folder / "model", sum(losses[-25:]) / 25


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--run", type=Path, required=True, help="folder of the demonstration")
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    known = list(synthetic.rows(HELD_OUT_ROWS, seed=9))
    moved = [synthetic.shifted(row) for row in known]
    stages = [("shipped toy", TOY)]
    stages += [(folder.name, folder / "model") for folder in sorted(args.run.glob("stage*"))]
    for name, model in stages:
        found = {"known": exact_match(model, known), "shifted": exact_match(model, moved)}
        print(json.dumps({"study": "stages", "after": name, **found, **circumstances()}))
    for attention in ATTENTION:
        for seed in range(args.seeds):
            folder = Path(tempfile.mkdtemp())
            stage = STAGES[-1].model_copy(update={"attention": attention, "seed": seed})
            model, loss = finetuned(folder, args.run / "data" / "shifted", stage)
            found = {"loss": round(loss, 5), "shifted": exact_match(model, moved)}
            shutil.rmtree(folder)
            said = {"study": "attention", "attention": attention, "seed": seed, **found}
            print(json.dumps({**said, **circumstances()}), flush=True)


if __name__ == "__main__":
    main()
