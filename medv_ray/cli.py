"""The `medv` command. Heavy packages are imported by the command that needs them."""

from __future__ import annotations

import functools
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ParamSpec

import typer

from medv_ray import __version__
from medv_ray.errors import MedvError, RunError, SettingsError, explain

if TYPE_CHECKING:
    from medv_ray.model.config import ModelConfig
    from medv_ray.on_ray.options import ScoreSettings
    from medv_ray.on_ray.score import Outcome

P = ParamSpec("P")
MAX_CONFIG_BYTES = 2**20
app = typer.Typer(
    no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False,
    help="Masked-diffusion answers about biomedical images.",
)  # fmt: skip


def exit_code_of(call: Callable[[], int | None]) -> int:
    """Run; errors become one line on stderr. MEDV_DEBUG=1 shows where they come from."""
    # so does Ray's own handler while it runs; a lock in an object store is let go of on the way
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        return call() or 0
    except KeyboardInterrupt:
        told, code = "interrupted; what was committed is kept.", 128 + signal.SIGINT
    except SystemExit:
        told, code = "terminated; what was committed is kept.", 128 + signal.SIGTERM
    except Exception as error:
        if os.environ.get("MEDV_DEBUG"):
            raise
        kind = type(error).__name__
        told, code = f"E1509: unexpected {kind}; MEDV_DEBUG=1 shows where.", 1
        if isinstance(error, MedvError):
            told, code = str(error), error.exit_code
    typer.echo(told, err=True)
    from medv_ray.on_ray.cluster import leave

    leave(code)
    return code


def told_cleanly(command: Callable[P, int | None]) -> Callable[P, None]:
    """A command that ends with `exit_code_of` itself."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        code = exit_code_of(lambda: command(*args, **kwargs))
        if code:
            raise typer.Exit(code)

    return run


Option = typer.Option
Text = str | None


def score_command(
    archive: Annotated[Text, Option(help="File, folder, 's3://...' or pattern of rows.")] = None,
    model: Annotated[Text, Option(help="Checkpoint folder, or `toy`, the embedded one.")] = None,
    out: Annotated[Text, Option(help="Run folder, local or s3://, gs://.")] = None,
    questions: Annotated[Text, Option(help="Table of questions: csv, jsonl or json.")] = None,
    question: Annotated[Text, Option(help="One question for every image.")] = None,
    images: Annotated[Text, Option(help="Folder that image paths are relative to.")] = None,
    id_column: Annotated[Text, Option(help="Column of row ids.")] = None,
    image_column: Annotated[Text, Option(help="Column of images or image paths.")] = None,
    question_column: Annotated[Text, Option(help="Column of questions.")] = None,
    answer_column: Annotated[Text, Option(help="Column of known answers, copied.")] = None,
    limit: Annotated[int | None, Option(help="Only the first rows.")] = None,
    config: Annotated[Path | None, Option(help="YAML file of settings; flags win.")] = None,
    assignments: Annotated[
        list[str] | None, Option("--set", help="Any setting: --set sampler.steps=32.")
    ] = None,
    min_actors: Annotated[int | None, Option(help="Actors at the start.")] = None,
    max_actors: Annotated[int | None, Option(help="Actors at most.")] = None,
    num_gpus: Annotated[float | None, Option(help="GPUs of an actor.")] = None,
    cpus_per_actor: Annotated[float | None, Option(help="CPU cores of an actor.")] = None,
    address: Annotated[Text, Option(help="Ray cluster; default RAY_ADDRESS or none.")] = None,
    plan: Annotated[bool, Option("--plan", help="Say what would be done; write nothing.")] = False,
    resume: Annotated[
        bool, Option("--resume/--new-run", help="Go on, or wipe the run folder and start over.")
    ] = True,
    retry_quarantined: Annotated[
        bool, Option("--retry-quarantined", help="Try chunks with quarantined rows again.")
    ] = False,
    allow_mixed: Annotated[
        bool, Option("--allow-mixed", help="Go on though settings, model or input changed.")
    ] = False,
    take_over: Annotated[
        bool, Option("--take-over", help="Ignore the lock of a job that is surely dead.")
    ] = False,
) -> int:
    """Score an archive: every row ends answered, abstained or quarantined."""
    settings = score_settings(
        config,
        {
            "out": out,
            "archive": {
                "archive": archive, "questions": questions, "question": question,
                "images": images, "id_column": id_column, "image_column": image_column,
                "question_column": question_column, "answer_column": answer_column, "limit": limit,
            },
            "model": {"path": model},
            "pool": {
                "min_actors": min_actors, "max_actors": max_actors, "num_gpus": num_gpus,
                "cpus_per_actor": cpus_per_actor,
            },
        },
        assignments or [],
    )  # fmt: skip
    if plan:
        from medv_ray.on_ray.preview import preview

        print_json(preview(settings))
        return 0
    from medv_ray.on_ray.score import Resume, score

    mode = Resume(not resume, allow_mixed, take_over, retry_quarantined)
    outcome = score(settings, mode, address=address)
    print_json(summary_of(outcome, settings))
    return outcome.exit_code


def score_settings(
    config: Path | None, flags: dict[str, Any], assignments: list[str]
) -> ScoreSettings:
    """Checkpoint's recommendations < YAML file < flags < `--set`. Raises SettingsError."""
    from medv_ray.on_ray.demo import TOY
    from medv_ray.on_ray.options import ScoreSettings, checkpoint_defaults
    from medv_ray.settings import build, override

    values = override(merged(read_yaml(config) if config else {}, flags), assignments)
    for field, flag in (("out", "--out"), ("archive", "--archive"), ("model", "--model")):
        if not values.get(field):
            raise SettingsError("E1001", f"{flag} is missing; `--help` lists all options.")
    chosen = values["model"].get("path") if isinstance(values["model"], dict) else None
    if chosen == "toy":
        values["model"]["path"] = str(TOY)
        chosen = str(TOY)
    return build(ScoreSettings, merged(checkpoint_defaults(str(chosen)), values))


