"""The table of a release: made from what runs printed, with no cell empty."""

import json
from pathlib import Path

import pytest

from tests.chaos import release
from tests.chaos.release import FIGURES, RUNS, Kept, cell, kept, table, written


def run_of(name: str, *lines: dict, exit_code: int = 0) -> Kept:
    return Kept(name, f"python -m {name}", "abc1234", "2026-01-02", 60, exit_code, list(lines))


def test_the_documents_table_is_that_of_the_kept_figures() -> None:
    text = release.DOCS.read_text()
    assert written(text, kept()) == text, "python -m tests.chaos.release --table"


def test_results_are_lines_of_json() -> None:
    for path in (release.DOCS.parents[1] / "benchmarks" / "results").glob("*.jsonl"):
        for line in path.read_text().splitlines():
            assert json.loads(line), path.name


def test_no_cell_is_empty_and_no_figure_is_made_up() -> None:
    for figure in FIGURES:
        assert figure.run in RUNS
        assert cell(figure, {}) == "not run"
        early = {figure.run: run_of(figure.run)}
        assert cell(figure, early).startswith("none: this run did not get to it")
    assert "**exit code 1**" in table({"soak": run_of("soak", exit_code=1)})


def test_figures_are_those_of_the_runs_lines() -> None:
    found = {
        "bit_flips": run_of("x", {"kinds": {"rows": {"silent": 1, "flips": 300}}}),
        "serve_runs": run_of(
            "x",
            {"run": "kills", "statuses": {"200": 90, "500": 2, "503": 8}, "recovery_s": [3, 1, 2]},
            {"run": "stuck", "replaced_s": 12.5},
        ),
    }
    said = {figure.text: cell(figure, found) for figure in FIGURES}
    assert said["silent flips of one bit"] == "rows: 1/300"
    assert said["answers 5xx under kills of replicas"].startswith("2 (and 8 of 503")
    assert said["recovery after a kill, median"] == "2 s, 3 s at most, of 3 kills"
    assert said["a replica that hangs is replaced after"] == "12.5 s"


def test_what_is_run_is_there() -> None:
    for words in RUNS.values():
        path = release.ROOT / words[0].replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), words[0]


def test_a_run_is_kept_with_its_lines_and_its_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(release, "KEPT", tmp_path / "kept.jsonl")
    monkeypatch.setitem(RUNS, "soak", ["timeit", "-n", "1", "-r", "1", "print('{\"a\": 1}')"])
    one = release.measure("soak")
    assert (one.lines, one.exit_code) == ([{"a": 1}], 0)
    release.keep(one)
    release.keep(one._replace(exit_code=3))
    assert kept() == {"soak": one._replace(exit_code=3)}
    assert len((tmp_path / "kept.jsonl").read_text().splitlines()) == 1
    assert json.loads((tmp_path / "kept.jsonl").read_text())["command"].startswith("python -m ")
