r"""Pictures a second and core: the decode path beside Pillow alone in one process.

    python benchmarks/bench_decode.py [--pictures 60] [--repeats 5] [--aspect square]

Sizes are drawn between 43,000 and 1.1 million pixels, evenly on a logarithmic scale, as PathVQA's
originals lie; sides 1:1 to 3:2. Contents are sums of noise at many scales, as photographs have
them (4:2:0, quality 90, 1.5 to 2 bits a pixel), in colour and grey. `jpeg` are baseline, `mixed` a
quarter progressive, `png` and `dicom` (16 bits, uncompressed, 512 x 512) are for comparison.

`pillow` opens, decodes, converts to RGB and cuts the tiles in this process, with no check, limit or
digest. `path` is `Decoder.prepare`: the same tiles out of the decoder's child process. DICOM's
`pillow` is pydicom's array, a linear window in numpy, and Pillow's resize. First both arms' tiles
must be equal. Then the arms alternate picture by picture; a repeat takes all pictures. Time is what
this process's main thread and the child had of a core, by their CPU clocks, so that other work on
the machine counts as little as it can (/proc/.../schedstat would be late by up to a tick); a core's
rate is pictures by their sum.
Prints one JSON line. The bar is 0.85 of Pillow alone.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import pickle
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from circumstances import circumstances
from medv_ray.canvases import TileSettings
from medv_ray.data.decode_child import Decoder
from medv_ray.data.tiles import cut
from medv_ray.settings import ImageSettings

PIXELS = (43_000, 1_100_000)
ANSWERS_PER_S = (10, 26, 70)
TILE = 384
GRID = ((384, 768), (768, 384), (768, 768), (1152, 384), (384, 1152))
WINDOW = (1000.0, 900.0)


def photograph(width: int, height: int, rng: np.random.Generator, grey: bool) -> Image.Image:
    """Noise at many scales, the coarse ones strongest."""
    channels = []
    for _ in range(1 if grey else 3):
        total = np.zeros((height, width), np.float32)
        scale = 3
        while scale < max(width, height):
            small = rng.normal(size=(max(2, scale * height // max(width, height)), scale))
            layer = Image.fromarray(small.astype(np.float32))
            total += np.asarray(layer.resize((width, height), Image.Resampling.BICUBIC)) / scale
            scale *= 2
        total += rng.normal(scale=0.03, size=total.shape)
        low, high = total.min(), total.max()
        channels.append(np.uint8((total - low) * (255 / (high - low))))
    return Image.fromarray(channels[0] if grey else np.stack(channels, -1))


def sizes(count: int, rng: np.random.Generator) -> list[tuple[int, int]]:
    """(width, height) of PathVQA's kind."""
    low, high = map(math.log, PIXELS)
    found = []
    for _ in range(count):
        pixels, ratio = math.exp(rng.uniform(low, high)), rng.uniform(1, 1.5)
        long, short = int(math.sqrt(pixels * ratio)), int(math.sqrt(pixels / ratio))
        found.append((long, short) if rng.random() < 0.7 else (short, long))
    return found


def encoded(picture: Image.Image, kind: str, **how: Any) -> bytes:
    """The bytes of a file."""
    buffer = io.BytesIO()
    picture.save(buffer, kind, **how)
    return buffer.getvalue()


def dicom(rng: np.random.Generator) -> bytes:
    """A CT slice's shape: 512 x 512 of 16 bits with a window."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    data.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID
    data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID
    data.Rows = data.Columns = 512
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 12, 11, 0
    data.WindowCenter, data.WindowWidth = WINDOW
    values = np.asarray(photograph(512, 512, rng, grey=True), np.uint16) * 8
    data.PixelData = values.tobytes()
    buffer = io.BytesIO()
    data.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def pillow(data: bytes, tiles: TileSettings) -> NDArray[np.uint8]:
    """Tiles by Pillow alone."""
    return cut(Image.open(io.BytesIO(data)).convert("RGB"), tiles)


def pydicom_alone(data: bytes, tiles: TileSettings) -> NDArray[np.uint8]:
    """Tiles by pydicom's array and a linear window (PS3.3 C.11.2.1.2.1)."""
    import pydicom

    found = pydicom.dcmread(io.BytesIO(data))
    center, width = float(found.WindowCenter), float(found.WindowWidth)
    values = found.pixel_array.astype(np.float64)
    shown = ((values - (center - 0.5)) / (width - 1) + 0.5) * 255
    grey = np.rint(np.clip(shown, 0, 255)).astype(np.uint8)
    return cut(Image.fromarray(grey).convert("RGB"), tiles)


