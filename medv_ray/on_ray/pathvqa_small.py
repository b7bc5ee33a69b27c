"""A model of about 1.5 million weights that learns PathVQA from nothing, on two CPU cores.

Its use is a model whose steps matter: it is unsure, reads real pictures at 64 pixels and speaks
PathVQA's own words, so that sampler settings, calibration and reports have something to show. It is
no medical model.

Two stages through Ray Train, each from the folder of the one before: what is to be seen on a
picture, as the list of its open answers; then single questions in the chat template. On two cores
a step takes 0.8 and 1.8 s: some 40 minutes in all.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from medv_ray.data.conversations import on_one_image
from medv_ray.data.dataset import Dataset
from medv_ray.data.dataset_writer import Row, write_dataset
from medv_ray.data.new_tokenizer import write_tokenizer
from medv_ray.data.prompts import SYSTEM_SENTENCES
from medv_ray.model import weights
from medv_ray.model.config import LanguageConfig, ModelConfig, VisionConfig
from medv_ray.model.fresh import fresh, padded_vocab
from medv_ray.model.new_folder import new_folder
from medv_ray.on_ray.cluster import running_ray
from medv_ray.on_ray.train import Tell, Trained, train
from medv_ray.settings import SamplerSettings
from medv_ray.training.job import MODEL, TrainSettings, ValidationSettings, WorkerSettings
from medv_ray.training.stages import ShardSettings, StageSettings

VOCABULARY = 3000
SAMPLER = SamplerSettings(gen_length=16, block_length=16, steps=16)
"""97 of 100 answers of PathVQA have fewer tokens."""
CAPTION_CHARACTERS = 200
VALIDATION = ValidationSettings(every=200, rows=300, batch_size=64)
"""Six looks in the chat stage's 1,100 steps; each takes two workers about 17 s of their core (7.4 s
for 64 rows whose answers take all 16 steps)."""
EVERY_STAGE: dict[str, Any] = {
    "trainable": ("projector", "language", "vision"),
    "micro_batch_size": 32,
    "epochs": 1000,  # max_steps ends a stage
    "betas": (0.9, 0.98),
    "gradient_checkpointing": False,
}
STAGES = (
    StageSettings(
        name="captions",
        lr=1.5e-3,
        batch_size=64,
        max_steps=600,
        warmup_ratio=0.1,
        weight_decay=0.05,
        template="plain",
        **EVERY_STAGE,
    ),
    StageSettings(
        name="chat",
        lr=1e-3,
        batch_size=128,
        max_steps=1100,
        warmup_ratio=0.05,
        weight_decay=0.1,
        targets="answers",
        answer_fill=SAMPLER.gen_length,
        fill_token="end_of_turn",
        token_after_image="reference",
        **EVERY_STAGE,
    ),
)


class Made(NamedTuple):
    """What the recipe has come to."""

    stages: dict[str, Trained]
    model: Path | None
    """None when it was stopped; the same line goes on."""


def make(
    data: Path,
    out: Path,
    stages: tuple[StageSettings, ...] = STAGES,
    num_workers: int = 2,
    seed: int = 0,
    address: str | None = None,
    tell: Tell = lambda stage, event: None,
) -> Made:
    """Train on the prepared dataset `data` into the folder `out`. Run again, it goes on.

    Raises DataError E1113, E1114 for the dataset, and what `train` raises.
    """
    fresh_folder = out / "fresh"
    if not fresh_folder.exists():
        make_folder(Dataset.open(data), fresh_folder, seed)
    sources = [captions(Dataset.open(data), out / "captions"), data]
    model, done = fresh_folder, {}
    with running_ray(address):
        for number, (stage, rows) in enumerate(zip(stages, sources, strict=True), 1):
            folder = out / f"stage{number}-{stage.name}"
            settings = TrainSettings(
                model=str(model),
                data=str(rows),
                out=str(folder),
                stage=stage.model_copy(update={"seed": seed}),
                shard=ShardSettings(dtype="float32"),
                workers=WorkerSettings(num_workers=num_workers),
                validation=validation(rows) if stage.template == "llada" else ValidationSettings(),
            )
            done[stage.name] = train(settings, address=address, tell=tell)
            if not done[stage.name].whole:
                return Made(done, None)
            model = folder / MODEL
    return Made(done, model)


def validation(data: Path) -> ValidationSettings:
    """Of the chat stage; none where the dataset has no such split, which is said."""
    if VALIDATION.split in Dataset.open(data).index["splits"]:
        return VALIDATION
    text = f"the dataset has no split {VALIDATION.split}: the chat stage trains without validation"
    sys.stderr.write(f"{text}\n")
    return ValidationSettings()


def captions(dataset: Dataset, out: Path) -> Path:
    """Each picture with its open answers, the ones that few pictures have first, as a dataset."""
    if out.exists():
        return out
    said: dict[str, dict[str, None]] = {}
    for example in dataset:
        answer = example.conversations[1]["value"]
        if len(example.images) == 1 and example.answer_type != "closed":
            said.setdefault(example.images[0], {})[answer] = None
    often = Counter(answer for answers in said.values() for answer in answers)

    def rows() -> Iterator[Row]:
        for image, answers in said.items():
            text = ""
            for answer in sorted(answers, key=lambda a: (often[a], a)):
                if len(text) + len(answer) <= CAPTION_CHARACTERS:
                    text += f", {answer}" if text else answer
            yield Row(image[:16], (dataset.image(image),), on_one_image([("", text)]))

    write_dataset(out, "captions", {"train": rows()}, licence="as the dataset's")
    return out


def make_folder(dataset: Dataset, folder: Path, seed: int) -> None:
    """A folder of the published form with fresh weights, and a tokenizer of the dataset's words."""
    with new_folder(folder, 2**24) as partial:
        texts = [
            message["value"].removeprefix("<image>\n")
            for example in dataset
            for message in example.conversations
        ]
        whole = [text for text in SYSTEM_SENTENCES.values() if text]
        texts += [*whole, "system", "user", "assistant", "\n\n"] * 1000
        tokenizer = write_tokenizer(partial, texts, VOCABULARY, whole)
        weights.save(make_model(len(tokenizer), seed), partial)
        config = json.loads((partial / "config.json").read_text())
        config["medv_defaults"] = SAMPLER.model_dump(
            include={"gen_length", "block_length", "steps"}
        )
        weights.write_json(partial / "config.json", config)


def make_model(num_tokens: int, seed: int) -> Any:
    """Fresh weights: pictures of 64 pixels as 16 tokens."""
    language = LanguageConfig(
        vocab_size=padded_vocab(num_tokens),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        rope_theta=10_000.0,
    )
    vision = VisionConfig(
        hidden_size=96,
        intermediate_size=384,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=64,
        patch_size=16,
    )
    config = ModelConfig(language, vision, "square", (), "spatial_unpad", max_length=512)
    return fresh(config, num_tokens, seed)
