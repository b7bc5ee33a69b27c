r"""Loss with the language head on masked rows against logits at every position: same gradients,
peak memory of the loss, time of a step.

    python benchmarks/bench_train.py [--width 512] [--repeats 5] [--device cuda --dtype bfloat16]
    python benchmarks/bench_train.py --slow-decoder     a step beside a decoder: bench_train_feed.py

Set-up: V = 126,464, one row of 819 tokens of which 40 are targets, noise level t = 0.5 (its mean in
training). A step is the loss and its backward pass from hidden states and head; the towers before
them are the same in both arms and left out. First the gradients of both arms are compared, in
float32; a difference over 1e-5 is an error, not a figure. Then the arms alternate in one process.

Memory: the most bytes alive at once beyond what was there before the step. On a CPU every
allocation and release is taken from torch's profiler (the process's resident size is rounded to
pages that the allocator keeps, and holds what came before); on a GPU it is
`torch.cuda.max_memory_allocated`. `loss` is measured with a frozen head; a trained head's own
gradient, V x D in both arms, is no part of the loss and comes on top in `with_head_gradient`.
Prints one JSON line.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from circumstances import circumstances
from medv_kernels import reference_loss
from medv_ray.diffusion.loss import masked_loss, row_losses
from medv_ray.diffusion.noise import forward_noise
from medv_ray.markers import IGNORE

VOCABULARY, LENGTH, TARGETS = 126_464, 819, 40
TOLERANCE = 1e-5
Arm = Callable[[Tensor, Tensor], Tensor]


def build_arms(t: float) -> tuple[dict[str, Arm], int]:
    """Loss of (hidden, head) in each arm, and the number of masked positions."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.full((1, LENGTH), IGNORE)
    labels[0, -TARGETS:] = torch.randint(VOCABULARY, (TARGETS,), generator=generator)
    # evenly spread draws mask the expected number of targets
    u = torch.ones(1, LENGTH)
    u[0, -TARGETS:] = (torch.randperm(TARGETS, generator=generator) + 0.5) / TARGETS
    masked, p_mask = forward_noise(labels, torch.tensor([t]), u)

    def on_masked_rows(hidden: Tensor, head: Tensor) -> Tensor:
        at = hidden.device
        return masked_loss(hidden, head, labels.to(at), masked.to(at), p_mask.to(at))

    def on_all_rows(hidden: Tensor, head: Tensor) -> Tensor:
        at = hidden.device
        logits = (hidden @ head.T).float()  # the reference's: every position, in float32
        # not masked_loss: on a GPU both arms would be one kernel's
        losses = reference_loss.token_losses(logits[masked.to(at)], None, labels[masked].to(at))
        row_of = masked.nonzero()[:, 0].to(at)
        return row_losses(losses / p_mask.to(at)[row_of], row_of, labels.to(at)).mean()

    return {"full": on_all_rows, "masked": on_masked_rows}, int(masked.sum())


def inputs(width: int, dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor]:
    """Hidden states [1, S, D] as after the final norm, and a head [V, D] with spread logits."""
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(1, LENGTH, width, generator=generator)
    head = torch.empty(VOCABULARY, width).normal_(0, 2 * width**-0.5, generator=generator)
    return hidden.to(device, dtype).requires_grad_(), head.to(device, dtype)


def step(arm: Arm, hidden: Tensor, head: Tensor) -> None:
    """Loss and backward pass into `.grad`."""
    hidden.grad = head.grad = None
    arm(hidden, head).backward()


def check(arms: dict[str, Arm], hidden: Tensor, head: Tensor) -> dict[str, float]:
    """Relative difference of the arms' gradients; raises SystemExit above TOLERANCE."""
    found = []
    for arm in arms.values():
        step(arm, hidden, head)
        assert hidden.grad is not None
        assert head.grad is not None
        found.append((hidden.grad, head.grad))
    differences = {
        name: float(torch.linalg.vector_norm(one - other) / torch.linalg.vector_norm(one))
        for name, one, other in zip(("hidden", "head"), *found, strict=True)
    }
    if not max(differences.values()) <= TOLERANCE:
        raise SystemExit(f"wrong result, not timed: gradients differ by {differences}")
    return differences


def peak_bytes(run: Callable[[], None], device: str) -> int:
    """Most bytes alive at once during `run`, over those before it."""
    if device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as traced:
        run()
    assert traced.profiler is not None
    events = [e for e in traced.profiler.kineto_results.events() if e.name() == "[memory]"]
    alive = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        alive += event.nbytes()
        most = max(most, alive)
    return most


def timed(run: Callable[[], None], device: str) -> float:
    """Seconds of wall time."""
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def memory(arms: dict[str, Arm], hidden: Tensor, head: Tensor) -> dict[str, int]:
    """Peak bytes of each arm, once: the same allocations come each time."""
    found = {}
    for name, arm in arms.items():
        hidden.grad = head.grad = None
        found[name] = peak_bytes(functools.partial(step, arm, hidden, head), hidden.device.type)
    return found


def seconds(
    arms: dict[str, Arm], hidden: Tensor, head: Tensor, repeats: int
) -> dict[str, list[float]]:
    """Wall time of a step of each arm, in turn."""
    found: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(repeats):
        for name, arm in arms.items():
            run = functools.partial(step, arm, hidden, head)
            found[name].append(timed(run, hidden.device.type))
    return found


def measure(
    width: int, dtype: torch.dtype, device: str, t: float, repeats: int
) -> dict[str, object]:
    """Check, then memory with a frozen and a trained head, then time with a trained one."""
    arms, num_masked = build_arms(t)
    hidden, head = inputs(width, torch.float32, device)
    differences = check(arms, hidden, head.requires_grad_())
    hidden, head = (x.detach().to(dtype).requires_grad_() for x in (hidden, head))
    loss, whole = memory(arms, hidden, head.detach()), memory(arms, hidden, head)
    took = seconds(arms, hidden, head, repeats)
    return {
        "bench": "masked_row_loss",
        "vocabulary": VOCABULARY,
        "width": width,
        "tokens": LENGTH,
        "targets": TARGETS,
        "masked": num_masked,
        "dtype": str(dtype).removeprefix("torch."),
        "gradient_difference": differences,
        "loss_bytes": loss,
        "loss_memory_ratio": loss["full"] / loss["masked"],
        "with_head_gradient_bytes": whole,
        "step_s": {name: spread(values) for name, values in took.items()},
        "time_ratio": statistics.median(took["full"]) / statistics.median(took["masked"]),
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        **circumstances(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--noise", type=float, default=0.5, help="t; 1 masks all targets")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--slow-decoder", action="store_true", help="bench_train_feed.py instead")
    parser.add_argument("--steps", type=int, default=6, help="of an arm beside the slow decoder")
    args = parser.parse_args()
    if args.slow_decoder:
        import bench_train_feed

        for line in bench_train_feed.measure(args.steps, args.repeats):
            print(json.dumps(line), flush=True)
        return
    dtype = getattr(torch, args.dtype)
    print(json.dumps(measure(args.width, dtype, args.device, args.noise, args.repeats)), flush=True)


if __name__ == "__main__":
    main()
