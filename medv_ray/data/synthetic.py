"""Synthetic tissue tiles with questions in the style of PathVQA, and parquet archives of them.

The pictures come from `tissue`, the questions (yes/no, colour, count, side, presence) from
`toy_questions`.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from medv_ray.data.tissue import CANVAS, Scene, draw
from medv_ray.data.toy_questions import ATTRIBUTES, BLOCK_ROWS, Target, both, everything, plan

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
CAPTION_QUESTION = "Describe the picture."
GREY = 128


@dataclass(frozen=True)
class Row:
    """One question on one tile."""

    id: str
    image: bytes
    """Encoded: JPEG, or PNG for every other tile. The rows of a tile share it."""
    image_name: str
    question: str
    answer: str
    question_type: str
    """One of QUESTION_TYPES, or "caption"."""
    attributes: dict[str, str]


def rows(
    num_rows: int,
    seed: int = 0,
    *,
    split: Split = "test",
    per_image: int = 3,
    captions: bool = False,
    size_wh: tuple[int, int] = (CANVAS, CANVAS),
) -> Iterator[Row]:
    """`num_rows` questions, `per_image` on each tile, the types in turn.

    With `captions`, each tile has one row more, of type "caption", whose answer names every
    attribute. Deterministic in all arguments; splits and seeds share no picture. Answers are
    balanced in each block of BLOCK_ROWS rows, so that a short run is no prefix of a longer one.
    """
    for block, start in enumerate(range(0, num_rows, BLOCK_ROWS)):
        size = min(BLOCK_ROWS, num_rows - start)
        stream = (seed, SPLITS.index(split), block)
        counts = _spread(size, -(-size // per_image))
        for index, asked in enumerate(plan(size, counts, np.random.default_rng(stream))):
            scene = _scene(asked, stream, index)
            data = encode(draw(scene, size_wh), "PNG" if index % 2 else "JPEG")
            name = f"{split}-{seed}-{block:03d}-{index:03d}"
            attributes = {name: str(getattr(scene, name)) for name in ATTRIBUTES}
            answers = [(target.question, target.answer, kind) for kind, target in asked]
            if captions:
                answers.append((CAPTION_QUESTION, scene.caption(), "caption"))
            for number, said in enumerate(answers):
                yield Row(f"{name}-{number}", data, f"{name}.{_ending(data)}", *said, attributes)


NEW_STAIN = 0.4
"""Share of the next colour channel in each one."""
NEW_WORDS = {
    "How many large cells are there?": "Count the large cells.",
    "How many large cells are seen in the picture?": "Count the large cells in the slide.",
    "What is the number of large cells?": "Give the number of large cells.",
    "Where is the vessel located?": "Say where the vessel lies.",
    "On which side is the vessel?": "Name the side of the vessel.",
    "Which side of the tile does the vessel lie on?": "Which side does the vessel lie on?",
    "What colour are the large cells?": "What hue are the large cells?",
    "What is the colour of the large cells?": "What is the hue of the large cells?",
    "Which colour are the large cells stained?": "Which hue are the large cells stained?",
    CAPTION_QUESTION: "Describe the slide.",
}


def shifted(row: Row) -> Row:
    """The row in another laboratory's manner: another stain, open questions in other words, "Yes or
    no:" before closed ones. The answer is the same."""
    picture = np.asarray(Image.open(io.BytesIO(row.image)).convert("RGB"), dtype=np.float32)
    moved = (1 - NEW_STAIN) * picture + NEW_STAIN * picture[..., [1, 2, 0]]
    data = encode(Image.fromarray(moved.round().astype(np.uint8)), "PNG")
    return replace(
        row,
        image=data,
        image_name=f"{row.image_name.rpartition('.')[0]}.png",
        question=NEW_WORDS.get(row.question, f"Yes or no: {row.question}"),
    )


def encode(image: Image.Image, kind: Literal["JPEG", "PNG"] = "JPEG", quality: int = 90) -> bytes:
    """The bytes of an image file."""
    buffer = io.BytesIO()
    if kind == "JPEG":
        image.save(buffer, "JPEG", quality=quality)
    else:
        image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def grey_image(size_wh: tuple[int, int] = (CANVAS, CANVAS)) -> bytes:
    """A PNG without content: what the model must not be able to answer from."""
    return encode(Image.new("RGB", size_wh, (GREY, GREY, GREY)), "PNG")


