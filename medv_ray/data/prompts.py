"""From questions to prompt token ids, and from answer ids back to text.

A prompt is built from pieces: special tokens are put in as ids by name, everything else is encoded
as plain text, so text can never become a special token. An image is bound by its position, never by
a word in the text. Template text and the token after the image: LLaDA-V conversation.py and
mm_utils.py.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from medv_ray.errors import CheckpointError, DataError
from medv_ray.markers import IMAGE_SLOT
from medv_ray.settings import PromptSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Role = Literal["user", "assistant"]

_SYSTEM = (
    "You are a helpful {}language and vision assistant. You are able to understand the visual "
    "content that the user provides, and assist the user with a variety of tasks using natural "
    "language."
)
SYSTEM_SENTENCES: dict[str, str | None] = {
    "general": _SYSTEM.format(""),
    "medical": _SYSTEM.format("medical "),
    "none": None,
}


class Turn(NamedTuple):
    """One message of a dialogue."""

    role: Role
    text: str


class SpecialIds(NamedTuple):
    """Ids of the special tokens that the model depends on, asked of the tokenizer by name."""

    bos: int
    eos: int
    eot: int
    mask: int
    start_header: int
    end_header: int

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerFast) -> SpecialIds:
        """Raises CheckpointError E1408 when one is missing or a plain word, or two share an id."""
        added = {token.content: index for index, token in tokenizer.added_tokens_decoder.items()}
        missing = [name for name in SPECIAL_TOKENS.values() if name not in added]
        if missing:
            names = ", ".join(missing)
            raise CheckpointError("E1408", f"the tokenizer has no special token {names}.")
        ids = cls(**{field: added[name] for field, name in SPECIAL_TOKENS.items()})
        if len(set(ids)) < len(ids):
            raise CheckpointError("E1408", "two special tokens of the tokenizer share one id.")
        return ids


SPECIAL_TOKENS = {
    "bos": "<|startoftext|>",
    "eos": "<|endoftext|>",
    "eot": "<|eot_id|>",
    "mask": "<|mdm_mask|>",
    "start_header": "<|start_header_id|>",
    "end_header": "<|end_header_id|>",
}


def load_tokenizer(path: str | Path) -> PreTrainedTokenizerFast:
    """The fast tokenizer of a checkpoint folder. Local files only; no code of the folder is run.

    Every added token is treated as special afterwards, so that none of them can be typed.
    Raises CheckpointError E1401 (no tokenizer.json) or E1408 (unreadable, or a special token is
    missing or has the id of a word).
    """
    from transformers import AddedToken, PreTrainedTokenizerFast

    folder = Path(path)
    if not (folder / "tokenizer.json").is_file():
        raise CheckpointError("E1401", "the checkpoint folder has no tokenizer.json.")
    try:
        tokenizer: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # the tokenizers library raises bare Exception
        kind = type(error).__name__
        raise CheckpointError("E1408", f"the tokenizer files cannot be read ({kind}).") from None
    # Added tokens that are not flagged as special would still be found in typed text.
    typable = [token for token in tokenizer.added_tokens_decoder.values() if not token.special]
    if typable:
        tokenizer.add_tokens(
            [
                AddedToken(
                    token.content,
                    single_word=token.single_word,
                    lstrip=token.lstrip,
                    rstrip=token.rstrip,
                    normalized=token.normalized,
                    special=True,
                )
                for token in typable
            ],
            special_tokens=True,
        )
    # Lengths are checked where image tokens are known; the library would only print a warning.
    tokenizer.model_max_length = int(1e30)
    special = set(SpecialIds.of(tokenizer))
    added = {token.content for token in tokenizer.added_tokens_decoder.values()}
    if any(i in special and word not in added for word, i in tokenizer.get_vocab().items()):
        raise CheckpointError("E1408", "a special token of the tokenizer has the id of a word.")
    return tokenizer


def encode_text(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    """Ids of plain text. Names of special tokens in it stay text."""
    if not text:
        return []
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
    return ids


def encode_markup(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    """Ids of trusted text, never a row's, in which names of special tokens mean those tokens."""
    names = {token.content: index for index, token in tokenizer.added_tokens_decoder.items()}
    if not names:
        return encode_text(tokenizer, text)
    # Longest first, as the tokenizer itself matches.
    pattern = "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))
    ids: list[int] = []
    for piece in re.split(f"({pattern})", text):
        ids += [names[piece]] if piece in names else encode_text(tokenizer, piece)
    return ids


