"""`medv report` of a folder of `medv eval`: its tables, what confidence is worth, and examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from medv_ray.archive.manifest import flatten, read_manifest
from medv_ray.archive.plan import plan
from medv_ray.archive.results import Choice, input_files, rows_of
from medv_ray.archive.settings import ArchiveSettings
from medv_ray.archive.sources import open_archive
from medv_ray.archive.store import Store
from medv_ray.errors import DataError, RunError, SettingsError
from medv_ray.evaluation import report
from medv_ray.evaluation.comparison import RESULTS, read_answers, read_results
from medv_ray.evaluation.judged_rows import Verdict
from medv_ray.evaluation.metrics import values
from medv_ray.evaluation.pages import rendered
from medv_ray.evaluation.recipes import Question, Recipe, published
from medv_ray.evaluation.stored_calibration import StoredCalibration
from medv_ray.evaluation.trust import trust

MOST_VALUES = 60
"""Rows of a table by group; of those with the fewest questions only the number is said."""
RIGHT_OR_WRONG = frozenset(
    {
        "llava_med.open_contained", "llava_med.closed", "llava_med.closed_gated", "strict.open",
        "strict.closed", "strict.choice", "lmms.slake",
    }
)  # fmt: skip
"""Metrics that are 0 or 1 by their rule; shares of tokens are not, also where they come out so."""
SCORED, QUESTIONS = "scored", "questions.parquet"


def is_evaluation(folder: Path) -> bool:
    """Whether `medv eval` has written there."""
    return (folder / RESULTS).is_file()


def eval_report(
    folder: Path,
    blind: Path | None = None,
    data: Path | None = None,
    stored: StoredCalibration | None = None,
) -> str:
    """HTML of an evaluation.

    `blind`: folder of the same with grey pictures. `data`: what was evaluated, for pictures.
    `stored`: the model's calibration. Raises DataError E1105, E1124, SettingsError E1001.
    """
    results = read_results(folder)
    grey = blind_of(results, blind)
    found = [
        benchmark(folder / name, name, one, grey.get(name, {}), data, stored)
        for name, one in results["recipes"].items()
    ]
    runs = [one["run"] for one in results["recipes"].values()]
    return rendered(
        "eval.html",
        name=folder.resolve().name,
        models=sorted({run["model"] for run in runs if "model" in run}),
        from_files=sorted({run["source"] for run in runs if "source" in run}),
        evaluated=date.fromtimestamp((folder / RESULTS).stat().st_mtime),
        is_blind=results["blind"],
        has_blind=blind is not None,
        has_data=data is not None,
        benchmarks=found,
        stored=stored,
    )


def blind_of(results: Mapping[str, Any], blind: Path | None) -> dict[str, Any]:
    """Figures of the recipes that were also asked with grey pictures.

    Raises SettingsError E1001 for a folder that is none of `medv eval --blind`, DataError E1124 for
    other recipes.
    """
    if blind is None:
        return {}
    grey = read_results(blind)
    if not grey["blind"]:
        raise SettingsError("E1001", "--blind takes a folder of `medv eval --blind`.")
    for name, one in grey["recipes"].items():
        ours = results["recipes"].get(name)
        if ours is not None and any(ours[key] != one[key] for key in ("recipe_sha256", "n")):
            raise DataError("E1124", f"{name}: the blind run asked other questions, or otherwise.")
    found: dict[str, Any] = grey["recipes"]
    if not found.keys() & results["recipes"].keys():
        raise DataError("E1124", "the two folders have no benchmark in common.")
    return found


def benchmark(
    folder: Path,
    name: str,
    one: Mapping[str, Any],
    grey: Mapping[str, Any],
    data: Path | None,
    stored: StoredCalibration | None,
) -> dict[str, Any]:
    """What the page says of one recipe's results."""
    rows = published()["vqa"]["rows"] if one.get("own_split", True) else []
    paper: dict[str, Any] = next((row for row in rows if row["model"] == "LLaDA-MedV"), {})
    chosen = (one.get("choices") or {}).get("accuracy")
    lines = [
        {
            "kind": kind,
            "ours": cell,
            "paper": paper.get(name, {}).get(kind),
            "majority": one.get("majority", {}).get(kind),
            "question_only": one.get("question_only", {}).get(kind),
            "blind": grey.get("headline", {}).get(kind),
            "choices": chosen if kind == "closed" else None,
        }
        for kind, cell in one["headline"].items()
    ]
    return {
        "name": name,
        "lines": lines,
        "digest": one["recipe_sha256"],
        "whole": one["whole"],
        "own_split": one.get("own_split", True),
        "n": one["n"],
        "words": one["answer_words"],
        "variant": one["recipe"]["variant"],
        "kinds": [(kind, cell["metric"]) for kind, cell in one["headline"].items()],
        "groups": [
            (group, *largest(values))
            for group, values in one["groups"].items()
            if group != "answer_kind"  # the headline has these
        ],
        "metrics": one["metrics"],
        "settings": settings_of(folder, one),
        **answers_of(folder, one, data, stored),
    }


