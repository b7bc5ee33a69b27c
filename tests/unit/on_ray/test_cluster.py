"""What is left of an own Ray."""

import subprocess
import sys

from medv_ray.on_ray.cluster import end_workers

NAMED = """
import ctypes, sys
ctypes.CDLL(None).prctl(15, sys.argv[1].encode(), 0, 0, 0)
print(flush=True)
sys.stdin.read()
"""


def started(name: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", NAMED, name]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()
    return child


def test_a_worker_that_does_not_end_is_ended_and_nobody_else() -> None:
    worker, other, gone = started("ray::TrainController"), started("raylet"), started("ray::IDLE")
    gone.kill()
    gone.wait()
    try:
        end_workers([worker.pid, other.pid, gone.pid])
        assert worker.wait(10) == -9
        assert other.poll() is None
    finally:
        other.kill()