def encode_pieces(
    tokenizer: PreTrainedTokenizerFast, pieces: Sequence[int | str], drop_after_image: bool = False
) -> list[int]:
    """Ids of a prompt given as ids (special tokens, image slots) and text.

    Neighbouring texts are encoded as one, since a tokenizer may merge across their border.
    `drop_after_image` leaves out the first token of a text that directly follows an image slot.
    """
    ids: list[int] = []
    text = ""
    for piece in [*pieces, None]:
        if isinstance(piece, str):
            text += piece
            continue
        encoded = encode_text(tokenizer, text)
        if drop_after_image and ids and ids[-1] == IMAGE_SLOT:
            encoded = encoded[1:]
        ids += encoded
        text = ""
        if piece is not None:
            ids.append(piece)
    return ids


def message(special: SpecialIds, role: str, content: Sequence[int | str]) -> list[int | str]:
    """The pieces of one message: header, blank line, content, end of turn."""
    return [special.start_header, role, special.end_header, "\n\n", *content, special.eot]


def build(
    tokenizer: PreTrainedTokenizerFast,
    turns: str | Sequence[Turn],
    num_images: int,
    settings: PromptSettings,
    system: str | None = None,
) -> list[int]:
    """Prompt ids, the assistant's header last; IMAGE_SLOTs in front of the first user text.

    Args:
        turns: a question, or messages of user and assistant by turns, from a user's to a user's.
        num_images: one slot each, joined by blanks, and a newline before the text. 0: text alone.
        system: a sentence in place of the one that settings name; empty: none.

    Texts are trimmed, as by the chat template; a user's turn before the last may be images
    alone. No more such turns than images.
    Raises DataError E1301, E1302, E1304 as `check_question`, and E1109 for messages out of turn.
    """
    dialogue = [Turn("user", turns)] if isinstance(turns, str) else list(turns)
    expected = [("user", "assistant")[index % 2] for index in range(len(dialogue))]
    if [turn.role for turn in dialogue] != expected or len(dialogue) % 2 == 0:
        raise DataError("E1109", "a dialogue goes user, assistant, ... and ends with the user.")
    special = SpecialIds.of(tokenizer)
    pieces: list[int | str] = [special.bos]
    if system is None:
        system = SYSTEM_SENTENCES[settings.system] or ""
    check_storable(system)
    if system.strip():
        pieces += message(special, "system", [system.strip()])
    slots: list[int | str] = [" "] * max(2 * num_images - 1, 0)
    slots[::2] = [IMAGE_SLOT] * num_images
    unsaid = num_images
    for index, turn in enumerate(dialogue):
        # what was shown before anything was asked of it
        alone = turn.role == "user" and not turn.text.strip() and index < len(dialogue) - 1
        unsaid -= alone
        if turn.role == "user" and (not alone or unsaid < 0):
            check_question(turn.text, settings)
            text = (turn.text.strip() + settings.question_suffix).strip()
        else:
            check_storable(turn.text)
            text = turn.text.strip()
        image = [*slots, "\n"] if index == 0 and num_images else []
        pieces += message(special, turn.role, [*image, text])
    pieces += [special.start_header, "assistant", special.end_header, "\n\n"]
    return encode_pieces(tokenizer, pieces, settings.token_after_image == "reference")


def check_question(question: str, settings: PromptSettings) -> None:
    """Raises DataError E1301 (empty), E1302 (too long) or E1304 (cannot be stored)."""
    if not question.strip():
        raise DataError("E1301", "the question is empty.")
    size, limit = check_storable(question), settings.max_question_bytes
    if size > limit:
        raise DataError("E1302", f"the question has {size} bytes; the limit is {limit}.")


def check_storable(text: str) -> int:
    """Bytes of the text in UTF-8. Raises DataError E1304 for a NUL or a lone surrogate."""
    if "\0" in text:
        raise DataError("E1304", "the text holds a NUL character.")
    try:
        return len(text.encode())
    except UnicodeEncodeError:
        raise DataError("E1304", "the text holds a lone surrogate.") from None


def decode(tokenizer: PreTrainedTokenizerFast, ids: Sequence[int]) -> str:
    """Text of answer ids without special tokens, trimmed."""
    text = tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return str(text).strip()
