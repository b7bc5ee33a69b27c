"""`medv eval`, `medv compare` and `medv judge`: benchmarks whose figures can be repeated."""

from __future__ import annotations

import sys
from contextlib import closing, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medv_ray.cli import options
from medv_ray.cli.rows import PIPE_WIDTH
from medv_ray.cli.terminal import print_json
from medv_ray.errors import SettingsError

if TYPE_CHECKING:
    from rich.table import Table

Option = typer.Option
Text = str | None
BASELINES = (("majority", "majority"), ("question only", "question_only"))
"""Titles of columns, and their keys in results.json."""
SHOWN = 20
"""Questions without scores that are named."""


def eval_command(
    out: Annotated[Path, Option(help="Folder of the evaluation; the same line goes on.")],
    suite: Annotated[str, Option(help="medvqa, or one: vqa-rad, slake, pathvqa ...")] = "medvqa",
    data: Annotated[
        Path | None, Option(help="Prepared dataset or release; of a suite, a folder of these.")
    ] = None,
    model: options.Model = None,
    predictions: Annotated[
        Path | None, Option(help="Answers by id in place of a model: jsonl.")
    ] = None,
    partial: Annotated[
        bool, Option("--partial", help="Take answers that lack ids or have others.")
    ] = False,
    any_split: Annotated[
        bool, Option("--any-split", help="Take a split that is not the recipe's.")
    ] = False,
    blind: Annotated[bool, Option("--blind", help="Every picture grey: a baseline.")] = False,
    prompt: Annotated[Text, Option(help="In the recipe's place: '{question} Be brief.'")] = None,
    choices: Annotated[
        bool, Option("--choices/--no-choices", help="Score closed questions' allowed answers too.")
    ] = True,
    limit: options.FirstQuestions = None,
    assignments: options.SamplerSets = None,
    num_gpus: options.NumGpus = 0,
    max_actors: options.MaxActors = None,
    groups: Annotated[
        bool, Option("--groups", help="Tables by question type, organ, modality, if known.")
    ] = False,
    as_json: Annotated[bool, Option("--json", help="results.json instead of a table.")] = False,
    address: options.Address = None,
) -> None:
    """Open recall and closed accuracy as the papers count them, with intervals and baselines."""
    from medv_ray.evaluation.recipes import recipes_of
    from medv_ray.on_ray.evaluate import EvalSettings, evaluate
    from medv_ray.on_ray.options import PoolSettings
    from medv_ray.settings import ModelSettings, SamplerSettings, build, model_folder, override

    chosen = recipes_of(suite)
    if data is None and any(recipe.dataset != "synthetic" for recipe in chosen):
        raise SettingsError("E1001", "--data is missing.")
    if prompt is not None:
        if "{question}" not in prompt:
            raise SettingsError("E1001", "--prompt must say where the {question} stands.")
        if any("{options}" in one.prompt for one in chosen) and "{options}" not in prompt:
            raise SettingsError("E1001", "--prompt must say where the {options} stand.")
        if "{options}" in prompt.partition("{question}")[0]:
            raise SettingsError("E1001", "--prompt: {options} must follow the {question}.")
        chosen = [recipe.model_copy(update={"prompt": prompt}) for recipe in chosen]
    if not choices:
        chosen = [recipe.model_copy(update={"choices": None}) for recipe in chosen]
    if assignments:
        for number, recipe in enumerate(chosen):
            given = recipe.sampler.model_dump() if recipe.sampler else {}
            asked = override({"sampler": given}, assignments)
            if asked.keys() != {"sampler"}:
                raise SettingsError("E1001", "--set takes sampler settings here: sampler.steps=32.")
            changed = {"sampler": build(SamplerSettings, asked["sampler"])}
            chosen[number] = recipe.model_copy(update=changed)
    settings = EvalSettings(
        data=data or Path(),
        out=out,
        model=ModelSettings(path=model_folder(model)) if model else None,
        predictions=predictions,
        partial=partial,
        any_split=any_split,
        blind=blind,
        limit=limit,
        pool=PoolSettings(num_gpus=num_gpus, max_actors=max_actors),
    )
    with redirect_stdout(sys.stderr if as_json else sys.stdout):  # the progress
        found = evaluate(chosen, settings, address)
    if as_json:
        print_json(found)
        return
    from rich.console import Console

    console = Console() if sys.stdout.isatty() else Console(width=PIPE_WIDTH)
    console.print(table_of(found))
    for table in tables_by_group(found) if groups else ():
        console.print(table)
    for name, one in found["recipes"].items():
        typer.echo(f"{name}: recipe {one['recipe_sha256'][:16]}, {said(one['run'])}")
        typer.echo(f"{name}: answers have {in_words(one['answer_shape'])}")


