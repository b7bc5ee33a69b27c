"""Signals that come at an awkward time."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.integration

SCRIPT = """
import os, signal, sys, time, warnings
from medv_ray.cli.terminal import exit_code_of

signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where tests run with `&`

class Dropped:
    def __del__(self):
        os.kill(os.getpid(), signal.{name})
        for _ in range(1000):
            pass

def work():
    Dropped()
    for _ in range(200):  # what comes just before a sleep does not end it
        time.sleep(0.1)

sys.exit(exit_code_of(work))
"""


@pytest.mark.parametrize(("name", "word"), [("SIGTERM", "terminated"), ("SIGINT", "interrupted")])
def test_a_signal_inside_a_destructor_is_not_lost(name: str, word: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(name=name)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == {"SIGTERM": 143, "SIGINT": 130}[name]
    assert done.stderr == f"{word}; what was committed is kept.\n"


def test_other_errors_of_destructors_are_shown() -> None:
    script = SCRIPT.replace("os.kill(os.getpid(), signal.{name})", "raise OSError(7)")
    script = script.replace("time.sleep(0.1)", "pass")
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0
    assert "OSError: 7" in done.stderr
