"""What a figure depends on, for the line that a benchmark prints."""

from __future__ import annotations

import subprocess
from pathlib import Path

import torch

from medv_kernels import cpu


def circumstances() -> dict[str, str]:
    """Commit, torch, and what torch chooses its CPU kernels by."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    here = Path(__file__).parent
    done = subprocess.run(command, cwd=here, capture_output=True, text=True, check=False)
    return {
        "commit": done.stdout.strip() or "unknown",
        "torch": torch.__version__,
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "products": cpu.choice(),
    }
