import errno
import json
import math
import os
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from medv_ray.errors import SettingsError
from medv_ray.training import writers
from medv_ray.training.gpus import peak_flops
from medv_ray.training.meters import LossByNoise, Rate, Speed, peak_memory_bytes
from medv_ray.training.watch import (
    EVENTS,
    ShownAnswer,
    StepEvent,
    ValidationEvent,
    Watch,
    event_of,
    keep_until,
)


def event(step: int, **values: Any) -> StepEvent:
    return StepEvent(
        **{"step": step, "total_steps": 100, "epoch": 0.5, "loss": 2.0, "lr": 1e-5} | values
    )


def steps_in(folder: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (folder / EVENTS).read_text().splitlines()]


def write(folder: Path, steps: range, **options: Any) -> None:
    with Watch(folder, (), **options) as watch:
        for step in steps:
            watch.write(event(step))


def test_resume_drops_later_steps_and_a_half_written_line(tmp_path: Path) -> None:
    write(tmp_path, range(1, 9))
    with (tmp_path / EVENTS).open("a") as file:
        file.write('{"step": 9, "loss"')
    write(tmp_path, range(6, 8), resumed_step=5)
    assert steps_in(tmp_path) == [1, 2, 3, 4, 5, 6, 7]


def test_a_half_written_line_goes_even_where_no_step_does(tmp_path: Path) -> None:
    write(tmp_path, range(1, 4))
    whole = (tmp_path / EVENTS).read_bytes()
    (tmp_path / EVENTS).write_bytes(whole + b'{"step": 4}')  # complete but for its newline
    keep_until(tmp_path / EVENTS, 10)
    assert (tmp_path / EVENTS).read_bytes() == whole


@pytest.mark.parametrize("line", ["7", "null", '{"stfp": 3}', '{"step": null}', "[1]", "\\xff"])
def test_a_run_goes_on_over_a_damaged_line(tmp_path: Path, line: str) -> None:
    write(tmp_path, range(1, 3))
    whole = (tmp_path / EVENTS).read_text()
    (tmp_path / EVENTS).write_text(f'{whole}{line}\n{{"step": 4}}\n')
    keep_until(tmp_path / EVENTS, 10)
    assert (tmp_path / EVENTS).read_text() == whole


def test_a_new_run_starts_over(tmp_path: Path) -> None:
    write(tmp_path, range(1, 4))
    write(tmp_path, range(1, 3))
    assert steps_in(tmp_path) == [1, 2]


def test_only_rank_0_writes(tmp_path: Path) -> None:
    with Watch(tmp_path / "run", rank=1) as watch:
        watch.write(event(1))
    assert not (tmp_path / "run").exists()


def test_values_that_are_not_finite_are_null(tmp_path: Path) -> None:
    with Watch(tmp_path, ()) as watch:
        watch.write(event(1, loss=math.nan, grad_norm=math.inf, loss_by_noise=(math.nan, 1.0)))
    line = json.loads((tmp_path / EVENTS).read_text())
    assert line["loss"] is None
    assert line["grad_norm"] is None
    assert line["loss_by_noise"] == [None, 1.0]


def test_tensorboard_gets_the_curves(tmp_path: Path) -> None:
    from tensorboardX.proto.event_pb2 import Event

    with Watch(tmp_path) as watch:
        watch.write(event(1, loss_by_noise=(None, 3.0, None, None)))
    (file,) = (tmp_path / "tensorboard").iterdir()
    data, names = file.read_bytes(), set()
    while data:  # records: length, checksum, event, checksum
        size = int.from_bytes(data[:8], "little")
        record = Event.FromString(data[12 : 12 + size])
        names |= {value.tag for value in record.summary.value}
        data = data[16 + size :]
    assert {"train/loss", "train/lr", "loss_by_noise/0.25-0.50"} <= names
    assert "loss_by_noise/0.00-0.25" not in names


def look(step: int, **values: Any) -> ValidationEvent:
    known: dict[str, Any] = {"total_steps": 9, "epoch": 0.5, "rows": 5, "loss": 1.25}
    shown = (ShownAnswer(17, "a | liver\nhere", "liver", False),)
    known |= {"accuracy": 0.4, "samples": shown}
    return ValidationEvent(step=step, **known | values)


