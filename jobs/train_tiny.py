r"""Train the embedded toy checkpoint on synthetic tiles: nothing -> medv_ray/assets/medv-tiny.

    python jobs/train_tiny.py --out medv_ray/assets/medv-tiny

Three stages through Ray Train and ZeRO-3, each from the folder of the one before: captions; then
captions and bare question-answer pairs, in which every target has to be read off the picture; then
the chat template, in which a tile is also described in a sentence. The same line goes on after a
crash; remove `--work` to start over. The same seed, number of workers and kind of CPU give the same
bits. One long file on purpose: tokenizer, data, stages and card of one asset, which nothing else
uses.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from medv_ray.data import synthetic, toy_questions
from medv_ray.data.conversations import on_one_image
from medv_ray.data.dataset_writer import Row, write_dataset
from medv_ray.data.new_tokenizer import write_tokenizer
from medv_ray.data.prompts import SYSTEM_SENTENCES
from medv_ray.data.tissue import Scene
from medv_ray.engine import Answer, Predictor, Request
from medv_ray.model import weights
from medv_ray.model.config import LanguageConfig, ModelConfig, VisionConfig
from medv_ray.model.fresh import fresh, padded_vocab
from medv_ray.model.medv import Medv
from medv_ray.model.new_folder import new_folder
from medv_ray.on_ray.cluster import running_ray
from medv_ray.on_ray.train import train
from medv_ray.settings import AnswerSettings, ModelSettings, SamplerSettings
from medv_ray.training.job import MODEL, TrainSettings, WorkerSettings
from medv_ray.training.stages import ShardSettings, StageSettings
from medv_ray.training.watch import StepEvent

SAMPLER = SamplerSettings(gen_length=8, block_length=8, steps=8)
LONG_SAMPLER = SamplerSettings(gen_length=24, block_length=24, steps=24)
"""Holds a caption too, which has 16 to 20 tokens."""
NUM_CAPTIONS = 3
HELD_OUT_ROWS = 900
NUM_TILES = 3000
BLANK_SHARE = 0.04
"""Of the tiles: shown as plain grey, with the questions of the tile that is not seen. So the model
has an answer of the right kind where there is nothing to see."""
NUM_PAIRS = 10
PAIR_WEIGHTS = (3, 1, 1, 2, 3)
"""How often each of QUESTION_TYPES is asked: yes/no and presence have most questions to learn."""

EVERY_STAGE: dict[str, Any] = {
    "trainable": ("projector", "language", "vision"),
    "batch_size": 64,
    "micro_batch_size": 32,
    "epochs": 1000,  # max_steps ends a stage
    "betas": (0.9, 0.98),
    "weight_decay": 0.01,
    "gradient_checkpointing": False,
}
STAGES = (
    StageSettings(
        name="captions", lr=2e-3, max_steps=900, warmup_ratio=0.1, template="plain", **EVERY_STAGE
    ),
    StageSettings(name="pairs", lr=2e-3, max_steps=2400, template="pairs", **EVERY_STAGE),
    StageSettings(
        name="chat",
        lr=1e-3,
        max_steps=2400,
        targets="answers",
        answer_fill=(SAMPLER.gen_length, LONG_SAMPLER.gen_length),
        fill_token="end_of_turn",
        token_after_image="reference",
        **EVERY_STAGE,
    ),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--out", type=Path, required=True, help="folder to write; weights in it are replaced"
    )
    parser.add_argument("--work", type=Path, default=Path("train-tiny"), help="data and stages")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--num-workers", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(1)  # products of the toy's size are too small to share
    seconds = train_folder(args.work, args.out, STAGES, args.seed, args.num_workers)
    scores = evaluate(args.out, args.seed + 1)
    print(json.dumps(scores))
    card = model_card(STAGES, scores, seconds / 60, args.seed, args.num_workers)
    (args.out / "README.md").write_text(card)


def train_folder(
    work: Path,
    out: Path,
    stages: Sequence[StageSettings],
    seed: int,
    num_workers: int,
    num_tiles: int = NUM_TILES,
) -> float:
    """Data, a fresh model and the stages in `work`; the last one's folder in `out`. Returns the
    seconds of the stages."""
    data = write_data(work, seed, num_tiles)
    model = work / "fresh"
    if not model.exists():
        make_folder(model, seed)
    seconds = 0.0
    with running_ray(None):
        for number, (stage, rows) in enumerate(zip(stages, data, strict=True), 1):
            settings = TrainSettings(
                model=str(model),
                data=str(rows),
                out=str(work / f"stage{number}-{stage.name}"),
                stage=stage.model_copy(update={"seed": seed}),
                shard=ShardSettings(dtype="float32"),
                workers=WorkerSettings(num_workers=num_workers),
            )
            done = train(settings, tell=show)
            if not done.whole:
                raise SystemExit("stopped; the same line goes on")
            seconds += done.seconds
            model = Path(settings.out) / MODEL
    out.mkdir(parents=True, exist_ok=True)
    for file in model.iterdir():
        shutil.copyfile(file, out / file.name)
    return seconds


def show(stage: str, event: StepEvent) -> None:
    print(json.dumps({"stage": stage, **event.progress()}), flush=True)


def write_data(work: Path, seed: int, num_tiles: int) -> list[Path]:
    """The prepared datasets of the stages, made where they are missing."""
    folders = []
    for make in (captions, pairs, chat):
        name = make.__name__
        folders.append(work / "data" / name)
        if not folders[-1].exists():
            (work / "data").mkdir(parents=True, exist_ok=True)
            made = make(list(tiles(seed, num_tiles)), np.random.default_rng(seed))
            write_dataset(folders[-1], name, {"train": made}, licence="Apache-2.0")
    return folders


def tiles(seed: int, number: int) -> Iterator[synthetic.Row]:
    """Tiles to ask about, the first of them grey."""
    rows = synthetic.rows(number, seed, split="train", per_image=1)
    grey = synthetic.grey_image()
    for index, row in enumerate(rows):
        yield replace(row, image=grey) if index < round(BLANK_SHARE * number) else row


def captions(shown: Sequence[synthetic.Row], rng: np.random.Generator) -> Iterator[Row]:
    """Each tile with a caption that names every attribute."""
    for tile in shown:
        yield row(tile, "caption", [("", ",".join(tile.attributes.values()))])


def pairs(shown: Sequence[synthetic.Row], rng: np.random.Generator) -> Iterator[Row]:
    """Each tile with its caption once, and four times with NUM_PAIRS questions."""
    yield from captions(shown, rng)
    shares = np.array(PAIR_WEIGHTS) / sum(PAIR_WEIGHTS)
    for tile in shown:
        for number in range(4):
            kinds = rng.choice(len(PAIR_WEIGHTS), NUM_PAIRS, p=shares)
            yield row(tile, f"pairs{number}", [ask(tile, int(kind), rng) for kind in kinds])


def chat(shown: Sequence[synthetic.Row], rng: np.random.Generator) -> Iterator[Row]:
    """Each tile with two dialogues of a question of each type, with four single questions, and with
    NUM_CAPTIONS captions. Nine rows: of an even number each kind would always be filled to the same
    length."""
    for tile in shown:
        for number in range(2):
            kinds = rng.permutation(len(toy_questions.QUESTION_TYPES))
            yield row(tile, f"all{number}", [ask(tile, int(kind), rng) for kind in kinds])
            for kind in kinds[:2]:
                yield row(tile, f"one{number}{kind}", [ask(tile, int(kind), rng)])
        sentence = Scene(**tile.attributes, seed=()).caption()
        for number in range(NUM_CAPTIONS):
            yield row(tile, f"caption{number}", [(synthetic.CAPTION_QUESTION, sentence)])


def ask(tile: synthetic.Row, kind: int, rng: np.random.Generator) -> tuple[str, str]:
    """A true question and its answer; every answer that the tile allows is as likely."""
    true = toy_questions.true_of(tile.attributes)
    words = true[toy_questions.QUESTION_TYPES[kind]] or true["colour"]
    answer = list(words)[rng.integers(len(words))]
    return words[answer][rng.integers(len(words[answer]))], answer


def row(tile: synthetic.Row, name: str, turns: Sequence[tuple[str, str]]) -> Row:
    return Row(f"{tile.id}-{name}", (tile.image,), on_one_image(turns))


def make_folder(folder: Path, seed: int) -> None:
    """A folder of the published form with fresh weights."""
    with new_folder(folder, 2**22) as partial:
        tokenizer = make_tokenizer(partial)
        weights.save(make_model(len(tokenizer), seed), partial)
        config = json.loads((partial / "config.json").read_text())
        config["medv_defaults"] = SAMPLER.model_dump(
            include={"gen_length", "block_length", "steps"}
        )
        weights.write_json(partial / "config.json", config)


def make_tokenizer(out: Path) -> PreTrainedTokenizerFast:
    """A system sentence and most questions become one token, which keeps the toy's sequences short;
    other text falls back to smaller pieces, down to bytes."""
    targets = [
        target for kind in toy_questions.QUESTION_TYPES for target in toy_questions.targets(kind)
    ]
    texts = [target.question for target in targets] * 3 + [target.answer for target in targets] * 10
    texts += [value for values in toy_questions.ATTRIBUTES.values() for value in values] * 20
    texts += [text for text in SYSTEM_SENTENCES.values() if text] * 60
    texts += ["system", "user", "assistant", "\n\n"] * 40
    return write_tokenizer(out, texts, vocab_size=700)


def make_model(num_tokens: int, seed: int) -> Medv:
    """A fresh model."""
    language = LanguageConfig(
        vocab_size=padded_vocab(num_tokens),
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        rope_theta=10_000.0,  # sequences of 50: at LLaDA's 500,000 most pairs would hardly turn
    )
    vision = VisionConfig(
        hidden_size=64,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=32,
        patch_size=8,
    )
    config = ModelConfig(language, vision, "square", (), "spatial_unpad", max_length=512)
    return fresh(config, num_tokens, seed)


def evaluate(folder: Path, seed: int) -> dict[str, dict[str, float]]:
    """Exact match by type on held-out rows: questions at 8 tokens; questions and captions at 24
    tokens, the same in one step, and the same with grey pictures. "questions" is all but captions.
    """
    rows = list(synthetic.rows(HELD_OUT_ROWS, seed, split="validation", captions=True))
    grey = [replace(row, image=synthetic.grey_image()) for row in rows]
    asked = {
        "8 tokens": ([row for row in rows if row.question_type != "caption"], SAMPLER),
        "24 tokens": (rows, LONG_SAMPLER),
        "24 in one step": (rows, LONG_SAMPLER.model_copy(update={"steps": 1})),
        "24, grey": (grey, LONG_SAMPLER),
    }
    with Predictor.load(ModelSettings(path=str(folder)), AnswerSettings(sampler=SAMPLER)) as toy:
        return {name: exact_match(toy, *given) for name, given in asked.items()}


def exact_match(
    toy: Predictor, rows: Sequence[synthetic.Row], sampler: SamplerSettings
) -> dict[str, float]:
    answers = toy.answer([Request(row.question, (row.image,), sampler=sampler) for row in rows])
    kinds = ("questions", *toy_questions.QUESTION_TYPES, "caption")
    hits: dict[str, list[bool]] = {kind: [] for kind in kinds}
    for row, answer in zip(rows, answers, strict=True):
        right = isinstance(answer, Answer) and answer.text == row.answer
        hits[row.question_type].append(right)
        if row.question_type != "caption":
            hits["questions"].append(right)
    return {kind: round(sum(found) / len(found), 4) for kind, found in hits.items() if found}


def model_card(
    stages: Sequence[StageSettings],
    scores: dict[str, dict[str, float]],
    minutes: float,
    seed: int,
    num_workers: int,
) -> str:
    """README.md of the folder."""
    steps = [stage.max_steps or 0 for stage in stages]
    rows = [["type", *scores], ["---"] * (1 + len(scores))]
    for kind in scores["24 tokens"]:
        found = [columns.get(kind) for columns in scores.values()]
        rows.append([kind, *("" if share is None else f"{share:.3f}" for share in found)])
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in rows)
    return f"""# medv-tiny

