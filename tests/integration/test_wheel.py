"""The wheel in an environment of its own, outside any clone: demo, score, serve.

`make dist` downloads its packages; here they are those of the environment that the tests run in.
"""

from __future__ import annotations

import json

import pytest

from tests import wheel

pytestmark = [pytest.mark.integration, pytest.mark.slow]


def test_it_answers_scores_and_serves(capfd: pytest.CaptureFixture[str]) -> None:
    assert wheel.main(["--borrow"]) == 0
    figures = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert figures["scored"] == 6
    assert figures["serve"]["exit"] == 0
    assert figures["serve"]["answer"] in {"zero", "one", "two", "three", "four", "five"}


def test_a_clone_in_reach_is_found(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check can fail: with PYTHONPATH kept, the clone's package is imported."""
    env = wheel.Empty(tmp_path)
    env.borrow()
    kept = {**wheel.clean(), "PYTHONPATH": f"{wheel.ROOT}:{wheel.ROOT / 'kernels'}"}
    monkeypatch.setattr(wheel, "clean", lambda: kept)
    with pytest.raises(SystemExit, match="from elsewhere than site-packages"):
        env.lies_inside()
