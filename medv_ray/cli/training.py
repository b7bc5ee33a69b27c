"""`medv plan train` and `medv data preview`: looks at a training job before there is one."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from medv_ray.cli.terminal import print_json, told_cleanly
from medv_ray.errors import RunError, SettingsError

if TYPE_CHECKING:
    from medv_ray.model.config import ModelConfig

Option = typer.Option
Text = str | None

plan_app = typer.Typer(no_args_is_help=True, help="What a job would take; nothing is allocated.")


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
        made = [plan_json(*pair) for pair in zip(plans, found, strict=True)]
        print_json({"plans": made} if table else made[0])
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
    from medv_ray.settings import model_folder

    if model == "llada-medv":
        return ModelConfig()
    folder = Path(model_folder(model)).absolute()
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


data_app = typer.Typer(no_args_is_help=True, help="Look at prepared datasets.")


@data_app.command("preview")
@told_cleanly
def data_preview_command(
    data: Annotated[Path, Option(help="Folder that jobs/prepare_vqa.py wrote.")],
    split: Annotated[str, Option(help="train, validation or test.")] = "train",
    rows: Annotated[int, Option(help="Rows on the page, spread evenly.", min=1, max=1000)] = 20,
    out: Annotated[Path, Option(help="The page.")] = Path("preview.html"),
    model: Annotated[str, Option(help="Checkpoint folder whose tokenizer is used.")] = "toy",
    template: Annotated[str, Option(help="llada, plain (alignment) or pairs.")] = "llada",
    system: Annotated[str, Option(help="System sentence: general, medical, none.")] = "general",
    seed: Annotated[int, Option(help="Of the noise.", min=0, max=2**31 - 1)] = 0,
) -> None:
    """Show image, tokens, targets and one noised sample of training rows as an HTML page."""
    from medv_ray.data.conversations import Template
    from medv_ray.data.dataset import Dataset
    from medv_ray.data.prompts import load_tokenizer
    from medv_ray.settings import PromptSettings, build, model_folder
    from medv_ray.training.preview import preview

    known = {name: name for name in get_args(Template)}
    if template not in known:
        text = f"--template {template[:20]!r}: one of {', '.join(known)}."
        raise SettingsError("E1001", text)
    prompt = build(PromptSettings, {"system": system, "token_after_image": "training"})
    dataset = Dataset.open(data, split)
    page = preview(
        dataset, load_tokenizer(model_folder(model)),
        num_rows=rows, seed=seed, template=known[template], prompt=prompt,
    )  # fmt: skip
    try:
        out.write_text(page, encoding="utf-8")
    except OSError as error:
        kind = type(error).__name__
        raise RunError("E1511", f"{out.name} could not be written ({kind}).") from None
    typer.echo(f"{min(rows, len(dataset))} of {len(dataset)} rows in {out}")
