"""Saves that are killed: at any byte, and at any call that puts something on the disk, the last
whole checkpoint is found and has every value, and the same folder takes the next save.
"""

from __future__ import annotations

import os
import random
import resource
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from medv_ray.training.checkpoint import Checkpoints, SavedState
from medv_ray.training.engine import Slice

pytestmark = [pytest.mark.integration, pytest.mark.chaos]
BYTE_CUTS = 50
CALLS = ("mkdir", "open", "fsync", "replace")
"""Of `os`, each of which may be the last one that a save makes; sync and open stand for writes of
manifests, whose bytes go by one call."""


class Worker:
    """The only one, with 6,000 numbers that say which step they are of."""

    rank, num_workers = 0, 1

    def __init__(self, step: int) -> None:
        values = torch.arange(6_000, dtype=torch.float32) + step / 8
        self.values = {"weight": values, "exp_avg": -values}

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        return values.double()

    def slices(self) -> Iterator[Slice]:
        yield Slice("layer", (60, 100), 0, self.values)


def save(folder: Path, step: int) -> None:
    worker: Any = Worker(step)
    Checkpoints(folder, keep=2).save(worker, step, {"identity": "x"})


def dies(act: Callable[[], None], number: int) -> bool:
    """Do it in a child; whether that signal ended it, and not its own end."""
    child = os.fork()
    if not child:
        try:
            act()
            os._exit(0)
        except BaseException:
            os._exit(1)
    ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert ended in (0, -number), ended
    return ended == -number


def at_byte(folder: Path, step: int, limit: int) -> None:
    """The kernel ends the process where a file would get longer than that."""
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    save(folder, step)


def at_call(folder: Path, step: int, limit: int) -> None:
    """SIGKILL before the call of that number."""
    left = [limit]

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **more: Any) -> Any:
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)
            left[0] -= 1
            return real(*given, **more)

        return call

    for name in CALLS:
        setattr(os, name, counted(getattr(os, name)))
    save(folder, step)


def check(folder: Path, want: int) -> None:
    """The last whole one is of that step, to the bit."""
    reader: Any = Worker(0)
    found = Checkpoints(folder, keep=2).latest(reader)
    assert found is not None
    step, manifest, damaged = found
    assert (step, damaged) == (want, [])
    state, saved = SavedState(folder / f"step-{step:08d}", manifest), Worker(step)
    for kind, values in saved.values.items():
        assert torch.equal(state.read("layer", kind, 0, 6_000), values)


def test_a_save_that_is_killed_at_any_byte_costs_that_save_alone(tmp_path: Path) -> None:
    rng = random.Random(0)
    save(tmp_path, 1)
    whole = 1
    size = max(file.stat().st_size for file in tmp_path.glob("step-*/*.safetensors"))
    offsets = [0, 1, size - 1, *(rng.randrange(size) for _ in range(BYTE_CUTS - 3))]
    for step, limit in enumerate(offsets, 2):
        assert dies(partial(at_byte, tmp_path, step, limit), signal.SIGXFSZ)
        assert all(f.stat().st_size <= limit for f in tmp_path.glob("*.tmp/*.safetensors"))
        check(tmp_path, whole)
        if step % 8 == 0:  # what was cut is no hindrance
            save(tmp_path, step)
            whole = step
            check(tmp_path, whole)


def test_a_save_that_is_killed_at_any_call_costs_that_save_alone(tmp_path: Path) -> None:
    save(tmp_path, 1)
    published = 0
    for number in range(200):
        step = number + 2
        died = dies(partial(at_call, tmp_path, step, number), signal.SIGKILL)
        published += (tmp_path / f"step-{step:08d}").is_dir()
        last = max(int(found.name[5:]) for found in tmp_path.glob("step-????????"))
        check(tmp_path, last)
        assert last in (1, step, step - 1)
        if not died:
            break
    else:
        pytest.fail("a save has no end")
    assert number >= 10, "hardly any call was met"
    assert 2 <= published < number, "none was killed after it had its name, or each"
    save(tmp_path, 999)
    check(tmp_path, 999)
    assert not list(tmp_path.glob("step-00000999.tmp"))
