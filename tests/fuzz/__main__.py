"""Parsers of bytes that others wrote, on inputs that are almost sound.

    python -m tests.fuzz [--target dicom ...] [--runs 100000] [--seconds 600] [--seed 0]
    python -m tests.fuzz --target dicom --input fuzz-found/dicom-0123456789ab

For each target: so many inputs, or so many seconds, whatever comes first. With atheris installed
(`pip install -e '.[fuzz]'`) the inputs follow the branches that they take; without it Hypothesis
changes bytes of the sound ones. Each input must end in a value or an error of the catalogue, within
5 s of the processor and 1 GiB, and no message may hold an address, a path, a stack or a word of the
content. One JSON line a target; exit code 1 where a promise is not kept.

Pictures are decoded in a child by the product, which tells a child's death with a code. So deaths
of the process are counted, and are a fault only where the product has no child.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.fuzz.judge import judge
from tests.fuzz.state import State
from tests.fuzz.targets import TARGETS, Target
from tests.fuzz.worker import again, keep

ROOT = Path(__file__).parents[2]
HANG_S = 120.0
"""On a busy machine; what an input may take is measured by the processor's time."""
MOST_RSS = 2**30
MOST_DEATHS = 50


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--target", choices=TARGETS, action="append", help="default: all")
    parser.add_argument("--runs", type=int, default=100_000, help="inputs of each target")
    parser.add_argument("--seconds", type=float, default=600.0, help="for each target")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--engine", choices=("atheris", "hypothesis"))
    parser.add_argument("--findings", type=Path, default=Path("fuzz-found"))
    parser.add_argument("--input", type=Path, help="run this one input of the target once")
    args = parser.parse_args()
    chosen = args.target or list(TARGETS)
    if args.input is not None:
        sys.exit(once(TARGETS[chosen[0]], args.input.read_bytes()))
    if args.engine is None:
        args.engine = "atheris" if importlib.util.find_spec("atheris") else "hypothesis"
    bad = False
    for name in chosen:
        figures = fuzz(TARGETS[name], args)
        bad |= bool(figures["problems"])
        print(json.dumps(figures), flush=True)
    sys.exit(1 if bad else 0)


def once(target: Target, data: bytes) -> int:
    """One input, with what was said and with the stack of what came out of it."""
    with tempfile.TemporaryDirectory(prefix="medv-fuzz-") as name:
        run = target.make(Path(name))
        verdict = judge(run, data, Path(name))
        print(json.dumps({"seconds": round(verdict.seconds, 3), "faults": verdict.faults}))
        print(*run(data), sep="\n")
    return 1 if verdict.faults else 0


def fuzz(target: Target, args: argparse.Namespace) -> dict[str, Any]:
    """Figures of a target."""
    began_s = time.monotonic()
    deaths = hangs = 0
    with tempfile.TemporaryDirectory(prefix="medv-fuzz-") as name:
        state = State(Path(name) / "state")
        while True:
            left_s = args.seconds - (time.monotonic() - began_s)
            left = args.runs - state.figures.cases
            how = watched(target, args, Path(name) / "state", left, left_s, args.seed + deaths)
            if how == "done" or deaths + hangs >= MOST_DEATHS:
                break
            hangs += how == "hangs"
            deaths += how != "hangs"
            where = keep(args.findings, target.name, state.input)
            print(f"{target.name}: {how}\n  {again(target.name, where)}", flush=True)
            if left_s <= 1 or left <= 0:
                break
        found = state.figures
    problems = [f"{found.faults} inputs were not kept to the promise"] if found.faults else []
    problems += [f"{hangs} inputs took over {HANG_S:.0f} s"] if hangs else []
    problems += [f"{deaths} inputs ended the process"] if deaths and not target.in_child else []
    problems += [f"{found.rss_kb} KiB were held"] if found.rss_kb * 1024 > MOST_RSS else []
    problems += [] if found.cases else ["no input was tried"]
    return {
        "fuzz": target.name,
        "engine": args.engine,
        "seed": args.seed,
        "cases": found.cases,
        "seconds": round(time.monotonic() - began_s),
        "uncaught": found.faults,
        "native_deaths": deaths,
        "hangs": hangs,
        "slowest_ms": round(found.slowest_us / 1000, 1),
        "largest_rss_mib": round(found.rss_kb / 1024),
        "problems": problems,
    }


def watched(
    target: Target, args: argparse.Namespace, state: Path, runs: int, seconds: float, seed: int
) -> str:
    """Run a process to its end: `done`, `hangs`, or how it ended."""
    known = State(state)
    known.figures = known.figures._replace(since=0.0)
    command = [sys.executable, "-m", "tests.fuzz.worker", "--target", target.name]
    command += ["--engine", args.engine, "--runs", str(max(runs, 1)), "--seed", str(seed)]
    command += ["--seconds", str(max(seconds, 1.0)), "--state", str(state)]
    command += ["--findings", str(args.findings.absolute())]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    while process.poll() is None:
        time.sleep(0.2)
        since = known.figures.since
        if since and time.monotonic() - since > HANG_S:
            process.kill()
            process.wait()
            return "hangs"
    code = process.returncode
    if code == 0:
        return "done"
    return f"signal {-code}" if code < 0 else f"exit status {code}"


if __name__ == "__main__":
    main()
