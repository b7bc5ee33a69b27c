"""`medv tune`, `medv sweep`, `medv attention`: sampler settings side by side over the same rows."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medv_ray.cli import options
from medv_ray.cli.terminal import print_json
from medv_ray.errors import SettingsError

if TYPE_CHECKING:
    from medv_ray.evaluation.tables import Cells
    from medv_ray.on_ray.options import ScoreSettings

Option = typer.Option
Text = str | None


def tune_command(
    archive: Annotated[Text, Option(help="Your rows, or a prepared dataset.")] = None,
    model: options.Model = None,
    out: Annotated[Text, Option(help="Folder; the same line goes on.")] = None,
    agree: Annotated[float, Option(help="Least share of rows answered as by exact.")] = 0.99,
    rows: Annotated[int, Option(help="Rows to look at, drawn at random.")] = 1000,
    verify: Annotated[int, Option(help="Further rows, to check the pick on.")] = 0,
    level: Annotated[float, Option(help="Of the lower bound, for all candidates.")] = 0.95,
    sample_seed: options.SampleSeed = 0,
    split: options.Split = "test",
    questions: options.AsScore = None,
    question: options.AsScore = None,
    images: options.AsScore = None,
    id_column: options.AsScore = None,
    image_column: options.AsScore = None,
    question_column: options.AsScore = None,
    answer_column: options.AsScore = None,
    choices_column: Annotated[Text, Option(help="As for `medv score`; not scored here.")] = None,
    max_cell_bytes: Annotated[int | None, Option(help="As for `medv score`.")] = None,
    limit: Annotated[int | None, Option(help="Rows are drawn from the first so many.")] = None,
    encoding: options.AsScore = None,
    config: options.Config = None,
    assignments: options.Sets = None,
    num_gpus: options.OnGpu = None,
    cpus: options.Cpus = None,
    as_json: Annotated[bool, Option("--json", help="results.json instead of a table.")] = False,
) -> None:
    """The fastest settings whose answers are those of `exact`, on a sample of your own rows."""
    from medv_ray.cli import score_settings
    from medv_ray.on_ray.tune import TuneSettings, tune
    from medv_ray.settings import build

    asked = {
        "agree": agree, "rows": rows, "verify": verify, "level": level,
        "sample_seed": sample_seed, "split": split,
    }  # fmt: skip
    wanted = build(TuneSettings, asked)
    flags = {
        "out": out,
        "archive": {
            "archive": archive, "questions": questions, "question": question, "images": images,
            "id_column": id_column, "image_column": image_column,
            "question_column": question_column, "answer_column": answer_column,
            "choices_column": choices_column, "limit": limit,
            "encoding": encoding, "max_cell_bytes": max_cell_bytes,
        },
        "model": {"path": model},
        "pool": {"num_gpus": num_gpus, "cpus_per_actor": cpus},
    }  # fmt: skip
    settings = local(score_settings(config, flags, assignments or []))
    found = tune(settings, wanted, say=lambda line: typer.echo(line, err=True))
    if as_json:
        print_json(found)
        return
    from medv_ray.evaluation.tables import tune_table

    show(tune_table(found))
    for line in conclusion(found):
        typer.echo(line)


def sweep_command(
    model: Annotated[
        list[str] | None, Option(help="Checkpoint folder; of scaling, one each: 0.25=FOLDER.")
    ] = None,
    data: Annotated[Text, Option(help="A prepared dataset, or an archive.")] = None,
    out: Annotated[Text, Option(help="Folder; the same line goes on.")] = None,
    grid: Annotated[str, Option(help="modes, steps, blocks, latency or scaling.")] = "modes",
    rows: Annotated[int | None, Option(help="Drawn at random; default: all.", min=1)] = None,
    sample_seed: options.SampleSeed = 0,
    split: options.Split = "test",
    questions: options.AsScore = None,
    question: options.AsScore = None,
    images: options.AsScore = None,
    config: options.Config = None,
    assignments: options.Sets = None,
    num_gpus: options.OnGpu = None,
    cpus: options.Cpus = None,
    as_json: Annotated[bool, Option("--json", help="results.json instead of a table.")] = False,
) -> None:
    """A grid of sampler settings, or several models, over the same rows: table and plots."""
    from medv_ray.cli import score_settings
    from medv_ray.evaluation.tables import label_table, sweep_table
    from medv_ray.on_ray.sweep import Labelled, Sample, labelled, sweep

    for flag, given in (("model", model), ("data", data)):
        if not given:
            raise SettingsError("E1001", f"--{flag} is missing; `--help` lists all options.")
    models = []
    for label, folder in map(labelled, model or ()):
        flags = {
            "out": out,
            "archive": {
                "archive": data, "questions": questions, "question": question, "images": images,
            },
            "model": {"path": folder},
            "pool": {"num_gpus": num_gpus, "cpus_per_actor": cpus},
        }  # fmt: skip
        settings = score_settings(config, flags, assignments or [])
        models.append(Labelled(label, local(settings)))
    found = sweep(
        grid,
        models,
        Path(models[0].settings.out),
        Sample(rows, sample_seed, split),
        say=lambda line: typer.echo(line, err=True),
    )
    if as_json:
        print_json(found)
        return
    show(sweep_table(found))
    if "by_label" in found:
        show(label_table(found))
    lost = ", ".join(f"{code} {count}" for code, count in found["quarantined"].items())
    typer.echo(
        f"{found['rows']} of {found['input_rows']} rows, sample seed {sample_seed}"
        + (f"; quarantined: {lost}" if lost else "")
    )


def attention_command(
    model: options.Model = None,
    data: Annotated[Text, Option(help="A prepared dataset, an archive, or pictures.")] = None,
    out: Annotated[Text, Option(help="Folder.")] = None,
    question: Annotated[Text, Option(help="One for every picture.")] = None,
    questions: options.AsScore = None,
    rows: Annotated[int, Option(help="Drawn at random.", min=1)] = 32,
    sample_seed: options.SampleSeed = 0,
    split: options.Split = "test",
    assignments: options.Sets = None,
    num_gpus: options.OnGpu = None,
    as_json: Annotated[bool, Option("--json", help="attention.json instead of a table.")] = False,
) -> None:
    """Where response positions look, by layer and step: picture, prompt, or each other."""
    from medv_ray.cli import score_settings
    from medv_ray.on_ray.attention import analyse, table

    if not data:
        raise SettingsError("E1001", "--data is missing; `--help` lists all options.")
    flags = {
        "out": out,
        "archive": {"archive": data, "questions": questions, "question": question},
        "model": {"path": model},
        "pool": {"num_gpus": num_gpus},
    }
    settings = local(score_settings(None, flags, assignments or []))
    say = functools.partial(typer.echo, err=True)
    found = analyse(settings, Path(settings.out), rows, sample_seed, split, say)
    if as_json:
        print_json(found)
        return
    show(table(found))
    lost = ", ".join(f"{code} {count}" for code, count in found["quarantined"].items())
    typer.echo(
        f"{found['rows']} rows, sample seed {sample_seed}"
        + (f"; quarantined: {lost}" if lost else "")
    )


def conclusion(found: dict[str, Any]) -> list[str]:
    """The pick, and what it rests on, in words."""
    bound, agree = found["bound"], found["asked"]["agree"]
    said = [
        f"{found['rows']} of {found['archive_rows']} rows, sample seed "
        f"{found['asked']['sample_seed']}. Lower bounds: {bound['method']}: "
        f"{bound['level']:.0%} for all {bound['candidates']}, {bound['level_of_each']:.2%} each."
    ]
    if found["quarantined"]:
        codes = ", ".join(f"{code} {count}" for code, count in found["quarantined"].items())
        said.append(f"quarantined, not compared: {codes}")
    if found["pick"] != "exact":
        said.append(f"pick: {found['pick']}, {found['speed']:.2f} times as fast as exact.")
    elif found["need"] is None:
        said.append(f"pick: exact. No faster candidate agrees in more than {agree:.2%} of rows.")
    else:
        need = found["need"]
        said.append(
            f"pick: exact. None holds on these rows; {need['name']} would need {need['rows']} rows "
            "if it goes on as it did (--rows)."
        )
    verify, left = found["asked"]["verify"], found["archive_rows"] - found["rows"]
    if found["pick"] != "exact" and left < verify:
        said.append(f"--verify {verify}: only {left} further rows are there.")
    if found["verified"] is not None:
        one = found["verified"]["agreement"]
        codes = ", ".join(f"{a} {b}" for a, b in found["verified"]["quarantined"].items())
        said.append(
            "on rows that the pick has not seen: no row was answered."
            if one is None
            else f"on {one['n']} rows that it has not seen it agrees in {one['mean']:.2%} "
            f"({one['low']:.2%} - {one['high']:.2%})."
        )
        if codes:
            said.append(f"of these quarantined, not compared: {codes}")
    return [*said, "tune.json holds the pick: medv score --config tune.json"]


def local(settings: ScoreSettings) -> ScoreSettings:
    """Settings with whole paths. Raises SettingsError E1001 for an output elsewhere."""
    from medv_ray.archive.store import is_local

    if not is_local(settings.out):
        raise SettingsError("E1001", "--out: a local folder; trials are written row by row.")
    return settings.located(on_cluster=False)


def show(cells: Cells) -> None:
    """A table in the terminal."""
    from rich.console import Console
    from rich.table import Table

    heads, rows = cells
    drawn = Table(box=None, pad_edge=False, header_style="bold")
    for number, head in enumerate(heads):
        drawn.add_column(head, justify="right" if number > 1 else "left")
    for row in rows:
        drawn.add_row(*row)
    console = Console()
    (console if console.is_terminal else Console(width=200)).print(drawn)
