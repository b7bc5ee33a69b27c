"""One target in a process of its own, which `tests.fuzz` starts, watches, and starts again when an
input has ended it."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.fuzz.judge import judge
from tests.fuzz.state import State
from tests.fuzz.targets import TARGETS

MEMORY = 2**30
"""What an input may take beyond what the process holds at the start."""
MOST_BYTES = 2**15
BLOCK = 200
"""Examples that Hypothesis makes at a time."""


def main() -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--target", choices=TARGETS, required=True)
    parser.add_argument("--engine", choices=("atheris", "hypothesis"), required=True)
    parser.add_argument("--runs", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--findings", type=Path, required=True)
    args = parser.parse_args()
    target, state = TARGETS[args.target], State(args.state)
    seen: set[str] = set()
    with tempfile.TemporaryDirectory(prefix="medv-fuzz-") as name:
        folder = Path(name)
        with instrumented(args.engine):
            run = target.make(folder)
            seeds = [seed for seed in target.seeds() if len(seed) <= MOST_BYTES]

            def one(data: bytes) -> None:
                state.begin(data, time.monotonic())
                verdict = judge(run, data, folder)
                for fault in verdict.faults if verdict.where not in seen else ():
                    seen.add(verdict.where)
                    where = keep(args.findings, args.target, data)
                    print(f"{args.target}: {fault}\n  {again(args.target, where)}", flush=True)
                before = state.figures
                state.figures = before._replace(
                    cases=before.cases + 1,
                    faults=before.faults + bool(verdict.faults),
                    slowest_us=max(before.slowest_us, int(verdict.seconds * 1e6)),
                    rss_kb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
                    since=0.0,
                )

            for seed in seeds:
                one(seed)
        held = next(
            int(line.split()[1]) * 1024
            for line in Path("/proc/self/status").read_text().splitlines()
            if line.startswith("VmSize:")
        )
        resource.setrlimit(resource.RLIMIT_AS, (held + MEMORY, held + MEMORY))
        engine: Callable[..., Any] = by_atheris if args.engine == "atheris" else by_hypothesis
        engine(one, seeds, args, folder)


def instrumented(engine: str) -> contextlib.AbstractContextManager[object]:
    """Python code that is imported meanwhile tells atheris which way an input takes."""
    if engine != "atheris":
        return contextlib.nullcontext()
    import atheris

    found: contextlib.AbstractContextManager[object] = atheris.instrument_imports(
        include=["medv_ray", "pydicom", "tarfile", "yaml", "PIL"]
    )
    return found


def by_atheris(
    one: Callable[[bytes], None], seeds: list[bytes], args: argparse.Namespace, folder: Path
) -> None:
    """Does not return."""
    import atheris

    corpus = folder / "corpus"
    corpus.mkdir()
    for number, seed in enumerate(seeds):
        (corpus / str(number)).write_bytes(seed)
    options = {
        "runs": args.runs, "max_total_time": max(1, int(args.seconds)), "seed": args.seed + 1,
        "max_len": MOST_BYTES, "rss_limit_mb": 0, "timeout": 10**6, "verbosity": 0,
        "artifact_prefix": f"{folder}/",
    }  # fmt: skip
    atheris.Setup([sys.argv[0], *(f"-{k}={v}" for k, v in options.items()), str(corpus)], one)
    atheris.Fuzz()


def by_hypothesis(
    one: Callable[[bytes], None], seeds: list[bytes], args: argparse.Namespace, folder: Path
) -> None:
    from hypothesis import HealthCheck, Phase, given, seed, settings

    from tests.fuzz.mutations import mutated

    ends = time.monotonic() + args.seconds
    left, turn = args.runs, 0
    while left > 0 and time.monotonic() < ends:

        @seed(args.seed * 10**6 + turn)
        @settings(
            max_examples=min(left, BLOCK), database=None, deadline=None, phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        @given(mutated(seeds))
        def block(data: bytes) -> None:
            if time.monotonic() < ends:
                one(data)

        block()
        left, turn = left - BLOCK, turn + 1


def keep(folder: Path, target: str, data: bytes) -> Path:
    """Write an input that is to be looked at."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{target}-{hashlib.sha256(data).hexdigest()[:12]}"
    path.write_bytes(data)
    return path


def again(target: str, path: Path) -> str:
    """How to run an input once more."""
    return f"python -m tests.fuzz --target {target} --input {path}"


if __name__ == "__main__":
    main()
