"""Inputs through paths: outcomes, measures, and what is wrong with them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.corpus.bench import Bench
from tests.corpus.kinds import NONE, Group, Kind, Outcome, fits
from tests.corpus.measures import MOST_BYTES, MOST_S, Measure, leaks, measuring

Key = tuple[str, int, str, str, str]
"""Group, number and name of the kind, name of the case, path."""


@dataclass
class Results:
    outcomes: dict[Key, Outcome] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    slowest: tuple[float, str] = (0.0, "")
    largest: tuple[int, str] = (0, "")
    messages: int = 0

    @property
    def figures(self) -> dict[str, object]:
        """The same in numbers."""
        kinds = {key[1] for key in self.outcomes}
        wrong = {int(fault.split()[0]) for fault in self.faults}
        return {
            "corpus": "all kinds", "kinds": len(kinds), "right": len(kinds - wrong),
            "inputs_by_path": len(self.outcomes), "messages": self.messages,
            "slowest_s": round(self.slowest[0], 1), "most_mib": self.largest[0] // 2**20,
            "faults": len(self.faults),
        }  # fmt: skip

    @property
    def summary(self) -> str:
        """One line."""
        kinds = len({key[1] for key in self.outcomes})
        return (
            f"{kinds} kinds, {len(self.outcomes)} inputs by path, {self.messages} messages; "
            f"slowest "
            f"{self.slowest[0]:.1f} s ({self.slowest[1]}), most memory of a process "
            f"{self.largest[0] / 2**20:.0f} MiB ({self.largest[1]}); {len(self.faults)} faults"
        )


def run(
    bench: Bench,
    groups: Sequence[Group],
    only: Sequence[int] | None = None,
    say: Callable[[str], object] = lambda text: None,
) -> Results:
    """All kinds, or some by number, through all paths of their groups."""
    results = Results()
    for group in groups:
        for kind in group.kinds:
            if only and kind.number not in only:
                continue
            for case, make in kind.cases.items():
                given = make(bench.folder())
                for path, way in group.paths.items():
                    name = f"{kind.number} {kind.name}{case and f' ({case})'}, {path}"
                    outcome, measure = _try(bench, way, given)
                    results.outcomes[group.name, kind.number, kind.name, case, path] = outcome
                    before = len(results.faults)
                    _judge(results, bench, kind, path, name, outcome, measure)
                    for fault in results.faults[before:]:
                        say(f"FAULT {fault}")
                    say(f"{name}: {outcome.text}  [{measure.seconds:.2f} s]")
    return results


def _try(bench: Bench, way: Callable[[Any, Any], Outcome], given: Any) -> tuple[Outcome, Measure]:
    for turn in range(2):
        with measuring() as measure:
            try:
                outcome = way(bench, given)
            except AssertionError as error:  # rows are missing, say
                outcome = Outcome(f"E1509: {error}")
            except Exception as error:  # the others are to be tried too
                outcome = Outcome(f"E1509: {type(error).__name__} came out of it")
        if measure.seconds < MOST_S or turn:
            break
    return outcome, measure


def _judge(
    results: Results,
    bench: Bench,
    kind: Kind,
    path: str,
    name: str,
    outcome: Outcome,
    measure: Measure,
) -> None:
    want = kind.wants.get(path, kind.want)
    if outcome is not NONE and not fits(outcome, want):
        results.faults.append(f"{name}: {outcome.text}; right is {want}")
    if measure.seconds > MOST_S:
        results.faults.append(f"{name}: {measure.seconds:.1f} s")
    if measure.bytes > MOST_BYTES:
        results.faults.append(f"{name}: {measure.bytes / 2**20:.0f} MiB")
    for message in outcome.messages:
        for what in leaks(message, bench.root):
            results.faults.append(f"{name}: a message holds {what}: {message[:2000]}")
    results.messages += len(outcome.messages)
    results.slowest = max(results.slowest, (measure.seconds, name))
    results.largest = max(results.largest, (measure.bytes, name))
