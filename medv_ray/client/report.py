"""Figures of a load run: one object without anything of what was asked or answered."""

from __future__ import annotations

import math
import os
import platform
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

import httpx2

from medv_ray import __version__
from medv_ray.client.endpoint import printable
from medv_ray.client.load import Load, Outcome
from medv_ray.client.questions import LoadSettings, Questions


def report(
    settings: LoadSettings, load: Load, asked: Questions, model: dict[str, Any]
) -> dict[str, Any]:
    """Everything that `medv bench serve` says. `model`: the endpoint's own entry for it."""
    outcomes = load.outcomes
    answers = [one for one in outcomes if one.answered]
    # until the last answer is whole: dividing by the time of the last arrival would say too much
    seconds = max(load.ended_s - load.started_s, 1e-9)
    good = sum(one.seconds <= settings.limit_s for one in answers)
    tokens = sum(one.tokens for one in answers)
    return {
        "bench": "serve",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "interrupted": load.interrupted,
        "requests": len(outcomes),
        "answers": len(answers),
        "seconds": round(seconds, 3),
        "answers_per_s": round(len(answers) / seconds, 3),
        "tokens": tokens,
        "tokens_per_s": round(tokens / seconds, 3),
        "latency_s": spread([one.seconds for one in answers]),
        "first_text_s": spread([s for one in answers if (s := one.first_text_s) is not None]),
        "limit_s": settings.limit_s,
        "within_limit": good,
        "goodput_per_s": round(good / seconds, 3),
        **_trouble(outcomes),
        "retry_after_obeyed": load.obeyed,
        "retry_after_waited_s": round(load.waited_s, 3),
        "sent_bytes": sum(one.sent_bytes for one in outcomes),
        "received_bytes": sum(one.received_bytes for one in outcomes),
        "send_delay_s": None if settings.rate is None else spread([o.delay_s for o in outcomes]),
        "questions": len(asked.bodies),
        "images": asked.images,
        "settings": _settings(settings),
        "endpoint": _endpoint(model),
        "versions": {
            "medv_ray": __version__, "httpx2": httpx2.__version__,
            "python": platform.python_version(),
        },
        "client_cpus": os.cpu_count(),
    }  # fmt: skip


def _trouble(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    return {
        "statuses": _counted(str(one.status) for one in outcomes if one.status),
        "refused_429": sum(one.status == 429 for one in outcomes),
        "codes": _counted(one.code for one in outcomes if one.code),
        "errors": _counted(one.error for one in outcomes if one.error),
    }


def _counted(words: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(words).items()))


def _settings(settings: LoadSettings) -> dict[str, Any]:
    """As they were taken; of the archive its name alone."""
    given = settings.model_dump(mode="json", exclude={"archive"})
    name = "synthetic"
    if settings.archive is not None:
        name = settings.archive.archive.rstrip("/").rpartition("/")[2]
    clients = None if settings.rate is not None else settings.clients or 20
    return given | {"archive": name, "clients": clients}


def _endpoint(model: dict[str, Any]) -> dict[str, Any]:
    """How the endpoint says that it answers."""
    ours = model.get("medv")
    sampler = ours.get("sampler") if isinstance(ours, dict) else None
    return {"model": printable(model["id"])[:100], "sampler": sampler}


def spread(seconds: Sequence[float]) -> dict[str, float] | None:
    """Nearest-rank percentiles: each is a value that was seen. None for no values."""
    if not seconds:
        return None
    ordered = sorted(seconds)
    ranks = {f"p{share}": math.ceil(share * len(ordered) / 100) for share in (50, 95, 99)}
    found = {name: ordered[rank - 1] for name, rank in ranks.items()} | {"max": ordered[-1]}
    return {name: round(value, 4) for name, value in found.items()}
