"""Runs the canary tests and says what they have searched.

    python -m tests.canary [--short]

The last line is one JSON object. Every promise is a test; besides, a canary that was found where
none was planted counts, and so does a planted one that was not found: exit code 1. `--short` leaves
out what takes Ray.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import pytest

from tests.canary import search

HERE = Path(__file__).parent
ON_RAY = HERE.parent / "integration" / "test_canary.py"


class Suites:
    """Counts tests by how they end, and the files that they are in."""

    def __init__(self) -> None:
        self.files: set[str] = set()
        self.outcomes: dict[str, int] = {"passed": 0, "failed": 0, "skipped": 0}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.files.add(report.location[0])
        if report.when == "call" or report.outcome != "passed":
            self.outcomes[report.outcome] += 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--short", action="store_true", help="without Ray")
    short = parser.parse_args().short
    started_s, suites = time.monotonic(), Suites()
    where = [HERE] if short else [HERE, ON_RAY]
    code = pytest.main(["-q", "-n", "0", *map(str, where)], plugins=[suites])
    tally = search.TALLY
    figures = {
        "suites": len(suites.files),
        "tests": sum(suites.outcomes.values()),
        "failed": suites.outcomes["failed"],
        "skipped": suites.outcomes["skipped"],
        "places_searched": tally.places,
        "bytes_searched": tally.bytes,
        "canaries_found": tally.found,
        "planted": tally.planted,
        "planted_found": tally.planted > 0 and not tally.missed,
        "seconds": round(time.monotonic() - started_s, 1),
    }
    print(json.dumps(figures))
    return int(bool(code) or bool(tally.found) or not figures["planted_found"])


if __name__ == "__main__":
    sys.exit(main())
