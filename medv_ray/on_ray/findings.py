"""What `medv doctor` finds: a line for each check, with the next step where there is one."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from medv_ray.errors import MedvError

State = Literal["ok", "warning", "fault"]
MEMINFO = Path("/proc/meminfo")
CGROUPS = (
    (Path("/sys/fs/cgroup"), "memory.max", "memory.current", "inactive_file"),
    (
        Path("/sys/fs/cgroup/memory"),
        "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file",
    ),
)  # fmt: skip
"""Of either version: where a container sees its own, its limit, what it uses, and the part of that
which it gives back, in memory.stat."""

CPU_LIMITS = (
    (Path("/sys/fs/cgroup/cpu.max"),),
    (Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us"), Path("/sys/fs/cgroup/cpu/cpu.cfs_period_us")),
)
"""Of either version: a quota of processor time in each period."""


class Check(NamedTuple):
    """One finding."""

    state: State
    """`fault`: a job or an endpoint would fail, or is open to others. `warning`: it works, with
    something to know."""
    name: str
    said: str
    fix: str = ""
    """The next step."""


def guarded(name: str, check: Callable[[], Iterator[Check]]) -> Iterator[Check]:
    """Its findings; an exception is one more, a fault of that name, whatever it was."""
    try:
        yield from check()
    except MedvError as error:
        yield Check("fault", name, str(error))
    except Exception as error:  # its text may hold a path or an address
        fix = "MEDV_DEBUG=1 shows where; please report it"
        yield Check("fault", name, f"the check itself failed ({type(error).__name__})", fix)


def gib(size: float) -> str:
    """Bytes as GiB, for people."""
    return f"{size / 2**30:.1f} GiB"


def cores() -> int:
    """Cores that this process may use: of the machine, and of its container's limit."""
    most = len(os.sched_getaffinity(0))
    for files in CPU_LIMITS:
        if all(file.is_file() for file in files):
            quota, period = " ".join(file.read_text() for file in files).split()
            if quota.isdigit():  # `max`, or -1: there is none
                most = min(most, max(1, int(quota) // int(period)))
    return most


def free_memory() -> int:
    """Bytes that this process may still take: of the machine, and of its container's limit."""
    fields = dict(line.split(":", 1) for line in MEMINFO.read_text().splitlines())
    free = int(fields["MemAvailable"].split()[0]) * 1024
    for folder, limit, used, given_back in CGROUPS:
        file = folder / limit
        most = file.read_text().strip() if file.is_file() else ""
        if most.isdigit():  # `max`: there is none
            stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            taken = int((folder / used).read_text()) - int(stat.get(given_back, 0))
            free = min(free, max(0, int(most) - taken))
    return free
