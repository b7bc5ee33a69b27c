r"""Train the embedded toy checkpoint on synthetic tiles: nothing -> medv_ray/assets/medv-tiny.

    OMP_NUM_THREADS=1 python jobs/train_tiny.py --out medv_ray/assets/medv-tiny --seed 0

One process and a plain loop around the noise and the loss of the real training, in four stages:
captions; bare question-answer pairs, in which every target has to be read off the picture; the chat
template with the answers as only targets; the chat template with all targets of LLaDA-V. The same
seed, thread count and kind of CPU give the same bits. One long file on purpose: tokenizer, data,
loop and card of one asset, which nothing else uses.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
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
    encode_pieces,
    encode_text,
    load_tokenizer,
    message,
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
Row = tuple[list[int], list[int]]
Rows = tuple[Tensor, Tensor]


NUM_PAIRS = 10
PAIR_WEIGHTS = (3, 1, 1, 2, 3)
"""How often each of QUESTION_TYPES is asked: yes/no and presence have most questions to learn."""


@dataclass(frozen=True)
class Stage:
    """Steps of one kind of training, and the share of each kind of batch; the rest are single
    questions in the chat template."""

    steps: int
    captions: float = 0.0
    """Image and caption, which names every attribute."""
    pairs: float = 0.0
    """Image and NUM_PAIRS questions, each followed by its answer, without any template."""
    dialogues: float = 0.0
    """Chat template, one question of each type."""
    all_targets: bool = True
    """LLaDA-V's targets; else only what the assistant says, so that nothing else is masked."""


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the weights."""

    seed: int = 0
    stages: tuple[Stage, ...] = (
        Stage(900, captions=1.0),
        Stage(2400, captions=0.2, pairs=0.8),
        Stage(900, captions=0.1, pairs=0.2, dialogues=0.3, all_targets=False),
        Stage(900, captions=0.1, pairs=0.1, dialogues=0.3),
    )
    num_tiles: int = 3000
    blank_share: float = 0.04
    """Of the tiles: shown as plain grey, with the questions of the tile that is not seen. So the
    model has an answer of the right kind where there is nothing to see."""
    batch_size: int = 64
    peak_lr: float = 2e-3
    """After 100 steps; falls to a fiftieth by the end of the last stage, along a cosine."""

    @property
    def steps(self) -> int:
        return sum(stage.steps for stage in self.stages)


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
    model = Medv(config, logit_size=num_tokens)
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1 or "newline" in name:
            torch.nn.init.normal_(parameter, std=initial_std(name, parameter))
    return model


def initial_std(name: str, parameter: Tensor) -> float:
    """1/sqrt(fan in) for what multiplies, so that a product of question and picture has a gradient
    from the first step on."""
    if "position_embedding" in name:
        return 0.5  # strong: lets the side of a thing be learnt at all
    if "newline" in name:
        return 0.1  # zeros would meet the norm with a gradient 300 times the others'
    if "embed_tokens" in name:
        return 1.0
    return 1 / math.sqrt(parameter[0].numel())


class Tiles:
    """The training tiles and what can be asked about each."""

    def __init__(self, recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> None:
        self._tokenizer = tokenizer
        self.special = SpecialIds.of(tokenizer)
        self._header = encode_pieces(tokenizer, message(self.special, "assistant", []))[:-1]
        cut, image = TileSettings("square", 32), ImageSettings()
        rows = list(synthetic.rows(recipe.num_tiles, recipe.seed, split="train", per_image=1))
        self.pixels = torch.from_numpy(
            np.stack([prepare(row.image, image, cut).tiles[0] for row in rows])
        )
        self.pixels[: round(recipe.blank_share * len(rows))] = synthetic.GREY
        self._attributes = [row.attributes for row in rows]
        self._true = [quiz.true_of(row.attributes) for row in rows]
        self._encode = cache(self._encode_dialogue)
        self._text = cache(partial(encode_text, tokenizer))

    def captions(self, tiles: Sequence[int]) -> Rows:
        """ids and labels int64[B, S] of image and caption; the caption names every attribute."""
        rows = []
        for tile in tiles:
            text = ",".join(self._attributes[tile].values())
            talk = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": text}]
            rows.append(encode_conversation(self._tokenizer, talk, PromptSettings(), 1, "plain"))
        return self._stack(rows, 0)

    def pairs(self, tiles: Sequence[int], rng: np.random.Generator) -> Rows:
        """ids and labels int64[B, S] of image and bare pairs; only the answers are targets."""
        shares = np.array(PAIR_WEIGHTS) / sum(PAIR_WEIGHTS)
        rows = []
        for tile in tiles:
            ids, labels = [IMAGE_SLOT], [IGNORE]
            for kind in rng.choice(len(PAIR_WEIGHTS), NUM_PAIRS, p=shares):
                question, answer = map(self._text, self._ask(tile, int(kind), rng))
                said = [*answer, self.special.eot]
                ids += [*question, *said]
                labels += [*[IGNORE] * len(question), *said]
            rows.append((ids, labels))
        return self._stack(rows, 0)

    def dialogues(
        self, tiles: Sequence[int], num_turns: int, rng: np.random.Generator, all_targets: bool
    ) -> Rows:
        """ids and labels int64[B, S] of questions in the form of inference.

        A single question is followed by ends of turn up to the length at which answers are made;
        in a dialogue every question is of another type.
        """
        rows = []
        for tile in tiles:
            kinds = rng.permutation(len(quiz.QUESTION_TYPES))[:num_turns]
            turns = tuple(self._ask(tile, int(kind), rng) for kind in kinds)
            rows.append(self._encode(turns, all_targets))
        return self._stack(rows, SAMPLER.gen_length - 2 if num_turns == 1 else 0)

    def _ask(self, tile: int, kind: int, rng: np.random.Generator) -> tuple[str, str]:
        """A true question and its answer; every answer that the tile allows is as likely."""
        told = self._true[tile][quiz.QUESTION_TYPES[kind]] or self._true[tile]["colour"]
        answer = list(told)[rng.integers(len(told))]
        return told[answer][rng.integers(len(told[answer]))], answer

    def _encode_dialogue(self, turns: tuple[tuple[str, str], ...], all_targets: bool) -> Row:
        talk = []
        for number, (question, answer) in enumerate(turns):
            talk.append({"from": "human", "value": ("" if number else "<image>\n") + question})
            talk.append({"from": "gpt", "value": answer})
        ids, labels = encode_conversation(self._tokenizer, talk, PromptSettings(), 1)
        if not all_targets:
            labels = self._only_answers(ids)
        lost = ids.index(IMAGE_SLOT) + 1  # the token after the image, which inference loses
        return ids[:lost] + ids[lost + 1 :], labels[:lost] + labels[lost + 1 :]

    def _only_answers(self, ids: list[int]) -> list[int]:
        """Labels of what the assistant says, end of turn included; its headers are given."""
        labels, size = [IGNORE] * len(ids), len(self._header)
        for start in range(len(ids) - size):
            if ids[start : start + size] == self._header:
                end = ids.index(self.special.eot, start + size) + 1
                labels[start + size : end] = ids[start + size : end]
        return labels

    def _stack(self, rows: Sequence[Row], more: int) -> Rows:
        """Rows padded with ends of turn, which are targets too."""
        length = max(len(ids) for ids, _ in rows) + more
        ids, labels = (
            torch.tensor([list(row) + [self.special.eot] * (length - len(row)) for row in part])
            for part in zip(*rows, strict=True)
        )
        return ids, labels


def fit(model: Medv, tiles: Tiles, recipe: Recipe) -> Iterator[float]:
    """Train in place; the loss of every step."""
    rng = np.random.default_rng(recipe.seed)
    generator = torch.Generator().manual_seed(recipe.seed)
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=0.01)
    stages = [stage for stage in recipe.stages for _ in range(stage.steps)]
    for step, stage in enumerate(stages):
        picked, (ids, labels) = draw(tiles, stage, recipe.batch_size, rng)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, recipe)
        loss = loss_of(model, tiles, ids, labels, tiles.pixels[picked], generator)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        yield loss.item()


def draw(
    tiles: Tiles, stage: Stage, batch_size: int, rng: np.random.Generator
) -> tuple[np.ndarray, Rows]:
    """Tiles of one batch and its rows. A dialogue stands for five rows at the cost of two."""
    shares = np.cumsum([stage.captions, stage.pairs, stage.dialogues])
    kind = int(np.searchsorted(shares, rng.random(), side="right"))
    picked = rng.integers(0, len(tiles.pixels), batch_size * 2 // 5 if kind == 2 else batch_size)
    if kind == 0:
        return picked, tiles.captions(picked)
    if kind == 1:
        return picked, tiles.pairs(picked, rng)
    num_turns = len(quiz.QUESTION_TYPES) if kind == 2 else 1
    return picked, tiles.dialogues(picked, num_turns, rng, stage.all_targets)


def learning_rate(step: int, recipe: Recipe) -> float:
    """Of a step, from 0."""
    warm_up = 100
    if step < warm_up:
        return recipe.peak_lr * (step + 1) / warm_up
    done = (step - warm_up) / max(recipe.steps - warm_up, 1)
    return recipe.peak_lr * (0.02 + 0.49 * (1 + math.cos(math.pi * done)))


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
    embeds = model.embed(torch.where(masked, tiles.special.mask, text))
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
    steps = [stage.steps for stage in recipe.stages]
    command = (
        f"OMP_NUM_THREADS={threads} python jobs/train_tiny.py --out FOLDER --seed {recipe.seed} "
        f"--threads {threads}"
    )
    table = "\n".join(["| type | exact match | grey pictures |", "|---|---|---|", *lines])
    return f"""# medv-tiny

A toy of the real folder format: LLaDA-V's layout and key names, 0.6 M parameters, for tests and
demonstrations. It knows synthetic tissue tiles (`medv_ray/data/synthetic.py`) and nothing else: no
medical image, no medical text. Licence: Apache-2.0, as the repository; no other weights went in.

Made in {minutes:.0f} minutes on a CPU by

    {command}

{recipe.steps} steps of {recipe.batch_size} rows from {recipe.num_tiles} tiles, with the noise and
the 1/p-weighted loss of LLaDA-V: captions ({steps[0]} steps), captions and bare question-answer
pairs ({steps[1]}), the chat template with the answers as only targets ({steps[2]}), and with all
targets ({steps[3]}).
Prompts have the form of inference: the general system sentence, no newline after the image. Made
for gen_length = block_length = steps = 8.

On {HELD_OUT_ROWS} held-out rows that share no picture with training:

{table}

Answers are balanced: the majority answer is right for half of the yes/no and presence questions and
for a quarter of the others.
"""


if __name__ == "__main__":
    main()
