import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from medv_ray.archive.accuracy import Accuracy
from medv_ray.archive.left_out import LeftOut
from medv_ray.archive.summary import Summary
from medv_ray.cli import app, exit_code_of, merged, score_settings, summary_of
from medv_ray.errors import CATALOGUE, SettingsError
from medv_ray.on_ray.demo import write_demo
from medv_ray.on_ray.score import Outcome, Session
from medv_ray.settings import TOY

pytestmark = pytest.mark.integration

runner = CliRunner()
BASE = {"out": "o", "archive": {"archive": "a"}, "model": {"path": "m"}}


def test_help_is_fast_and_loads_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv=['medv','--help']\n"
        "from medv_ray.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "assert not {'torch','ray','transformers','pyarrow'} & set(sys.modules)"
    )
    before = os.times()
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    after = os.times()
    assert after.children_user - before.children_user < 3  # 0.4 s on an idle core


@pytest.mark.parametrize("code", ["E1203", "e1501"])
def test_explain(code: str) -> None:
    result = runner.invoke(app, ["explain", code])
    assert result.exit_code == 0
    assert CATALOGUE[code.upper()].reason in result.output


def test_unknown_code_is_a_setting_error() -> None:
    result = runner.invoke(app, ["explain", "E9"])
    assert result.exit_code == 2
    assert "E1001" in result.output
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ([], "--out"),
        (["--out", "x", "--archive", "y"], "--model"),
        (["--out", "x", "--archive", "y", "--model", "toy", "--set", "sampler.step=3"], "step"),
        (["--out", "x", "--archive", "y", "--model", "toy", "--set", "sampler.steps"], "--set"),
        (["--out", "x", "--archive", "y", "--model", "toy", "--limit", "0"], "limit"),
        (["--out", "x", "--archive", "y", "--model", "toy", "--config", "nope.yaml"], "nope.yaml"),
    ],
)
def test_bad_settings_exit_2_in_one_line(arguments: list[str], word: str) -> None:
    result = runner.invoke(app, ["score", *arguments])
    assert result.exit_code == 2
    assert word in result.output
    assert len(result.output.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("number", "said"), [(signal.SIGINT, "interrupted"), (signal.SIGTERM, "terminated")]
)
def test_a_signal_is_told_in_a_line(
    number: signal.Signals, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's `&` ignores it
    try:
        assert exit_code_of(lambda: os.kill(os.getpid(), number)) == 128 + number
    finally:
        signal.signal(signal.SIGINT, before)
    assert capsys.readouterr().err == f"{said}; what was committed is kept.\n"


def test_flags_go_over_yaml_and_set_over_flags(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text("sampler: {gen_length: 32, block_length: 32, steps: 16}\narchive: {limit: 5}\n")
    settings = score_settings(file, {**BASE, "archive": {"archive": "a", "limit": 7}}, ["seed=3"])
    assert settings.sampler.steps == 16
    assert settings.archive.limit == 7
    assert settings.seed == 3


@pytest.mark.parametrize(
    "text",
    [
        "- a\n",
        "a: [",
        "",
        "!!python/object:os.system {}\n",
        "seed: 1\nseed: 2\n",
        "sampler: {steps: 8, steps: 64}\n",
        "archive: {question: 2024-01-01}\n",
        "a: &a [x, x]\nb: [*a, *a]\n",
        "seed: 1 #" + "x" * 2**20,
        "[" * 1000,
    ],
)
def test_yaml_that_is_no_settings_file(tmp_path: Path, text: str) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(text)
    with pytest.raises(SettingsError, match=r"job\.yaml"):
        score_settings(file, BASE, [])


def test_toy_brings_its_own_sampler_settings() -> None:
    settings = score_settings(None, {**BASE, "model": {"path": "toy"}}, ["sampler.steps=4"])
    assert settings.model.path == str(TOY)
    assert (settings.sampler.gen_length, settings.sampler.steps) == (8, 4)


def test_settings_that_decide_answers_are_in_the_identity() -> None:
    one = score_settings(None, BASE, [])
    same = score_settings(None, BASE, ["pool.max_actors=3", "engine.slots=2"])
    other = score_settings(None, BASE, ["sampler.temperature=0.5"])
    assert one.identity("x") == same.identity("x")
    assert one.identity("x") != other.identity("x")
    assert one.identity("x") != one.identity("y")
    assert one.identity("x") != one.identity("x", "a") != one.identity("x", "b")


def test_local_folders_are_made_absolute() -> None:
    settings = score_settings(None, {**BASE, "archive": {"archive": "a", "images": "i"}}, [])
    located = settings.located(on_cluster=False)
    assert Path(located.out).is_absolute()
    assert Path(str(located.archive.images)).is_absolute()
    assert Path(located.model.path).is_absolute()
    assert located.model.adapter is None
    adapted = score_settings(None, BASE, ["model.adapter=a"])
    assert Path(str(adapted.located(on_cluster=False).model.adapter)).is_absolute()
    remote = adapted.model_copy(update={"out": "s3://b/run"})
    assert remote.located(on_cluster=True).model == adapted.model
    assert located.identity("x") == settings.identity("x")
    remote = settings.model_copy(update={"out": "s3://b/run"})
    assert remote.located(on_cluster=True).out == "s3://b/run"


def test_a_relative_run_folder_on_a_cluster_is_refused() -> None:
    with pytest.raises(SettingsError, match="absolute path"):
        score_settings(None, BASE, []).located(on_cluster=True)


def test_merged_ignores_what_was_not_given() -> None:
    assert merged({"a": {"b": 1}}, {"a": {"b": None, "c": 2}, "d": None}) == {"a": {"b": 1, "c": 2}}


def test_plan_writes_nothing(tmp_path: Path) -> None:
    archive = write_demo(tmp_path, 12)
    before = sorted(tmp_path.rglob("*"))
    out = tmp_path / "run"
    common = ["--archive", str(archive), "--model", "toy", "--out", str(out)]
    result = runner.invoke(app, ["score", "--plan", *common])
    assert result.exit_code == 0, result.output
    said = json.loads(result.output)
    assert said["rows"] == 12
    assert said["sample"]["distinct_images"] == said["every_row"]["distinct_images"] == 4
    assert said["estimate"]["rows"] == 12
    assert said["probe"]["seconds_per_row"] > 0
    assert sorted(tmp_path.rglob("*")) == before


def test_ask_watch(tmp_path: Path) -> None:
    write_demo(tmp_path, 12)
    picture = str(tmp_path / "images" / "0.png")
    result = runner.invoke(app, ["ask", picture, "How many large cells are there?", "--watch"])
    assert result.exit_code == 0, result.output
    assert "step   1" in result.output
    assert "confidence" in result.output


def test_ask_about_something_else(tmp_path: Path) -> None:
    page = tmp_path / "page.png"
    page.write_text("<html>")
    result = runner.invoke(app, ["ask", str(page), "what?"])
    assert result.exit_code == 1
    assert "E1202" in result.output


def test_the_last_line_has_the_accuracy_and_what_was_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = score_settings(None, {**BASE, "out": str(tmp_path / "run")}, [])
    left_out = LeftOut()
    left_out.add("a.txt", "not an image")
    for found, shown in ((None, None), ({}, {}), ({"overall": Accuracy(4, 3)}, {"overall": 0.75})):
        summary = Summary(4, 4, 0, 0, 0, 0, {}, found)
        line = summary_of(Outcome(summary, Session(), 4, 4, (), left_out, 2), settings)
        assert line["accuracy"] == shown
        assert line["added_rows"] == 2
        group = {"ending": ".txt", "reason": "not an image", "files": 1}
        assert line["left_out"] == {"files": 1, "groups": [group]}
        with monkeypatch.context() as patch:
            patch.setenv("MEDV_NAMES", "1")
            line = summary_of(Outcome(summary, Session(), 4, 4, (), left_out, 2), settings)
        assert line["left_out"]["groups"] == [{**group, "examples": ["a.txt"]}]


@pytest.mark.parametrize(
    ("rows", "not_scored", "left"), [(0, 0, True), (0, 2, False), (2, 0, False)]
)
def test_nothing_is_left_where_no_row_is(rows: int, not_scored: int, left: bool) -> None:
    summary = Summary(4, 4 - not_scored, 0, 0, not_scored, 0, {})
    outcome = Outcome(summary, Session(rows), 4 - not_scored, 4, ())
    assert summary_of(outcome, score_settings(None, BASE, []))["nothing_left"] is left


def test_eval_as_json_prints_one_document(monkeypatch: pytest.MonkeyPatch) -> None:
    def evaluated(*_: object) -> dict[str, int]:
        print('{"progress": 0.5}')
        return {"rows": 3}

    monkeypatch.setattr("medv_ray.on_ray.evaluate.evaluate", evaluated)
    words = ["eval", "--suite", "synthetic", "--model", "toy", "--out", "x", "--json"]
    result = runner.invoke(app, words)
    assert json.loads(result.stdout) == {"rows": 3}
    assert "progress" in result.stderr


def test_a_model_without_a_name() -> None:
    with pytest.raises(SettingsError, match="model.path: "):
        score_settings(None, {**BASE, "model": {"path": ""}}, [])