def largest(
    values: Mapping[str, Mapping[str, Any]],
) -> tuple[list[tuple[str, Mapping[str, Any]]], int]:
    """The values of a group with the most questions, each with its cells by metric, and how many
    are not shown."""
    rows = sorted(
        values.items(), key=lambda row: (-sum(cell["n"] for cell in row[1].values()), row[0])
    )
    return rows[:MOST_VALUES], max(0, len(rows) - MOST_VALUES)


def answers_of(
    folder: Path, one: Mapping[str, Any], data: Path | None, stored: StoredCalibration | None
) -> dict[str, Any]:
    """Of the run that answered: counts, confidence, examples; nothing of these for answers that
    came from a file."""
    run = str(folder / SCORED)
    try:
        names = input_files(run)
    except RunError:
        return {"trust": None, "bars": None, "examples": [], "statuses": [], "reasons": []}
    recipe = Recipe(**one["recipe"])
    found = report.count(rows_of(run, Choice()), verdicts(recipe, *read_answers(folder)))
    stored, unused = report.fitting(stored, read_manifest(Store(run)) or {})
    groups = report.groups_of(found)
    if data is not None:
        settings = ArchiveSettings(archive=str(folder / QUESTIONS), images=str(data))
        planned = plan(open_archive(settings), "report")
        groups = [(title, report.with_pictures(cards, names, planned)) for title, cards in groups]
    kinds = [(kind, cell["metric"]) for kind, cell in one["headline"].items()]
    return {
        "trust": trust(found.judged, stored),
        "unused": unused,
        "graded": [pair for pair in kinds if pair[1] in RIGHT_OR_WRONG],
        "ungraded": [pair for pair in kinds if pair[1] not in RIGHT_OR_WRONG],
        "bars": found.bars,
        "examples": groups,
        "statuses": found.statuses.most_common(),
        "reasons": found.reasons.most_common(),
    }


def verdicts(
    recipe: Recipe, questions: Sequence[Question], answers: Mapping[str, str]
) -> dict[str, Verdict]:
    """By id, whether an answer is right by the recipe's own metric; of kinds whose metric says of
    no answer that it is right or wrong there are none."""
    names = {"open": recipe.open_metric, "closed": recipe.closed_metric}
    rows = [one.judged(answers[one.id]) for one in questions]
    return {
        key: Verdict(kind, bool(value))
        for kind, name in names.items()
        if name in RIGHT_OR_WRONG
        for key, value in values([row for row in rows if row.kind == kind], [name])[name].items()
    }


def verdicts_of(run: str) -> dict[str, Verdict]:
    """Of a run that `medv eval` has made, EVALUATION/NAME/scored; none of another. Raises DataError
    E1105."""
    folder = Path(run).parent
    if Path(run).name != SCORED or not is_evaluation(folder.parent):
        return {}
    one = read_results(folder.parent)["recipes"].get(folder.name)
    return {} if one is None else verdicts(Recipe(**one["recipe"]), *read_answers(folder))


def settings_of(folder: Path, one: Mapping[str, Any]) -> Sequence[tuple[str, str]]:
    """The recipe and what answered, one a line."""
    lines = {f"recipe.{name}": value for name, value in flatten(dict(one["recipe"])).items()}
    if "source" in one["run"]:  # the recipe's sampler made nothing here
        lines = {name: value for name, value in lines.items() if "sampler" not in name}
    lines |= {f"run.{name}": value for name, value in flatten(dict(one["run"])).items()}
    manifest = read_manifest(Store(str(folder / SCORED))) if (folder / SCORED).is_dir() else None
    return [
        ("recipe_sha256", one["recipe_sha256"]),
        *((name, value.strip('"')) for name, value in lines.items()),
        *(report.settings_of(manifest) if manifest else ()),
    ]
