"""The table of docs/reliability.md."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from datetime import date

from tests.corpus.kinds import PATHS, Group, Kind
from tests.corpus.run import Results

BEGIN = "<!-- written by: python -m tests.corpus --write docs/reliability.md -->"
END = "<!-- end of what is written -->"


def replaced(text: str, groups: Sequence[Group], results: Results) -> str:
    """The file with the tables of these results between its marks."""
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    tables = "\n".join(table(group, results) for group in groups)
    figures = f"{date.today()}, {results.summary}.\n"
    return f"{before}{BEGIN}\n\n{tables}\n{figures}\n{END}{after}"


def updated(text: str, groups: Sequence[Group], results: Results) -> str:
    """The file with the lines of these results in place of those of the same kinds."""
    lines = text.split("\n")
    for group in groups:
        for kind in group.kinds:
            for new in rows(replace(group, kinds=(kind,)), results):
                lines = [new if line.startswith(start(kind)) else line for line in lines]
    return "\n".join(lines)


def same(text: str, groups: Sequence[Group], results: Results) -> bool:
    """Whether the file has the lines of these results."""
    held = set(text.splitlines())
    return all(line in held for group in groups for line in rows(group, results))


def table(group: Group, results: Results) -> str:
    """Its kinds, and notes under them."""
    lines = [f"### {group.name}", "", group.text, ""]
    lines += ["| | kind | " + " | ".join(PATHS) + " |", "|---|---|" + "---|" * len(PATHS)]
    lines += rows(group, results)
    noted: dict[str, list[str]] = defaultdict(list)
    for kind in group.kinds:
        if kind.note and str(kind.number) not in noted[kind.note]:
            noted[kind.note].append(str(kind.number))
    lines += [""] * bool(noted)
    lines += [f"- {', '.join(numbers)}: {note}" for note, numbers in noted.items()]
    return "\n".join(lines) + "\n"


def rows(group: Group, results: Results) -> list[str]:
    """A line for each kind that was tried."""
    tried = {(name, number, kind) for name, number, kind, *_ in results.outcomes}
    return [
        start(kind) + " | ".join(cell(results, group, kind, path) for path in PATHS) + " |"
        for kind in group.kinds
        if (group.name, kind.number, kind.name) in tried
    ]


def start(kind: Kind) -> str:
    """What its line begins with."""
    name = kind.name.replace("|", "\\|")
    return f"| {kind.number} | {name} | "


def cell(results: Results, group: Group, kind: Kind, path: str) -> str:
    """What came of the kind's inputs: once where it is one thing, else by their names."""
    by_text: dict[str, list[str]] = defaultdict(list)
    for case in kind.cases:
        outcome = results.outcomes.get((group.name, kind.number, kind.name, case, path))
        if outcome is not None:
            by_text[shown(outcome.text)].append(case)
    if len(by_text) <= 1:
        return next(iter(by_text), "-")
    return "; ".join(f"{text} ({', '.join(cases)})" for text, cases in by_text.items())


def shown(text: str) -> str:
    """Warnings in the type of code."""
    word, *rest = text.split()
    if word != "answered":
        return text
    return " ".join([word, *(f"`{one}`" for one in rest)])