def table_of(found: dict[str, Any]) -> Table:
    """Ours, the paper's and the baselines' figure of each benchmark, in percent."""
    from rich.table import Table

    from medv_ray.evaluation.recipes import published

    rows = published()["vqa"]["rows"]
    paper = next(row for row in rows if row["model"] == "LLaDA-MedV")
    drawn = Table(box=None, pad_edge=False, header_style="bold")
    names = ("benchmark", "questions", "metric", "n", "ours", "95 %", "paper")
    for name in (*names, *(title for title, _ in BASELINES), "by choices"):
        drawn.add_column(
            name, justify="right" if name not in ("benchmark", "questions") else "left"
        )
    for name, one in found["recipes"].items():
        for kind, cell in one["headline"].items():
            own = one.get("own_split", True)
            theirs = paper.get(name, {}).get(kind) if own else None
            guesses = [one.get(key, {}).get(kind) for _, key in BASELINES]
            scored = (one.get("choices") or {}).get("accuracy") if kind == "closed" else None
            drawn.add_row(
                name + remark(one) + (", blind" * found["blind"]),
                kind,
                cell["metric"],
                str(cell["n"]),
                f"{100 * cell['mean']:.2f}",
                f"{100 * cell['low']:.2f} - {100 * cell['high']:.2f}",
                "-" if theirs is None else f"{theirs:.2f}",
                *("-" if one is None else f"{100 * one['mean']:.2f}" for one in guesses),
                by_choices(scored),
            )
    return drawn


def remark(one: dict[str, Any]) -> str:
    """What makes a figure no other one's equal."""
    if not one.get("own_split", True):
        return " (another split)"
    return "" if one["whole"] else " (a part)"


def by_choices(found: dict[str, Any] | None) -> str:
    """Accuracy of the likeliest choice in percent, its interval, and of how many questions."""
    if found is None:
        return "-"
    low, high = 100 * found["low"], 100 * found["high"]
    return f"{100 * found['mean']:.2f} ({low:.2f} - {high:.2f}; {found['n']})"


def tables_by_group(found: dict[str, Any]) -> list[Table]:
    """Of each benchmark and group, the headline's metrics of its values in percent, the most
    frequent value first."""
    from rich.table import Table
    from rich.text import Text

    drawn = []
    for name, one in found["recipes"].items():
        for group, values in one["groups"].items():
            table = Table(
                box=None, pad_edge=False, header_style="bold", title=f"{name}, by {group}",
                title_justify="left",
            )  # fmt: skip
            table.add_column(group)
            metrics = [(kind, cell["metric"]) for kind, cell in one["headline"].items()]
            for kind, _ in metrics:
                for title in (f"n, {kind}", kind, "95 %"):
                    table.add_column(title, justify="right")
            order = sorted(values, key=lambda value: (-_count(values[value]), value))
            for value in order:
                cells = [_cells(values[value].get(metric)) for _, metric in metrics]
                table.add_row(Text(value), *(text for three in cells for text in three))
            drawn.append(table)
    return drawn


def _count(of: dict[str, Any]) -> int:
    return sum(cell["n"] for cell in of.values())


