"""Which column holds what: the names asked for, known layouts, and likely names for a message."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

from medv_ray.errors import DataError

MESSAGES = "messages"
TURNS = (MESSAGES, "conversations", "conversatons")  # the last: a typing error of published files
ANSWER_TYPE = "answer_type"
"""Whether a question is open or closed, as VQA-RAD, SLAKE and prepared datasets say it."""
NO_COLUMN = "none"
"""`--id-column none`: ids are made of file and row, whatever the table has; `--choices-column none`
looks at none either."""


class Asked(NamedTuple):
    """The columns that a user asks for. `image` and `question` may be found in a known layout."""

    image: str = "image"
    question: str | None = "question"
    """None: one fixed question for all rows."""
    id: str | None = None
    answer: str | None = None
    choices: str | None = None
    more: tuple[str, ...] = ()
    """Others, which a prompt or a system sentence takes."""


class Columns(NamedTuple):
    """Names of the columns that a file has; None for one that it has not."""

    image: str | None
    question: str | None
    id: str | None
    answer: str | None
    turns: str | None = None
    """Of a dialogue, in place of the question."""
    choices: str | None = None
    answer_type: str | None = None
    more: tuple[str, ...] = ()

    @property
    def cells(self) -> list[str]:
        """All but the image's, each once."""
        named = (
            *(self.id, self.question, self.answer),
            *(self.turns, self.choices, self.answer_type, *self.more),
        )
        return [name for name in dict.fromkeys(named) if name is not None]


LAYOUTS = (
    ("img_name", "question", "qid"),  # SLAKE
    ("image_name", "question", "qid"),  # VQA-RAD, as data_RAD has it
    ("image", "text", "question_id"),  # LLaVA's questions
)
"""Columns of image, question and id; known when all three are there and the default ones not."""


@lru_cache(maxsize=256)
def resolve(asked: Asked, names: tuple[str, ...]) -> Columns:
    """The columns among `names` that are asked for or stand for them."""
    known = set(names)
    layout = next((one for one in LAYOUTS if known.issuperset(one)), (None, None, None))
    image, question, row_id = asked.image, asked.question, asked.id or "id"
    turns = None
    if image == "image" and image not in known:
        image = "images" if "images" in known else layout[0] or image
    if question == "question" and question not in known:
        turns = next((name for name in TURNS if name in known), None)
        question = layout[1] or question
    if asked.id is None and row_id not in known:
        row_id = layout[2] or row_id
    answer, choices = asked.answer or "answer", asked.choices or "choices"

    def there(name: str | None) -> str | None:
        return name if name in known else None

    return Columns(
        there(image),
        None if turns else there(question),
        None if asked.id == NO_COLUMN else there(row_id),
        there(answer),
        turns,
        choices=None if asked.choices == NO_COLUMN else there(choices),
        answer_type=there(ANSWER_TYPE),
        more=tuple(name for name in asked.more if name in known),
    )


def is_row(asked: Asked, names: tuple[str, ...]) -> bool:
    """Whether one of these names is the image's, the question's or a dialogue's column."""
    found = resolve(asked, names)
    return found.image is not None or found.question is not None or found.turns is not None


def find(asked: Asked, names: Sequence[str], file: str) -> Columns:
    """`resolve`. Raises DataError E1101 for a missing column, E1109 for one that is there twice."""
    found = resolve(asked, tuple(dict.fromkeys(names)))
    needed = [("image", found.image or (found.turns and "messages"))]
    if asked.question is not None:
        needed.append(("question", found.question or found.turns))
    if asked.id not in (None, NO_COLUMN):
        needed.append(("id", found.id))
    if asked.answer is not None:
        needed.append(("answer", found.answer))
    if asked.choices not in (None, NO_COLUMN):
        needed.append(("choices", found.choices))
    missing = {kind: str(getattr(asked, kind)) for kind, name in needed if name is None}
    if missing:
        raise no_column(file, missing, names)
    check_more(asked, names, file)
    if list(names).count(ANSWER_TYPE) > 1:  # nobody asked for it, nor for this:
        found = found._replace(answer_type=None)
    if asked.choices is None and list(names).count(found.choices or "") > 1:
        found = found._replace(choices=None)
    twice = next((name for name in found.cells if list(names).count(name) > 1), None)
    if twice is None and found.image is not None and list(names).count(found.image) > 1:
        twice = found.image
    if twice is not None:
        raise DataError("E1109", f"{file}: two columns have the name {twice[:30]!r}.")
    return found


def check_more(asked: Asked, names: Sequence[str], file: str) -> None:
    """Raises DataError E1101 for a column of a prompt or a system sentence that is not there."""
    lacks = next((name for name in asked.more if name not in names), None)
    if lacks is not None:
        rule = "which --prompt or --system-column names"
        raise DataError(
            "E1101", f"{file} has no column {lacks[:30]!r}, {rule}; it has {listed(names)}."
        )


_LIKELY = {
    "image": "image images img imgs imgname imagename imagepath imgpath imagefile imageurl picture "
    "pictures photo file filename filepath path bild datei",
    "question": "question questions q prompt query instruction text input frage sent",
    "answer": "answer answers a label reference response output gpt4answer antwort target",
    "id": "id qid questionid uid uuid key index nr",
    "choices": "choices choice options option candidates",
}

_NAME = re.compile(r"[^\s?!]+(\s+[^\s?!]+){0,2}\s*")
"""Three words at most, and no question."""


def no_column(file: str, missing: Mapping[str, str], found: Sequence[str]) -> DataError:
    """E1101 with the columns that there are, and the flags that name likely ones.

    A csv's are listed only where one of them has a likely name: the first line of a csv without a
    header is a row, and its cells may be a patient's.

    Args:
        missing: names that were looked for, by kind (image, question, id, answer,
            choices).
    """
    message = (
        f"{file} has no column {' and no '.join(repr(name[:30]) for name in missing.values())}"
    )
    plain = [re.sub(r"\W|_", "", name).lower() for name in found]
    every = {word for words in _LIKELY.values() for word in words.split()}
    every |= {name.lower() for name in missing.values()}
    if file.lower().endswith((".csv", ".tsv")) and not every.intersection(plain):
        message += f": none of its {len(found)} has a name that is looked for"
        why = "Is something else than , ; tab or | between them? Is its first line a header?"
        return DataError("E1101", f"{message}. {why}")
    flags = ""
    for kind, wanted in missing.items():
        order = [wanted.lower(), *_LIKELY[kind].split()]
        near = [(order.index(p), n) for p, n in zip(plain, found, strict=True) if p in order]
        flags += f" --{kind}-column {min(near)[1][:30]}" if near else ""
    return DataError(
        "E1101", f"{message}; it has {listed(found)}." + (f" Perhaps{flags}?" if flags else "")
    )


def listed(names: Sequence[str]) -> str:
    """The first names of columns, for a message.

    What reads as a sentence is counted and not shown: where the quote of a header is torn, or its
    line end, a question is among the names.
    """
    shown = [name[:30] for name in names[:20] if _NAME.fullmatch(name)]
    odd = sum(1 for name in names[:20] if name and not _NAME.fullmatch(name))
    more = [f"{odd} whose name is a sentence"] if odd else []
    return ", ".join([*shown, *more]) or "none"
