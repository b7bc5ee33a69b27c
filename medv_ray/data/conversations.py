"""From training conversations to token ids and labels, as LLaDA-V's preprocessing makes them.

A conversation is LLaVA's: messages {"from": "human" | "gpt", "value": text}, in which the word
`<image>` marks where an image goes. Source: LLaDA-V train.py (preprocess_multimodal,
preprocess_llada, preprocess_plain).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from medv_ray.data.prompts import (
    SYSTEM_SENTENCES,
    SpecialIds,
    check_storable,
    encode_pieces,
    message,
)
from medv_ray.errors import DataError
from medv_ray.markers import IGNORE, IMAGE_SLOT
from medv_ray.settings import PromptSettings
from medv_ray.tables.cells import IMAGE_MARK

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

ROLES = {"human": "user", "gpt": "assistant"}

Conversation = Sequence[Mapping[str, str]]
Template = Literal["llada", "plain", "pairs"]
"""How a conversation becomes tokens: the chat template; `plain`, of the alignment stage: image,
caption and newline; or `pairs`, ours: images, then questions and answers without roles, an end of
turn behind each answer."""


def on_one_image(turns: Sequence[tuple[str, str]]) -> list[dict[str, str]]:
    """Questions and their answers as a conversation on one image."""
    conversation = []
    for number, (question, answer) in enumerate(turns):
        front = "" if number else f"{IMAGE_MARK}\n"
        conversation.append({"from": "human", "value": front + question})
        conversation.append({"from": "gpt", "value": answer})
    return conversation


def encode_conversation(
    tokenizer: PreTrainedTokenizerFast,
    conversation: Conversation,
    settings: PromptSettings,
    num_images: int,
    template: Template = "llada",
    drop_after_image: bool = False,
) -> tuple[list[int], list[int]]:
    """Token ids with IMAGE_SLOT at the images, and as many labels: IGNORE, or the id itself.

    Args:
        num_images: images of the row. The human messages must mark as many images, or none: then
            all images go in front of the first human message. With 0 images the word `<image>` is
            plain text.
        drop_after_image: of the chat template, see `encode_pieces`.

    Raises DataError E1109 for a malformed conversation or another number of marks, E1304
    for bad text.
    """
    messages = place_images(checked(conversation), num_images)
    if template == "plain":
        return encode_plain(tokenizer, messages)
    if template == "pairs":
        return encode_pairs(tokenizer, messages)
    return encode_chat(tokenizer, messages, settings, drop_after_image)


def checked(conversation: Conversation) -> list[tuple[str, str]]:
    """(role, text) of each message; a first message from gpt is dropped, as the reference does."""
    messages: list[tuple[str, str]] = []
    for entry in conversation:
        role, text = ROLES.get(entry.get("from", "")), entry.get("value")
        if role is None or not isinstance(text, str):
            raise DataError("E1109", "a message needs `from` (human or gpt) and `value` (text).")
        check_storable(text)
        messages.append((role, text))
    if messages and messages[0][0] == "assistant":
        messages = messages[1:]
    pairs = ["user", "assistant"] * (len(messages) // 2)
    if not messages or [role for role, _ in messages] != pairs:
        raise DataError("E1109", "a conversation must be pairs of a human and a gpt message.")
    return messages


def place_images(
    messages: list[tuple[str, str]], num_images: int
) -> list[tuple[str, list[int | str]]]:
    """(role, pieces) with IMAGE_SLOT for each `<image>` of a human message.

    An only `<image>` of a message goes to its front with a newline behind it; several stay where
    they are.
    """
    if num_images == 0:
        return [(role, [text]) for role, text in messages]
    marked = sum(text.count(IMAGE_MARK) for role, text in messages if role == "user")
    if marked == 0:
        front = " ".join([IMAGE_MARK] * num_images)
        messages = [("user", f"{front}\n{messages[0][1]}"), *messages[1:]]
    elif marked != num_images:
        raise DataError("E1109", f"the conversation marks {marked} images, not {num_images}.")
    return [(role, split_at_images(text) if role == "user" else [text]) for role, text in messages]


def split_at_images(text: str) -> list[int | str]:
    """Text pieces with IMAGE_SLOT between them."""
    if text.count(IMAGE_MARK) == 1 and not text.startswith(IMAGE_MARK):
        rest = text.replace(IMAGE_MARK, "").strip()
        text = f"{IMAGE_MARK}\n{rest}".strip()
    first, *others = text.split(IMAGE_MARK)
    pieces: list[int | str] = [first]
    for other in others:
        pieces += [IMAGE_SLOT, other]
    return pieces


def encode_chat(
    tokenizer: PreTrainedTokenizerFast,
    messages: list[tuple[str, list[int | str]]],
    settings: PromptSettings,
    drop_after_image: bool,
) -> tuple[list[int], list[int]]:
    """Ids and labels by the chat template.

    All of an assistant message is a target, header and end of turn included. Of system and user
    messages the structural tokens are targets as well: LLaDA-V inherited that, and released weights
    were trained so. Contents are not trimmed.
    """
    special = SpecialIds.of(tokenizer)
    structural = {special.bos, special.start_header, special.end_header, special.eot}
    ids, labels = [special.bos], [special.bos]
    system = SYSTEM_SENTENCES[settings.system]
    first: list[tuple[str, list[int | str]]] = [] if system is None else [("system", [system])]
    for role, content in first + messages:
        encoded = encode_pieces(tokenizer, message(special, role, content), drop_after_image)
        ids += encoded
        labels += [
            token if role == "assistant" or token in structural else IGNORE for token in encoded
        ]
    return ids, labels


def encode_plain(
    tokenizer: PreTrainedTokenizerFast, messages: list[tuple[str, list[int | str]]]
) -> tuple[list[int], list[int]]:
    """Image slots, then the caption and a newline as targets; the human's words are dropped."""
    slots = [piece for piece in messages[0][1] if piece == IMAGE_SLOT]
    if len(messages) != 2 or not slots:
        raise DataError("E1109", "the plain template takes an image, a human and a gpt message.")
    ids = encode_pieces(tokenizer, [*slots, *messages[1][1], "\n"])
    return ids, [IGNORE if token == IMAGE_SLOT else token for token in ids]


def encode_pairs(
    tokenizer: PreTrainedTokenizerFast, messages: list[tuple[str, list[int | str]]]
) -> tuple[list[int], list[int]]:
    """Images, then question, answer and end of turn of each pair; only answers and ends are
    targets.

    Short, and every target has to be read off the picture: what a model from scratch learns from.
    """
    eot = SpecialIds.of(tokenizer).eot
    pieces = [piece for role, content in messages if role == "user" for piece in content]
    ids = [IMAGE_SLOT] * pieces.count(IMAGE_SLOT)
    labels = [IGNORE] * len(ids)
    for role, content in messages:
        text = "".join(piece for piece in content if isinstance(piece, str)).strip()
        encoded = encode_pieces(tokenizer, [text])
        if role == "assistant":
            encoded.append(eot)
        ids += encoded
        labels += encoded if role == "assistant" else [IGNORE] * len(encoded)
    return ids, labels
