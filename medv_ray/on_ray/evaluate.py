"""A suite of benchmarks: prepare, score through the job that scores archives, count, compare.

RUN/results.json          figures of every recipe
RUN/NAME/dataset/         where a release was given and not a prepared dataset
RUN/NAME/questions.parquet, RUN/NAME/scored/    what is asked, and the run that answers it
RUN/NAME/answers.jsonl    answers by id, in LLaVA-Med's form
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from medv_ray.archive.manifest import read_manifest
from medv_ray.archive.rows import read_run
from medv_ray.archive.settings import ArchiveSettings
from medv_ray.archive.store import Store
from medv_ray.data import synthetic
from medv_ray.data.conversations import on_one_image
from medv_ray.data.dataset import Dataset
from medv_ray.data.dataset_writer import Row, write_dataset
from medv_ray.data.vqa.prepare import prepare
from medv_ray.data.vqa.settings import PrepareSettings
from medv_ray.disk import disk_errors, output_folder
from medv_ray.errors import DataError, RunError, SettingsError
from medv_ray.evaluation import choices, predictions, recipes, results
from medv_ray.evaluation.comparison import ANSWERS, RESULTS
from medv_ray.evaluation.question_only import question_only
from medv_ray.evaluation.recipes import Question, Recipe
from medv_ray.files import write_atomic
from medv_ray.hub import name_of
from medv_ray.on_ray.options import PoolSettings, ScoreSettings, checkpoint_defaults
from medv_ray.on_ray.question_table import image_name, write_once
from medv_ray.on_ray.score import score
from medv_ray.prepared import INDEX
from medv_ray.settings import EngineSettings, ModelSettings, SamplerSettings, build

SYNTHETIC, SYNTHETIC_ROWS = "synthetic", 600


class EvalSettings(NamedTuple):
    """What is evaluated on what."""

    data: Path
    out: Path
    model: ModelSettings | None = None
    predictions: Path | None = None
    """Answers in place of a model."""
    partial: bool = False
    any_split: bool = False
    """Take a split that is not the recipe's; its rows are in the digest."""
    blind: bool = False
    """Every picture is a grey one: what the words of the questions alone give away."""
    limit: int | None = None
    engine: EngineSettings = EngineSettings()
    pool: PoolSettings = PoolSettings()


def evaluate(
    chosen: Sequence[Recipe], settings: EvalSettings, address: str | None = None
) -> dict[str, Any]:
    """Figures of every recipe, as results.json has them.

    Raises SettingsError E1001, DataError E1113 to E1123, and what `score` raises.
    """
    if (settings.model is None) == (settings.predictions is None):
        raise SettingsError("E1001", "give --model or --predictions, one of them.")
    if settings.blind and settings.predictions is not None:
        raise SettingsError("E1001", "--blind greys what a model is shown; --predictions has none.")
    output_folder(settings.out)
    found = {}
    for recipe in chosen:
        found[recipe.name] = _one(recipe, settings, len(chosen) > 1, address)
    whole = {"format": 1, "blind": settings.blind, "recipes": found}
    with disk_errors(RESULTS):
        write_atomic(settings.out / RESULTS, json.dumps(whole, indent=1).encode())
    return whole


def _one(
    recipe: Recipe, settings: EvalSettings, several: bool, address: str | None
) -> dict[str, Any]:
    if recipe.sampler is None and settings.model is not None:  # a digest names what was used
        recommended = checkpoint_defaults(settings.model.path).get("sampler", {})
        sampler = build(SamplerSettings, recommended)
        recipe = recipe.model_copy(update={"sampler": sampler})
    out = settings.out / recipe.name
    folder = prepared(recipe, settings.data / recipe.name if several else settings.data, out)
    dataset = Dataset.open(folder, recipe.split)
    questions = recipes.questions_of(dataset)
    own_split = is_split(recipe, dataset, questions, settings.any_split)
    sha256 = recipes.digest(recipe, dataset.digest)
    if settings.limit is not None:
        questions = questions[: settings.limit]
    train = training_questions(folder)
    if settings.predictions is not None:
        found = predictions.read_predictions(settings.predictions)
        matched = predictions.match(questions, found, settings.partial)
        run: dict[str, Any] = {"source": settings.predictions.name, **_counts(matched)}
        answers, scored = matched.answers, None
    else:
        answers, scored, run = answered(recipe, dataset, questions, settings, out, address)
    write_answers(out / ANSWERS, questions, answers, scored or {})
    candidates = [one.answer for one in train if one.kind == "open"] or None
    figures = results.figures(recipe, questions, answers, candidates)
    if scored is not None and recipe.choices is not None:
        figures["choices"] = choices.figures(recipe, questions, scored)
    most = results.majority(train, lettered=recipes.OPTIONS in recipe.prompt)
    if most:
        guessed = {one.id: most.get(one.kind, "") for one in questions}
        figures["majority"] = results.headline(recipe, questions, guessed)
        guessed = question_only(train, questions)
        figures["question_only"] = results.headline(recipe, questions, guessed)
    return {
        "recipe": recipe.model_dump(mode="json"),
        "recipe_sha256": sha256,
        "whole": settings.limit is None,
        "own_split": own_split,
        "run": run,
        **figures,
    }


def is_split(recipe: Recipe, dataset: Dataset, questions: list[Question], any_split: bool) -> bool:
    """Whether the recipe's own. Raises DataError E1122 for another one, which `any_split` takes,
    and for a benchmark's rows under another one's name, which nothing takes."""
    try:
        recipes.check_split(recipe, questions)
    except DataError as error:
        others = {one.dataset for one in recipes.RECIPES.values()} - {recipe.dataset}
        if (name := dataset.index["name"]) in others:
            said = f"the dataset is {name}, and the recipe {recipe.name}."
            raise DataError("E1122", said) from None
        if not any_split:
            raise error
        return False
    return True


