"""The figures that a release publishes: runs what measures them and writes the table.

    python -m tests.chaos.release                  # everything, hours; then the table
    python -m tests.chaos.release kill_runs flips  # these, then the table
    python -m tests.chaos.release --table          # only the table, from the figures that are kept

A run's figures are the lines of JSON that it prints; benchmarks/results/release.jsonl keeps them
with command, commit and date, the last run of each name. Exit code 1 if a run's is not 0.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.circumstances import circumstances

ROOT = Path(__file__).parents[2]
KEPT = ROOT / "benchmarks/results/release.jsonl"
DOCS = ROOT / "docs/reliability.md"
BEGIN = "<!-- written by: python -m tests.chaos.release -->"
END = "<!-- end of the release table -->"

Line = Mapping[str, Any]


class Kept(NamedTuple):
    """What one run printed, and under which circumstances."""

    name: str
    command: str
    commit: str
    date: str
    seconds: int
    exit_code: int
    lines: list[Line]


class Figure(NamedTuple):
    """A line of the table."""

    text: str
    run: str
    """Name of the run that measures it."""
    of: Callable[[list[Line]], object]
    """Raises KeyError, IndexError or ValueError where the run did not get so far."""
    bar: str = ""


ARMS = ("kills", "stuck", "burst", "overload", "attacks", "leave", "redeploy")
RUNS = {
    "kill_runs": ["tests.chaos.kill_runs"],
    "many_rows": ["tests.chaos.many_rows"],
    "driver_memory": ["tests.chaos.many_rows", "--kills", "2"],
    "kill_train": ["tests.chaos.kill_train"],
    "bit_flips": ["tests.chaos.bit_flips"],
    "serve_runs": ["tests.chaos.serve_runs", *(w for arm in ARMS for w in ("--only", arm))],
    "fault_runs": ["tests.chaos.fault_runs"],
    "autoscale": ["tests.chaos.autoscale"],
    "soak": ["tests.chaos.serve_runs", "--only", "soak", "--requests", "100000"],
    "round_trip": ["tests.chaos.orthanc_round_trip"],
    "corpus": ["tests.corpus", "--check", "docs/reliability.md"],
    "fuzz": ["tests.fuzz"],
    "requests": ["tests.serving_fuzz", "--cases", "100000", "--seconds", "7200"],
    "routes": ["tests.routes"],
    "canaries": ["tests.canary"],
}


def _killed(lines: list[Line]) -> str:
    said = "{missing}, {duplicate} of {rows:,} rows; {driver_kills} drivers, {actor_kills} actors"
    return said.format(**lines[-1])


def _many(lines: list[Line]) -> str:
    line = lines[-1]
    said = "{missing}, {duplicate}, {wrong} of {rows:,} rows".format(**line)
    return f"{said}; {line['kills']['all']} kills"


def _arm(name: str) -> Callable[[list[Line]], Any]:
    """The line of one arm of serve_runs."""

    def of(lines: list[Line]) -> Any:
        [found] = [line for line in lines if line["run"] == name]
        return found

    return of


def _nodes(lines: list[Line]) -> str:
    line = lines[-1]["nodes"]
    said = "{missing}, {duplicate} of {rows}; the job went on: {went_on_without_the_second_node}"
    return said.format(**line)


def _servers(lines: list[Line]) -> str:
    line = lines[-1]["servers"]
    said = (
        f"{name}: {line[f'{name}_answers_again_s']} s, {line[f'{name}_connections_broken']}"
        for name in ("ServeController", "ProxyActor")
    )
    return "; ".join(said)


def _scaled(lines: list[Line]) -> str:
    said = "{most_nodes}, then {nodes_at_the_end}; {missing}, {duplicate} of {rows:,} rows in "
    return (said + "{job_s} s").format(**_arm("score")(lines))


def _lost(lines: list[Line]) -> str:
    each = (f"{name}: {{missing}}, {{duplicate}} of {{rows:,}}" for name in ("lost", "head"))
    found = (_arm(name)(lines) for name in ("lost", "head"))
    return "; ".join(said.format(**line) for said, line in zip(each, found, strict=True))


def _server_errors(line: Line) -> str:
    asked = {int(status): number for status, number in line["statuses"].items()}
    failed = sum(number for status, number in asked.items() if status >= 500)
    refused = asked.get(503, 0)
    return f"{failed - refused} (and {refused} of 503 with Retry-After), of {sum(asked.values()):,}"


def _recovery(lines: list[Line]) -> str:
    seconds = sorted(_arm("kills")(lines)["recovery_s"])
    return f"{seconds[len(seconds) // 2]} s, {seconds[-1]} s at most, of {len(seconds)} kills"


def _trip(lines: list[Line]) -> str:
    said = "{missing}, {different_from_unbroken}, {reports_read_back} of {reports}; {server}"
    return said.format(**lines[-1])


def _made_up(lines: list[Line]) -> str:
    return "{cases:,} ({uncaught})".format(**lines[-1])


def _flips(lines: list[Line]) -> str:
    kinds = lines[-1]["kinds"].items()
    return "; ".join(f"{name}: {one['silent']}/{one['flips']}" for name, one in kinds)


def _fuzzed(lines: list[Line]) -> str:
    each = (f"{line['fuzz']} {line['cases']:,} ({line['uncaught']})" for line in lines)
    hours = sum(line["seconds"] for line in lines) / 3600
    return f"{', '.join(each)}; {hours:.1f} h, {lines[0]['engine']}"


FIGURES = (
    Figure("rows lost, doubled under kills", "kill_runs", _killed, "0, 0"),
    Figure(
        "rows done again per kill of a driver, at most", "kill_runs",
        lambda lines: lines[-1]["rows_redone_per_driver_kill"]["max"], "64: a chunk an actor",
    ),
    Figure(
        "rows lost, doubled, with another row's answer, in a large run", "many_rows", _many,
        "0, 0, 0 of a million under 100 kills",
    ),
    Figure(
        "rows done again per kill, mean and most", "many_rows",
        lambda lines: "{per_kill_mean}, {per_kill_max}".format(**lines[-1]["rows_redone"]),
        "1,600: two chunks an actor",
    ),
    Figure(
        "start of a resume to its first new commit", "many_rows",
        lambda lines: "{median} s, {max} s at most".format(**lines[-1]["start_to_first_commit_s"])
        + "; of the processor {median} s".format(**lines[-1]["driver_cpu_s_to_first_commit"]),
        "60 s at a million rows, on a quiet machine",
    ),
    Figure(
        "memory of the driver, merges of a million rows included", "driver_memory",
        lambda lines: f"{lines[-1]['peak_mib']['driver']} MiB", "1,024 MiB at a million rows",
    ),
    Figure(
        "a training under kills: files equal to the last bit", "kill_train",
        lambda lines: "{files_equal_bit_for_bit} of {files}, {kills} kills".format(**lines[-1]),
        "all",
    ),
    Figure("silent flips of one bit", "bit_flips", _flips, "0 of 300 each"),
    Figure(
        "answers 5xx under kills of replicas", "serve_runs",
        lambda lines: _server_errors(_arm("kills")(lines)), "0 but 503",
    ),
    Figure("recovery after a kill, median", "serve_runs", _recovery, "10 s and the model's load"),
    Figure(
        "a replica that hangs is replaced after", "serve_runs",
        lambda lines: f"{_arm('stuck')(lines)['replaced_s']} s", "60 s",
    ),
    Figure(
        "statuses at ten times what it can answer", "serve_runs",
        lambda lines: _arm("overload")(lines)["statuses"], "200 and 429",
    ),
    Figure(
        "latency of what is admitted then, p50 and p99", "serve_runs",
        lambda lines: "{p50} s, {p99} s".format(**_arm("overload")(lines)["latency_s"]),
    ),
    Figure(
        "memory under it", "serve_runs",
        lambda lines: f"{_arm('overload')(lines)['rss_growth_mib']:+} MiB", "+200 MiB",
    ),
    Figure(
        "deployments under load, answers 5xx", "serve_runs",
        lambda lines: "{deployments}, ".format(**_arm("redeploy")(lines))
        + _server_errors(_arm("redeploy")(lines)), "20, 0",
    ),
    Figure(
        "one of two nodes lost, then the head: rows lost, doubled", "fault_runs", _nodes,
        "0, 0; the job goes on without the node",
    ),
    Figure(
        "Serve's controller, its proxy killed: answers again after, connections broken",
        "fault_runs", _servers, "0 and 8 of 4 clients",
    ),
    Figure(
        "no room for Ray's folder: the job ended after", "fault_runs",
        lambda lines: f"{lines[-1]['disk']['end_without_room_s']} s",
    ),
    Figure(
        "autoscaling: nodes at once, after the job; rows lost, doubled", "autoscale", _scaled,
        "4 and more, then 1; 0, 0; 240 s",
    ),
    Figure(
        "a worker node killed, the head killed: rows lost, doubled", "autoscale", _lost, "0, 0"
    ),
    Figure(
        "endpoint: replicas before, under load, after", "autoscale",
        lambda lines: "0, {most_replicas}, 0".format(**_arm("endpoint")(lines)), "0, 2 and more, 0",
    ),
    Figure(
        "soak: requests, errors", "soak",
        lambda lines: "{requests:,}, {errors}".format(**lines[-1]), "100,000, 0",
    ),
    Figure(
        "memory per 1,000 requests, after the first tenth", "soak",
        lambda lines: f"{lines[-1]['rss_slope_mib_per_1000_requests']['all']:+} MiB", "+1 MiB",
    ),
    Figure(
        "open files, start and end", "soak",
        lambda lines: "{start}, {end}".format(**lines[-1]["descriptors"]), "the same",
    ),
    Figure(
        "PACS, killed and resumed: rows lost, other answers, reports read back", "round_trip",
        _trip, "0, 0, all",
    ),
    Figure(
        "kinds of bad input that end as they should", "corpus",
        lambda lines: "{right} of {kinds}".format(**lines[-1]), "all",
    ),
    Figure("inputs of parsers (uncaught)", "fuzz", _fuzzed, "100,000 each (0)"),
    Figure("made-up requests (5xx or broken promises)", "requests", _made_up, "100,000 (0)"),
    Figure(
        "routes and methods, refused without a key", "routes",
        lambda lines: "{asked_without_key}, {refused_401}".format(**lines[-1]), "all",
    ),
    Figure(
        "canaries found", "canaries",
        lambda lines: "{canaries_found} in {bytes_searched:,} bytes".format(**lines[-1]), "0",
    ),
)  # fmt: skip
NOT_HERE = {
    "16 requests at once for 10 minutes on one H200, 8B": "no GPU has run this project",
    "errors of GPUs, NCCL hangs, nodes that go with their network, spot reclaim": "one machine "
    "without a GPU",
}
"""Figures that cannot be had on such a machine, and why."""


def measure(name: str) -> Kept:
    """Runs it; its progress goes to stderr as it comes."""
    words = RUNS[name]
    began_s = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", *words],
        cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    lines = list(_objects(done.stdout))
    commit = circumstances()["commit"]
    seconds = round(time.monotonic() - began_s)
    command = " ".join(["python", "-m", *words])
    return Kept(name, command, commit, str(date.today()), seconds, done.returncode, lines)


def _objects(text: str) -> Iterator[Line]:
    for line in text.splitlines():
        if line.startswith("{"):
            yield json.loads(line)


def kept() -> dict[str, Kept]:
    """By name, the last run of each."""
    if not KEPT.exists():
        return {}
    found = (Kept(**json.loads(line)) for line in KEPT.read_text().splitlines())
    return {one.name: one for one in found}


def keep(new: Kept) -> None:
    """Instead of the run of that name."""
    found = kept() | {new.name: new}
    lines = [json.dumps(one._asdict()) for name in RUNS if (one := found.get(name))]
    KEPT.write_text("\n".join(lines) + "\n")


def table(found: Mapping[str, Kept]) -> str:
    """The figures, where they come from, and what could not be had."""
    rows = ["| figure | measured | bar | run |", "|---|---|---|---|"]
    for figure in FIGURES:
        rows.append(f"| {figure.text} | {cell(figure, found)} | {figure.bar} | {figure.run} |")
    rows += [f"| {text} | none: {why} | | |" for text, why in NOT_HERE.items()]
    runs = ["", "| run | command | commit | date | took |", "|---|---|---|---|---|"]
    for name in RUNS:
        if one := found.get(name):
            took = f"{one.seconds} s" + (
                f", **exit code {one.exit_code}**" if one.exit_code else ""
            )
            runs.append(f"| {name} | `{one.command}` | {one.commit} | {one.date} | {took} |")
    return "\n".join([*rows, *runs]) + "\n"


def cell(figure: Figure, found: Mapping[str, Kept]) -> str:
    """A figure, or why there is none."""
    if figure.run not in found:
        return "not run"
    try:
        return str(figure.of(found[figure.run].lines))
    except (KeyError, IndexError, ValueError) as error:
        return f"none: this run did not get to it ({type(error).__name__})"


def written(text: str, found: Mapping[str, Kept]) -> str:
    """The document with the table between its marks."""
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    return f"{before}{BEGIN}\n\n{table(found)}\n{END}{after}"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("names", nargs="*", metavar="RUN", help=", ".join(RUNS))
    parser.add_argument("--table", action="store_true", help="measure nothing")
    args = parser.parse_args()
    if unknown := set(args.names) - set(RUNS):
        parser.error(f"no run {sorted(unknown)[0]!r}; there are {', '.join(RUNS)}")
    failed = 0
    for name in () if args.table else args.names or RUNS:
        print(f"{name} ...", file=sys.stderr, flush=True)
        one = measure(name)
        keep(one)
        failed += bool(one.exit_code)
        print(
            json.dumps({"run": name, "exit_code": one.exit_code, "seconds": one.seconds}),
            flush=True,
        )
    DOCS.write_text(written(DOCS.read_text(), kept()))
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
