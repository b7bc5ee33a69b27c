r"""A denoising step on given logits: token, odds and commit, against the reference's structure.

    python benchmarks/bench_select.py [--repeats 9]                   CPU, 64 rows, one thread
    python benchmarks/bench_select.py --device cuda [--batch 1 ...]   64 rows each, Triton kernels
    python benchmarks/bench_select.py --device cuda --fused           with a head of D = 4096

Logits [rows, 126464]: `confident`, winners ahead of the rest by N(20, 6), as a trained model's; on
a CPU also `normal 4` and `normal 1`, of that deviation, where odds are close to each other.
Before anything is timed: tokens equal float64's, and in every trial where the most confident
position of the float64 softmax leads by more than 4 ulp it is the one that is committed first.

Arms: `ours` select + commit of one place a request; `float64` argmax, float64 softmax, topk. On a
CPU also `all_odds`, which leaves out no row that a bound tells to lose. On a GPU also `copy` of
the same bytes (its time moves them twice: read and written) and `one_program` with a program a
row. There every arm is a CUDA graph, the L2 cache is flushed before each run, and
`bandwidth_ratio` is bytes read per second by `ours` over bytes moved per second by `copy`.
Arms alternate in one process; median and range. Prints one JSON line per case.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from circumstances import circumstances
from medv_kernels import commit as commit_kernel
from medv_kernels import reference
from medv_kernels import select as select_kernel

LENGTH, K = 64, 1
FOUR_ULP = 2 * torch.finfo(torch.float64).eps
"""Of probabilities from 1/2 to 1."""
KINDS = ("confident", "normal 4", "normal 1")
Run = Callable[[], Any]


def make_logits(
    rows: int, vocabulary: int, dtype: torch.dtype, device: str, seed: int, kind: str = "confident"
) -> Tensor:
    generator = torch.Generator(device).manual_seed(seed)
    logits = torch.empty(rows, vocabulary, dtype=dtype, device=device)
    if kind != "confident":
        return logits.normal_(0, float(kind.split()[1]), generator=generator)
    logits.normal_(0, 1.5, generator=generator)
    winner = torch.randint(vocabulary, (rows, 1), generator=generator, device=device)
    ahead = 20 + 6 * torch.randn(rows, 1, generator=generator, device=device)
    lead = logits.amax(1, keepdim=True).float() + ahead
    return logits.scatter_(1, winner, lead.to(dtype))


def structure(logits: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, float64 probabilities and the new x [B, L] as the references make them."""
    logits = logits.float()
    token = logits.argmax(1)
    p = logits.double().softmax(1).gather(1, token[:, None])[:, 0]
    best = p.view(x.shape).topk(K, dim=1).indices
    return token, p, x.scatter(1, best, token.view(x.shape).gather(1, best))


