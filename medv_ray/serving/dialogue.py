"""The messages of a request as a dialogue that the model knows: a system sentence, then user and
assistant by turns, the pictures in front of the first user text.

Messages of one role in a row are one turn, their texts joined by a blank line. Pictures of a later
turn go to the first one, behind those that are there, as the reference has them nowhere else; the
answer's warnings say so.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

from medv_ray.data.prompts import Turn
from medv_ray.serving.options import LimitSettings
from medv_ray.serving.protocol import BadRequest, ImagePart, Message

MOVED = "images_moved"
"""Warning: so many pictures of later turns stand in front of the first one."""


class Picture(NamedTuple):
    """A picture that was sent, not yet looked at."""

    field: str
    """Where it stands in the request."""
    url: str


class Dialogue(NamedTuple):
    """What was asked."""

    system: str | None
    """None: no system message; the prompt settings say which sentence."""
    turns: Sequence[Turn]
    """From a user's to a user's."""
    pictures: Sequence[Picture]
    """In the order in which they were sent."""
    warnings: Sequence[str] = ()


def dialogue_of(messages: Sequence[Message], limits: LimitSettings) -> Dialogue:
    """Raises BadRequest E1701, and E1301 for a turn without text; both name the message."""
    _check(limits.max_messages, len(messages), "messages", "messages")
    # before anything of it goes through the tokenizer, which is slow on megabytes
    size = sum(len(_text(message).encode()) for message in messages)
    _check(limits.max_text_bytes, size, "messages", "bytes of text")
    system: str | None = None
    turns: list[Turn] = []
    pictures: list[Picture] = []
    moved = 0
    for role, numbers, text in _joined(messages):
        where = f"messages.{numbers[0]}"
        found = [one for number in numbers for one in _pictures(number, messages[number])]
        if found and role != "user":
            rule = "pictures belong to the user's messages"
            raise _refused("E1701", found[0].field.partition(".content")[0] + ".content", rule)
        if role == "system":
            if numbers[0]:
                rule = "a system message stands in front of all others"
                raise _refused("E1701", f"{where}.role", rule)
            system = text
            continue
        if role == "assistant" and not turns:
            raise _refused("E1701", f"{where}.role", "the user speaks first")
        moved += len(found) if turns else 0
        pictures += found
        _check(limits.max_images, len(pictures), f"messages.{numbers[-1]}.images", "pictures")
        if role == "user" and not text.strip() and not found:
            raise _refused("E1301", f"{where}.content", "the message has no text")
        turns.append(Turn("user" if role == "user" else "assistant", text))
    if not turns or turns[-1].role != "user":
        raise _refused("E1701", "messages", "the last one must be the user's")
    if not turns[-1].text.strip():
        rule = "a picture without a question; add a part of text"
        raise _refused("E1301", f"messages.{len(messages) - 1}.content", rule)
    return Dialogue(system, turns, pictures, (f"{MOVED}:{moved}",) if moved else ())


def _joined(messages: Sequence[Message]) -> list[tuple[str, list[int], str]]:
    """Role, numbers and text of messages of one role in a row. Raises BadRequest E1701."""

    def role(number: int) -> str:
        said = messages[number].role
        return "system" if said == "developer" else said

    groups = []
    for name, run in groupby(range(len(messages)), role):
        numbers = list(run)
        for number in numbers:
            if messages[number].content in (None, []) and name != "assistant":
                raise _refused("E1701", f"messages.{number}.content", "is missing, null or empty")
        texts = [_text(messages[number]) for number in numbers]
        groups.append((name, numbers, "\n\n".join(text for text in texts if text.strip())))
    return groups


def _text(message: Message) -> str:
    if not isinstance(message.content, list):
        return message.content or ""
    return "\n".join(part.text for part in message.content if not isinstance(part, ImagePart))


def _pictures(number: int, message: Message) -> list[Picture]:
    parts = message.content if isinstance(message.content, list) else []
    field = f"messages.{number}.content.{{}}.image_url.url"
    return [
        Picture(field.format(i), part.image_url.url)
        for i, part in enumerate(parts)
        if isinstance(part, ImagePart)
    ]


def _check(limit: int, number: int, field: str, what: str) -> None:
    if number > limit:
        raise _refused("E1701", field, f"{number} {what}; the limit is {limit}")


def _refused(code: str, field: str, rule: str) -> BadRequest:
    return BadRequest(code, f"{field}: {rule}.", field)
