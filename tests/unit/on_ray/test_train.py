"""What the driver of a training job reads of its workers."""

from pathlib import Path

import pytest

from medv_ray.on_ray.train import last_event


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
