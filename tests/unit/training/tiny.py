"""A training job small enough for a test: the toy's shape at random, six tiles, a few rows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from medv_ray.data import synthetic
from medv_ray.data.dataset_writer import Row, write_dataset
from medv_ray.markers import IGNORE, IMAGE_SLOT
from medv_ray.model import weights
from medv_ray.model.config import LanguageConfig, ModelConfig, VisionConfig
from medv_ray.model.medv import Medv
from medv_ray.settings import TOY
from medv_ray.training.job import TrainSettings
from medv_ray.training.objective import Sample
from medv_ray.training.stages import ShardSettings, StageSettings


def base(folder: Path) -> Path:
    """A random checkpoint with the toy's tokenizer."""
    torch.manual_seed(5)
    raw = weights.load(TOY).config
    language = LanguageConfig(raw.language.vocab_size, 32, 64, 2, 2, 2, rope_theta=1e4)
    vision = VisionConfig(16, 32, 1, 2, image_size=32, patch_size=16)
    model = Medv(ModelConfig(language, vision, "square", (), "spatial_unpad", max_length=256))
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1 or "newline" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    weights.save(model, folder, TOY)
    return folder


def rows(num_rows: int = 18) -> Iterator[Row]:
    """Questions on tiles, and one row without a picture."""
    for row in synthetic.rows(num_rows, seed=2):
        talk = [{"from": "human", "value": f"<image>\n{row.question}"}]
        talk.append({"from": "gpt", "value": row.answer})
        yield Row(row.id, (row.image,), talk)
    answer = "yes, beside the wall"  # more targets than a word's
    talk = [{"from": "human", "value": "Is there a vessel?"}, {"from": "gpt", "value": answer}]
    yield Row("text", (), talk)


def settings(folder: Path, **stage: object) -> TrainSettings:
    """A job in `folder`, whose model and data are made where they are missing."""
    model, data = folder / "base", folder / "data"
    if not model.exists():
        base(model)
    if not data.exists():
        write_dataset(data, "tiny", {"train": rows(), "validation": rows(8)})
    values = {
        "name": "tiny", "lr": 1e-2, "batch_size": 4, "micro_batch_size": 2, "epochs": 100,
        "max_steps": 6, "trainable": ("projector", "language"), "gradient_checkpointing": False,
    } | stage  # fmt: skip
    return TrainSettings(
        model=str(model),
        data=str(data),
        out=str(folder / "out"),
        stage=StageSettings.model_validate(values),
        shard=ShardSettings(engine="plain", dtype="float32", persist_below=200),
        save_every=2,
        watch=(),
    )


def plain_loss(model: Medv, mask_id: int, sample: Sample) -> torch.Tensor:
    """A row's loss from the formula: every logit, no segments, at most one picture."""
    ids, labels = sample.ids, sample.labels
    embeds, wide = model.embed(ids.clamp(min=0)), labels
    for cut in (ids == IMAGE_SLOT).nonzero().flatten().tolist():
        image = model.merge(model.project(sample.pictures[0].features), (32, 32))
        embeds = torch.cat([embeds[:cut], image, embeds[cut + 1 :]])
        gap = torch.full((len(image),), IGNORE)
        wide = torch.cat([labels[:cut], gap, labels[cut + 1 :]])
    rng = torch.Generator().manual_seed(sample.seed)
    t, u = torch.rand(1, generator=rng), torch.rand(1, len(wide), generator=rng)
    p = (1 - 1e-3) * t + 1e-3
    masked = (u[0] < p) & (wide != IGNORE)
    mask = model.embed(torch.tensor(mask_id))
    hidden = model.hidden(torch.where(masked[:, None], mask, embeds)[None])[0]
    logits = (hidden @ model.lm_head.weight.T)[:, : model.logit_size]
    losses = torch.nn.functional.cross_entropy(logits[masked], wide[masked], reduction="sum")
    return losses / p[0] / (wide != IGNORE).sum()
