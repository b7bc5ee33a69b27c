"""How a training job ends that is interrupted or terminated; and that the same command goes on."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from medv_ray.on_ray.train import few_updates
from medv_ray.training.job import TrainSettings
from tests.integration import processes
from tests.unit.training import tiny

pytestmark = pytest.mark.chaos

STEPS = 4000  # some minutes, were it not stopped


def steps(out: Path) -> int:
    events = out / "events.jsonl"
    return events.read_bytes().count(b"\n") if events.exists() else 0


def saved(out: Path) -> list[int]:
    return sorted(int(path.name[5:]) for path in (out / "checkpoints").glob("step-????????"))


@pytest.mark.timeout(400)
@pytest.mark.slow
def test_ctrl_c_and_sigterm_save_and_the_same_line_goes_on(
    tmp_path: Path, ray_folder: Path
) -> None:
    made: TrainSettings = tiny.settings(tmp_path, max_steps=STEPS, epochs=STEPS)
    settings = made.model_copy(update={"save_every": STEPS})
    (tmp_path / "settings.json").write_text(settings.model_dump_json())
    out, before = Path(settings.out), 0
    for number in (signal.SIGINT, signal.SIGTERM):
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.chaos.train_job", str(tmp_path)],
            cwd=processes.ROOT, env=processes.environment(ray_folder), text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        deadline = time.monotonic() + 120
        while steps(out) < before + 20:
            assert time.monotonic() < deadline, "no steps"
            assert process.poll() is None
            time.sleep(0.05)
        below = processes.descendants(process.pid)
        process.send_signal(number)
        said, err = process.communicate(timeout=60)
        assert process.returncode == 1
        want = ["stopping after this step; the state will be saved"]
        want += [few_updates(settings.stage, num_rows=19)]
        want += [f"going on from step {before}"] if before else []
        # the driver looks for notes a few times a second, and may be told to stop before
        assert sorted(err.splitlines()) == sorted(want)
        done = json.loads(said.splitlines()[-1])
        assert saved(out)[-1] == done["step"] == steps(out)
        assert before + 20 <= done["step"] < STEPS
        before = done["step"]
        # Ray Train's own record, which another version of it refuses to read
        assert not list(out.rglob("checkpoint_manager_snapshot.json"))
        time.sleep(1)
        assert not [pid for pid in below if "ray::" in processes.command(pid)]
