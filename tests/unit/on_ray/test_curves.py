"""curves.svg from events.jsonl."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from medv_ray.evaluation import plots
from medv_ray.on_ray import curves
from medv_ray.on_ray.curves import draw, means, points, read


def step(number: int, loss: float | None = 2.0) -> dict[str, Any]:
    return {"step": number, "total_steps": 9, "loss": loss}


def look(number: int, **values: Any) -> dict[str, Any]:
    event = {"kind": "validation", "step": number, "total_steps": 9, "rows": 5, "loss": 1.5}
    return event | values


def write(out: Path, *events: dict[str, Any], tail: str = "") -> None:
    (out / "events.jsonl").write_text("".join(f"{json.dumps(one)}\n" for one in events) + tail)


def test_lines_of_both_kinds_are_read_and_half_ones_left_out(tmp_path: Path) -> None:
    assert read(tmp_path / "events.jsonl") == ([], [])
    write(tmp_path, step(1), look(1), step(2), tail='{"step": 3, "lo')
    assert read(tmp_path / "events.jsonl") == ([step(1), step(2)], [look(1)])
    for name in ("step", "total_steps", "loss"):  # a flipped bit in a name
        hit = [{f"{n}x" if n == name else n: v for n, v in one(3).items()} for one in (step, look)]
        write(tmp_path, step(1), *hit, look(1))
        assert read(tmp_path / "events.jsonl") == ([step(1)], [look(1)])


def test_many_steps_become_means(tmp_path: Path) -> None:
    steps = [step(n, float(n)) for n in range(1, 8)]
    assert means(steps, 3) == ([3.0, 6.0, 7.0], [2.0, 5.0, 7.0])
    assert means([step(1, None), step(2, 4.0), step(3, None)], 2) == ([2.0], [4.0])
    assert points([look(1), look(2, loss=None), look(3)], "loss") == ([1.0, 3.0], [1.5, 1.5])
    assert points([look(1)], "accuracy") == ([], [])


def test_curves_show_training_validation_and_what_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[Any] = []

    def chart(title: str, panels: Any) -> str:
        found.extend([title, panels])
        return real(title, panels)

    real = plots.chart
    monkeypatch.setattr(plots, "chart", chart)
    write(
        tmp_path,
        *(step(n) for n in range(1, 500)),
        look(200, best=True, accuracy=0.4, accuracy_open=None, accuracy_closed=0.5),
        look(400, loss=1.7, accuracy=0.6, accuracy_open=None, accuracy_closed=0.7, rows_closed=2),
    )
    assert draw(tmp_path, "chat")
    title, (loss, accuracy) = found
    assert title == "chat: 499 of 9 updates"
    assert [one.name for one in loss.series] == [
        "training, mean of 3 updates",
        "validation",
        "best checkpoint, update 200",
    ]
    assert len(loss.series[0].x) <= curves.MOST_POINTS
    assert loss.series[1][1:3] == ([200.0, 400.0], [1.5, 1.7])
    assert [one.name for one in accuracy.series] == ["all, 5 rows", "closed, 2 rows"]
    assert loss.x_limits == accuracy.x_limits == (0.0, 499.0)
    svg = (tmp_path / "curves.svg").read_bytes()
    assert ElementTree.fromstring(svg).tag.endswith("svg")
    draw(tmp_path, "chat")
    assert (tmp_path / "curves.svg").read_bytes() == svg


def test_a_run_without_a_step_and_one_without_matplotlib(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert draw(tmp_path, "chat")
    write(tmp_path, step(1))
    monkeypatch.setattr(curves, "find_spec", lambda name: None)
    assert not draw(tmp_path, "chat")
    assert not (tmp_path / "curves.svg").exists()
    assert "pip install" in curves.no_matplotlib()


@pytest.mark.parametrize(("first", "log"), [(9.0, False), (11.0, True)])
def test_an_axis_is_logarithmic_where_the_first_losses_would_hide_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: float, log: bool
) -> None:
    write(tmp_path, step(1, first), step(2, 2.0))
    shown: list[plots.Panel] = []
    chart = plots.chart
    monkeypatch.setattr(plots, "chart", lambda t, p: (shown.extend(p), chart(t, p))[1])
    assert draw(tmp_path, "chat")
    assert [panel.log_y for panel in shown] == [log]