def archives(count: int) -> dict[str, list[bytes]]:
    """The files of each kind."""
    rng = np.random.default_rng(17)
    shown = [photograph(*size, rng, grey=rng.random() < 0.15) for size in sizes(count, rng)]
    jpeg = {"quality": 90}
    return {
        "jpeg": [encoded(one, "JPEG", **jpeg) for one in shown],
        "mixed": [
            encoded(one, "JPEG", progressive=not number % 4, **jpeg)
            for number, one in enumerate(shown)
        ],
        "png": [encoded(one, "PNG") for one in shown[: count // 3]],
        "dicom": [dicom(rng) for _ in range(max(1, count // 6))],
    }


def busy_s(pid: int) -> float:
    """Seconds that another process has had a core; the clock of clock_getcpuclockid(3)."""
    return time.clock_gettime((~pid << 3) | 2)


def measure(
    files: Sequence[bytes],
    alone: Callable[[bytes, TileSettings], NDArray[np.uint8]],
    tiles: TileSettings,
    repeats: int,
) -> dict[str, Any]:
    """One kind's figures."""
    me = os.getpid()
    rates: dict[str, list[float]] = {"pillow": [], "path": [], "walls": []}
    with Decoder(ImageSettings(decode_seconds=60), tiles) as decoder:
        far = 0
        for data in files:
            difference = np.abs(decoder.prepare(data).tiles.astype(int) - alone(data, tiles))
            far = max(far, int(difference.max()))
        if far > (1 if alone is pydicom_alone else 0):
            raise SystemExit(f"wrong result, not timed: tiles differ by {far}")
        [child] = map(int, Path(f"/proc/{me}/task/{me}/children").read_text().split())
        for _ in range(repeats):
            spent = {"pillow": 0.0, "path": 0.0, "walls": 0.0}
            for data in files:
                begun = time.thread_time()
                alone(data, tiles)
                between, child_begun, wall = time.thread_time(), busy_s(child), time.perf_counter()
                decoder.prepare(data)
                spent["walls"] += time.perf_counter() - wall
                spent["path"] += time.thread_time() - between + busy_s(child) - child_begun
                spent["pillow"] += between - begun
            for name, seconds in spent.items():
                rates[name].append(len(files) / seconds)
    ratios = [a / b for a, b in zip(rates["path"], rates["pillow"], strict=True)]
    per_core = statistics.median(rates["path"])
    return {
        "files": len(files),
        "mean_bytes": round(statistics.mean(map(len, files))),
        "largest_difference": far,
        "pillow_per_s": round(statistics.median(rates["pillow"]), 1),
        "path_per_s": round(per_core, 1),
        "ratio": round(statistics.median(ratios), 3),
        "range": [round(min(ratios), 3), round(max(ratios), 3)],
        "wall_per_s": round(statistics.median(rates["walls"]), 1),
        "cores_for": {str(rate): round(rate / per_core, 2) for rate in ANSWERS_PER_S},
    }


def travelling(files: Sequence[bytes], tiles: TileSettings) -> dict[str, Any]:
    """Bytes and milliseconds of the forms in which a decoded picture could travel."""
    import zlib

    with Decoder(ImageSettings(), tiles) as decoder:
        found = [decoder.prepare(data).tiles for data in files]
    size = statistics.mean(one.nbytes for one in found)
    begun = time.thread_time()
    squeezed = [len(zlib.compress(one.tobytes(), 1)) for one in found]
    zlib_ms = (time.thread_time() - begun) / len(found) * 1e3
    begun = time.thread_time()
    for one in found:
        pickle.loads(pickle.dumps(one, protocol=5))
    copy_ms = (time.thread_time() - begun) / len(found) * 1e3
    return {
        "encoded": round(statistics.mean(map(len, files))),
        "uint8": round(size),
        "bfloat16": round(2 * size),
        "float32": round(4 * size),
        "zlib_1": round(statistics.mean(squeezed)),
        "zlib_1_ms": round(zlib_ms, 2),
        "uint8_there_and_back_ms": round(copy_ms, 2),
    }


def main() -> None:
    """Prints one JSON line."""
    asked = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    asked.add_argument("--pictures", type=int, default=60)
    asked.add_argument("--repeats", type=int, default=5)
    asked.add_argument("--aspect", choices=("square", "pad", "anyres_max"), default="square")
    given = asked.parse_args()
    tiles = TileSettings(given.aspect, TILE, GRID)
    found = archives(given.pictures)
    kinds = {
        name: measure(files, pydicom_alone if name == "dicom" else pillow, tiles, given.repeats)
        for name, files in found.items()
    }
    row = travelling(found["jpeg"], tiles)
    about = {"bench": "decode", "aspect": given.aspect, "repeats": given.repeats, "bar": 0.85}
    print(json.dumps({**about, "kinds": kinds, "row_bytes": row, **circumstances()}))


if __name__ == "__main__":
    main()
