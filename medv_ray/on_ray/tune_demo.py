"""Three stages at toy size: the mechanism of stages 1 and 2, and a finetune that must teach.

Stages 1 and 2 take a few steps on captions and dialogues, each from the folder of the one before.
Stage 3 begins with the shipped toy and learns another laboratory's tiles and wording, which the toy
answers wrongly (`synthetic.shifted`).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

from medv_ray.archive.accuracy import normal
from medv_ray.data import synthetic, toy_questions
from medv_ray.data.conversations import on_one_image
from medv_ray.data.dataset_writer import Row, write_dataset
from medv_ray.engine import Answer, Predictor, Request
from medv_ray.on_ray.cluster import running_ray
from medv_ray.on_ray.options import checkpoint_defaults
from medv_ray.on_ray.train import Tell, Trained, train
from medv_ray.settings import TOY, AnswerSettings, ModelSettings, SamplerSettings
from medv_ray.training.job import MODEL, TrainSettings, WorkerSettings
from medv_ray.training.stages import ShardSettings, StageSettings

HELD_OUT_ROWS = 300
TRAIN_TILES = 600
CHAT: dict[str, Any] = {
    "batch_size": 32,
    "micro_batch_size": 16,
    "answer_fill": 8,
    "fill_token": "end_of_turn",
    "token_after_image": "reference",
    "gradient_checkpointing": False,
}
STAGES = (
    StageSettings(
        name="alignment",
        trainable=("projector",),
        lr=1e-3,
        batch_size=32,
        micro_batch_size=16,
        epochs=2,
        template="plain",
        gradient_checkpointing=False,
    ),
    StageSettings(name="md_sft", lr=1e-4, epochs=2, **CHAT),
    StageSettings(
        name="sd_sft",
        trainable=("projector", "language", "vision"),
        lr=6e-4,
        epochs=5,
        warmup_ratio=0.05,
        weight_decay=0.01,
        targets="answers",
        **CHAT,
    ),
)


class Tuned(NamedTuple):
    """What the demonstration shows."""

    stages: dict[str, Trained]
    base: dict[str, float]
    """Exact match of the shipped toy on the other laboratory's held-out rows, overall and by type
    of question."""
    tuned: dict[str, float]
    """The same after stage 3."""
    model: Path
    """The folder that stage 3 left."""
    archive: Path
    """The held-out rows, for `jobs/score_archive.py`."""


def run_tune_demo(
    folder: Path,
    stages: tuple[StageSettings, ...] = STAGES,
    num_workers: int = 2,
    address: str | None = None,
    tell: Tell = lambda stage, event: None,
) -> Tuned:
    """Prepare, train and export each stage, then compare. Run again, it goes on where it was.

    A stage that was stopped ends it without scores.
    """
    torch.set_num_threads(1)  # products of the toy's size are too small to share
    write_data(folder)
    done: dict[str, Trained] = {}
    model = TOY
    with running_ray(address):
        for number, stage in enumerate(stages, 1):
            begins_with = TOY if stage is stages[-1] else model
            out = folder / f"stage{number}-{stage.name}"
            settings = TrainSettings(
                model=str(begins_with),
                data=str(folder / "data" / DATA[number - 1]),
                out=str(out),
                stage=stage,
                shard=ShardSettings(dtype="float32", persist_below=1000),
                workers=WorkerSettings(num_workers=num_workers),
                save_every=100,
            )
            done[stage.name] = train(settings, address=address, tell=tell)
            model = out / MODEL
            if not done[stage.name].whole:
                return Tuned(done, {}, {}, model, folder / HELD_OUT)
    rows = [synthetic.shifted(row) for row in synthetic.rows(HELD_OUT_ROWS, seed=9)]
    base, tuned = exact_match(TOY, rows), exact_match(model, rows)
    return Tuned(done, base, tuned, model, folder / HELD_OUT)


DATA = ("captions", "dialogues", "shifted")
HELD_OUT = Path("held-out", "questions.parquet")


def write_data(folder: Path) -> None:
    """The prepared datasets of the stages, and the held-out rows as an archive to score."""
    for name, make in zip(DATA, (captions, dialogues, questions), strict=True):
        if not (folder / "data" / name).exists():
            (folder / "data").mkdir(parents=True, exist_ok=True)
            write_dataset(folder / "data" / name, name, {"train": make()}, licence="Apache-2.0")
    archive = folder / HELD_OUT
    if not archive.exists():
        archive.parent.mkdir(parents=True, exist_ok=True)
        synthetic.write_archive(archive, HELD_OUT_ROWS, seed=9, shift=True)


def captions() -> Iterator[Row]:
    """Tiles with the sentence that names all they show."""
    for row in synthetic.rows(64, split="train", per_image=1, captions=True):
        if row.question_type == "caption":
            yield _row(row, [(row.question, row.answer)])


def dialogues() -> Iterator[Row]:
    """Tiles with one question of each type."""
    rows = list(synthetic.rows(64 * 5, split="train", per_image=5))
    for first in range(0, len(rows), 5):
        turns = [(row.question, row.answer) for row in rows[first : first + 5]]
        yield _row(rows[first], turns)


def questions(num_tiles: int = TRAIN_TILES) -> Iterator[Row]:
    """Tiles of the other laboratory: a dialogue of a tile's four questions, and two of them as rows
    of their own, in the form of inference.

    Four, as a tile of which all five kinds are asked must show a vessel, whose side is asked.
    """
    rows = map(synthetic.shifted, synthetic.rows(num_tiles * 4, 8, split="train", per_image=4))
    for number, four in enumerate(zip(*[rows] * 4, strict=True)):
        yield _row(four[0], [(row.question, row.answer) for row in four], f"{four[0].id}-all")
        for row in (four[number % 4], four[(number + 2) % 4]):
            yield _row(row, [(row.question, row.answer)])


def _row(row: synthetic.Row, turns: list[tuple[str, str]], name: str | None = None) -> Row:
    kind = row.question_type if row.question_type in toy_questions.QUESTION_TYPES else None
    return Row(
        name or row.id,
        (row.image,),
        on_one_image(turns),
        question_type=kind if len(turns) == 1 else None,
    )


def exact_match(model: Path, rows: list[synthetic.Row]) -> dict[str, float]:
    """Share of rows that a folder answers as they are answered, overall and by type."""
    sampler = SamplerSettings(**checkpoint_defaults(str(model))["sampler"])
    settings = AnswerSettings(sampler=sampler)
    with Predictor.load(ModelSettings(path=str(model), device="cpu"), settings) as predictor:
        answers = predictor.answer([Request(row.question, (row.image,)) for row in rows])
    hits: dict[str, list[bool]] = {"overall": []}
    for row, answer in zip(rows, answers, strict=True):
        hit = isinstance(answer, Answer) and normal(answer.text) == normal(row.answer)
        hits["overall"].append(hit)
        hits.setdefault(row.question_type, []).append(hit)
    return {kind: round(sum(found) / len(found), 4) for kind, found in hits.items()}
