"""What a figure depends on, for the line that a benchmark prints."""

from __future__ import annotations

import subprocess
from pathlib import Path

import torch

from medv_kernels import cpu


def circumstances() -> dict[str, str]:
    """Commit, torch, and what torch chooses its CPU kernels by."""
    return {
        "commit": _commit() or "unknown",
        "torch": torch.__version__,
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "products": cpu.choice(),
    }


def _commit() -> str:
    """Of this checkout; nothing where it is none, or git is not there."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    here = Path(__file__).parent
    try:
        done = subprocess.run(command, cwd=here, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return done.stdout.strip()