def read_yaml(path: Path) -> dict[str, Any]:
    """A file of nested settings. Raises SettingsError E1001."""
    import yaml  # type: ignore[import-untyped]

    def check(node: Any, seen: set[int]) -> None:
        if id(node) in seen:
            raise ValueError("an alias: nested ones grow without bound")
        seen.add(id(node))
        if isinstance(node, yaml.MappingNode):
            names = [name.value for name, _ in node.value]
            if len(set(names)) < len(names):
                raise ValueError("a name is given twice")
        for inner in node.value if isinstance(node, yaml.CollectionNode) else ():
            check(inner[1] if isinstance(inner, tuple) else inner, seen)

    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise ValueError(f"over {MAX_CONFIG_BYTES} bytes")
        text = path.read_text()
        check(yaml.compose(text, yaml.SafeLoader), set())
        found = yaml.safe_load(text)
        json.dumps(found)  # a date, say, is no setting
    except (OSError, UnicodeDecodeError, RecursionError, TypeError, yaml.YAMLError) as error:
        kind = type(error).__name__
        raise SettingsError(
            "E1001", f"--config: {path.name} is no readable YAML ({kind})."
        ) from None
    except ValueError as error:
        raise SettingsError("E1001", f"--config: {path.name}: {error}.") from None
    if not isinstance(found, dict):
        raise SettingsError("E1001", f"--config: {path.name} must hold names and values.")
    return found


