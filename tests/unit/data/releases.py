"""Releases in small, made as their authors lay them out; and the real ones where they are."""

import csv
import io
import json
import pickle
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from medv_ray.data.vqa.settings import PrepareSettings

HF = pa.schema(
    [
        ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        ("question", pa.string()),
        ("answer", pa.string()),
    ]
)


def picture(colour: int, kind: str = "JPEG", mode: str = "RGB") -> bytes:
    """A small image file; other colours give other bytes."""
    buffer = io.BytesIO()
    tile = Image.radial_gradient("L").resize((40, 32)).point(lambda v: (v * 3 + colour) % 256)
    tile.convert(mode).save(buffer, kind)
    return buffer.getvalue()


def real(name: str) -> Path:
    """<repo>/../shared/data/<name>; skips the test where it is not."""
    path = Path(__file__).parents[4] / "shared" / "data" / name
    if not path.is_dir():
        pytest.skip(f"no {name} beside the repository")
    return path


def settings(kind: str, source: Path, **more: Any) -> PrepareSettings:
    """Output goes beside the source."""
    out = source.parent / "out"
    return PrepareSettings.model_validate(
        {"kind": kind, "source": str(source), "out": str(out), **more}
    )


def write_images(folder: Path, *names: str) -> None:
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(number + len(name)))


def write_json(path: Path, rows: list[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows))


def write_hub(folder: Path, split: str, rows: list[tuple[bytes | None, str | None, str | None]]):
    """A parquet file as Hugging Face's exports."""
    path = folder / "data" / f"{split}-00000-of-00001.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    cells = [
        {"image": {"bytes": data, "path": None}, "question": asked, "answer": answer}
        for data, asked, answer in rows
    ]
    pq.write_table(pa.Table.from_pylist(cells, schema=HF), path)


def official_row(name: str, number: int, asked: str, answer: Any, kind: str) -> dict[str, Any]:
    """A record of PathVQA's pickles."""
    return {
        "answer_type": kind,
        "img_id": name,
        "label": {} if answer is None else {answer: 1},
        "question_id": number,
        "question_type": "where",
        "sent": asked,
    }


def write_official(folder: Path, split: str, rows: Any, protocol: int = 2) -> Path:
    path = folder / "qas" / f"{split}_vqa.pkl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(rows, protocol=protocol))
    return path


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
