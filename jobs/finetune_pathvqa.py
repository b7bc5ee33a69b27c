r"""Finetune a checkpoint folder on a prepared dataset, one stage of the papers at a time.

On a cluster, from the repository root; all paths on storage that its nodes share:

    ray job submit --address http://HEAD:8265 --runtime-env cluster/runtime_env.yaml -- \
        python jobs/finetune_pathvqa.py --model /shared/md_sft/model --data /shared/pathvqa \
        --out /shared/pathvqa-run --num-workers 4 --num-gpus 1

The stage is LLaDA-MedV's for PathVQA; `--stage` takes another (docs/training.md lists them), and
`--set stage.lr=1e-6` any setting. The dataset is made by jobs/prepare_vqa.py. Out: checkpoints/,
events.jsonl, curves.svg, TensorBoard's files, and model/, the folder that scoring and the next
stage load, with a model card. Run the same line again after a crash: it goes on from the last
checkpoint. Ctrl-C and SIGTERM save first. `--validate-every 500` looks at the validation split
every 500 updates (`--set validation.patience=3` ends a stage that gets no better).

`--demo [--out DIR]` shows three stages at toy size on two CPU workers, in minutes.
`--recipe pathvqa-small --data DIR --out DIR` trains a model of 1.7 million weights from nothing on
PathVQA, on two CPU workers: something real for settings, calibration and reports to be tried on.

Exit codes: 0 done, 1 not all steps were done (the same line goes on), 2 settings, base or data are
not right (nothing was started), 3 the run folder is of another run, 4 another job trains there, 5
disk full. The last line of stdout is one JSON object.
"""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from medv_ray.cli import merged, options, read_yaml, told_cleanly
from medv_ray.errors import SettingsError
from medv_ray.on_ray import pathvqa_small
from medv_ray.on_ray.train import Trained, train
from medv_ray.on_ray.tune_demo import HELD_OUT_ROWS, run_tune_demo
from medv_ray.settings import build, override
from medv_ray.training.job import TrainSettings
from medv_ray.training.stages import RECIPES
from medv_ray.training.watch import Event

Option = typer.Option
Text = str | None
DEFAULT_STAGE = "sd_sft_pathvqa"


def main(
    out: Annotated[Text, Option(help="Run folder; --demo: finetune-demo.")] = None,
    model: Annotated[Text, Option(help="Checkpoint folder to begin with.")] = None,
    data: Annotated[Text, Option(help="Prepared dataset.")] = None,
    stage: Annotated[str, Option(help=f"One of {', '.join(RECIPES)}.")] = DEFAULT_STAGE,
    config: Annotated[Path | None, Option(help="YAML with settings of the same names.")] = None,
    assignments: Annotated[list[str] | None, Option("--set", help="Any setting.")] = None,
    num_workers: Annotated[int | None, Option(help="Workers.")] = None,
    num_gpus: Annotated[int | None, Option(help="GPUs of a worker: 0 or 1.")] = None,
    validate_every: Annotated[
        int | None, Option("--validate-every", help="Updates between validations.")
    ] = None,
    address: options.Address = None,
    new_run: Annotated[bool, Option("--new-run", help="Remove the run's files first.")] = False,
    take_over: Annotated[
        bool, Option("--take-over", help="Ignore the lock of a job that is surely dead.")
    ] = False,
    demo: Annotated[bool, Option("--demo", help="Three stages at toy size.")] = False,
    recipe: Annotated[Text, Option(help="pathvqa-small: a small model from nothing.")] = None,
) -> int:
    """Train one stage and leave a folder that scoring loads."""
    if demo:
        others = (model, data, config, assignments, num_workers, num_gpus, new_run, take_over)
        others += (validate_every,)
        if any(other not in (None, False) for other in others) or stage != DEFAULT_STAGE:
            raise SettingsError(
                "E1001", "--demo has settings of its own: only --out and --address."
            )
        return show_demo(Path(out or "finetune-demo"), address)
    if recipe is not None:
        return make_small(recipe, data, out, num_workers, address)
    settings = settings_of(locals())
    done = train(settings, new_run, take_over, address, show)
    tell({"summary": "done" if done.whole else "stopped", **summary_of(done)})
    return 0 if done.whole else 1


def settings_of(given: dict[str, Any]) -> TrainSettings:
    """Of this job's options, by their names. Raises SettingsError E1001."""
    stage, config = given["stage"], given["config"]
    if stage not in RECIPES:
        raise SettingsError("E1001", f"--stage {stage[:40]!r}: one of {', '.join(RECIPES)}.")
    flags = {
        "model": given["model"],
        "data": given["data"],
        "out": given["out"],
        "workers": {"num_workers": given["num_workers"], "num_gpus": given["num_gpus"]},
        "validation": {"every": given["validate_every"]},
    }
    values: dict[str, Any] = {"stage": RECIPES[stage].model_dump(mode="json")}
    values = merged(merged(values, read_yaml(config) if config else {}), flags)
    values = override(values, given["assignments"] or [])
    for name in ("model", "data", "out"):
        if not values.get(name):
            raise SettingsError("E1001", f"--{name} is missing; `--help` lists all options.")
    return build(TrainSettings, values)


def show_demo(out: Path, address: Text) -> int:
    result = run_tune_demo(out, address=address, tell=show)
    if not result.tuned:
        stages = {name: summary_of(done) for name, done in result.stages.items()}
        tell({"summary": "stopped", "stages": stages})
        return 1
    for name, scores in (("base", result.base), ("tuned", result.tuned)):
        kinds = ", ".join(f"{kind} {share:.3f}" for kind, share in scores.items())
        print(f"{name}: exact match on {HELD_OUT_ROWS} held-out rows: {kinds}")
    print(
        f"score it: python jobs/score_archive.py --model {result.model} "
        f"--archive {result.archive} --out {out / 'scored'}"
    )
    tell(
        {
            "summary": "done",
            "stages": {name: summary_of(done) for name, done in result.stages.items()},
            "exact_match": {"base": result.base["overall"], "tuned": result.tuned["overall"]},
        }
    )
    return 0


def make_small(recipe: str, data: Text, out: Text, num_workers: int | None, address: Text) -> int:
    if recipe != "pathvqa-small" or not data or not out:
        raise SettingsError("E1001", "--recipe pathvqa-small takes --data and --out.")
    made = pathvqa_small.make(
        Path(data), Path(out), num_workers=num_workers or 2, address=address, tell=show
    )
    stages = {name: summary_of(done) for name, done in made.stages.items()}
    tell({"summary": "stopped" if made.model is None else "done", "stages": stages})
    return int(made.model is None)


def summary_of(done: Trained) -> dict[str, Any]:
    return {**done._asdict(), "seconds": round(done.seconds, 1)}


def show(stage: str, event: Event) -> None:
    """A line for a terminal, or one of JSON for a log."""
    if sys.stdout.isatty():
        print(f"{stage}  {event}", flush=True)
    else:
        tell({"stage": stage, **event.progress()})


def tell(line: dict[str, Any]) -> None:
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
    app.command(help=main.__doc__)(told_cleanly(main))
    app()
