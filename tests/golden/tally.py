"""Which golden sub-cases a session ran, in one process or in several of pytest-xdist."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest


@dataclass
class Tally:
    """What was found and what became of it; sub-cases are "NN key"."""

    whole: bool = False
    """Whether every golden test was there to run: else the rest cannot be missed."""
    found: set[str] = field(default_factory=set)
    unsupported: set[str] = field(default_factory=set)
    passed: set[str] = field(default_factory=set)
    failed: set[str] = field(default_factory=set)

    def add(self, part: dict[str, Any]) -> None:
        """Count what a process has sent (`sent`)."""
        self.whole = self.whole or part["whole"]
        for name in ("found", "unsupported", "passed", "failed"):
            getattr(self, name).update(part[name])

    def sent(self) -> dict[str, Any]:
        """As plain values, for the way to another process."""
        names = ("found", "unsupported", "passed", "failed")
        return {"whole": self.whole, **{name: sorted(getattr(self, name)) for name in names}}

    def missing(self) -> list[str]:
        """Those that failed or were not run."""
        return sorted(self.found - self.unsupported - (self.passed - self.failed))

    def lines(self) -> list[str]:
        """What the end of a session says."""
        run = self.found & (self.passed - self.failed)
        if not self.passed and not self.failed:
            return []
        if not self.whole:
            return [f"golden: {len(run)} run of a part of the tests"]
        skipped = self.found & self.unsupported - run
        missing = self.missing()
        told = f"golden: {len(run)} run, {len(skipped)} not supported, {len(missing)} failed"
        return [told, *(f"golden: {name} failed or was not run" for name in missing)]


class Session:
    """The session's end. Without pytest-xdist, or in its first process, it also tells the tally."""

    def __init__(self) -> None:
        self.tally = Tally()

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any, error: object) -> None:
        part = getattr(node, "workeroutput", {}).get("golden")
        if part is not None:
            self.tally.add(part)

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        output = getattr(session.config, "workeroutput", None)
        if output is not None:
            output["golden"] = self.tally.sent()
        elif self.tally.whole and self.tally.missing():
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        for line in self.tally.lines():
            terminalreporter.write_line(line)


SESSION = Session()
