"""A run's arithmetic step by step, and its ends: what an update is, what is kept, who may go on."""

from __future__ import annotations

import errno
import json
import shutil
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from medv_ray.errors import RunError
from medv_ray.markers import IGNORE, IMAGE_SLOT
from medv_ray.training import loop, run, watch
from medv_ray.training.check import check
from medv_ray.training.checkpoint import Checkpoints
from medv_ray.training.export import export
from medv_ray.training.job import TrainSettings
from medv_ray.training.loop import Tally
from medv_ray.training.objective import Objective, Outcome, Sample
from tests.unit.training import tiny
from tests.unit.training.test_run import job, prepared, train

pytestmark = pytest.mark.integration


def weights_at(settings: TrainSettings, step: int) -> torch.Tensor:
    """All that learns, after a step, in one float32[n]."""
    folder = Path(settings.out) / "checkpoints" / f"step-{step:08d}"
    files = (load_file(file) for file in sorted(folder.glob("*.safetensors")))
    named = {name: value for file in files for name, value in file.items()}
    return torch.cat([named[name] for name in sorted(named) if name.endswith("/weight")])


def often(settings: TrainSettings) -> TrainSettings:
    return settings.model_copy(update={"save_every": 1, "keep": 9})


@pytest.mark.parametrize("clip", [0.0, 0.01])
def test_an_update_is_rate_times_gradient(home: Path, tmp_path: Path, clip: float) -> None:
    """Under SGD, step by step: the rate is the schedule's, the gradient no longer than the clip,
    and the same however the batch is cut into micro-batches."""
    kept = []
    for size in (1, 4):
        settings = often(
            job(
                home, tmp_path / str(size), optimizer="sgd", lr=0.1, clip=clip, max_steps=3,
                warmup_ratio=0.5, micro_batch_size=size,
            )
        )  # fmt: skip
        reports = train(settings)
        assert [report.lr_factor for report in reports] == [0, 0.5, 1]
        saved = [weights_at(settings, step) for step in (1, 2, 3)]
        for report, before, after in zip(reports[1:], saved[:-1], saved[1:], strict=True):
            length = min(report.grad_norm, clip or report.grad_norm)
            moved = float((after - before).norm())
            assert moved == pytest.approx(0.1 * report.lr_factor * length, rel=2e-3)
        kept.append((saved[-1], [report.grad_norm for report in reports]))
    for weight, norms in kept[1:]:
        torch.testing.assert_close(weight, kept[0][0], rtol=1e-5, atol=1e-5)
        assert norms == pytest.approx(kept[0][1], rel=1e-4)


def test_the_gradient_is_the_formulas(home: Path, tmp_path: Path) -> None:
    settings = job(home, tmp_path, max_steps=1, clip=0.0)
    [report] = train(settings)
    objective, samples = prepared(settings)
    losses = torch.stack(
        [
            tiny.plain_loss(objective.model, objective.mask_id, samples(position))
            for position in range(4)
        ]
    )
    samples.close()
    losses.mean().backward()
    grads = [p.grad.flatten() for p in objective.parameters() if p.grad is not None]
    assert report.loss == pytest.approx(float(losses.detach().mean()), rel=1e-5)
    assert report.grad_norm == pytest.approx(float(torch.cat(grads).norm()), rel=1e-4)


def test_the_last_checkpoints_are_kept(home: Path, tmp_path: Path) -> None:
    settings = job(home, tmp_path).model_copy(update={"keep": 2, "save_every": 1})
    leftover = Path(settings.out) / "checkpoints" / "step-00000006.tmp"
    run.begin(settings, check(settings))
    leftover.mkdir(parents=True)
    leftover.with_name("step-00000099.tmp").mkdir()  # a step that is not saved again
    (leftover / "rank-00007-000.safetensors").write_bytes(b"of a worker that was killed")
    train(settings)
    found = sorted(path.name for path in leftover.parent.iterdir())
    assert found == ["step-00000005", "step-00000006"]
    assert not (leftover.parent / found[-1] / "rank-00007-000.safetensors").exists()


def test_who_is_asked_to_stop_saves_and_ends(home: Path, tmp_path: Path) -> None:
    settings = job(home, tmp_path)
    identity = check(settings)
    run.begin(settings, identity)
    asked = iter([False, False, True])
    reports = list(run.train_worker(settings, identity, stop=lambda: next(asked)))
    assert len(reports) == 3
    assert (Path(settings.out) / "checkpoints" / "step-00000003").is_dir()


