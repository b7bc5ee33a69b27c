"""`medv export-answers` and `medv lmms-tasks`: what other evaluators take from us."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Annotated

import typer

from medv_ray.cli.terminal import print_json

Option = typer.Option


def export_answers_command(
    evaluation: Annotated[Path, typer.Argument(help="Folder of `medv eval`.")],
    out: Annotated[Path, Option(help="Folder of the files.")],
    form: Annotated[str, Option("--format", help="llava-med or medevalkit.")] = "llava-med",
    data: Annotated[
        Path | None,
        Option(help="As for `medv eval`: its training answers are the candidates of llava-med."),
    ] = None,
) -> None:
    """Answers as LLaVA-Med's or MedEvalKit's scripts read them."""
    from medv_ray.evaluation.answer_files import export
    from medv_ray.evaluation.comparison import read_results
    from medv_ray.evaluation.recipes import Recipe
    from medv_ray.on_ray.evaluate import prepared, training_questions

    candidates = {}
    if data is not None:
        found = read_results(evaluation)["recipes"]
        for name, one in found.items():
            source = data / name if len(found) > 1 else data
            folder = prepared(Recipe(**one["recipe"]), source, evaluation / name)
            answers = [one.answer for one in training_questions(folder) if one.kind == "open"]
            candidates[name] = answers
    print_json(export(evaluation, form, out, candidates))


def lmms_tasks_command() -> None:
    """The folder of our tasks, for lmms-eval's --include_path."""
    typer.echo(str(files("medv_ray") / "lmms_eval" / "tasks"))
