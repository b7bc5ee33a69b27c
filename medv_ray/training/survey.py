"""What is wrong with a dataset for a stage, found before the first step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, NamedTuple

from medv_ray.data.dataset import Dataset, Example, image_path
from medv_ray.errors import DataError, SettingsError
from medv_ray.markers import IGNORE, IMAGE_SLOT
from medv_ray.model.config import ModelConfig
from medv_ray.training.lengths import ImageTokens
from medv_ray.training.rows import RowEncoder, naming_row
from medv_ray.training.stages import StageSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Encode = Callable[[Example, int], tuple[Sequence[int], Sequence[int]]]
SHOWN_ROWS = 5
WAYS = {
    "E1114": "Copy or prepare the dataset again.",
    "E1118": "Leave them out, or take fewer tokens an image: --set stage.aspect=square.",
}


class Survey(NamedTuple):
    """Lengths of a split, in tokens, image tokens included."""

    rows: int
    tokens: int
    longest: int
    targets: int
    images: int
    """Distinct ones."""


def survey_stage(
    dataset: Dataset,
    tokenizer: PreTrainedTokenizerFast,
    stage: StageSettings,
    config: ModelConfig,
) -> Survey:
    """`survey` of a stage on a model, whose own limit of a row's length counts too.

    Args:
        config: the model's as the stage sees it.

    Raises as `survey`, and SettingsError E1001 for fewer rows than a step takes.
    """
    if not stage.steps(len(dataset)):
        text = f"{len(dataset)} rows x {stage.epochs:g} epochs are fewer than stage.batch_size="
        raise SettingsError("E1001", f"{text}{stage.batch_size}.")
    encoder = RowEncoder(tokenizer, stage)

    def encode(example: Example, number: int) -> tuple[list[int], list[int]]:
        row = encoder(example.conversations, len(example.images), number)
        return row.ids, row.labels

    limits = (stage.max_length, "stage.max_length"), (config.max_length, "the model's own limit")
    with closing(ImageTokens(dataset, stage, config)) as image_tokens:
        return survey(dataset, encode, image_tokens, *min(limits))


def survey(
    dataset: Dataset,
    encode: Encode,
    image_tokens: Callable[[str, bool], int],
    max_length: int,
    limit: str = "stage.max_length",
    rows: Sequence[int] | None = None,
) -> Survey:
    """Encode every row once, or those of `rows`.

    Args:
        encode: token ids and labels of a row with its number, as the stage will make them.
        image_tokens: tokens of the image with this digest, and whether it is one of several of its
            row; asked once.
        limit: what `max_length` is, for the message.

    Raises DataError E1110 (no rows), what `image_tokens` raised first (rows whose picture it
    refuses), E1114 (rows without their images), E1117 (rows with an empty answer), E1118 (rows over
    `max_length`), E1119 (rows without a target); with the row's number, E1109 or E1304 for one that
    cannot be encoded.
    """
    if not len(dataset):
        raise DataError("E1110", "the dataset has no rows.")
    # of each picture; None: it is missing
    known: dict[tuple[str, bool], int | DataError | None] = {}
    faults: dict[str, list[int]] = {code: [] for code in ("E1114", "E1118", "E1117", "E1119")}
    refused: list[tuple[int, DataError]] = []
    tokens = longest = targets = 0
    chosen = range(len(dataset)) if rows is None else rows
    for row in chosen:
        example = dataset[row]
        with naming_row(dataset, row):
            ids, labels = encode(example, row)
        pictures = [(sha256, len(example.images) > 1) for sha256 in example.images]
        for key in pictures:
            if key not in known:
                known[key] = look(dataset, key, image_tokens)
        found = [known[key] for key in pictures]
        length = sum(token != IMAGE_SLOT for token in ids)
        length += sum(one for one in found if isinstance(one, int))
        taught = sum(label != IGNORE for label in labels)
        refused += [(row, one) for one in found if isinstance(one, DataError)][:1]
        faults["E1114"] += [row] if None in found else []
        faults["E1118"] += [row] if length > max_length else []
        faults["E1117"] += [row] if has_empty_answer(example) else []
        faults["E1119"] += [] if taught else [row]
        tokens, longest, targets = tokens + length, max(longest, length), targets + taught
    if refused:
        first, error = refused[0]
        text = f"{len(refused)} rows of {dataset.split} have a picture that is refused: "
        text += f"{shown([row for row, _ in refused])}. Row {first}: {error.detail}"
        raise DataError(error.code, text)
    over = f"over {max_length} tokens ({limit}), the longest {longest}"
    words = "without an image that they name", over, "with an empty answer", "without a target"
    for (code, faulty), what in zip(faults.items(), words, strict=True):
        if faulty:
            text = f"{len(faulty)} rows of {dataset.split} are {what}: {shown(faulty)}"
            raise DataError(code, f"{text}. {WAYS.get(code, 'Leave them out.')}")
    images = len({sha256 for sha256, _ in known})
    return Survey(len(chosen), tokens, longest, targets, images)


def look(
    dataset: Dataset, key: tuple[str, bool], image_tokens: Callable[[str, bool], int]
) -> int | DataError | None:
    """Tokens of a picture, or why it is refused; None when it is missing."""
    if not image_path(dataset.folder, key[0]).is_file():
        return None
    try:
        return image_tokens(*key)
    except DataError as error:
        return error.with_traceback(None)


def has_empty_answer(example: Example) -> bool:
    """Whether a message of the assistant says nothing; a first message of its is never taught."""
    return any(m["from"] == "gpt" and not m["value"].strip() for m in example.conversations[1:])


def shown(rows: Sequence[int]) -> str:
    """Numbers of rows for a message."""
    return ", ".join([*map(str, rows[:SHOWN_ROWS]), *(["..."] if len(rows) > SHOWN_ROWS else [])])
