"""The same archive scored with and without decoding actors, on two nodes that this process starts:
`python -m tests.integration.two_nodes FOLDER`.

The head has no CPU and what passes for a GPU, which the actor with the model takes; the other node
has two CPUs and no GPU, so that decoding can only run there. Good and bad pictures of several
kinds, the toy model. Prints one JSON line.
"""

from __future__ import annotations

import hashlib
import io
import json
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from medv_ray.archive.rows import read_run
from medv_ray.on_ray.options import ScoreSettings
from medv_ray.on_ray.score import score
from medv_ray.settings import TOY
from tests import frame_files

STORE_BYTES = 100 * 2**20
PATIENCE_S = 300
UNLIKE = ("seconds",)
"""Columns that tell how long something took."""


def encoded(kind: str, seed: int, mode: str = "RGB", **how: Any) -> bytes:
    """A picture of smooth colours."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    picture = Image.fromarray(small).resize((120, 90), Image.Resampling.BICUBIC).convert(mode)
    buffer = io.BytesIO()
    picture.save(buffer, kind, **how)
    return buffer.getvalue()


def chunk_of_png(kind: bytes, data: bytes) -> bytes:
    check = zlib.crc32(kind + data)
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check)


def huge() -> bytes:
    """A PNG whose header announces 144 megapixels."""
    header = chunk_of_png(b"IHDR", struct.pack(">IIBBBBB", 12_000, 12_000, 8, 2, 0, 0, 0))
    body = chunk_of_png(b"IDAT", zlib.compress(bytes(1000)))
    return b"\x89PNG\r\n\x1a\n" + header + body + chunk_of_png(b"IEND", b"")


def pictures() -> dict[str, bytes]:
    """By name: good ones, and bad ones for several reasons."""
    jpeg, png, thin = encoded("JPEG", 1), encoded("PNG", 2), io.BytesIO()
    Image.new("RGB", (20, 2000), (9, 80, 7)).save(thin, "PNG")
    return {
        "jpeg": jpeg, "png": png, "grey": encoded("JPEG", 4, "L"),
        "progressive": encoded("JPEG", 3, progressive=True),
        "cmyk": encoded("JPEG", 5, "CMYK"), "palette": encoded("PNG", 6, "P"),
        "deep": encoded("PNG", 7, "I;16"), "pages": frame_files.greys("TIFF", [10, 90, 200]),
        "dicom": frame_files.dicom([10, 90, 200]), "cut": jpeg[: len(jpeg) // 2],
        "cut_png": png[:500], "none": b"", "text": b"no picture at all", "huge": huge(),
        "thin": thin.getvalue(), "tail": jpeg + b"surplus",
    }  # fmt: skip


def write_archive(path: Path, repeats: int) -> int:
    """Each picture under `repeats` questions, some rows with two pictures; how many rows."""
    found = list(pictures().items())
    rows = []
    for turn in range(repeats):
        for number, (name, data) in enumerate(found):
            other = found[(number + turn) % 4][1]
            images = [data, other] if (number + turn) % 5 == 0 else [data]
            text = f"What is shown in {turn}?" if number % 7 else ""
            rows.append({"id": f"{turn}-{name}", "images": images, "question": text})
    pq.write_table(pa.Table.from_pylist(rows), path)
    return len(rows)


def digest_of(out: Path) -> tuple[str, int]:
    """Of all rows of a run but for their times, in the order of ids; and how many there are."""
    rows = [row for table in read_run(str(out)) for row in table.to_pylist()]
    for row in rows:
        for name in UNLIKE:
            row.pop(name)
    rows.sort(key=lambda row: str(row["id"]))
    text = json.dumps(rows, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest(), len(rows)


def settings(folder: Path, name: str, **pool: Any) -> ScoreSettings:
    return ScoreSettings.model_validate(
        {
            "out": str(folder / name),
            "archive": {"archive": str(folder / "in.parquet"), "chunk_rows": 6},
            "model": {"path": str(TOY), "device": "cpu"},
            "sampler": {"preset": "fast"},
            "pool": {"max_actors": 1, "num_gpus": 1, **pool},
        }
    )


def figures_of(folder: Path, name: str, decoders: int, address: str) -> dict[str, Any]:
    outcome = score(settings(folder, name, decode_actors=decoders), address=address)
    digest, rows = digest_of(folder / name)
    session = outcome.session
    return {
        "exit_code": outcome.exit_code, "rows": rows, "digest": digest,
        "reasons": dict(sorted(session.reasons.items())), "deaths": session.deaths,
        "warned": {k: v for k, v in sorted(session.counters.items()) if k.startswith("warned_")},
        **{name: session.counters[name] for name in ("images", "decodes", "tower_runs")},
    }  # fmt: skip


def of_process(folder: Path, name: str, decoders: int, address: str) -> dict[str, Any]:
    """The same from a driver of its own: Ray connects a process to a `Cluster` once."""
    words = [str(folder), name, str(decoders), address]
    command = [sys.executable, "-m", "tests.integration.two_nodes", *words]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    from ray.cluster_utils import Cluster

    folder = Path(sys.argv[1])
    if len(sys.argv) > 2:
        name, decoders, address = sys.argv[2:]
        print(json.dumps(figures_of(folder, name, int(decoders), address)))
        return
    rows = write_archive(folder / "in.parquet", 4)
    each = {"include_dashboard": False, "object_store_memory": STORE_BYTES, "wait": False}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "num_gpus": 1, **each})
    cluster.add_node(num_cpus=2, **each)
    cluster.wait_for_nodes(timeout=PATIENCE_S)
    started = time.monotonic()
    figures: dict[str, Any] = {"bench": "two_nodes", "rows": rows}
    for name, decoders in (("whole", 0), ("split", 2)):
        figures[name] = of_process(folder, name, decoders, cluster.address)
    figures["same"] = figures["whole"]["digest"] == figures["split"]["digest"]
    figures["seconds"] = round(time.monotonic() - started, 1)
    cluster.shutdown()
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