def test_a_validation_is_a_line_of_its_own_kind(tmp_path: Path) -> None:
    with Watch(tmp_path, ()) as watch:
        watch.write(event(3))
        watch.write(look(3, loss=math.nan))
    first, second = map(json.loads, (tmp_path / EVENTS).read_text().splitlines())
    assert "kind" not in first
    assert second["kind"] == "validation"
    assert second["loss"] is None
    assert second["samples"] == [
        {"row": 17, "answer": "a | liver\nhere", "reference": "liver", "right": False}
    ]
    again = event_of(second)
    assert isinstance(again, ValidationEvent)
    assert again.samples == look(3).samples
    assert math.isnan(again.loss)
    assert event_of(first) == event(3)
    # what a log gets holds nothing of a row
    assert "liver" not in json.dumps(again.progress()) + str(again)
    keep_until(tmp_path / EVENTS, 3)
    assert steps_in(tmp_path) == [3, 3]
    keep_until(tmp_path / EVENTS, 2)
    assert steps_in(tmp_path) == []


def test_a_validation_line_for_a_terminal() -> None:
    said = str(look(4, accuracy_open=0.25, rows_open=4, accuracy_closed=1.0, rows_closed=1))
    assert said == (
        "validation after step 4  loss 1.2500  right 40.0% of 5  "
        "open 25.0% of 4  closed 100.0% of 1"
    )
    assert str(look(4, best=True)).endswith("best so far")


def test_tensorboard_gets_figures_and_answers_of_a_validation(tmp_path: Path) -> None:
    with Watch(tmp_path) as watch:
        watch.write(look(1))
        watch.write(look(2, samples=()))
    (file,) = (tmp_path / "tensorboard").iterdir()
    data = file.read_bytes()
    for said in (b"validation/loss", b"validation/accuracy", b"validation/answers"):
        assert said in data
    assert b"| 17 | a liver here | liver | no |" in data


def test_a_full_disk_under_the_curves_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And does not leave it waiting for a thread that is no more."""
    from tensorboardX.record_writer import RecordWriter

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    watch = Watch(tmp_path)
    monkeypatch.setattr(RecordWriter, "write", full)
    for _ in range(30):
        with pytest.raises(OSError, match="full"):
            watch.write(event(1))
    watch.close()


def test_a_line_that_the_disk_takes_in_pieces_is_whole_or_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a disk that fills up: a piece, and then an error."""
    real, room = os.write, [10**6]

    def short(handle: int, data: bytes) -> int:
        if not room[0]:
            raise OSError(errno.ENOSPC, "full")
        taken = real(handle, bytes(data[: min(7, room[0])]))
        room[0] -= taken
        return taken

    monkeypatch.setattr(os, "write", short)
    write(tmp_path, range(1, 4))
    assert steps_in(tmp_path) == [1, 2, 3]
    room[0] = 40
    with pytest.raises(OSError, match="full"), Watch(tmp_path, (), resumed_step=3) as watch:
        watch.write(event(4))
    monkeypatch.undo()
    write(tmp_path, range(4, 6), resumed_step=3)
    assert steps_in(tmp_path) == [1, 2, 3, 4, 5]