def ours(
    logits: Tensor, x: Tensor, k: Tensor, places: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, odds and the new x: kernels on a GPU, plain torch on a CPU, with `places` as the
    sampler gives them there."""
    masked = torch.ones_like(x, dtype=torch.bool)
    if logits.is_cuda:
        found = select_kernel.select(logits, check=False)
        step: Callable[..., tuple[Tensor, Tensor]] = commit_kernel.commit
    else:
        found, step = reference.select(logits, k=places), reference.commit
    token, rest = found.token.view(x.shape), found.rest.view(x.shape)
    return found.token, found.rest, step(x, masked, token, rest, k)[0]


def check(vocabulary: int, dtype: torch.dtype, device: str, trials: int) -> dict[str, int]:
    """Trials of 64 rows; raises SystemExit on a token or a clear leader that differs."""
    x = torch.full((1, LENGTH), -1, device=device)
    one = torch.ones(1, dtype=torch.int64, device=device)
    clear = saturated = 0
    for seed in range(trials):
        logits = make_logits(LENGTH, vocabulary, dtype, device, 1000 + seed)
        token, p, _ = structure(logits, x)
        mine, _, new = ours(logits, x, one, 1)
        if not torch.equal(token, mine):
            raise SystemExit(f"wrong result, not timed: tokens differ at seed {seed}")
        first, second = p.topk(2).values.tolist()
        saturated += int((logits.float().softmax(1).amax(1) == 1).sum() > 1)
        if first - second <= FOUR_ULP:
            continue
        clear += 1
        leader = int(p.argmax())
        if (new[0] >= 0).nonzero().flatten().tolist() != [leader]:
            raise SystemExit(f"wrong result, not timed: another leader at seed {seed}")
    return {"trials": trials, "clear_leader": clear, "agree": clear, "float32_ties": saturated}


def captured(run: Run, device: str) -> Run:
    """The run as a CUDA graph; on a CPU itself."""
    if device == "cpu":
        return run
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def timed(run: Run, flush: Tensor | None) -> float:
    """Seconds: process CPU time, or the GPU's between two events with a cold L2 cache."""
    if flush is None:
        begin = time.process_time()
        run()
        return time.process_time() - begin
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    flush.zero_()
    start.record()
    run()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1000


def interleave(arms: dict[str, Run], repeats: int, device: str) -> dict[str, dict[str, float]]:
    flush = torch.empty(2**28, dtype=torch.int8, device=device) if device == "cuda" else None
    ready = {name: captured(run, device) for name, run in arms.items()}
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for turn in range(repeats + 1):
        for name, run in ready.items():
            took = timed(run, flush)
            if turn:  # the first is a warm-up
                seconds[name].append(took)
    return {
        name: {"median": statistics.median(s), "min": min(s), "max": max(s)}
        for name, s in seconds.items()
    }


def one_program(logits: Tensor, x: Tensor, k: Tensor) -> None:
    with mock.patch.object(select_kernel, "PROGRAMS", 1):
        ours(logits, x, k)


def measure(
    args: argparse.Namespace, batch: int, dtype: torch.dtype, kind: str = "confident"
) -> dict[str, object]:
    rows, device = batch * LENGTH, args.device
    checked = check(args.vocabulary, dtype, device, args.trials)
    logits = make_logits(rows, args.vocabulary, dtype, device, 0, kind)
    x = torch.zeros(batch, LENGTH, dtype=torch.int64, device=device)
    k = torch.full((batch,), K, dtype=torch.int64, device=device)
    places = K if batch == 1 and device == "cpu" else None
    arms: dict[str, Run] = {
        "ours": lambda: ours(logits, x, k, places),
        "float64": lambda: structure(logits, x),
    }
    if places:
        arms["all_odds"] = lambda: ours(logits, x, k)
    _, p, _ = structure(logits, x)
    top = p.view(x.shape).topk(K + 1, dim=1).values
    clear = top[:, K - 1] - top[:, K] > FOUR_ULP  # else float64 ties, and topk picks any
    if len({tuple(run()[2][clear].flatten().tolist()) for run in arms.values()}) > 1:
        raise SystemExit(f"wrong result, not timed: the arms commit differently on {kind}")
    if device == "cuda":
        other = torch.empty_like(logits)
        arms["copy"] = lambda: other.copy_(logits)
        arms["one_program"] = lambda: one_program(logits, x, k)
    took = interleave(arms, args.repeats, device)
    size = logits.numel() * logits.element_size()
    found: dict[str, object] = {"logits": kind, "checked": checked, "rows": rows}
    found |= {"logit_bytes": size, "s": took}
    found["ratio"] = took["float64"]["median"] / took["ours"]["median"]
    if device == "cuda":
        mine, copy = size / took["ours"]["median"], 2 * size / took["copy"]["median"]
        found |= {"read_bytes_per_s": mine, "copy_bytes_per_s": copy}
        found["bandwidth_ratio"] = mine / copy
        found["one_program_ratio"] = took["one_program"]["median"] / took["ours"]["median"]
    return found


def measure_fused(args: argparse.Namespace, rows: int, width: int) -> dict[str, object]:
    """Head product and selection, with logits and without: what fused.FUSED_ROWS is filled from."""
    generator = torch.Generator(args.device).manual_seed(rows)
    dtype = torch.bfloat16 if args.device == "cuda" else torch.float32
    hidden = torch.randn(rows, width, generator=generator, device=args.device).to(dtype)
    head = torch.empty(args.vocabulary, width, dtype=dtype, device=args.device)
    head.normal_(0, 3 * width**-0.5, generator=generator)

    def run(fused: bool) -> reference.Selection:
        return select_kernel.select(hidden, head, check=False, fused=fused)

    apart, together = run(False), run(True)
    same = apart.token == together.token
    # a product summed in another order may round two bfloat16 logits to one, or apart
    if float(same.double().mean()) < 0.95:
        raise SystemExit(f"wrong result, not timed: {int((~same).sum())} of {rows} tokens differ")
    torch.testing.assert_close(apart.rest[same], together.rest[same], rtol=0.1, atol=0)
    arms: dict[str, Run] = {"matmul": lambda: run(False), "fused": lambda: run(True)}
    took = interleave(arms, args.repeats, args.device)
    ratio = took["matmul"]["median"] / took["fused"]["median"]
    return {"rows": rows, "width": width, "s": took, "tokens_differ": int((~same).sum())} | {
        "ratio": ratio
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument(
        "--batch", type=int, nargs="+", help="rows / 64; default 1, on a GPU 1 8 64"
    )
    parser.add_argument("--vocabulary", type=int, default=126_464)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--trials", type=int, default=20, help="of the check")
    parser.add_argument("--fused", action="store_true")
    args = parser.parse_args()
    gpu = args.device == "cuda"
    if not gpu:
        torch.set_num_threads(1)
    common = {
        "vocabulary": args.vocabulary,
        "device": torch.cuda.get_device_name() if gpu else "cpu",
        "threads": torch.get_num_threads(),
        **circumstances(),
    }
    if args.fused:
        for rows in (1, 2, 4, 8, 16, 32, 64, 128, 256) if gpu else (1, 17):
            found = measure_fused(args, rows, 4096 if gpu else 64)
            print(json.dumps({"bench": "select_fused", **found, **common}), flush=True)
        return
    dtype = torch.bfloat16 if gpu else torch.float32
    for batch in args.batch or ([1, 8, 64] if gpu else [1]):
        for kind in KINDS if not gpu else KINDS[:1]:
            found = {"dtype": str(dtype).removeprefix("torch.")}
            found |= measure(args, batch, dtype, kind)  # type: ignore[assignment]
            print(json.dumps({"bench": "select", **found, **common}), flush=True)


if __name__ == "__main__":
    main()