def prepared(recipe: Recipe, source: Path, out: Path) -> Path:
    """The prepared dataset: `source` itself, or what is made of a release there."""
    if (source / INDEX).is_file():
        return source
    folder = out / "dataset"
    if recipe.dataset == SYNTHETIC:
        return synthetic_dataset(folder)
    if not (folder / INDEX).is_file():
        if not source.exists():
            said = f"--data has no {source.name!r}, a prepared dataset or the unpacked release."
            raise SettingsError("E1001", said)
        asked = {"kind": recipe.dataset, "source": str(source), "out": str(folder)}
        prepare(build(PrepareSettings, asked))
    return folder


def synthetic_dataset(folder: Path) -> Path:
    """Made tiles with their questions; the embedded toy knows such."""
    if not (folder / INDEX).is_file():
        folder.parent.mkdir(parents=True, exist_ok=True)
        splits = {
            split: (
                Row(
                    row.id,
                    (row.image,),
                    on_one_image([(row.question, row.answer)]),
                    "closed" if row.answer in ("yes", "no") else "open",
                    row.question_type,
                )
                for row in synthetic.rows(SYNTHETIC_ROWS, split=split)
            )
            for split in ("train", "test")
        }
        write_dataset(folder, SYNTHETIC, splits, licence="Apache-2.0")
    return folder


def training_questions(folder: Path) -> list[Question]:
    """Of the training split, where there is one of single questions: it is for baselines only."""
    if "train" not in json.loads((folder / INDEX).read_bytes())["splits"]:
        return []
    train = Dataset.open(folder, "train")
    try:
        return recipes.questions_of(train)
    except DataError as error:
        if error.code != "E1121":
            raise
        return []


def answered(
    recipe: Recipe,
    dataset: Dataset,
    questions: Sequence[Question],
    settings: EvalSettings,
    out: Path,
    address: str | None,
) -> tuple[dict[str, str], dict[str, choices.Scored], dict[str, Any]]:
    """Answers and scored choices by id from the scoring job, which goes on where it stopped, and
    what it counted."""
    assert settings.model is not None
    table = write_archive(recipe, dataset, questions, out, settings.blind)
    assert recipe.sampler is not None
    asked = ScoreSettings(
        out=str(out / "scored"),
        archive=ArchiveSettings(archive=str(table), images=str(dataset.folder)),
        model=settings.model,
        engine=settings.engine,
        pool=settings.pool,
        sampler=recipe.sampler,
    )
    outcome = score(asked, address=address)
    if outcome.summary is None:
        raise RunError("E1512", "the job was stopped; the same line goes on.")
    answers = {one.id: "" for one in questions}
    scored = {}
    steps = 0
    columns = ["id", "answer", "forward_passes", "choices", "choice_probabilities"]
    for part in read_run(asked.out, columns):
        for row in part.to_pylist():
            answers[row["id"]] = row["answer"] or ""
            steps += row["forward_passes"] or 0
            if row["choices"]:
                given = tuple(row["choices"]), tuple(row["choice_probabilities"])
                scored[row["id"]] = choices.Scored(*given)
    counts = {
        name: getattr(outcome.summary, name) for name in ("answered", "abstained", "quarantined")
    }
    manifest = read_manifest(Store(asked.out))
    assert manifest is not None  # the job has just written it
    model = {
        "model": name_of(settings.model.path),
        "model_sha256": manifest["identity"]["model"]["sha256"],
    }
    return answers, scored, {**model, **counts, "forward_passes": steps}


def write_archive(
    recipe: Recipe, dataset: Dataset, questions: Sequence[Question], out: Path, blind: bool
) -> Path:
    """The questions in the recipe's words, as a parquet file that names the dataset's pictures."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / "questions.parquet"
    columns: dict[str, list[Any]] = {
        "id": [one.id for one in questions],
        "question": [recipe.ask(one.question, one.choices) for one in questions],
        "answer": [one.answer for one in questions],
        "answer_type": [one.kind for one in questions],
    }
    if blind:
        columns["image"] = [[synthetic.grey_image()] * len(one.images) for one in questions]
    else:
        columns["image"] = [[image_name(s) for s in one.images] for one in questions]
    texts = [list(choices.asked(recipe, one)[0]) or None for one in questions]
    if any(texts):
        columns["choices"] = texts
    made = pa.table(columns)
    write_once(path, made)
    return path


def write_answers(
    path: Path,
    questions: Sequence[Question],
    answers: dict[str, str],
    scored: dict[str, choices.Scored],
) -> None:
    """In LLaVA-Med's form; `metadata` holds what it leaves to another file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = []
    for one in questions:
        more = {"reference": one.answer, "kind": one.kind, "groups": one.groups}
        if one.choices:
            more["options"] = list(one.choices)
        if of := scored.get(one.id):
            more["choices"] = dict(zip(of.texts, of.probabilities, strict=True))
        row = {"question_id": one.id, "prompt": one.question, "text": answers[one.id]}
        lines.append(json.dumps({**row, "metadata": more}))
    write_atomic(path, "\n".join([*lines, ""]).encode())


def _counts(matched: predictions.Matched) -> dict[str, int]:
    return {name: getattr(matched, name) for name in ("missing", "extra", "empty")}
