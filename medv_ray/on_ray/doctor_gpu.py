"""`medv doctor`: cores, GPUs, and whether Triton's kernels run on them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from medv_ray.disk import DISK
from medv_ray.on_ray.findings import Check, cores, gib

DRIVER = Path("/proc/driver/nvidia/version")
COMPILERS = ("cc", "gcc", "clang")
BF16_MAJOR = 8
"""Of the compute capability: Ampere, the first with bfloat16."""


def check_processor() -> Iterator[Check]:
    """Cores, GPUs, kernels."""
    yield Check("ok", "cpu", f"{cores()} cores")
    try:
        import torch

        seen = torch.cuda.device_count() if torch.cuda.is_available() else 0
    except Exception as error:  # a torch without CUDA, or a driver that is half there
        fix = "pip install --force-reinstall torch"
        yield Check("fault", "gpu", f"torch does not load ({type(error).__name__})", fix)
        return
    if seen:
        for index in range(seen):
            yield from _gpu(torch, index)
    else:
        yield _none(torch.version.cuda)
    yield from _triton(bool(seen))


def _none(built_for: str | None) -> Check:
    """Why torch sees no GPU."""
    if not DRIVER.exists():
        fix = "nothing to do on a machine without one"
        return Check("warning", "gpu", "none; models run on the CPU", fix)
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if hidden is not None and hidden.strip() in ("", "-1"):
        said = "hidden by CUDA_VISIBLE_DEVICES; models run on the CPU"
        return Check("warning", "gpu", said, "unset CUDA_VISIBLE_DEVICES")
    if built_for is None:
        fix = "install a torch that is built for CUDA"
        return Check("fault", "gpu", "this machine has one, and torch is built for CPUs alone", fix)
    said = f"this machine has one, and torch, built for CUDA {built_for}, sees none"
    return Check("fault", "gpu", said, "`nvidia-smi` says whether the driver works, and its CUDA")


def _gpu(torch: Any, index: int) -> Iterator[Check]:
    name = f"gpu {index}"
    try:
        free, total = torch.cuda.mem_get_info(index)
        shown, major = torch.cuda.get_device_name(index), torch.cuda.get_device_capability(index)[0]
        ones = torch.ones(64, 64, device=f"cuda:{index}")
        right = (ones @ ones).sum().item() == 64**3
    except Exception as error:  # its text may hold addresses
        fix = "`nvidia-smi` shows its state; this torch may not be built for it"
        yield Check("fault", name, f"it does not compute ({type(error).__name__})", fix)
        return
    if not right:
        yield Check("fault", name, f"{shown} multiplies wrongly", "take it out of use")
        return
    said = f"{shown}, {gib(free)} of {gib(total)} free"
    if major < BF16_MAJOR:
        yield Check("warning", name, f"{said}; no bfloat16", "--set model.dtype=float16")
    elif free < total / 2:
        fix = "`nvidia-smi` shows who holds the rest"
        yield Check("warning", name, said, fix)
    else:
        yield Check("ok", name, said)


def _triton(has_gpu: bool) -> Iterator[Check]:
    """Its version; with a GPU, a kernel against plain torch."""
    try:
        version = metadata.version("triton")
    except metadata.PackageNotFoundError:
        fix = "pip install triton"
        yield Check("fault" if has_gpu else "warning", "triton", "not installed", fix)
        return
    if not has_gpu:
        yield Check("ok", "triton", f"{version}; without a GPU plain torch computes")
        return
    if not (os.environ.get("CC") or any(map(shutil.which, COMPILERS))):
        said = f"{version}; it needs a C compiler, and there is none"
        yield Check("fault", "triton", said, "install gcc, or name a compiler in CC")
        return
    try:
        right = _kernel_agrees()
    except Exception as error:
        fix = "pip install --upgrade triton torch, whose versions belong together"
        if getattr(error, "errno", None) in DISK:
            fix = "set TRITON_CACHE_DIR to a folder that can be written; ~/.triton can not"
        yield Check("fault", "triton", f"{version}; no kernel runs ({type(error).__name__})", fix)
        return
    if right:
        yield Check("ok", "triton", f"{version}; a kernel gives what plain torch gives")
    else:
        fix = "install the versions of torch and triton that constraints.txt names"
        yield Check("fault", "triton", f"{version}; a kernel chooses other tokens than torch", fix)


def _kernel_agrees() -> bool:
    """Whether the head's kernel chooses the tokens that plain torch chooses."""
    import torch

    from medv_kernels import ops, reference

    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(7, 64, generator=generator)
    head = torch.randn(300, 64, generator=generator)
    want = reference.select(rows, head)
    got = ops.select(rows.cuda(), head.cuda())
    return bool((got.token.cpu() == want.token).all())
