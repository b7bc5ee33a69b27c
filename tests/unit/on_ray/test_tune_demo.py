"""What the demonstration's third stage is taught."""

from collections import Counter
from contextlib import nullcontext
from pathlib import Path

import pytest
from PIL import Image

from medv_ray.data import synthetic
from medv_ray.on_ray import tune_demo
from medv_ray.on_ray.train import Trained
from medv_ray.on_ray.tune_demo import questions, run_tune_demo


def test_every_closed_question_is_taught_with_both_answers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else "yes" is right by itself: asked for its side, a vessel is always there."""
    monkeypatch.setattr(synthetic, "draw", lambda *_: Image.new("RGB", (8, 8)))
    shown: dict[str, Counter[str]] = {}
    for row in questions(120):
        for asked, answer in zip(*[iter(row.conversations)] * 2, strict=True):
            question = asked["value"].removeprefix("<image>\n")
            shown.setdefault(question, Counter())[answer["value"]] += 1
    closed = {
        question: kinds for question, kinds in shown.items() if question.startswith("Yes or no")
    }
    assert len(closed) == 18
    for question, said in closed.items():
        assert min(said["yes"], said["no"]) >= 0.2 * said.total(), (question, said)


def test_a_stage_that_is_stopped_ends_the_demonstration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = []

    def stopped(settings: object, **_: object) -> Trained:
        begun.append(settings)
        return Trained(1, 4, 0.5, 1.0)

    monkeypatch.setattr(tune_demo, "write_data", lambda folder: None)
    monkeypatch.setattr(tune_demo, "running_ray", lambda address: nullcontext())
    monkeypatch.setattr(tune_demo, "train", stopped)
    result = run_tune_demo(tmp_path)
    assert len(begun) == 1
    assert not result.tuned
    assert list(result.stages) == ["alignment"]
