"""The script of the GPU figures at toy size: every part runs, and nothing wrong is timed."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path

import pytest
import torch

from benchmarks import run_gpu
from medv_kernels.reference import Selection

PARTS = {
    *("peaks", "select", "exact_batch_1", "dual_batch", "dual_batch_4_tokens", "dual_1"),
    *("dual_1_long", "scratch_64", "head_cut", "fused_head", "full_batch_4_tokens", "loss"),
}

CHECK_SELECT = run_gpu.check_select


def run(out: Path, monkeypatch: pytest.MonkeyPatch, *more: str) -> dict[str, object]:
    words = ["run_gpu.py", "--toy", "--device", "cpu", "--out", str(out), *more]
    monkeypatch.setattr("sys.argv", words)
    run_gpu.main()
    found: dict[str, object] = json.loads(out.read_text())
    return found


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checks that find nothing wrong, and nothing that takes time is timed."""
    for name in ("check_select", "check_commit", "check_batch", "check_half"):
        monkeypatch.setattr(run_gpu, name, lambda *_: {"right": True})
    for name in ("time_select", "time_exact", "time_batch", "time_loss"):
        monkeypatch.setattr(run_gpu, name, lambda *_, **__: {"step_s": 1.0})


@pytest.mark.slow
@pytest.mark.integration
def test_every_part_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = run(tmp_path / "toy.json", monkeypatch)
    assert found.keys() >= PARTS
    assert found["left_out"] == []
    exact = found["exact_batch_1"]
    assert exact["tokens_as_ours"]["reference"] == "8 of 8"  # type: ignore[index]


def test_wrong_results_are_not_timed(
    tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = run_gpu.ops.select

    def wrong(*args: object, **more: object) -> Selection:
        found = right(*args, **more)  # type: ignore[arg-type]
        return found._replace(token=found.token + 1)

    monkeypatch.setattr(run_gpu, "check_select", CHECK_SELECT)
    monkeypatch.setattr(run_gpu.ops, "select", wrong)
    with pytest.raises(SystemExit, match="was not timed: select"):
        run(tmp_path / "toy.json", monkeypatch)
    found = json.loads((tmp_path / "toy.json").read_text())
    assert set(found["left_out"]) == PARTS - {"peaks", "loss"}, "what does not need it is timed"


def test_out_of_time_is_told(tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    found = run(tmp_path / "toy.json", monkeypatch, "--minutes", "0")
    assert set(found["left_out"]) == PARTS  # type: ignore[arg-type]


def test_a_part_that_fails_does_not_cost_the_others(
    tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise SystemExit("wrong result, not timed: tokens differ")

    monkeypatch.setattr(run_gpu, "time_select", fail)
    with pytest.raises(SystemExit, match="failed: select"):
        run(tmp_path / "toy.json", monkeypatch)
    found = json.loads((tmp_path / "toy.json").read_text())
    assert found["failed"] == {"select": "SystemExit: wrong result, not timed: tokens differ"}
    assert found["loss"]["step_s"]


def test_rows_that_fail_are_not_timed() -> None:
    """They stop at once, and would look fast."""
    size, cpu = run_gpu.TOY, torch.device("cpu")
    model = run_gpu.random_model(size.language, torch.float32, cpu)
    spec = run_gpu.plain_spec(size, size.length)
    batch = run_gpu.make_batch(model, spec, 2, size.prompt, None)
    prompts = [run_gpu.random_prompt(size.language, 5, n, torch.float32) for n in (0, 1)]
    assert len(run_gpu.run_batch(model.head, batch, spec, prompts)) == 2
    prompts[1][0, 0] = torch.nan
    with pytest.raises(FloatingPointError, match="1 of 2 rows"):
        run_gpu.run_batch(model.head, batch, spec, prompts)
    assert batch.empty


def test_padding_is_checked_in_half_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    assert run_gpu.check_half(run_gpu.TOY, cpu)["right"]
    seen = run_gpu.Batched._bias
    monkeypatch.setattr(run_gpu.Batched, "_bias", lambda self, shown: seen(self, shown | True))
    assert not run_gpu.check_half(run_gpu.TOY, cpu)["right"], "padding that is attended to"


def test_the_yardsticks_of_the_loss_are_no_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU `masked_loss` is the kernel, and would be held against itself."""

    def kernel(*_: object) -> None:
        raise AssertionError("a kernel")

    monkeypatch.setattr("medv_ray.diffusion.loss.token_losses", kernel)
    bench = run_gpu.bench_train_loss
    arms, _ = bench.build_arms(2, 9, 4, 50, "cpu")
    hidden, head = bench.inputs((2, 9, 8), 50, torch.float32, "cpu")
    for name in ("masked", "all"):
        bench.step(arms[name], hidden, head)
    other = import_module("bench_train")
    monkeypatch.setattr(other, "VOCABULARY", 50)
    arms, _ = other.build_arms(0.5)
    bench.step(arms["full"], *other.inputs(2, torch.float32, "cpu"))


def test_a_machine_without_git_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*_: object, **__: object) -> None:
        raise FileNotFoundError("git")

    monkeypatch.setattr("subprocess.run", absent)
    assert run_gpu.circumstances()["commit"] == "unknown"
