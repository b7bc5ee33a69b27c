"""A page of training rows as the model gets them: image, tokens, targets, one noised sample.

Shapes: S tokens of a row, each image counted as one.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from jinja2 import Environment, StrictUndefined

from medv_ray.data.conversations import Template, encode_conversation
from medv_ray.data.dataset import Dataset, Example
from medv_ray.data.thumbnail import Thumbnails
from medv_ray.diffusion.noise import draw, forward_noise
from medv_ray.errors import DataError
from medv_ray.markers import IGNORE, IMAGE_SLOT
from medv_ray.settings import ImageSettings, PromptSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAGE = Path(__file__).with_name("preview.html")


class Token(NamedTuple):
    """One token on the page."""

    text: str
    id: int
    kind: Literal["image", "given", "target"]
    masked: bool
    """In the noised sample."""


class Card(NamedTuple):
    """One row on the page."""

    row: int
    id: str
    types: list[str]
    images: list[str]
    """Data URIs."""
    messages: list[dict[str, str]]
    tokens: list[Token]
    t: float
    """Noise level of the sample."""
    faults: list[str]
    """Why something could not be shown."""

    @property
    def num_targets(self) -> int:
        return sum(token.kind == "target" for token in self.tokens)

    @property
    def num_masked(self) -> int:
        return sum(token.masked for token in self.tokens)


def preview(
    dataset: Dataset,
    tokenizer: PreTrainedTokenizerFast,
    *,
    num_rows: int = 20,
    seed: int = 0,
    template: Template = "llada",
    prompt: PromptSettings | None = None,
) -> str:
    """HTML of `num_rows` rows spread evenly over the split, without scripts or links.

    The noise of a row depends on seed and row number only. A row that cannot be encoded shows why.
    """
    prompt = prompt or PromptSettings()
    picked = spread(len(dataset), num_rows)
    with Thumbnails(ImageSettings()) as thumbnails:
        cards = [
            card(dataset, row, tokenizer, seed, template, prompt, thumbnails) for row in picked
        ]
    page = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    return page.from_string(PAGE.read_text()).render(
        cards=cards, dataset=dataset, template=template, system=prompt.system, seed=seed
    )


def spread(total: int, count: int) -> list[int]:
    """`count` rows at even distances, or all of them."""
    count = min(total, count)
    return [total * number // count for number in range(count)]


def card(
    dataset: Dataset,
    row: int,
    tokenizer: PreTrainedTokenizerFast,
    seed: int,
    template: Template,
    prompt: PromptSettings,
    thumbnails: Thumbnails,
) -> Card:
    """What the page says of one row."""
    example = dataset[row]
    images, faults = [], []
    for sha256 in example.images:
        try:
            images.append(thumbnails.make(dataset.image(sha256)))
        except DataError as error:
            faults.append(error.detail)
    tokens: list[Token] = []
    # torch takes the low 32 bits of a seed only
    mixed = hashlib.sha256(f"{seed}:{row}".encode()).digest()[:4]
    generator = torch.Generator().manual_seed(int.from_bytes(mixed, "little"))
    t = 0.0
    try:
        tokens, t = noised(example, tokenizer, template, prompt, generator)
    except DataError as error:
        faults.append(error.detail)
    types = [kind for kind in (example.answer_type, example.question_type) if kind]
    return Card(row, example.id, types, images, example.conversations, tokens, t, faults)


def noised(
    example: Example,
    tokenizer: PreTrainedTokenizerFast,
    template: Template,
    prompt: PromptSettings,
    generator: torch.Generator,
) -> tuple[list[Token], float]:
    """S tokens, and the noise level t at which they were masked. Raises DataError E1109, E1304."""
    ids, labels = encode_conversation(
        tokenizer, example.conversations, prompt, len(example.images), template
    )
    t, u = draw(1, len(ids), generator)
    masked = forward_noise(torch.tensor([labels]), t, u).masked[0].tolist()
    names = {index: token.content for index, token in tokenizer.added_tokens_decoder.items()}
    tokens = []
    for token, label, hidden in zip(ids, labels, masked, strict=True):
        if token == IMAGE_SLOT:
            tokens.append(Token("image", token, "image", False))
            continue
        text = names.get(token) or str(
            tokenizer.decode([token], clean_up_tokenization_spaces=False)
        )
        kind: Literal["given", "target"] = "given" if label == IGNORE else "target"
        tokens.append(Token(text.replace("\n", "↵"), token, kind, hidden))
    return tokens, t.item()
