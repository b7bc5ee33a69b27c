"""What importing costs, and that every kernel compiles for the GPU that it is written for."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from medv_kernels import launch

HERE = Path(__file__).parent


def test_triton_is_imported_only_when_a_kernel_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the reference works where there is no triton."""
    for name in [name for name in sys.modules if name.split(".")[0] in ("medv_kernels", "triton")]:
        monkeypatch.delitem(sys.modules, name)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "triton", None)
        for name in ("reference", "reference_loss", "noise", "select", "commit", "loss", "launch"):
            importlib.import_module(f"medv_kernels.{name}")
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module("medv_kernels.triton_select")
    for name in [name for name in sys.modules if name.split(".")[0] == "medv_kernels"]:
        del sys.modules[name]


def test_where_kernels_run(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda", 0)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert launch.kernels_run_on(cpu)
    monkeypatch.delenv("TRITON_INTERPRET")
    assert not launch.kernels_run_on(cpu)
    assert launch.kernels_run_on(gpu)
    monkeypatch.setattr(launch, "find_spec", lambda name: None)
    assert not launch.kernels_run_on(gpu)
    with pytest.raises(RuntimeError, match="is not installed"):
        launch.check_device(torch.zeros(1), "select")


def test_constants_are_made_once() -> None:
    """And kept: a graph that was captured reads them where they lie."""
    first = launch.constant((1, 2), torch.int32, torch.device("cpu"))
    for i in range(1000):
        launch.constant((3, i), torch.int32, torch.device("cpu"))
    assert launch.constant((1, 2), torch.int32, torch.device("cpu")) is first
    with torch.inference_mode():
        inside = launch.constant((5, 6), torch.int32, torch.device("cpu"))
    assert not inside.is_inference()


@pytest.mark.slow
@pytest.mark.integration
def test_kernels_compile_for_an_h100(tmp_path: Path) -> None:
    """One form of each; compile_kernels.py without an expression takes them all."""
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path)}
    environment.pop("TRITON_INTERPRET", None)
    some = r"select.partials bf16 \{\}|fused.* bf16 16|merge F|loss.* bf16|ranks T|commit.* 2 64$"
    some += r"|fused.* size 1"
    command = [sys.executable, str(HERE / "compile_kernels.py"), some]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(done.stdout.splitlines()) == 10
