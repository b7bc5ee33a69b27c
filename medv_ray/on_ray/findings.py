"""What `medv doctor` finds: a line for each check, with the next step where there is one."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from medv_ray.errors import MedvError

State = Literal["ok", "warning", "fault"]
MEMINFO = Path("/proc/meminfo")
OWN = Path("/proc/self/cgroup")
CGROUPS = (
    (Path("/sys/fs/cgroup"), "", "memory.max", "memory.current", "inactive_file"),
    (
        Path("/sys/fs/cgroup/memory"), "memory",
        "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file",
    ),
)  # fmt: skip
"""Of either version: where limits lie, under which name in `OWN`; a limit, what is used, and the
part of that which is given back, in memory.stat."""
CPU_LIMITS = (
    (Path("/sys/fs/cgroup"), "", ("cpu.max",)),
    (Path("/sys/fs/cgroup/cpu"), "cpu", ("cpu.cfs_quota_us", "cpu.cfs_period_us")),
)
"""The same of processor time: a quota in each period."""


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


def holding(root: Path, controller: str) -> Iterator[Path]:
    """Folders of the groups that hold this process, each inside the next: a container sees its own
    as the root; a job of Slurm or a service of systemd lies below it."""
    lines = OWN.read_text().splitlines() if OWN.is_file() else []
    for _, names, path in (line.split(":", 2) for line in lines):
        parts = path.strip("/").split("/")
        if controller in names.split(",") and ".." not in parts:
            yield from (root.joinpath(*parts[:n]) for n in range(len(parts), 0, -1))
    yield root


def cores() -> int:
    """Cores that this process may use: of the machine, and within the limits on its groups."""
    most = len(os.sched_getaffinity(0))
    for root, controller, names in CPU_LIMITS:
        for files in ([folder / one for one in names] for folder in holding(root, controller)):
            if all(file.is_file() for file in files):
                quota, period = " ".join(file.read_text() for file in files).split()
                if quota.isdigit():  # `max`, or -1: there is none
                    most = min(most, max(1, int(quota) // int(period)))
    return most


def free_memory() -> int:
    """Bytes that this process may still take: of the machine, and within the limits on its
    groups."""
    fields = dict(line.split(":", 1) for line in MEMINFO.read_text().splitlines())
    free = int(fields["MemAvailable"].split()[0]) * 1024
    for root, controller, limit, used, given_back in CGROUPS:
        for folder in holding(root, controller):
            file = folder / limit
            most = file.read_text().strip() if file.is_file() else ""
            if most.isdigit():  # `max`: there is none
                lines = (folder / "memory.stat").read_text().splitlines()
                stat = dict(line.split() for line in lines)
                taken = int((folder / used).read_text()) - int(stat.get(given_back, 0))
                free = min(free, max(0, int(most) - taken))
    return free