def write_archive(
    path: str | Path,
    num_rows: int = 600,
    seed: int = 0,
    *,
    split: Split = "test",
    per_image: int = 3,
    captions: bool = False,
    row_group_rows: int = 100,
    grey: bool = False,
    shift: bool = False,
) -> Path:
    """One parquet file in Hugging Face's layout (image struct), with id, question_type, attributes.

    `captions` adds a caption for each tile to the `num_rows` questions, see `rows`. `grey` puts a
    grey tile in the place of every picture; `shift` takes every row from the other laboratory, see
    `shifted`. Returns the path.
    """
    path = Path(path)
    blank = grey_image()
    columns = [*_HF_FIELDS, pa.field("question_type", pa.string()), _ATTRIBUTE_FIELD]
    schema = _schema([pa.field("id", pa.string()), *columns])
    with pq.ParquetWriter(path, schema, compression="snappy") as writer:
        batch: list[dict[str, Any]] = []
        for row in rows(num_rows, seed, split=split, per_image=per_image, captions=captions):
            row = shifted(row) if shift else row
            image = {"bytes": blank if grey else row.image, "path": row.image_name}
            batch.append({**asdict(row), "image": image})
            if len(batch) == row_group_rows:
                writer.write_table(
                    pa.Table.from_pylist(batch, schema=schema), row_group_size=row_group_rows
                )
                batch = []
        if batch:
            writer.write_table(
                pa.Table.from_pylist(batch, schema=schema), row_group_size=row_group_rows
            )
    return path


def pathvqa_shaped(
    path: str | Path,
    num_rows: int = 6719,
    num_images: int = 858,
    seed: int = 0,
    *,
    min_pixels: int = 43_000,
    max_pixels: int = 1_100_000,
    row_group_rows: int = 200,
) -> Path:
    """A parquet file shaped like PathVQA's test split on Hugging Face: image, question, answer.

    Sizes are log-uniform between the limits, sides up to 1:1.8; of 858 pictures 90 are CMYK and 2
    grey JPEG. The bytes of a picture stand in each of its rows. It holds a row group in memory.
    Returns the path.
    """
    path = Path(path)
    rng = np.random.default_rng((seed, len(SPLITS)))
    counts = _spread(num_rows, num_images)
    asked = plan(num_rows, counts, rng)
    modes = np.array(["RGB"] * num_images, dtype=object)
    order = rng.permutation(num_images)
    modes[order[: round(num_images * 90 / 858)]] = "CMYK"
    modes[order[num_images - round(num_images * 2 / 858) :]] = "L"
    schema = _schema(_HF_FIELDS)
    with pq.ParquetWriter(path, schema, compression="snappy", use_dictionary=False) as writer:
        batch: list[dict[str, Any]] = []
        for index, questions in enumerate(asked):
            pixels = np.exp(rng.uniform(np.log(min_pixels), np.log(max_pixels)))
            aspect = np.exp(rng.uniform(-np.log(1.8), np.log(1.8)))
            size = (round(np.sqrt(pixels * aspect)), round(np.sqrt(pixels / aspect)))
            picture = draw(_scene(questions, (seed, len(SPLITS), 0), index), size).convert(
                modes[index]
            )
            image = {"bytes": encode(picture, "JPEG", quality=60), "path": f"test_{index:05d}.jpg"}
            for _, target in questions:
                batch.append({"image": image, "question": target.question, "answer": target.answer})
                if len(batch) == row_group_rows:
                    writer.write_table(pa.Table.from_pylist(batch, schema=schema))
                    batch = []
        if batch:
            writer.write_table(pa.Table.from_pylist(batch, schema=schema))
    return path


_HF_FIELDS = [
    pa.field("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
    pa.field("question", pa.string()),
    pa.field("answer", pa.string()),
]
_ATTRIBUTE_FIELD = pa.field("attributes", pa.struct([(name, pa.string()) for name in ATTRIBUTES]))


def _schema(fields: list[pa.Field]) -> pa.Schema:
    """Fields with the metadata by which Hugging Face's `datasets` knows the image column."""
    text = {"dtype": "string", "_type": "Value"}
    features: dict[str, Any] = {item.name: text for item in fields}
    features["image"] = {"_type": "Image"}
    if "attributes" in features:
        features["attributes"] = dict.fromkeys(ATTRIBUTES, text)
    return pa.schema(fields, metadata={"huggingface": json.dumps({"info": {"features": features}})})


def _ending(data: bytes) -> str:
    return "png" if data.startswith(b"\x89PNG") else "jpg"


def _scene(asked: list[tuple[str, Target]], stream: tuple[int, ...], index: int) -> Scene:
    """A scene in which every answer is true; what is not asked about is drawn at random."""
    allowed = everything()
    for _, target in asked:
        allowed = both(allowed, target.needs)
    rng = np.random.default_rng((*stream, index, 1))
    drawn = {name: str(rng.choice(sorted(values))) for name, values in allowed.items()}
    if len(allowed["vessel"]) == len(ATTRIBUTES["vessel"]) and rng.random() < 0.4:
        drawn["vessel"] = "none"  # then half of the tiles about which nothing is asked have none
    return Scene(**drawn, seed=(*stream, index, 2))


def _spread(total: int, parts: int) -> list[int]:
    base, rest = divmod(total, parts)
    return [base + (index < rest) for index in range(parts)]
