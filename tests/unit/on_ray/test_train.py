"""What the driver of a training job reads of its workers."""

from pathlib import Path

import pytest

from medv_ray.on_ray import train as on_ray_train
from medv_ray.on_ray.train import last_event, train
from medv_ray.training import run
from tests.unit.training import tiny


@pytest.mark.parametrize(
    ("text", "step"),
    [
        (None, None),
        ("", None),
        ('{"step": 1', None),
        ('{"step": 1}\n', 1),
        ('{"step": 1}\n{"step": 2}\n{"st', 2),
        ('{"step": 1}\n\0\0\n', None),
        ("7\n", None),
    ],
)
def test_the_last_event_is_the_last_whole_line(
    tmp_path: Path, text: str | None, step: int | None
) -> None:
    if text is not None:
        (tmp_path / "events.jsonl").write_text(text)
    assert last_event(tmp_path).get("step") == step


def test_a_stage_whose_model_is_there_starts_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = tiny.settings(tmp_path)
    out = run.begin(settings, run.check(settings))
    (out / "events.jsonl").write_text('{"step": 6, "total_steps": 6, "loss": 0.5}\n')

    def started(address: str | None) -> None:
        raise AssertionError("Ray was started")

    monkeypatch.setattr(on_ray_train, "running_ray", started)
    with pytest.raises(AssertionError, match="Ray was started"):  # told, but no model yet
        train(settings)
    (out / "model").mkdir()
    assert train(settings).whole