def test_a_node_that_is_about_to_go_saves_once_and_goes_on(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "LOOK_S", 0)
    settings = job(home, tmp_path).model_copy(update={"save_every": 100, "keep": 9})
    identity = check(settings)
    run.begin(settings, identity)
    said = iter([False, True, True, False, True, True])
    reports = list(run.train_worker(settings, identity, leaving=lambda: next(said)))
    assert len(reports) == 6
    found = sorted(path.name for path in (Path(settings.out) / "checkpoints").iterdir())
    assert found == [f"step-{step:08d}" for step in (2, 5, 6)]


def test_looks_are_not_more_often_than_asked(home: Path, tmp_path: Path) -> None:
    settings = job(home, tmp_path)
    identity = check(settings)
    run.begin(settings, identity)

    def looked() -> bool:
        raise AssertionError("looked within LOOK_S")

    assert len(list(run.train_worker(settings, identity, leaving=looked))) == 6


def test_a_later_damaged_checkpoint_does_not_count(home: Path, tmp_path: Path) -> None:
    """The run that passed over it keeps what it writes before it gets there again."""
    settings = job(home, tmp_path).model_copy(update={"keep": 1, "save_every": 3})
    train(settings.model_copy(update={"keep": 2}))
    folder = Path(settings.out) / "checkpoints"
    for file in (folder / "step-00000006").glob("*.safetensors"):
        file.write_bytes(b"damaged")
    asked = iter([False, True])
    list(run.train_worker(settings, check(settings), stop=lambda: next(asked)))
    assert (folder / "step-00000005").is_dir()
    note = (Path(settings.out) / "note").read_text()
    assert note == "checkpoints of steps [6] are not whole; going on from step 3"
    reports = list(run.train_worker(settings, check(settings)))
    assert [report.step for report in reports] == [6]


