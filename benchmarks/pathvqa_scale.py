r"""An archive of PathVQA's shape, scored by the job itself, with the memory of its processes.

    python benchmarks/pathvqa_scale.py [--rows 6719 --images 858 --keep DIR]

Makes a synthetic parquet archive (Hugging Face image struct, bytes repeated per row, 858 images of
43k to 1.1M pixels, 10 % CMYK), runs `jobs/score_archive.py` on it with the embedded toy, samples
the resident memory of the driver, of each scoring actor and of their decoder children, and checks
the row contract on the output. One JSON line: rows/s, tower runs, and for each kind of process its
peak in the second and in the last quarter of the run: flat means that the two agree.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import pyarrow as pa

from circumstances import circumstances
from medv_ray.archive.rows import read_run
from medv_ray.data.synthetic import pathvqa_shaped

ROOT = Path(__file__).parents[1]
SAMPLE_S = 0.5
GROWTH = 1.1  # last quarter over second quarter


def resident_mib(pid: str) -> float:
    """Resident memory without the shared pages of Ray's object store; 0 for a process that is
    gone."""
    try:
        fields = dict(
            line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines()
        )
    except OSError:
        return 0.0
    return int(fields.get("RssAnon", "0 kB").split()[0]) / 1024


def descendants(root: int) -> list[str]:
    """Process ids below `root`, and `root` itself."""
    children = defaultdict(list)
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = stat.read_text().rpartition(")")[2].split()[1]
        except OSError:
            continue
        children[parent].append(stat.parent.name)
    found, todo = [], [str(root)]
    while todo:
        found.append(todo.pop())
        todo += children[found[-1]]
    return found


def kind(pid: str, driver: int) -> str | None:
    """driver, actor, decoder or None for Ray's own processes."""
    if pid == str(driver):
        return "driver"
    try:
        command = (
            Path(f"/proc/{pid}/cmdline")
            .read_bytes()
            .replace(b"\0", b" ")
            .decode("utf-8", "replace")
        )
    except OSError:
        return None
    if "decode_child" in command:
        return "decoder"
    return "actor" if "ray::" in command and "ScoreChunk" in command else None


def watch(process: subprocess.Popen[bytes]) -> list[tuple[float, dict[str, float]]]:
    """(seconds, largest resident MiB by kind) until the process ends."""
    start, samples = time.monotonic(), []
    while process.poll() is None:
        now: dict[str, float] = defaultdict(float)
        for pid in descendants(process.pid):
            what = kind(pid, process.pid)
            if what:
                now[what] = max(now[what], resident_mib(pid))
        samples.append((time.monotonic() - start, dict(now)))
        time.sleep(SAMPLE_S)
    return samples


def quarter_peaks(samples: list[tuple[float, dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Peak by kind in the second and the last quarter of the time in which an actor was alive."""
    busy = [sample for sample in samples if "actor" in sample[1]]
    start, end = busy[0][0], busy[-1][0]
    peaks: dict[str, dict[str, float]] = {}
    for name in ("driver", "actor", "decoder"):
        peaks[name] = {}
        for label, low, high in (("second_quarter", 0.25, 0.5), ("last_quarter", 0.75, 1.0)):
            inside = [
                values.get(name, 0.0)
                for at, values in busy
                if start + low * (end - start) <= at <= start + high * (end - start)
            ]
            peaks[name][label] = round(max(inside, default=0.0), 1)
        ratio = peaks[name]["last_quarter"] / max(peaks[name]["second_quarter"], 1.0)
        peaks[name]["ratio"] = round(ratio, 3)
    return peaks


def run(rows: int, images: int, folder: Path, extra: list[str]) -> dict[str, object]:
    """Make the archive, score it, check it."""
    archive = folder / "pathvqa_shaped.parquet"
    if not archive.exists():
        pathvqa_shaped(archive, rows, images)
    command = [
        *(sys.executable, "jobs/score_archive.py", "--archive", str(archive)),
        *("--model", "toy", "--out", str(folder / "run"), *extra),
    ]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)
    samples = watch(process)
    assert process.stdout is not None
    output = process.stdout.read().decode()
    if process.returncode:
        raise SystemExit(f"the job ended with {process.returncode}:\n{output}")
    columns = ["id", "status", "image_sha256"]
    table = pa.concat_tables(read_run(str(folder / "run"), columns)).to_pydict()
    counts = {status: table["status"].count(status) for status in set(table["status"])}
    if len(table["id"]) != rows or len(set(table["id"])) != rows:
        raise SystemExit(f"row contract broken: {len(table['id'])} of {rows} rows")
    peaks, job = quarter_peaks(samples), json.loads(output.strip().splitlines()[-1])
    grown = [name for name, peak in peaks.items() if peak["ratio"] > GROWTH]
    counters = job["counters"]
    if grown or not counters["images"] == counters["decodes"] == counters["tower_runs"]:
        raise SystemExit(f"memory of {grown} grew, or a picture was done twice: {counters} {peaks}")
    return {
        "bench": "pathvqa_scale",
        "rows": rows,
        "images": len({digest for digest in table["image_sha256"] if digest}),
        "status": counts,
        "memory_mib": peaks,
        "job": job,
        **circumstances(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=6719)
    parser.add_argument("--images", type=int, default=858)
    parser.add_argument(
        "--keep", type=Path, help="folder for archive and run; temporary by default"
    )
    args, extra = parser.parse_known_args()
    if args.keep:
        args.keep.mkdir(parents=True, exist_ok=True)
        print(json.dumps(run(args.rows, args.images, args.keep, extra)))
        return
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(run(args.rows, args.images, Path(folder), extra)))


if __name__ == "__main__":
    main()
