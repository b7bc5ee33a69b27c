"""Recipes: all that decides a figure beside the weights, under one digest.

A figure is comparable with another of the same digest, and with no other. LLaVA-Med's numbers could
not be reproduced for lack of this: which split, which words around the question, how many steps,
which rule.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from importlib.resources import files
from string import ascii_uppercase as LETTERS
from typing import Any, Literal, NamedTuple

from medv_ray.archive.strict import kind_of
from medv_ray.data.dataset import Dataset
from medv_ray.errors import DataError, SettingsError
from medv_ray.evaluation.metrics import PUBLISHED, Judged, Kind
from medv_ray.settings import SamplerSettings, Settings

NORMALISER = "llava_med-1"
"""Of `metrics`; a change of a value there changes it, and with it every digest."""
PLACE, OPTIONS = "{question}", "{options}"
LETTERED = "{question}\n{options}\nAnswer with the option's letter from the given choices directly."


class Choices(Settings):
    """Which texts are scored beside the free answer to a closed question."""

    yes_no: tuple[str, str] = ("yes", "no")
    """Where the known answer is one of them."""
    options: Literal["texts", "letters"] = "texts"
    """Of a question whose dataset has its options: these, or the letters before them."""


class Recipe(Settings):
    """One benchmark, as it is asked and counted."""

    name: str
    dataset: str
    """What `prepare_vqa --kind` calls it."""
    variant: str
    """Which of the published versions, in words."""
    split: str = "test"
    rows: int | None = None
    """Questions of the published split; None: any number."""
    closed: int | None = None
    texts_sha256: str | None = None
    """Of the published split's ids, questions, answers and answer types; None: any."""
    prompt: str = PLACE
    """What the model is asked; `{question}` stands for the question, and `{options}` for a line
    for each option with its letter. A question without options ends before these."""
    choices: Choices | None = Choices()
    """None: closed questions are answered freely and nothing else."""
    sampler: SamplerSettings | None = SamplerSettings(gen_length=64, block_length=64, steps=64)
    """None: what the checkpoint recommends."""
    normaliser: str = NORMALISER
    open_metric: str = PUBLISHED[0]
    closed_metric: str = PUBLISHED[1]

    def ask(self, question: str, options: Sequence[str] = ()) -> str:
        """The question in the recipe's words."""
        lines = "\n".join(f"{a}. {one}" for a, one in zip(LETTERS, options, strict=False))
        prompt = self.prompt if options else self.prompt.split(OPTIONS)[0].rstrip("\n")
        pieces = re.split(f"({re.escape(PLACE)}|{re.escape(OPTIONS)})", prompt)
        return "".join({PLACE: question, OPTIONS: lines}.get(piece, piece) for piece in pieces)


class Question(NamedTuple):
    """A question of a split with its known answer."""

    id: str
    images: tuple[str, ...]
    """Digests, for `Dataset.image`."""
    question: str
    answer: str
    kind: str
    """open or closed."""
    groups: dict[str, str]
    """Values by which tables are split: question_type and others."""
    choices: tuple[str, ...] = ()
    """The dataset's own options, the answer among them."""

    @property
    def letter(self) -> str:
        """Of the answer among the choices; empty where there are none, or more than letters."""
        number = self.choices.index(self.answer) if self.choices else 0
        return LETTERS[number] if 0 < len(self.choices) <= len(LETTERS) else ""

    def judged(self, answer: str) -> Judged:
        """With an answer beside it."""
        kind: Kind = "closed" if self.kind == "closed" else "open"
        return Judged(self.id, answer, self.answer, kind, self.choices)


def _multiple_choice(name: str, variant: str, rows: int, split: str = "test") -> Recipe:
    return Recipe(
        name=name,
        dataset=name,
        variant=variant,
        split=split,
        rows=rows,
        prompt=LETTERED,
        choices=Choices(options="letters"),
        closed_metric="strict.choice",
    )


RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            name="vqa-rad",
            dataset="vqa-rad",
            variant="data_RAD's test split: 272 closed, 179 open; answer types as released",
            rows=451,
            closed=272,
            texts_sha256="3fa3e40f82b371100f1be6322211e0bc34d53b687169a0fb18f88ed34f3e3cd0",
        ),
        Recipe(
            name="slake",
            dataset="slake",
            variant="English questions of the test split; answer types as released",
            rows=1061,
            closed=416,
            texts_sha256="24b0837e2d94185bd38eb47593f44370675655616b6c3f5ffd6618239d9f72fa",
        ),
        Recipe(
            name="pathvqa",
            dataset="pathvqa-hf",
            variant="test split of the Hugging Face export; yes and no count as closed",
            rows=6719,
            closed=3362,
            texts_sha256="748e8cabc2d10b6ca0a05267e23a3bba5d575955e69e68e0030352137fbe442f",
        ),
        Recipe(
            name="synthetic",
            dataset="synthetic",
            variant="tiles of medv_ray.data.synthetic, 600 questions; made anew, always the same",
            rows=600,
            sampler=None,
            closed_metric="strict.closed",
            open_metric="strict.open",
        ),
        Recipe(
            name="open-ended",
            dataset="llava-med-qa50",
            variant="LLaVA-Med's 193 questions about 50 pictures; judged by `medv judge`",
            rows=193,
            closed=0,
            texts_sha256="0c7e5d0cb86b72a3fbf041d6840860ed95016614ca57af559c7713a81d6b0c46",
            choices=None,
            sampler=SamplerSettings(gen_length=256, block_length=64, steps=256),
        ),
        _multiple_choice("pmc-vqa", "version 1, test_clean.csv: checked by hand", 2000),
        _multiple_choice("omnimedvqa", "the open-access part, all 42 datasets", 88996),
        _multiple_choice(
            "mmmu-med", "validation split of MMMU's five subjects of medicine", 150, "validation"
        ),
        _multiple_choice("medxpertqa-mm", "MedXpertQA's part with pictures, test split", 2000),
        _multiple_choice("medframeqa", "all questions, of two to five frames each", 2851),
    )
}
SUITES = {
    "medvqa": ("vqa-rad", "slake", "pathvqa"),
    "multiple-choice": ("pmc-vqa", "omnimedvqa", "mmmu-med", "medxpertqa-mm", "medframeqa"),
}


def questions_of(dataset: Dataset) -> list[Question]:
    """Single questions of a split, in order. Raises DataError E1121 for a split of dialogues or
    without answers."""
    found: list[Question] = []
    for example in dataset:
        if len(example.conversations) != 2:
            raise DataError("E1121", f"row {len(found)} of {dataset.split} is a dialogue.")
        asked, answered = (message["value"] for message in example.conversations)
        if example.choices and answered not in example.choices:
            said = f"row {len(found)} of {dataset.split}: the answer is none of its choices."
            raise DataError("E1121", said)
        question = asked.replace("<image>", "").strip()
        kind = kind_of(answered, example.answer_type)
        groups = {"answer_kind": kind}
        if example.question_type:
            groups["question_type"] = example.question_type
        groups |= example.groups
        found.append(
            Question(example.id, example.images, question, answered, kind, groups, example.choices)
        )
    return found


def texts_digest(questions: list[Question]) -> str:
    """sha256 of ids, questions, answers, kinds and choices; pictures are not in it, as copies are
    often recoded."""
    state = hashlib.sha256()
    for one in questions:
        values: list[Any] = [one.id, one.question, one.answer, one.kind]
        values += [one.choices] if one.choices else []
        state.update(json.dumps(values).encode() + b"\n")
    return state.hexdigest()


def check_split(recipe: Recipe, questions: list[Question]) -> None:
    """Raises DataError E1122 where the split is another one than the recipe's."""
    closed = sum(one.kind == "closed" for one in questions)
    for name, want, found in (
        ("questions", recipe.rows, len(questions)),
        ("closed questions", recipe.closed, closed),
        ("the digest", recipe.texts_sha256, texts_digest(questions)),
    ):
        if want is not None and found != want:
            raise DataError("E1122", f"{recipe.name}: {name} {found}, the recipe has {want}.")


def digest(recipe: Recipe, dataset_sha256: str) -> str:
    """sha256 of a recipe and of the rows that it was asked of, pictures included."""
    values = {**recipe.model_dump(mode="json"), "rows_sha256": dataset_sha256}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def recipes_of(suite: str) -> list[Recipe]:
    """Of a suite, or the one of that name. Raises SettingsError E1001."""
    names = SUITES.get(suite, (suite,))
    if not all(name in RECIPES for name in names):
        known = ", ".join((*SUITES, *RECIPES))
        raise SettingsError("E1001", f"--suite {suite[:40]!r}: one of {known}.")
    return [RECIPES[name] for name in names]


def published() -> dict[str, Any]:
    """The papers' tables, with their sources and known misprints."""
    text = (files("medv_ray.evaluation") / "published.json").read_text("utf-8")
    found: dict[str, Any] = json.loads(text)
    return found
