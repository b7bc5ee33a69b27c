r"""Train the embedded toy checkpoint on synthetic tiles: nothing -> medv_ray/assets/medv-tiny.

    OMP_NUM_THREADS=1 python jobs/train_tiny.py --out medv_ray/assets/medv-tiny --seed 0

One process and a plain loop around the noise and the loss of the real training, in LLaVA's two
stages: image and caption, then questions in the chat template, the form in which it is asked. The
same seed, thread count and kind of CPU give the same bits.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from medv_ray.data import quiz, synthetic
from medv_ray.data.conversations import IGNORE, encode_conversation
from medv_ray.data.images import TileSettings, prepare
from medv_ray.data.prompts import (
    IMAGE_SLOT,
    SYSTEM_SENTENCES,
    SpecialIds,
    load_tokenizer,
)
from medv_ray.diffusion.loss import masked_loss
from medv_ray.diffusion.noise import forward_noise
from medv_ray.engine import Answer, Predictor, Request
from medv_ray.model import weights
from medv_ray.model.config import LanguageConfig, ModelConfig, VisionConfig
from medv_ray.model.medv import Medv
from medv_ray.settings import (
    AnswerSettings,
    ImageSettings,
    ModelSettings,
    PromptSettings,
    SamplerSettings,
)

SPECIAL_TOKENS = [
    *("<|startoftext|>", "<|endoftext|>", "[CLS]", "[gMASK]", "<|mdm_mask|>", "<role>", "</role>"),
    *("<|arithmetic_start|>", "<|arithmetic_end|>", "<|number_start|>", "<|number_end|>"),
    *("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
]
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ (bos_token if loop.first else '') + '<|start_header_id|>' + "
    "message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}"
    "{% endfor %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
)
SAMPLER = SamplerSettings(gen_length=8, block_length=8, steps=8)
HELD_OUT_ROWS = 600


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the weights."""

    seed: int = 0
    caption_steps: int = 800
    chat_steps: int = 2400
    num_tiles: int = 3000
    batch_size: int = 64
    caption_lr: float = 2e-3
    """Peak after 50 steps; falls to a twentieth by the end of the stage."""
    question_lr: float = 1.5e-3
    """Peak after 50 steps of the second stage; falls to a fiftieth over its last half."""
    dialogue_share: float = 0.6
    """Of the batches of the second stage: five questions on a tile, one of each type."""
    caption_share: float = 0.1
    """Of the batches of the second stage: captions, so that nothing is forgotten."""

    @property
    def steps(self) -> int:
        return self.caption_steps + self.chat_steps


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--out", type=Path, required=True, help="folder to write; weights in it are replaced"
    )
    parser.add_argument("--seed", type=int, default=Recipe.seed)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    recipe, started = Recipe(seed=args.seed), time.monotonic()
    for step, loss in enumerate(train_folder(recipe, args.out), 1):
        if step % 100 == 0:
            print(
                json.dumps(
                    {"step": step, "loss": round(loss, 4), "s": round(time.monotonic() - started)}
                )
            )
    minutes = (time.monotonic() - started) / 60
    scores = evaluate(args.out, recipe.seed + 1)
    print(json.dumps(scores))
    (args.out / "README.md").write_text(model_card(recipe, scores, minutes, args.threads))