def test_answers_go_to_no_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = Calls()
    monkeypatch.setattr(writers.importlib, "import_module", lambda _: package)
    monkeypatch.setattr(writers.importlib.util, "find_spec", lambda _: object())
    for name in ("wandb", "mlflow"):
        with Watch(tmp_path, (name,)) as watch:  # type: ignore[arg-type]
            watch.write(look(1))
    logged = [values for called, values in package.said if called in ("log", "log_metrics")]
    assert len(logged) == 2
    assert "liver" not in repr(package.said)
    assert all(isinstance(value, float) for value in look(1).scalars().values())


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_missing_package_names_the_pip_line(
    name: writers.WriterName, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(writers.PACKAGES, name, (f"no_such_{name}", name))
    with pytest.raises(SettingsError, match=f"pip install {name}"):
        Watch(tmp_path / "run", (name,), rank=3)
    assert not (tmp_path / "run").exists()


class Calls(ModuleType):
    """Stands for wandb and for mlflow: keeps what it is told."""

    def __init__(self) -> None:
        super().__init__("calls")
        self.said: list[tuple[str, Any]] = []
        self.id = "run-7"
        self.info = type("Info", (), {"run_id": "run-7"})
        self.Error = self.MlflowException = OSError
        self.down = False

    def _keep(self, called: str, values: dict[str, Any]) -> "Calls":
        if self.down:
            raise OSError("no route to host")
        self.said.append((called, values))
        return self

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *_, **values: self._keep(name, values)


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_other_writers_resume_their_run(
    name: writers.WriterName, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = Calls()
    monkeypatch.setattr(writers.importlib, "import_module", lambda _: package)
    monkeypatch.setattr(writers.importlib.util, "find_spec", lambda _: object())
    for first in (1, 2):
        with Watch(tmp_path, (name,), resumed_step=first - 1) as watch:
            watch.write(event(first))
    opened = [values for called, values in package.said if called in ("init", "start_run")]
    assert [values.get("id", values.get("run_id")) for values in opened] == [None, "run-7"]
    logged = [values for called, values in package.said if called in ("log", "log_metrics")]
    assert [values["step"] for values in logged] == [1, 2]
    package.down = True
    with pytest.raises(SettingsError, match=f"{name} did not start"):
        Watch(tmp_path, (name,))


def test_progress_line() -> None:
    said = str(event(25, tokens_per_s=12_345.6, mfu=0.412, eta_s=3725.2, memory_bytes=38 * 10**9))
    assert said == (
        "step 25/100  epoch 0.50  loss 2.0000  lr 1.00e-05  12,346 tokens/s  MFU 41%  38.0 GB  "
        "1:02:05 left"
    )
    assert event(25).progress()["progress"] == 0.25
    assert json.dumps(event(25, loss=math.nan).progress(), allow_nan=False)


def test_loss_by_noise_adds_over_ranks() -> None:
    ranks = [LossByNoise(4), LossByNoise(4)]
    ranks[0].add(torch.tensor([0.0, 0.24, 0.25]), torch.tensor([1.0, 3.0, 5.0]))
    ranks[1].add(torch.tensor([1.0, 0.3]), torch.tensor([8.0, 7.0]))
    ranks[0].flat += ranks[1].flat
    assert ranks[0].means() == (2.0, 6.0, None, 8.0)
    ranks[0].reset()
    assert ranks[0].means() == (None,) * 4
    with pytest.raises(ValueError, match="4 to 10"):
        LossByNoise(3)


def test_rate_slides() -> None:
    now = [0.0]
    rate = Rate(window_s=10, clock=lambda: now[0])
    assert rate.per_s is None
    for at, amount in ((5, 50), (10, 50), (15, 200), (20, 200)):
        now[0] = at
        rate.add(amount)
    assert rate.per_s == 40  # 400 in the last 10 s
    now[0] = 100
    rate.add(8)
    assert rate.per_s == pytest.approx(8 / 80)  # a step longer than the window


def test_speed() -> None:
    now = [0.0]
    speed = Speed(10, peak_flops=1000.0, clock=lambda: now[0])
    now[0] = 2.0
    speed.add(tokens=100, flops=800.0)
    assert (speed.tokens_per_s, speed.mfu, speed.eta_s(1)) == (50, 0.4, 18)
    assert Speed(10, clock=lambda: now[0]).mfu is None


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA A100-SXM4-80GB", 312), ("NVIDIA H100 80GB HBM3", 989), ("NVIDIA H200", 989),
        ("NVIDIA L40S", 362), ("NVIDIA L4", 121), ("NVIDIA H100 PCIe", None), ("Other", None),
        ("NVIDIA H100 NVL", None), ("NVIDIA H200 NVL", None), ("NVIDIA A100 80GB PCIe", 312),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None), ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", None),
    ],
)  # fmt: skip
def test_peak_of_a_device(name: str, tflops: float | None) -> None:
    assert peak_flops(name) == (tflops and tflops * 1e12)


def test_memory_of_this_process() -> None:
    assert peak_memory_bytes(torch.device("cpu")) > 10**7
