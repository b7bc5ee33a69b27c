"""The names of Ray's that begin with an underscore, all that are used. Those of Ray Data and Serve
save time and change no answer: a Ray that has them no more is named in a warning, and the work goes
on without them. Those of the autoscaler check `ray up` files and rank kinds of node.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

import ray

if TYPE_CHECKING:  # a replica does without ray.data
    from ray.data import DataContext

log = logging.getLogger(__name__)

WINDOW = "_max_num_blocks_in_streaming_gen_buffer"
RECEIVE = "_receive_asgi_messages"


def set_window(context: DataContext, num_blocks: int) -> None:
    """Lets a source have so many blocks under way. 2 by default: two chunks every time that Ray
    Data looks, 20 a second in the whole cluster."""
    if _has(context, WINDOW, "at most some 20 chunks a second are started in the whole cluster"):
        context._max_num_blocks_in_streaming_gen_buffer = num_blocks


def ask_no_proxy(receive: Any) -> None:
    """Serve's `receive` of a request whose body is here no longer asks the proxy for it."""
    if _has(receive, RECEIVE, "each HTTP request takes two more calls, about 2 ms"):
        receive._receive_asgi_messages = _never


def filled_out(config: dict[str, Any]) -> dict[str, Any]:
    """A `ray up` file as Ray itself completes and checks it. Raises what Ray finds wrong."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared: dict[str, Any] = prepare_config(config)
    validate_config(prepared)
    return prepared


def fit_of(
    node_resources: dict[str, float],
    resources: list[dict[str, float]],
    node_type: str,
    summary: Any,
) -> tuple[Any, ...] | None:
    """Ray's own rank of a kind of node for what waits; None where nothing of it fits there."""
    from ray.autoscaler._private import resource_demand_scheduler as scheduler

    score: Any = scheduler._default_utilization_scorer
    fit: tuple[Any, ...] | None = score(
        node_resources, resources, node_type, node_availability_summary=summary
    )
    return fit


def _has(owner: object, name: str, otherwise: str) -> bool:
    found = hasattr(owner, name)
    if not found and (type(owner), name) not in _warned:
        _warned.add((type(owner), name))
        log.warning(
            "ray %s has no %s.%s any more: %s. Another Ray (constraints.txt) has it.",
            ray.__version__,
            type(owner).__name__,
            name,
            otherwise,
        )
    return found


_warned: set[tuple[type, str]] = set()


async def _never(_: Any) -> bytes:
    await asyncio.Event().wait()
    raise AssertionError("an event that nobody sets")
