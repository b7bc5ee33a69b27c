r"""Loss of the language head on masked rows: Triton kernels against the two plain ways.

    python benchmarks/bench_train_loss.py --device cuda [--batch 8] [--repeats 7]
    python benchmarks/bench_train_loss.py                toy size, kernels interpreted: a check only

Set-up: rows of 819 tokens, `--targets` of them answer tokens, half of those masked (t = 0.5), width
4096, V = 126,464, bfloat16. A step is the loss and its backward pass from hidden states and head
(a trained head). Arms: `kernel` medv_kernels.loss.linear_cross_entropy; `masked`
the same in plain torch; `all` in plain torch with float32 logits of every position.

Before anything is timed, the gradients of the arms are compared in float32 at a smaller vocabulary;
a difference over 1e-5 is an error, not a figure. Arms alternate in one process; median and range.
Memory: the most bytes alive beyond those before the step; `loss` with a frozen head.
Prints one JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from functools import partial

import torch
from torch import Tensor

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before triton is imported

from bench_train import Arm, memory, spread, step, timed
from circumstances import circumstances
from medv_kernels import reference_loss
from medv_kernels.loss import linear_cross_entropy
from medv_ray.diffusion.noise import forward_noise
from medv_ray.markers import IGNORE

TOLERANCE = 1e-5


def build_arms(
    batch: int, length: int, targets: int, vocabulary: int, device: str
) -> tuple[dict[str, Arm], int]:
    """Loss of (hidden [B, S, D], head) in each arm, and the number of masked positions."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.full((batch, length), IGNORE)
    labels[:, -targets:] = torch.randint(vocabulary, (batch, targets), generator=generator)
    u = torch.ones(batch, length)
    u[:, -targets:] = (torch.rand(batch, targets, generator=generator).argsort(1) + 0.5) / targets
    noise = forward_noise(labels, torch.full((batch,), 0.5), u)
    labels, masked, p_mask = (x.to(device) for x in (labels, *noise))
    # what training divides by: p, the targets of the row, the rows
    share = 1 / (p_mask * (labels != IGNORE).sum(1) * batch)
    weights = share[:, None].expand(batch, length)[masked]

    def kernel(hidden: Tensor, head: Tensor) -> Tensor:
        return linear_cross_entropy(hidden[masked], head, labels[masked], weights)

    # not masked_loss: on a GPU that is the kernel, which would be held against itself
    def on_masked_rows(hidden: Tensor, head: Tensor) -> Tensor:
        return reference_loss.linear_cross_entropy(hidden[masked], head, labels[masked], weights)

    def on_all_rows(hidden: Tensor, head: Tensor) -> Tensor:
        rows = (hidden @ head.T).float()[masked]
        return (reference_loss.token_losses(rows, None, labels[masked]) * weights).sum()

    arms = {"kernel": kernel, "masked": on_masked_rows, "all": on_all_rows}
    return arms, int(masked.sum())


def inputs(
    shape: tuple[int, int, int], vocabulary: int, dtype: torch.dtype, device: str
) -> tuple[Tensor, Tensor]:
    """Hidden states and a head, both with a gradient."""
    generator = torch.Generator(device).manual_seed(1)
    hidden = torch.empty(shape, dtype=dtype, device=device).normal_(generator=generator)
    head = torch.empty(vocabulary, shape[2], dtype=dtype, device=device)
    head.normal_(0, 2 * shape[2] ** -0.5, generator=generator)
    return hidden.requires_grad_(), head.requires_grad_()


def check(length: int, device: str) -> dict[str, float]:
    """Largest relative difference of an arm's gradient from all rows'; SystemExit above 1e-5."""
    arms, _ = build_arms(2, length, min(40, length), 3000, device)
    hidden, head = inputs((2, length, 64), 3000, torch.float32, device)
    found = {}
    for name, arm in arms.items():
        step(arm, hidden, head)
        found[name] = torch.cat([hidden.grad.flatten(), head.grad.flatten()])  # type: ignore[union-attr]
    want = found.pop("all")
    differences = {name: float((got - want).norm() / want.norm()) for name, got in found.items()}
    if not max(differences.values()) <= TOLERANCE:
        raise SystemExit(f"wrong result, not timed: gradients differ by {differences}")
    return differences


def measure(args: argparse.Namespace) -> dict[str, object]:
    device, dtype = args.device, torch.bfloat16 if args.device == "cuda" else torch.float32
    vocabulary, width = (126_464, 4096) if device == "cuda" else (2000, 64)
    length = 819 if device == "cuda" else 60
    differences = check(length, device)
    arms, num_masked = build_arms(args.batch, length, args.targets, vocabulary, device)
    hidden, head = inputs((args.batch, length, width), vocabulary, dtype, device)
    frozen, trained = memory(arms, hidden, head.detach()), memory(arms, hidden, head)
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(args.repeats):
        for name, arm in arms.items():
            seconds[name].append(timed(partial(step, arm, hidden, head), device))
    middle = {name: statistics.median(s) for name, s in seconds.items()}
    return {
        "bench": "train_loss",
        "vocabulary": vocabulary,
        "width": width,
        "batch": args.batch,
        "tokens": length,
        "targets": args.targets,
        "masked": num_masked,
        "dtype": str(dtype).removeprefix("torch."),
        "gradient_difference": differences,
        "loss_bytes": frozen,
        "with_head_gradient_bytes": trained,
        "step_s": {name: spread(values) for name, values in seconds.items()},
        "time_ratio": {name: middle[name] / middle["kernel"] for name in ("masked", "all")},
        "interpreted": device == "cpu",
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        **circumstances(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--targets", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=7)
    print(json.dumps(measure(parser.parse_args())), flush=True)


if __name__ == "__main__":
    main()
