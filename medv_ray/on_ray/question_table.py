"""The parquet file of a dataset's questions that a scoring job is given."""

from __future__ import annotations

import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from medv_ray.data.dataset import image_path
from medv_ray.files import write_atomic


def write_once(path: Path, made: pa.Table) -> None:
    """Have a parquet file of these rows; one that has them stays as it is, so that the run over it
    goes on. Another, also a damaged one, is written anew, whole or not at all."""
    try:
        if pq.read_table(path).equals(made):
            return
    except (OSError, pa.ArrowException):
        pass  # none is there, or half of one
    file = io.BytesIO()
    pq.write_table(made, file)
    write_atomic(path, file.getvalue())


def image_name(sha256: str) -> str:
    """Of a picture within its dataset."""
    return image_path(Path(), sha256).as_posix()
