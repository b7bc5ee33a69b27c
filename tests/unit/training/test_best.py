"""Which validation is best, and how long a stage waits for a better one."""

from __future__ import annotations

import json
import math
from typing import Any

from medv_ray.training.best import Progress
from medv_ray.training.job import ValidationSettings


def progress(before: dict[str, Any] | None = None, of: str = "a", **chosen: Any) -> Progress:
    made = ValidationSettings(**{"every": 1} | chosen)
    return Progress(made, 5, of, before)


def figures(step: int, loss: float, accuracy: float | None = None) -> dict[str, Any]:
    return {"step": step, "loss": loss, "accuracy": accuracy}


def test_patience_goes_on_over_a_cut() -> None:
    first = progress(patience=3)
    assert [first.add(figures(s, loss)) for s, loss in ((1, 1.0), (2, 2.0))] == [
        (True, False), (False, False),
    ]  # fmt: skip
    kept = json.loads(json.dumps(first.to_json()))
    again = progress(kept, patience=3)
    assert [again.add(figures(s, 2.0)) for s in (3, 4)] == [(False, False), (False, True)]
    assert again.best == figures(1, 1.0)
    assert (kept["split"], kept["rows"]) == ("validation", 5)
    other = progress(kept, "b", patience=3)  # other rows: not to be compared
    assert other.add(figures(3, 5.0)) == (True, False)


def test_what_is_best() -> None:
    by_accuracy = progress(best="accuracy")
    found = [(9.0, 0.2), (1.0, 0.2), (5.0, None), (5.0, 0.3)]
    assert [by_accuracy.add(figures(n, *f)).best for n, f in enumerate(found)] == [
        True, False, False, True,
    ]  # fmt: skip
    by_loss = progress()
    assert [by_loss.add(figures(1, loss)).best for loss in (math.nan, 3.0, math.inf, 3.0)] == [
        False, True, False, False,
    ]  # fmt: skip
    assert json.loads(json.dumps(by_loss.to_json(), allow_nan=False))["last"]["loss"] == 3.0
    assert not progress(best="none").add(figures(1, 1.0)).best