A toy of the real folder format: LLaDA-V's layout and key names, 0.6 M parameters, for tests and
demonstrations. It knows synthetic tissue tiles (`medv_ray/data/synthetic.py`) and nothing else: no
medical image, no medical text. Licence: Apache-2.0, as the repository; no other weights went in.

Made in {minutes:.0f} minutes on a CPU by

    python jobs/train_tiny.py --out FOLDER --seed {seed} --num-workers {num_workers}

through Ray Train and DeepSpeed ZeRO-3, with the noise and the 1/p-weighted loss of LLaDA-V:
{sum(steps)} steps of {stages[0].batch_size} rows on {NUM_TILES} tiles in three stages: captions
({steps[0]} steps), captions and bare question-answer pairs ({steps[1]}), and the chat template
({steps[2]}), with what is answered as only targets: short answers, filled up to 8 or 24 tokens, and
those of "{synthetic.CAPTION_QUESTION}", a sentence of 16 to 20 tokens, filled up to 24.
Prompts have the form of inference: the general system sentence, no newline after the image. Made
for gen_length = block_length = steps = 8, and for 24, which a description needs.

Exact match on {HELD_OUT_ROWS} questions, and on the captions of their tiles, which share no picture
with training:

{table}

Answers are balanced: the majority answer is right for half of the yes/no and presence questions and
for a quarter of the others. "In one step" is gen_length = block_length = 24 with steps = 1: no
token is told by another one of the answer.
"""


if __name__ == "__main__":
    main()