class Rank:
    """One of two workers, each in a thread."""

    num_workers = 2

    def __init__(self, rank: int, barrier: threading.Barrier, given: dict[int, Any]) -> None:
        self.rank, self._barrier, self._given = rank, barrier, given

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        self._given[self.rank] = values.double()
        self._barrier.wait(10)
        total = self._given[0] + self._given[1]
        self._barrier.wait(10)
        return total


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (OSError(errno.ENOSPC, "full"), "E1503"),
        (SafetensorError("Error: No space left on device (os error 28)"), "E1503"),
        (OSError(errno.EROFS, "read only"), "E1511"),
    ],
)
def test_an_error_of_one_workers_disk_is_the_same_on_both(
    tmp_path: Path, error: Exception, code: str
) -> None:
    barrier, given, found = threading.Barrier(2), {}, {}

    def broken() -> None:
        raise error

    def write(rank: int, part: Any) -> None:
        worker = Rank(rank, barrier, given)
        with pytest.raises(RunError) as caught:
            Checkpoints(tmp_path, 2)._together(worker, part)  # type: ignore[arg-type]
        found[rank] = caught.value.code

    threads = [threading.Thread(target=write, args=one) for one in ((0, None), (1, broken))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert found == {0: code, 1: code}


def test_workers_that_see_other_folders_go_on_from_the_same_step(
    home: Path, tmp_path: Path
) -> None:
    """As on a network share, whose listings come late."""
    settings = job(home, tmp_path)
    train(settings)
    barrier, given, found = threading.Barrier(2), {}, {}

    class Late(Checkpoints):
        def steps(self) -> list[int]:
            return super().steps()[:-1]

    def look(rank: int, kind: type[Checkpoints]) -> None:
        checkpoints = kind(Path(settings.out) / "checkpoints", 2)
        found[rank] = checkpoints.latest(Rank(rank, barrier, given))  # type: ignore[arg-type]

    threads = [threading.Thread(target=look, args=one) for one in ((0, Checkpoints), (1, Late))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert found[0] is not None
    assert found[0] == found[1]
    assert found[0][0] == 6


def test_a_run_that_lacks_memory_goes_on_with_less(home: Path, tmp_path: Path) -> None:
    train(job(home, tmp_path), steps=3)  # the second is saved
    less = job(home, tmp_path, micro_batch_size=1, gradient_checkpointing=True)
    assert [report.step for report in train(less)] == [3, 4, 5, 6]


def test_what_differs_from_the_first_run_is_named(home: Path, tmp_path: Path) -> None:
    train(job(home, tmp_path), steps=1)
    other = job(home, tmp_path, lr=0.5, image={"max_pixels": 123456})
    said = r"another stage\.image\.max_pixels \(\d+, now 123456\), stage\.lr \(0\.01, now 0\.5\)\."
    with pytest.raises(RunError, match=f"E1604: .*{said}"):
        train(other)


def test_writers_get_the_settings_and_a_name(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    def opened(*given: Any) -> Any:
        seen.extend(given)
        return closing_writer

    closing_writer = type("W", (), {"write": lambda *_: None, "close": lambda *_: None})()
    monkeypatch.setattr(watch, "open_writer", opened)
    train(job(home, tmp_path).model_copy(update={"watch": ("tensorboard",)}))
    _, _, _, name, settings = seen
    assert name.startswith("tiny-")
    assert settings["stage"]["lr"] == 0.01
    assert not {"model", "data", "out"} & settings.keys()


def test_checkpoints_of_another_run_are_refused(home: Path, tmp_path: Path) -> None:
    settings = job(home, tmp_path)
    train(settings, steps=3)
    other = check(settings) | {"data_sha256": "0" * 64}
    with pytest.raises(RunError, match="E1604: the checkpoints are of another run"):
        list(run.train_worker(settings, other))


def test_a_gradient_that_is_not_finite_ends_the_run(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Objective.forward

    def poisoned(self: Objective, samples: list[Sample]) -> tuple[object, ...]:
        made = real(self, samples)
        return (made[0] + (made[0] * 0).sqrt(), *made[1:])  # 0, and its gradient 0 / 0

    monkeypatch.setattr(Objective, "forward", poisoned)
    with pytest.raises(RunError, match="E1602: the gradient of step 1 "):
        train(job(home, tmp_path))


def test_losses_by_noise_level() -> None:
    t = torch.tensor([0.0, 0.19, 0.2, 0.99, 1.0])
    outcome = Outcome(torch.tensor(0.0), torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0]), t, 7, 3)
    alone: Any = SimpleNamespace(rank=0, num_workers=1, sum=lambda values: values)
    tally = Tally(5, range(5, 10))
    tally.add([], outcome)
    total = tally.over_all(alone, stop=False)
    assert total.by_noise == (1.0, 2.0, 4.0, *[None] * 6, 12.0)
    assert (total.loss, total.counts, total.asked) == (31 / 5, (7, 3, 0), False)


def test_the_sampler_that_a_base_recommends_goes_on(home: Path, tmp_path: Path) -> None:
    settings = job(home, tmp_path, max_steps=1)
    base = tmp_path / "base"
    shutil.copytree(settings.model, base)
    config = json.loads((base / "config.json").read_text())
    config["medv_defaults"] = {"gen_length": 4}
    (base / "config.json").write_text(json.dumps(config))
    settings = settings.model_copy(update={"model": str(base)})
    train(settings)
    export(settings, tmp_path / "model")
    made = json.loads((tmp_path / "model" / "config.json").read_text())
    assert made["medv_defaults"] == {"gen_length": 4}


@pytest.mark.parametrize("attention", ["full", "dialogue", "prefix"])
def test_what_a_target_depends_on(home: Path, tmp_path: Path, attention: str) -> None:
    """Through the objective, at its own ends: a target of the question's segment sees the answer
    only where attention is not cut."""
    objective, samples = prepared(job(home, tmp_path, attention=attention))
    sample = next(s for s in map(samples, range(19)) if s.pictures)
    samples.close()
    grads = []
    embed = objective.model.embed

    def watched(ids: torch.Tensor) -> torch.Tensor:
        made = embed(ids).detach().requires_grad_()
        grads.append(made)
        return made

    first = sample.ends[-2] if len(sample.ends) > 1 else len(sample.ids) - 3
    labels = torch.full_like(sample.labels, IGNORE)
    labels[first - 1] = 7  # the last token before the answer
    seed = next(s for s in range(99) if objective([replace(sample, labels=labels, seed=s)])[-1])
    asked = replace(sample, labels=labels, seed=seed)
    objective.model.embed = watched  # type: ignore[method-assign]
    Outcome(*objective([asked])).loss.backward()
    slot = int((sample.ids == IMAGE_SLOT).nonzero())
    answer = grads[0].grad[first - 1 :]  # without the image's slot
    assert slot < first
    assert bool(answer.any()) == (attention != "prefix")
    assert bool(grads[0].grad[: first - 1].any())
