"""Where attention is cut: the turns of a dialogue, or image, question and answer.

A position sees all of its own segment and of those before it. Ends are positions in a row's ids,
where an image is one slot. User text never becomes a special token, so headers and ends of turn are
found by their ids. Source of the dialogue mask: LLaDA-V, generate_conversation_ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from medv_ray.data.prompts import SpecialIds, encode_pieces, message
from medv_ray.markers import IMAGE_SLOT

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Attention = Literal["full", "dialogue", "prefix"]


def assistant_header(tokenizer: PreTrainedTokenizerFast) -> tuple[int, ...]:
    """Token ids that open each message of the assistant."""
    return tuple(encode_pieces(tokenizer, message(SpecialIds.of(tokenizer), "assistant", []))[:-1])


def spoken(ids: Sequence[int], header: Sequence[int], eot: int) -> list[tuple[int, int]]:
    """(first word, end) of each message of the assistant; its end of turn belongs to it.

    One that does not end goes on to the end of the row.
    """
    ids, header, found, start = list(ids), list(header), [], 0
    while start + len(header) <= len(ids):
        if ids[start : start + len(header)] != header:
            start += 1
            continue
        first = start + len(header)
        start = ids.index(eot, first) + 1 if eot in ids[first:] else len(ids)
        found.append((first, start))
    return found


def segment_ends(
    ids: Sequence[int], attention: Attention, header: Sequence[int], eot: int
) -> tuple[int, ...]:
    """Ends of a row's segments, ascending; the last is the row's length.

    `full`: one. `dialogue`: each turn, a question with its answer; system sentence and what follows
    the last answer belong to the first and the last turn. `prefix`: what leads up to the last
    image and the image; then in turn the rest of a question with the header of its answer, and the
    answer. So nothing before an answer depends on it, nor the image on the question.

    Args:
        ids: token ids with IMAGE_SLOT, or labels that hold the structural tokens.
        header: see `assistant_header`; of LLaDA's tokenizer 4 ids.
        eot: id of `<|eot_id|>`.
    """
    ids = list(ids)
    if attention == "full":
        return (len(ids),)
    said = spoken(ids, header, eot)
    if attention == "dialogue":
        return (*(end for _, end in said[:-1]), len(ids))
    ends = [end for end, token in enumerate(ids, 1) if token == IMAGE_SLOT][-1:]
    for first, end in said:
        ends += [first, end]
    if said:
        ends.pop()  # what follows the last answer, filling, is denoised with it
    return (*(end for end in ends if end < len(ids)), len(ids))


def prompt_ends(
    ids: Sequence[int], attention: Attention, header: Sequence[int], eot: int
) -> tuple[int, ...]:
    """Ends of the segments that end within a prompt; the answer to come is in the one after."""
    return segment_ends([*ids, eot], attention, header, eot)[:-1]
