"""What `medv eval`, `judge` and `calibrate` say about rows full of canaries. Their folders hold
questions and answers by design; what they print, and the figures, hold none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from medv_ray.evaluation import judge as judging
from tests.canary import planting, search
from tests.canary.conftest import Medv
from tests.canary.planting import ANSWER, FILE, NUMBER, QUESTION, WORD
from tests.integration import stub
from tests.judge_server import Server

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("in_process")]
HELD = ("rows", "quarantine", "inputs", "run.json", "metrics.json")
"""What holds rows in a run folder: docs/privacy.md."""


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return planting.write_prepared(tmp_path / "data")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return stub.write_model(tmp_path / "model")


def without_groups(results: Path) -> dict[str, Any]:
    """Figures without those by group, whose values are the rows' own."""
    found: dict[str, Any] = json.loads(results.read_bytes())
    for one in found["recipes"].values():
        del one["groups"]
        one.get("choices", {}).pop("groups", None)
    return found


def of_run(folder: Path) -> list[search.Hit]:
    """Of a scoring job, what is beside its rows."""
    return search.in_folder(folder, lambda name: name.startswith(HELD))


def test_an_evaluation(tmp_path: Path, data: Path, model: Path, medv: Medv) -> None:
    base = ["eval", "--suite", "synthetic", "--any-split", "--data", data]
    ways: dict[str, list[Any]] = {
        "a": ["--model", model],
        "blind": ["--model", model, "--blind"],
        "free": ["--model", model, "--no-choices"],
        "part": ["--model", model, "--limit", "5"],
    }
    for name, more in ways.items():
        for _ in range(2):  # the second goes on and has nothing to do
            medv(*base, "--out", tmp_path / name, *more)
        assert of_run(tmp_path / name / "synthetic" / "scored") == []
        assert search.in_value(without_groups(tmp_path / name / "results.json")) == []
    by_letters = ["--suite", "pmc-vqa", "--any-split", "--model", model, "--data", data]
    medv("eval", *by_letters, "--out", tmp_path / "letters")
    answers = tmp_path / "a" / "synthetic" / "answers.jsonl"
    medv(*base, "--out", tmp_path / "b", "--predictions", answers)
    medv("compare", tmp_path / "a", tmp_path / "blind")
    for form in ("llava-med", "medevalkit"):
        medv("export-answers", tmp_path / "a", "--out", tmp_path / form, "--format", form)
    medv("report", tmp_path / "a", "--blind", tmp_path / "blind", "--data", data)
    with search.planted():
        search.in_folder(tmp_path / "a")


def test_what_an_evaluation_refuses(tmp_path: Path, data: Path, model: Path, medv: Medv) -> None:
    base = ["eval", "--suite", "synthetic", "--any-split", "--data", data]
    base += ["--out", tmp_path / "out"]
    record = {"id": f"{WORD}-0", "text": ANSWER}
    bad = {
        "some": json.dumps(record),
        "others": json.dumps({**record, "id": WORD}),
        "no id": json.dumps({WORD: QUESTION}),
        "twice": f"{json.dumps(record)}\n{json.dumps(record)}",
        "cut": json.dumps(record)[:-3],
        "no JSON": planting.everything(),
    }
    for name, text in bad.items():
        (tmp_path / f"{name}.jsonl").write_text(text)
        medv(*base, "--predictions", tmp_path / f"{name}.jsonl", fails=True)
    medv(*base, "--model", model, "--prompt", QUESTION, fails=True)
    for suite in ("vqa-rad", "pmc-vqa"):  # another split than the published one
        words = ["eval", "--suite", suite, "--data", data, "--model", model]
        medv(*words, "--out", tmp_path / "other", fails=True)
    medv("compare", tmp_path / "no", tmp_path / "no", fails=True)
    medv(*base, "--model", model)
    lines = (tmp_path / "out" / "synthetic" / "answers.jsonl").read_text().splitlines()
    first = json.loads(lines[0])
    first["metadata"]["kind"] = WORD
    broken = tmp_path / "out" / "synthetic" / "answers.jsonl"
    for text in ("\n".join([json.dumps(first), *lines[1:]]), lines[0][:-9], "\n".join(lines[1:])):
        broken.write_text(text)
        medv("export-answers", tmp_path / "out", "--out", tmp_path / "x", fails=True)


def asked(root: Path) -> list[Any]:
    """Arguments of `medv judge`, with their files."""
    pairs = [
        {
            "question_id": f"{WORD}-{number}", "text": QUESTION, "gpt4_answer": ANSWER,
            "fig_caption": planting.everything(), "fig_label": WORD,
            "in_text_mention": [{"tokens": planting.everything()}],
            "domain": {WORD: True}, "type": f"{WORD} type",
        }
        for number in range(3)
    ]  # fmt: skip
    answers = [{"question_id": one["question_id"], "text": ANSWER} for one in pairs]
    for name, rows in (("questions", pairs), ("answers", answers)):
        (root / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = ["--questions", root / "questions.jsonl", "--answers", root / "answers.jsonl"]
    return ["judge", *files, "--out", root / "reviews", "--judge", "stand-in"]


def test_a_judge(tmp_path: Path, medv: Medv, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judging, "WAIT_S", 0.0)
    server, words = Server(), asked(tmp_path)
    words += ["--url", server.url]
    said = f"{WORD} asks: {QUESTION}"
    try:
        medv(*words, fails=True)  # without --yes
        assert server.bodies == []
        for status in (400, 401, 404, 413, 429, 500):
            server.refuses = (status, {"error": {"message": said, "code": WORD, "type": WORD}})
            medv(*words, "--yes", fails=True)
        server.refuses = None
        server.asked.clear()
        server.replies = {QUESTION: [f"8 6\n{said}", None, f"{said} 3 of 4", "7"]}
        medv(*words, "--yes")
        medv(*words, "--yes")
        medv(*words, "--judge-template", tmp_path / FILE, fails=True)
    finally:
        server.close()
    medv(*[tmp_path / "more" if word == tmp_path / "reviews" else word for word in words],
         "--yes", fails=True)  # fmt: skip
    with search.planted():  # the disclosure that --yes asks for
        search.in_value(server.bodies)
    identity = (tmp_path / "reviews" / judging.IDENTITY).read_bytes()
    assert search.hits(identity) == []
    reviews = tmp_path / "reviews" / judging.REVIEWS
    for text in (f'{{"question_id": "{WORD}\n', f"{NUMBER}\n"):
        reviews.write_text(text)
        medv(*words, "--yes", fails=True)


def test_a_calibration(tmp_path: Path, model: Path, medv: Medv) -> None:
    data = planting.write_prepared(tmp_path / "data", 60)
    base = ["--model", model, "--data", data, "--split", "test"]
    medv("calibrate", *base, "--out", tmp_path / "c", "--target-risk", "0.5", "--store")
    assert of_run(tmp_path / "c" / "scored") == []
    for name in ("calibration.json", "calibration.svg"):
        assert search.hits((tmp_path / "c" / name).read_bytes()) == []
    assert search.in_folder(model) == []
    medv("calibrate", "--run", tmp_path / "c" / "scored", "--out", tmp_path / "d")
    medv("consistency", *base, "--out", tmp_path / "c", "--answers", "2")
    assert of_run(tmp_path / "c" / "sampled") == []
    (tmp_path / "c" / "questions.parquet").write_bytes(planting.everything().encode())
    medv("calibrate", *base, "--out", tmp_path / "c", fails=True)
