"""What `medv doctor` finds: a line for each check, with the next step where there is one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

from medv_ray.errors import MedvError

State = Literal["ok", "warning", "fault"]


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
