"""Requests made up from the OpenAPI file, and valid ones with something wrong in them, against the
endpoint in this process: no answer may be a 5xx, break the file's schemas, or take over 5 s (less
what it waited for a core).

    python -m tests.serving_fuzz [--cases 10000] [--seconds 7200]

Whatever comes first. The last line is one JSON object; exit code 1 where something was found. 150
cases are part of the tests (tests/unit/serving/test_fuzz.py).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import resource
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance

from medv_ray.serving.app import make_app
from medv_ray.serving.guard import App
from medv_ray.serving.protocol import ChatRequest
from medv_ray.serving.service import Service
from medv_ray.settings import SamplerSettings
from tests.unit.serving.client import KEY, MODEL, ask, body_of, tiles
from tests.unit.serving.conftest import KEYS, settings_of

HEADERS = {"authorization": f"Bearer {KEY}", "host": "localhost"}
CHAT = "/v1/chat/completions"
MOST_S = 5.0
ROUND = 1000
"""Cases between two looks at the clock."""
SHORT = {"gen_length": 8, "block_length": 8, "steps": 8}

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-2, 9)
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["", "user", "system", "assistant", "text", "image_url", "exact", "fast"])
    | st.sampled_from(["data:image/png;base64,", "<|mdm_mask|>", "<|eot_id|>", "\0", "\u202e"])
)
names = st.sampled_from(
    [*ChatRequest.model_fields, *SamplerSettings.model_fields, "role", "content", "type", "text"]
    + ["image_url", "url", "detail", "include_usage", "include_denoise"]
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=8,
)


@st.composite
def nearly_valid(draw: st.DrawFn) -> dict[str, Any]:
    """A request about a tile, some of whose parts were changed, taken out or put in."""
    fields: dict[str, Any] = {
        "diffusion": draw(st.sampled_from([{}, SHORT, {**SHORT, "preset": "turbo"}])),
        "stream": draw(st.booleans()),
        "seed": draw(st.integers(0, 9)),
    }
    body = body_of(tiles()[draw(st.integers(0, 7))], **fields)
    body = json.loads(json.dumps(body))
    for _ in range(draw(st.integers(0, 3))):
        node: Any = body
        while True:
            inner = [key for key, value in _items(node) if isinstance(value, dict | list)]
            if not inner or draw(st.booleans()):
                break
            node = node[draw(st.sampled_from(inner))]
        keys = [key for key, _ in _items(node)]
        what = draw(st.sampled_from(["change", "take", "put"]))
        if what != "put" and keys:
            key = draw(st.sampled_from(keys))
            if what == "take":
                del node[key]
            else:
                node[key] = draw(values)
        elif isinstance(node, dict):
            node[draw(names)] = draw(values)
        else:
            node.insert(0, draw(values))
    return body


def queued_s() -> float:
    """How long the threads of this process have waited for a core that others had."""
    total = 0
    for file in Path("/proc/self/task").glob("*/schedstat"):
        with contextlib.suppress(OSError):  # it has ended
            total += int(file.read_text().split()[1])
    return total / 1e9


def _items(node: Any) -> list[tuple[Any, Any]]:
    return list(node.items()) if isinstance(node, dict) else list(enumerate(node))


@dataclass
class Found:
    counts: Counter[tuple[str, str, int]] = field(default_factory=Counter)
    """How many answers had which status, by path and way."""
    slowest_s: float = 0.0


def fuzz(app: App, cases: int, found: Found | None = None) -> Counter[tuple[str, str, int]]:
    """How many answers had which status, by path and way; `found` collects them over several
    calls. Raises for an answer that must not be."""
    found = Found() if found is None else found
    counts: Counter[tuple[str, str, int]] = Counter()
    schema = schemathesis.openapi.from_asgi("/openapi.json", app, headers=HEADERS)
    operations = [found.ok() for found in schema.get_all_operations()]

    def check(path: str, way: str, send: Callable[[], int]) -> None:
        started_s, waited_s = time.monotonic(), queued_s()
        status = send()
        took_s = time.monotonic() - started_s - (queued_s() - waited_s)
        found.slowest_s = max(found.slowest_s, took_s)
        counts[path, way, status] += 1
        found.counts[path, way, status] += 1
        assert took_s < MOST_S, f"{took_s:.1f} s"
        assert status < 500, status

    def made_up(operation: Any, mode: GenerationMode, number: int) -> None:
        @_settings(number)
        @given(operation.as_strategy(generation_mode=mode))
        def run(case: Any) -> None:
            if isinstance(case.body, dict) and isinstance(case.body.get("model"), str):
                case.body["model"] = MODEL

            def send() -> int:
                response = case.call(headers=HEADERS)
                # limits that hold for several fields together are in no schema
                unfit = [positive_data_acceptance]
                case.validate_response(response, headers=HEADERS, excluded_checks=unfit)
                return int(response.status_code)

            check(operation.path, mode.value, send)

        run()

    for operation in operations:
        number = cases // 4 if operation.path == CHAT else cases // (12 * len(operations))
        for mode in GenerationMode:
            made_up(operation, mode, number)

    @_settings(cases - counts.total())
    @given(nearly_valid())
    def mutated(body: dict[str, Any]) -> None:
        def send() -> int:
            reply = ask(app, json.dumps(body), headers=HEADERS)
            assert reply.ended
            if reply.status != 200:
                assert reply.error
            elif reply.body.startswith(b"data:"):
                assert reply.events
            else:
                assert reply.json()["choices"]
            return reply.status

        check(CHAT, "mutated", send)

    mutated()
    return counts


def _settings(number: int) -> Any:
    return settings(
        max_examples=max(1, number),
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],  # the first find is enough
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    args = parser.parse_args()
    service = Service.load(settings_of(per_key=64))
    app, found, problems = make_app(service, KEYS), Found(), []
    started_s = time.monotonic()
    while (left := args.cases - found.counts.total()) > 0 and not problems:
        if time.monotonic() - started_s > args.seconds:
            break
        try:
            fuzz(app, min(left, ROUND), found)
        except BaseException as error:  # also a group of them
            traceback.print_exc()
            problems.append(f"{type(error).__name__}: see above")
    for (path, way, status), number in sorted(found.counts.items()):
        print(f"{number:7d}  {status}  {way:9s} {path}")
    service.close()
    figures = {
        "fuzz": "endpoint",
        "engine": "schemathesis",
        "cases": found.counts.total(),
        "seconds": round(time.monotonic() - started_s),
        "uncaught": len(problems),
        "slowest_ms": round(found.slowest_s * 1000, 1),
        "largest_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "problems": problems,
    }
    print(json.dumps(figures))
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