def merged(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Nested values; what is None in `over` does not count."""
    result = dict(under)
    for name, value in over.items():
        if isinstance(value, dict):
            below = result.get(name)
            inner = merged(below if isinstance(below, dict) else {}, value)
            if inner:
                result[name] = inner
        elif value is not None:
            result[name] = value
    return result


def summary_of(outcome: Outcome, settings: ScoreSettings) -> dict[str, Any]:
    """The job's last line; `accuracy` is null where it would take long."""
    from medv_ray.on_ray.demo import ACCURACY_ROWS, accuracy

    session, summary = outcome.session, outcome.summary
    told: dict[str, Any] = {
        "summary": "stopped" if summary is None else "done",
        "run": settings.out.rstrip("/").rpartition("/")[2],
        "rows": outcome.total,
    }
    if summary is None:
        told |= {"committed": outcome.committed, "next": "the same command goes on"}
    else:
        told |= {
            "answered": summary.answered,
            "abstained": summary.abstained,
            "quarantined": summary.quarantined,
            "not_scored": summary.not_scored,
            "reasons": summary.reasons,
            "accuracy": accuracy(settings.out) if summary.rows <= ACCURACY_ROWS else None,
        }
    return told | {
        "new_rows": session.rows,
        "seconds": round(session.seconds, 2),
        "start_s": round(session.start_s, 2),
        "rows_per_s": round(session.rate, 2) if session.rows else None,
        "counters": dict(session.counters),
        "worker_deaths": session.deaths,
        "files_not_scored": [*session.skipped_files, *outcome.unreadable],
        "nothing_left": session.rows == 0 and summary is not None,
    }


def print_json(value: dict[str, Any]) -> None:
    """One line, or many for a person."""
    indent = 1 if sys.stdout.isatty() else None
    typer.echo(json.dumps(value, indent=indent))


app.command("score")(told_cleanly(score_command))


plan_app = typer.Typer(no_args_is_help=True, help="What a job would take; nothing is allocated.")
app.add_typer(plan_app, name="plan")


@plan_app.command("train")
@told_cleanly
def plan_train_command(
    stage: Annotated[str, Option(help="A recipe: alignment, md_sft, ...")] = "sd_sft_pathvqa",
    model: Annotated[str, Option(help="Folder with config.json, or `llada-medv`.")] = "llada-medv",
    rows: Annotated[int | None, Option(help="Rows of the data; default: the paper's.")] = None,
    data: Annotated[Path | None, Option(help="Folder of parquet files, counted.")] = None,
    gpus: Annotated[int | None, Option(help="GPUs, all of one kind; default 4.")] = None,
    gpu: Annotated[Text, Option(help="Kind of GPU; default a100-80gb.")] = None,
    assignments: Annotated[
        list[str] | None,
        Option("--set", help="--set stage.micro_batch_size=1, rows.tiles=5, shard...., head."),
    ] = None,
    table: Annotated[bool, Option("--table", help="All of LLaDA-MedV's recipes.")] = False,
    as_json: Annotated[bool, Option("--json", help="Figures as JSON.")] = False,
) -> int:
    """Steps, tokens, hours and memory of a stage of training; exit code 1 if it does not fit."""
    from rich.console import Console

    from medv_ray.training.plan import plan, plan_settings
    from medv_ray.training.plan_text import (
        does_not_fit,
        plan_json,
        plan_view,
        table_plans,
        table_view,
    )
    from medv_ray.training.remedies import remedies

    if (rows is not None) + (data is not None) + table > 1:
        raise SettingsError("E1001", "--rows, --data and --table exclude each other.")
    sets, config = assignments or [], checkpoint_config(model)
    hardware = {"gpus": gpus, "gpu": gpu.lower() if gpu else None}
    num_rows = parquet_rows(data) if data else rows
    if table:
        plans = table_plans(config, hardware, sets)
    else:
        given = {"rows": {"num_rows": num_rows}, "hardware": hardware}
        plans = [plan(plan_settings(stage, given, sets), config)]
    found = [[] if each.fits else remedies(each.settings, config) for each in plans]
    if as_json:
        told = [plan_json(*pair) for pair in zip(plans, found, strict=True)]
        print_json({"plans": told} if table else told[0])
    else:
        console = Console(width=None if sys.stdout.isatty() else 140)
        console.print(table_view(plans) if table else plan_view(plans[0]))
    for each, ways in zip(plans, found, strict=True):
        if not each.fits:
            typer.echo(does_not_fit(each, ways), err=True)
    return int(not all(each.fits for each in plans))


def checkpoint_config(model: str) -> ModelConfig:
    """Sizes of a checkpoint folder, its weights unread, or of LLaDA-MedV.

    Raises CheckpointError.
    """
    from medv_ray.model.config import ModelConfig
    from medv_ray.model.shards import headers, read_json

    if model == "llada-medv":
        return ModelConfig()
    folder = Path(model).absolute()
    raw = read_json(folder, "config.json")
    if not any(folder.glob("*.safetensors")):
        return ModelConfig.from_json(raw)
    return ModelConfig.from_json(raw, {name: x.shape for name, x in headers(folder).items()})


def parquet_rows(folder: Path) -> int:
    """Rows of the parquet files below a folder, of the training split where they are named so.

    Raises SettingsError.
    """
    import pyarrow
    from pyarrow import parquet

    files = sorted(folder.rglob("*.parquet"))
    train = [file for file in files if "train" in file.relative_to(folder).as_posix()]
    if not files:
        raise SettingsError("E1001", f"--data: folder {folder.name!r} has no parquet file.")
    try:
        return sum(parquet.read_metadata(file).num_rows for file in train or files)
    except (OSError, pyarrow.ArrowException) as error:
        kind = type(error).__name__
        raise SettingsError("E1001", f"--data: a file is no readable parquet ({kind}).") from None


@app.command("demo")
@told_cleanly
def demo_command(
    rows: Annotated[int, Option(help="Rows of the synthetic archive.", min=1)] = 600,
    out: Annotated[Path, Option(help="Folder for archive and run.")] = Path("demo-run"),
) -> int:
    """Score a synthetic archive with the embedded toy model, and say what happened."""
    from medv_ray.on_ray.demo import describe, run_demo

    outcome, scores = run_demo(out, rows)
    for line in describe(outcome, scores, out):
        typer.echo(line)
    return outcome.exit_code


@app.command("ask")
@told_cleanly
def ask_command(
    image: Annotated[Path, typer.Argument(help="JPEG, PNG, TIFF, BMP, GIF or WebP.")],
    question: Annotated[str, typer.Argument(help="In plain words.")],
    model: Annotated[str, Option(help="Checkpoint folder; default: the embedded toy.")] = "toy",
    watch: Annotated[bool, Option("--watch", help="Show the answer coming out.")] = False,
    assignments: Annotated[
        list[str] | None, Option("--set", help="A setting: --set sampler.steps=32.")
    ] = None,
) -> None:
    """Ask one question about one image."""
    from medv_ray.on_ray.ask import ask

    if model == "toy":
        typer.echo("the embedded toy answers; --model FOLDER asks a real checkpoint.", err=True)
    ask(image, question, model, assignments or [], watch)


@app.command("doctor")
@told_cleanly
def doctor_command() -> int:
    """Check this machine: versions, CPU, GPU, memory, Ray, the embedded model."""
    from medv_ray.on_ray.doctor import check_all

    faults = 0
    for check in check_all():
        faults += check.state == "fault"
        typer.echo(f"{check.state:5}  {check.name}: {check.told}")
    typer.echo(f"{faults} faults")
    return int(faults > 0)


@app.command("explain")
@told_cleanly
def explain_command(code: Annotated[str, typer.Argument(help="E1203, say.")]) -> None:
    """What an error code means, and the way out."""
    typer.echo(explain(code))


data_app = typer.Typer(no_args_is_help=True, help="Look at prepared datasets.")
app.add_typer(data_app, name="data")


@data_app.command("preview")
@told_cleanly
def data_preview_command(
    data: Annotated[Path, Option(help="Folder that jobs/prepare_vqa.py wrote.")],
    split: Annotated[str, Option(help="train, validation or test.")] = "train",
    rows: Annotated[int, Option(help="Rows on the page, spread evenly.", min=1, max=1000)] = 20,
    out: Annotated[Path, Option(help="The page.")] = Path("preview.html"),
    model: Annotated[str, Option(help="Checkpoint folder whose tokenizer is used.")] = "toy",
    template: Annotated[str, Option(help="llada, or plain as in the alignment stage.")] = "llada",
    system: Annotated[str, Option(help="System sentence: general, medical, none.")] = "general",
    seed: Annotated[int, Option(help="Of the noise.", min=0, max=2**31 - 1)] = 0,
) -> None:
    """Show image, tokens, targets and one noised sample of training rows as an HTML page."""
    from medv_ray.data.dataset import Dataset
    from medv_ray.data.prompts import load_tokenizer
    from medv_ray.settings import PromptSettings, build
    from medv_ray.training.preview import preview

    if template not in ("llada", "plain"):
        raise SettingsError("E1001", f"--template {template[:20]!r}: llada or plain.")
    prompt = build(PromptSettings, {"system": system, "token_after_image": "training"})
    dataset = Dataset.open(data, split)
    page = preview(
        dataset, load_tokenizer(model_folder(model)),
        num_rows=rows, seed=seed, template="plain" if template == "plain" else "llada",
        prompt=prompt,
    )  # fmt: skip
    try:
        out.write_text(page, encoding="utf-8")
    except OSError as error:
        kind = type(error).__name__
        raise RunError("E1511", f"{out.name} could not be written ({kind}).") from None
    typer.echo(f"{min(rows, len(dataset))} of {len(dataset)} rows in {out}")


def model_folder(model: str) -> Path:
    """`toy` is the checkpoint that comes with the package."""
    return Path(__file__).parent / "assets" / "medv-tiny" if model == "toy" else Path(model)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"medv-ray {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Masked-diffusion answers about biomedical images."""


def main() -> None:
    """Entry point of `medv`."""
    app()
