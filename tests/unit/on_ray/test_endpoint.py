"""What a user reads when no replica starts."""

from __future__ import annotations

from pathlib import Path

import pytest
from ray import serve

from medv_ray.errors import SettingsError
from medv_ray.on_ray.endpoint import SOONER, start_error

STACK = """The deployment failed to start 3 times in a row. See controller logs for details. Error:
\x1b[36mray::ServeReplica:medv:medv.initialize_and_get_metadata()\x1b[39m (pid=1, ip=10.0.0.1)
  File "/home/erika/replica.py", line 1928, in initialize
    raise RuntimeError(traceback.format_exc()) from None
RuntimeError: Traceback (most recent call last):
  File "/home/erika/predictor.py", line 38, in load_model
    raise SettingsError(
"""


@pytest.mark.parametrize(
    ("end", "code", "words"),
    [
        (
            "medv_ray.errors.SettingsError: SettingsError E1001: model.device=cuda: torch sees no "
            "GPU. `medv explain E1001` says more.",
            "E1001",
            "model.device=cuda: torch sees no GPU.",
        ),
        ("medv_ray.errors.Nobody: Nobody E1403: x.", "E1403", "x."),
        ("torch.OutOfMemoryError: CUDA out of memory. Tried", "E1508", "(OutOfMemoryError)"),
        ("MemoryError", "E1508", "(MemoryError)"),
        ("RuntimeError: [enforce fail] DefaultCPUAllocator: not", "E1508", "(RuntimeError)"),
        ("RuntimeError: CUBLAS_STATUS_ALLOC_FAILED when calling", "E1508", "(RuntimeError)"),
        ("ModuleNotFoundError: No module named 'erika'", "E1708", "(ModuleNotFoundError)"),
        ("medv_ray.errors.SettingsError: SettingsError E9999: erika.", "E1708", "(SettingsError)"),
    ],
)
def test_the_cause_is_named_and_nothing_else_of_the_stack(end: str, code: str, words: str) -> None:
    error = start_error(STACK + end + "\n")
    assert error.code == code
    assert words in error.detail
    assert "erika" not in str(error)
    if code == "E1001":
        assert isinstance(error, SettingsError)


@pytest.mark.parametrize("stack", ["", "The worker died unexpectedly before finishing this task."])
def test_without_a_stack(stack: str) -> None:
    error = start_error(stack)
    assert (error.code, "process ended" in error.detail) == ("E1708", True)


def test_serve_reads_what_it_is_given() -> None:
    constants = (Path(serve.__file__).parent / "_private" / "constants.py").read_text()
    ours = [name for name in SOONER if name.startswith("RAY_SERVE_")]
    assert len(ours) == 4
    assert all(f'"{name}"' in constants for name in ours)
