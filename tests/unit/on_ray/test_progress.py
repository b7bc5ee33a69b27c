import json
import os
import signal
import time

import pytest

from medv_ray.on_ray.progress import Progress, interrupts

NONE = {"answered": 0, "abstained": 0, "quarantined": 0}


def test_lines_count_rows_of_earlier_runs_too(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(100, {**NONE, "answered": 40}, interval_s=0.01) as progress:
        progress.add({"answered": 8, "abstained": 1, "quarantined": 1})
        shown, deadline = "", time.monotonic() + 20
        while not shown and time.monotonic() < deadline:  # on a busy machine the thread comes late
            time.sleep(0.02)
            shown = capsys.readouterr().out
    line = json.loads(shown.splitlines()[-1])
    assert (line["rows"], line["total"], line["progress"]) == (50, 100, 0.5)
    assert (line["answered"], line["abstained"], line["quarantined"]) == (48, 1, 1)


def test_rate_leaves_the_start_out(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("medv_ray.on_ray.progress.time.monotonic", lambda: now[0])
    progress = Progress(100, NONE)
    assert progress.state()["eta_s"] is None
    now[0] = 50.0
    progress.add({**NONE, "answered": 10})
    now[0] = 60.0
    progress.add({**NONE, "answered": 20})
    assert progress.state()["rows_per_s"] == 2.0
    assert progress.state()["eta_s"] == 35


def test_ctrl_c_is_told_once_and_the_second_one_interrupts() -> None:
    said: list[str] = []
    before = signal.getsignal(signal.SIGINT)
    with interrupts(said.append) as interrupted:
        assert not interrupted()
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupted()
        assert interrupted()
        assert len(said) == 1
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
