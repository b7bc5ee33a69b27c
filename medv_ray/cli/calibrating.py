"""`medv calibrate` and `medv consistency`: how far an answer can be trusted, on labelled rows."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medv_ray.cli import options
from medv_ray.cli.terminal import print_json
from medv_ray.errors import SettingsError

if TYPE_CHECKING:
    from medv_ray.on_ray.calibrate import Asked

Option = typer.Option
Text = str | None
SPLIT = "validation"


def calibrate_command(
    model: options.Model = None,
    adapter: options.Adapter = None,
    data: Annotated[Path | None, Option(help="Prepared dataset with known answers.")] = None,
    split: Annotated[str, Option(help="Of it.")] = SPLIT,
    run: Annotated[
        Text, Option(help="In place of --data: a run of `medv score` on rows with known answers.")
    ] = None,
    out: Annotated[Path | None, Option(help="Folder; the same line goes on.")] = None,
    target_risk: Annotated[float, Option(help="Share of wrong answers among those given.")] = 0.1,
    method: Annotated[str, Option(help="auto, temperature, logistic or isotonic.")] = "auto",
    store: Annotated[
        bool, Option("--store", help="Put it beside the model, where `medv score` takes it.")
    ] = False,
    limit: options.FirstQuestions = None,
    assignments: options.SamplerSets = None,
    num_gpus: options.NumGpus = 0,
    max_actors: options.MaxActors = None,
    address: options.Address = None,
) -> None:
    """Confidence against right answers; the confidence under which to abstain."""
    from medv_ray.evaluation import calibrating
    from medv_ray.evaluation.calibrators import METHODS
    from medv_ray.evaluation.eval_report import verdicts_of
    from medv_ray.evaluation.judged_rows import judged_rows
    from medv_ray.evaluation.stored_calibration import write_calibration
    from medv_ray.files import write_atomic
    from medv_ray.on_ray import calibrate as job

    if (run is None) == (data is None):
        raise SettingsError("E1001", "give --data or --run, one of them.")
    asking = {
        "--split": split != SPLIT, "--limit": limit, "--set": assignments,
        "--num-gpus": num_gpus, "--max-actors": max_actors,
    }  # fmt: skip
    if run is not None and (useless := [name for name, value in asking.items() if value]):
        said = f"{', '.join(useless)}: only with --data; the rows of --run are answered already."
        raise SettingsError("E1001", said)
    if not 0 < target_risk < 1:
        raise SettingsError("E1001", f"--target-risk {target_risk}: between 0 and 1, as 0.1.")
    if method not in (*METHODS, "auto"):
        raise SettingsError("E1001", f"--method {method[:20]!r}: auto, {', '.join(METHODS)}.")
    if out is None and (run is None or not store):
        raise SettingsError("E1001", "--out is missing.")
    folder = model_of(model, adapter) if model is not None else None
    if store and folder is None:
        raise SettingsError("E1001", "--model is missing: --store writes beside it.")
    if out is not None:
        import_module("medv_ray.evaluation.plots")  # an extra: E1003 before rows are scored
    if run is None:
        if folder is None or out is None or data is None:
            raise SettingsError("E1001", "--model or --out is missing.")
        asked = asked_of(folder, data, split, out, assignments, num_gpus, max_actors, limit)
        with redirect_stdout(sys.stderr):  # the progress
            run = job.score_split(asked, address=address)
        words = f"{split} of {data.name}" + (f", the first {limit}" if limit else "")
    else:
        words = f"the run {run.rstrip('/').rpartition('/')[2]}"
    rows, source = judged_rows(run, verdicts_of(run)), job.origin(run)
    if folder is not None:
        check_model(folder, source.model)
    chosen = next((one for one in METHODS if one == method), None)
    fitted = calibrating.calibrated(rows, target_risk, chosen)
    stored = job.stored_form(source, rows, fitted, target_risk, words)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        write_calibration(out, stored)
        svg = calibrating.charts(rows, fitted, target_risk)
        write_atomic(out / "calibration.svg", svg.encode())
    if store and folder is not None:
        write_calibration(job.store_folder(folder), stored)
    print_json(calibrating.summary(rows, fitted, target_risk) | {"stored": store})


def consistency_command(
    model: Annotated[str, Option(help="Checkpoint folder, or `toy`, the embedded one.")],
    data: Annotated[Path, Option(help="Prepared dataset with known answers.")],
    out: Annotated[Path, Option(help="Folder; the same line goes on. May be calibrate's.")],
    adapter: options.Adapter = None,
    split: Annotated[str, Option(help="Of it.")] = SPLIT,
    answers: Annotated[int, Option(help="Samples of each answer.", min=2)] = 5,
    temperature: Annotated[float, Option(help="Of the samples, above 0.")] = 0.5,
    limit: options.FirstQuestions = None,
    assignments: options.SamplerSets = None,
    num_gpus: options.NumGpus = 0,
    max_actors: options.MaxActors = None,
    address: options.Address = None,
) -> None:
    """Whether samples that agree with an answer tell right from wrong better than confidence."""
    from medv_ray.evaluation.consistency import separation
    from medv_ray.evaluation.judged_rows import judged_rows
    from medv_ray.on_ray import calibrate as job

    if temperature <= 0:
        raise SettingsError("E1001", f"--temperature {temperature}: above 0, or samples are equal.")
    folder = model_of(model, adapter)
    asked = asked_of(folder, data, split, out, assignments, num_gpus, max_actors, limit)
    noisy = asked._replace(sampler=asked.sampler.changed({"temperature": temperature}))
    with redirect_stdout(sys.stderr):  # the progress
        rows = judged_rows(job.score_split(asked, address=address))
        shares = job.agreement(rows, job.score_split(noisy, answers, address))
    print_json(separation(rows, shares) | {"samples": answers, "temperature": temperature})


def model_of(model: str, adapter: str | None) -> Any:
    from medv_ray.settings import ModelSettings, model_folder

    return ModelSettings(
        path=model_folder(model), adapter=None if adapter is None else model_folder(adapter)
    )


def asked_of(
    model: Any,
    data: Path,
    split: str,
    out: Path,
    assignments: list[str] | None,
    num_gpus: float,
    max_actors: int | None,
    limit: int | None,
) -> Asked:
    """A split that is scored as flags say. Raises SettingsError E1001."""
    from medv_ray.on_ray.calibrate import Asked, sampler_of
    from medv_ray.on_ray.options import PoolSettings
    from medv_ray.settings import override

    over = override({"sampler": {}}, assignments or [])
    if over.keys() != {"sampler"}:
        raise SettingsError("E1001", "--set takes sampler settings here: sampler.steps=32.")
    sampler = sampler_of(model, over["sampler"])
    pool = PoolSettings(num_gpus=num_gpus, max_actors=max_actors)
    return Asked(data, split, out, model, sampler, pool, limit)


def check_model(model: Any, digests: tuple[str, str | None]) -> None:
    """Raises SettingsError E1001 where a run was answered by another model."""
    from medv_ray.on_ray.options import model_digests

    if model_digests(model) != digests:
        raise SettingsError("E1001", "--model is not the model that answered --run.")
