r"""Selection and commit on given logits against the float64 structure: same positions, CPU
milliseconds.

    python benchmarks/bench_select_cpu.py [--rows 64] [--vocabulary 126464] [--repeats 15]

The float64 structure: argmax, softmax in float64, gather, top-k. Ours: `select` and `commit`, once
with the odds of all rows and once for one place. 1 thread; arms alternate in one process; a repeat
that commits something else is an error. One JSON line for each kind of logits: `normal 4` and
`normal 1` are random of that deviation (few rows, or none, can be told to lose by a bound),
`confident` has a winner in every row.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from circumstances import circumstances
from medv_kernels.reference import commit, select


def kinds(rows: int, vocabulary: int) -> Iterator[tuple[str, Tensor]]:
    """Names and float32[rows, vocabulary] logits."""
    generator = torch.manual_seed(0)
    noise = torch.randn(rows, vocabulary, generator=generator)
    yield "normal 4", noise * 4
    winner = torch.randint(0, vocabulary, (rows, 1), generator=generator)
    height = 10 + 20 * torch.rand(rows, 1, generator=generator)
    yield "confident", (noise * 1.5).scatter_add(1, winner, height)
    yield "normal 1", noise


def float64_structure(logits: Tensor, x: Tensor) -> Tensor:
    """x int64[1, L] with the most confident row's token, as the references choose it."""
    token = logits.argmax(-1)
    p = logits.double().softmax(-1).gather(-1, token[:, None])[:, 0]
    _, chosen = p.topk(1)
    new = x.clone()
    new[0, chosen] = token[chosen]
    return new


def ours(logits: Tensor, x: Tensor, k: int | None) -> Tensor:
    found = select(logits, k=k)
    return commit(x, x == 0, found.token[None], found.rest[None], [1])[0]


def measure(name: str, logits: Tensor, repeats: int) -> dict[str, object]:
    """Interleaved repeats; raises if the arms ever commit differently."""
    x = torch.zeros(1, len(logits), dtype=torch.int64)
    runs: dict[str, Callable[[], Tensor]] = {
        "float64": lambda: float64_structure(logits, x),
        "all rows": lambda: ours(logits, x, None),
        "one place": lambda: ours(logits, x, 1),
    }
    want = float64_structure(logits, x)
    spent: dict[str, list[float]] = {arm: [] for arm in runs}
    for repeat in range(repeats + 1):  # the first one warms up
        for arm, run in runs.items():
            start = time.process_time()
            got = run()
            if repeat:
                spent[arm].append(1000 * (time.process_time() - start))
            if not torch.equal(got, want):
                raise SystemExit(f"wrong result, not timed: {arm} differs on {name}")
    best = {arm: min(times) for arm, times in spent.items()}
    return {
        "bench": "select_commit_cpu",
        "logits": name,
        "shape": list(logits.shape),
        "cpu_ms": {
            arm: {"best": min(t), "median": statistics.median(t), "max": max(t)}
            for arm, t in spent.items()
        },
        "ratio_of_best": {arm: best["float64"] / best[arm] for arm in ("all rows", "one place")},
        "committed_identical": True,
        **circumstances(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--vocabulary", type=int, default=126_464)
    parser.add_argument("--repeats", type=int, default=15)
    args = parser.parse_args()
    torch.set_num_threads(1)
    for name, logits in kinds(args.rows, args.vocabulary):
        print(json.dumps(measure(name, logits, args.repeats)), flush=True)


if __name__ == "__main__":
    main()
