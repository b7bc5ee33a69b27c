"""What the actors of a scoring job share: they end with their raylet, tell the supervisor what ends
the job, and keep Ray's errors clean."""

from __future__ import annotations

import ctypes
import signal
from collections.abc import Callable
from typing import Any

import ray

from medv_ray.errors import DataError, MedvError, RunError
from medv_ray.on_ray.supervisor import Orders

PR_SET_PDEATHSIG = 1


class Stopped(Exception):
    """The job ends; this chunk is for the next run."""


def die_with_parent() -> None:
    """Have the kernel end this process when its raylet ends.

    Ray's own workers notice it a second later; until then they go on with work whose driver may be
    dead and whose rows the next run tries too. And Ray's exit can block for ever, in destructors.
    The kernel forgets it with the thread that asks: that is the main one.
    """
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def guarded(supervisor: Any, call: Callable[..., Any], *given: Any) -> Any:
    """What `call` returns. An error that ends the job is reported, and Ray is shown nothing of
    it."""
    try:
        return call(*given)
    except MedvError as error:
        raised = error
    except Exception as error:
        raised = RunError("E1509", f"{type(error).__name__} in a worker.")
    ray.get(supervisor.fail.remote(type(raised).__name__, raised.code, raised.detail))
    raise RunError(raised.code, "the job's driver says more.") from None


def obeyed(orders: Orders) -> Orders:
    """The supervisor's orders for a chunk that is to be tried. Raises Stopped, or DataError for a
    hopeless chunk."""
    if orders.skip == "stop":
        raise Stopped
    if orders.skip == "lost":
        raise DataError("E1508", "workers died on a chunk of it; no row is to blame.")
    return orders