def train_folder(recipe: Recipe, out: Path) -> Iterator[float]:
    """The loss of every step; afterwards the checkpoint folder is written."""
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = make_tokenizer(out)
    torch.manual_seed(recipe.seed)
    model = make_model(len(tokenizer))
    yield from fit(model, Tiles(recipe, tokenizer), recipe)
    for old in out.glob("model*.safetensors*"):
        old.unlink()
    weights.save(model, out)
    config = json.loads((out / "config.json").read_text())
    config["medv_defaults"] = SAMPLER.model_dump(include={"gen_length", "block_length", "steps"})
    (out / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def make_tokenizer(out: Path) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with LLaDA's special tokens.

    Merges may cross words: a system sentence and most questions become one token, which keeps the
    toy's sequences short. Other text falls back to smaller pieces, down to bytes.
    """
    targets = [target for kind in quiz.QUESTION_TYPES for target in quiz.targets(kind)]
    texts = [target.question for target in targets] * 3 + [target.answer for target in targets] * 10
    texts += [value for values in quiz.ATTRIBUTES.values() for value in values] * 20
    texts += [text for text in SYSTEM_SENTENCES.values() if text] * 60
    texts += ["system", "user", "assistant", "\n\n"] * 40
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=700, min_frequency=2, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens(SPECIAL_TOKENS)
    tokenizer.save(str(out / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "cls_token": "[CLS]",
        "add_bos_token": False,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    (out / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    return load_tokenizer(out)


def make_model(num_tokens: int) -> Medv:
    """A fresh model; as in LLaDA, the embedding has more rows than the tokenizer has ids."""
    language = LanguageConfig(
        vocab_size=32 * math.ceil((num_tokens + 1) / 32),
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
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
    model = Medv(config, logit_size=num_tokens)
    for name, parameter in model.named_parameters():
        # a strong position embedding lets the side of a thing be learnt at all; a newline of zeros
        # would meet the norm with a gradient 300 times the others'
        std = {"position": 0.5, "embed": 0.1, "newline": 0.1}
        found = [value for word, value in std.items() if word in name and "patch" not in name]
        if found or parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=found[0] if found else 0.05)
    return model


class Tiles:
    """The training tiles and what can be asked about each."""

    def __init__(self, recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> None:
        self._tokenizer = tokenizer
        self._special = SpecialIds.of(tokenizer)
        cut, image = TileSettings("square", 32), ImageSettings()
        rows = list(synthetic.rows(recipe.num_tiles, recipe.seed, split="train", per_image=1))
        self.pixels = torch.from_numpy(
            np.stack([prepare(row.image, image, cut).tiles[0] for row in rows])
        )
        self._attributes = [row.attributes for row in rows]
        self._true = [quiz.true_of(row.attributes) for row in rows]
        self._encode = cache(self._encode_dialogue)

    def captions(self, tiles: Sequence[int]) -> tuple[Tensor, Tensor]:
        """ids and labels int64[B, S] of image and caption; the caption names every attribute."""
        rows = []
        for tile in tiles:
            text = ",".join(self._attributes[tile].values())
            talk = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": text}]
            rows.append(encode_conversation(self._tokenizer, talk, PromptSettings(), 1, "plain"))
        return self._stack(rows, 0)

    def dialogues(
        self, tiles: Sequence[int], num_turns: int, rng: np.random.Generator
    ) -> tuple[Tensor, Tensor]:
        """ids and labels int64[B, S] of questions in the form of inference.

        A single question is followed by ends of turn up to the length at which answers are made;
        in a dialogue every question is of another type.
        """
        rows = []
        for tile in tiles:
            kinds = rng.permutation(len(quiz.QUESTION_TYPES))[:num_turns]
            rows.append(self._encode(tuple(self._ask(tile, int(kind), rng) for kind in kinds)))
        return self._stack(rows, SAMPLER.gen_length - 2 if num_turns == 1 else 0)

    def _ask(self, tile: int, kind: int, rng: np.random.Generator) -> tuple[str, str]:
        """A true question and its answer; every answer that the tile allows is as likely."""
        told = self._true[tile][quiz.QUESTION_TYPES[kind]] or self._true[tile]["colour"]
        answer = list(told)[rng.integers(len(told))]
        return told[answer][rng.integers(len(told[answer]))], answer

    def _encode_dialogue(self, turns: tuple[tuple[str, str], ...]) -> tuple[list[int], list[int]]:
        talk = []
        for number, (question, answer) in enumerate(turns):
            talk.append({"from": "human", "value": ("" if number else "<image>\n") + question})
            talk.append({"from": "gpt", "value": answer})
        ids, labels = encode_conversation(self._tokenizer, talk, PromptSettings(), 1)
        lost = ids.index(IMAGE_SLOT) + 1  # the token after the image, which inference loses
        return ids[:lost] + ids[lost + 1 :], labels[:lost] + labels[lost + 1 :]

    def _stack(
        self, rows: Sequence[tuple[list[int], list[int]]], more: int
    ) -> tuple[Tensor, Tensor]:
        """Rows padded with ends of turn, which are targets too."""
        length = max(len(ids) for ids, _ in rows) + more
        ids, labels = (
            torch.tensor([list(row) + [self._special.eot] * (length - len(row)) for row in part])
            for part in zip(*rows, strict=True)
        )
        return ids, labels


def fit(model: Medv, tiles: Tiles, recipe: Recipe) -> Iterator[float]:
    """Train in place; the loss of every step."""
    rng = np.random.default_rng(recipe.seed)
    generator = torch.Generator().manual_seed(recipe.seed)
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=0.01)
    for step in range(recipe.steps):
        picked = rng.integers(0, len(tiles.pixels), recipe.batch_size)
        if step < recipe.caption_steps or rng.random() < recipe.caption_share:
            ids, labels = tiles.captions(picked)
        elif rng.random() < recipe.dialogue_share:
            picked = picked[: recipe.batch_size // 2]
            ids, labels = tiles.dialogues(picked, len(quiz.QUESTION_TYPES), rng)
        else:
            ids, labels = tiles.dialogues(picked, 1, rng)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, recipe)
        loss = loss_of(model, tiles, ids, labels, tiles.pixels[picked], generator)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        yield loss.item()


def learning_rate(step: int, recipe: Recipe) -> float:
    """Of a step, from 0."""
    if step < recipe.caption_steps:
        return recipe.caption_lr * min((step + 1) / 50, 1.05 - step / recipe.caption_steps)
    warm_up = (step - recipe.caption_steps + 1) / 50
    return recipe.question_lr * min(
        warm_up, 1, max(0.02, 2 * (recipe.steps - step) / recipe.chat_steps)
    )


def loss_of(
    model: Medv,
    tiles: Tiles,
    ids: Tensor,
    labels: Tensor,
    pixels: Tensor,
    generator: torch.Generator,
) -> Tensor:
    """float32[], LLaDA-V's loss of a batch whose rows have their image at the same place."""
    rows, slot = len(ids), int((ids[0] == IMAGE_SLOT).nonzero())
    features = model.image_features(pixels)
    newline = model.model.image_newline.expand(rows, 1, -1)
    image = torch.cat([features, newline], dim=1)  # [B, 17, D]
    gap = torch.full(image.shape[:2], IGNORE)
    labels = torch.cat([labels[:, :slot], gap, labels[:, slot + 1 :]], dim=1)
    # noise levels spread evenly over the batch: each still uniform, their mean steadier
    t = (torch.randperm(rows, generator=generator) + torch.rand(rows, generator=generator)) / rows
    noise = forward_noise(labels, t, torch.rand(labels.shape, generator=generator))
    masked = torch.cat([noise.masked[:, :slot], noise.masked[:, slot + image.shape[1] :]], dim=1)
    text = torch.cat([ids[:, :slot], ids[:, slot + 1 :]], dim=1)
    embeds = model.embed(torch.where(masked, tiles._special.mask, text))
    hidden = model.hidden(torch.cat([embeds[:, :slot], image, embeds[:, slot:]], dim=1))
    return masked_loss(hidden, model.head, labels, noise.masked, noise.p_mask)


def evaluate(folder: Path, seed: int) -> dict[str, dict[str, float]]:
    """Exact match by type on held-out rows, with their pictures and with grey ones in their
    place."""
    rows = list(synthetic.rows(HELD_OUT_ROWS, seed, split="validation"))
    grey = synthetic.grey_image()
    scores = {}
    with Predictor.load(ModelSettings(path=str(folder)), AnswerSettings(sampler=SAMPLER)) as toy:
        for name in ("pictures", "grey"):
            images = [grey if name == "grey" else row.image for row in rows]
            asked = [Request(r.question, (image,)) for r, image in zip(rows, images, strict=True)]
            hits: dict[str, list[bool]] = {"overall": []}
            for row, answer in zip(rows, toy.answer(asked), strict=True):
                right = isinstance(answer, Answer) and answer.text == row.answer
                hits["overall"].append(right)
                hits.setdefault(row.question_type, []).append(right)
            scores[name] = {kind: round(sum(h) / len(h), 4) for kind, h in hits.items()}
    return scores


def model_card(
    recipe: Recipe, scores: dict[str, dict[str, float]], minutes: float, threads: int
) -> str:
    """README.md of the folder."""
    lines = [
        f"| {k} | {scores['pictures'][k]:.3f} | {scores['grey'][k]:.3f} |" for k in scores["grey"]
    ]
    table = "\n".join(["| type | exact match | grey pictures |", "|---|---|---|", *lines])
    return f"""# medv-tiny

A toy of the real folder format: LLaDA-V's layout and key names, 0.6 M parameters, for tests and
demonstrations. It knows synthetic tissue tiles (`medv_ray/data/synthetic.py`) and nothing else: no
medical image, no medical text. Licence: Apache-2.0, as the repository; no other weights went in.

Made in {minutes:.0f} minutes on a CPU by

    OMP_NUM_THREADS={threads} python jobs/train_tiny.py --out FOLDER --seed {recipe.seed}

{recipe.caption_steps} steps on captions, then {recipe.chat_steps} on questions in the chat
template; {recipe.batch_size} rows each from {recipe.num_tiles} tiles, with the noise and the
1/p-weighted loss of LLaDA-V.
Prompts have the form of inference: the general system sentence, no newline after the image. Made
for gen_length = block_length = steps = 8.

On {HELD_OUT_ROWS} held-out rows that share no picture with training:

{table}

Answers are balanced: the majority answer is right for half of the yes/no and presence questions and
for a quarter of the others.
"""


if __name__ == "__main__":
    main()