def _cells(cell: dict[str, Any] | None) -> tuple[str, str, str]:
    if cell is None:
        return "-", "-", "-"
    low, high = 100 * cell["low"], 100 * cell["high"]
    return str(cell["n"]), f"{100 * cell['mean']:.2f}", f"{low:.2f} - {high:.2f}"


def said(run: dict[str, Any]) -> str:
    """What answered, and its counts, in words."""
    shown = {name: value for name, value in run.items() if name != "model_sha256"}
    return ", ".join(f"{name} {value}" for name, value in shown.items() if value is not None)


def in_words(shape: dict[str, Any]) -> str:
    """Length and repetition of answers."""
    text = f"{shape['words']:.1f} words on average, {shape['words_most']} at most"
    again = shape["repeated_words"]
    return text if again is None else f"{text}; {again:.1%} of an answer's words are repeated"


def compare_command(
    first: Annotated[Path, typer.Argument(help="Folder of `medv eval`.")],
    second: Annotated[Path, typer.Argument(help="Another one, of the same recipes.")],
    shared: Annotated[
        bool, Option("--shared", help="Only the questions that both have (one was a part).")
    ] = False,
) -> None:
    """The first minus the second, question by question: interval and McNemar's p."""
    from medv_ray.evaluation.comparison import compare

    print_json(compare(first, second, shared))


def judge_command(
    questions: Annotated[Path, Option(help="jsonl of the 193 questions, or of the same form.")],
    answers: Annotated[Path, Option(help="Answers by id: jsonl.")],
    out: Annotated[Path, Option(help="Folder of the reviews; the same line goes on.")],
    url: Annotated[str, Option(help="The judge: any endpoint like OpenAI's.")],
    judge: Annotated[str, Option(help="Its model's name.")],
    template: Annotated[
        Path | None, Option("--judge-template", help="The task in your own words.")
    ] = None,
    yes: Annotated[bool, Option("--yes", help="Send questions, captions and answers.")] = False,
) -> int:
    """Open-ended answers rated by a judge beside the reference's; sends nothing without --yes."""
    from medv_ray.evaluation import judge_reviews
    from medv_ray.evaluation.judge import Judge
    from medv_ray.evaluation.judge_questions import TASK, read_pairs
    from medv_ray.evaluation.predictions import read_predictions

    pairs = read_pairs(questions, read_predictions(answers))
    try:
        task = template.read_text("utf-8-sig") if template else TASK
    except (OSError, ValueError) as error:
        kind = type(error).__name__
        raise SettingsError("E1001", f"--judge-template cannot be read ({kind}).") from None
    with closing(Judge(url, judge, out, task)) as asker:
        todo = asker.todo(pairs)
        given = asker.estimate(todo)
        typer.echo(
            f"{given.questions} of {len(pairs)} questions go to {given.host}, with captions and "
            f"answers: about {given.prompt_tokens:,} tokens in and {given.reply_tokens:,} out.",
            err=True,
        )
        if empty := judge_reviews.empty_answers(pairs):
            typer.echo(f"{empty} of {len(pairs)} answers are empty; they are judged so.", err=True)
        if todo and not yes:
            raise SettingsError("E1001", "--yes sends them.")
        for number, _ in enumerate(asker.review(pairs) if todo else (), 1):
            if number % 10 == 0:
                typer.echo(f"{number} of {len(todo)}", err=True)
    reviews = judge_reviews.read_reviews(out)
    found = judge_reviews.summary(pairs, reviews)
    if unscored := judge_reviews.unscored(pairs, reviews):
        few = ", ".join(unscored[:SHOWN]) + (" ..." if len(unscored) > SHOWN else "")
        typer.echo(
            f"{len(unscored)} of {len(pairs)} questions have no scores: {few}. "
            "The same line asks them again.",
            err=True,
        )
    print_json(found)
    return int(not found["groups"])
