"""The job that exports: whole folders under their names, and clear refusals."""

import json
import runpy
import shutil
import sys
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from medv_ray.engine import Answer, Predictor, Request
from medv_ray.model import lora, weights
from medv_ray.settings import TOY, AnswerSettings, ModelSettings, SamplerSettings
from medv_ray.training import export, run
from medv_ray.training.check import check
from medv_ray.training.job import TrainSettings
from tests.unit.training import tiny

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


Job = Callable[..., Done]


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Job:
    """The job as `python jobs/export_checkpoint.py ...`, in this process."""

    def call(*arguments: str | Path) -> Done:
        path = str(ROOT / "jobs" / "export_checkpoint.py")
        monkeypatch.setattr(sys, "argv", [path, *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(path, run_name="__main__")
        return Done(int(ended.value.code or 0), *capsys.readouterr())

    return call


def trained(folder: Path, steps: int | None = None, **stage: object) -> TrainSettings:
    settings = tiny.settings(folder, **{"max_steps": 4, **stage})
    identity = check(settings)
    run.begin(settings, identity)
    list(islice(run.train_worker(settings, identity), steps))
    return settings


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that is done, and its base."""
    folder = tmp_path_factory.mktemp("export")
    trained(folder, attention="prefix")
    return folder


def refused(job: Job, code: int, words: list[str], *arguments: str | Path) -> None:
    out = Path(str(arguments[arguments.index("--out") + 1]))
    before = sorted(out.parent.rglob("*"))
    said = job(*arguments)
    assert said.returncode == code, said.stderr
    assert all(word in said.stderr for word in words), said.stderr
    assert said.stderr.count("\n") == 1
    assert "/tmp" not in said.stderr
    assert sorted(out.parent.rglob("*")) == before, "something was written"


def test_the_shipped_toy_as_base_by_its_word(tmp_path: Path, job: Job) -> None:
    """Also where it lies elsewhere than when the run began; a folder of that name is not it."""
    settings = tiny.settings(tmp_path, max_steps=1).model_copy(update={"model": str(TOY)})
    run.begin(settings, check(settings))
    list(run.train_worker(settings, check(settings)))
    manifest = Path(settings.out) / "run.json"
    moved = json.loads(manifest.read_text().replace(str(TOY), str(tmp_path / "gone")))
    del moved["sha256"]  # as earlier versions wrote it
    manifest.write_text(json.dumps(moved))
    refused(job, 3, ["E1604", "'gone'", "--model"], "--run", settings.out, "--out", tmp_path / "a")
    said = job("--run", settings.out, "--out", tmp_path / "b", "--model", "toy")
    assert said.returncode == 0, said.stderr
    assert weights.load(tmp_path / "b").config == weights.load(TOY).config


def test_the_end_of_a_stage_in_either_dtype(done: Path, tmp_path: Path, job: Job) -> None:
    (done / "base" / "LICENSE").write_text("as it is")
    for dtype, wanted in (("", torch.float32), ("bfloat16", torch.bfloat16)):
        out = tmp_path / f"model{dtype}"
        said = job("--run", done / "out", "--out", out, *(["--dtype", dtype] if dtype else []))
        assert said.returncode == 0, said.stderr
        assert json.loads(said.stdout) == {"exported": out.name, "step": 4, "adapter": False}
        stored = weights.headers(out)
        assert {weights.DTYPES[entry.dtype] for entry in stored.values()} == {wanted}
        assert weights.load(out).config.attention == "prefix"
        assert (out / "LICENSE").read_text() == "as it is"
        assert (out / "tokenizer.json").is_file()
    (done / "base" / "LICENSE").unlink()
    names = ("model", "modelbfloat16")
    whole, half = (weights.load(tmp_path / name).state_dict() for name in names)
    assert all(torch.equal(whole[n].bfloat16().float(), half[n]) for n in whole)
    assert sorted(path.name for path in tmp_path.iterdir()) == list(names)
    base = weights.load(done / "base").state_dict()
    changed = {n for n in whole if not torch.equal(whole[n], base[n])}
    assert {"lm_head.weight", "model.mm_projector.0.weight"} <= changed
    assert not any("vision_tower" in name for name in changed)


def test_a_step_that_is_said(done: Path, tmp_path: Path, job: Job) -> None:
    said = job("--run", done / "out", "--out", tmp_path / "m", "--step", "2")
    assert (said.returncode, json.loads(said.stdout)["step"]) == (0, 2)
    refused(job, 1, ["E1603", "no checkpoint of step 3; there are: 2, 4."],
            "--run", done / "out", "--out", tmp_path / "n", "--step", "3")  # fmt: skip


def test_what_cannot_be_exported(done: Path, tmp_path: Path, job: Job) -> None:
    out = ("--out", tmp_path / "m")
    refused(job, 2, ["E1507", "'nowhere' holds no readable run.json"],
            "--run", tmp_path / "nowhere", *out)  # fmt: skip
    refused(job, 2, ["E1001", "--out 'base' is in use; take another"],
            "--run", done / "out", "--out", done / "base")  # fmt: skip
    refused(job, 2, ["E1001", "--adapter: the stage trained none"],
            "--run", done / "out", *out, "--adapter")  # fmt: skip
    refused(job, 2, ["E1001", "--dtype", "stays float32"],
            "--run", done / "out", *out, "--adapter", "--dtype", "bfloat16")  # fmt: skip
    other = shutil.copytree(done / "base", tmp_path / "moved")
    assert job("--run", done / "out", "--out", tmp_path / "k", "--model", other).returncode == 0
    refused(job, 3, ["E1604", "base 'gone' is not where the run began", "--model"],
            "--run", done / "out", *out, "--model", tmp_path / "gone")  # fmt: skip
    (other / "config.json").write_text((other / "config.json").read_text() + " ")
    refused(job, 3, ["E1604", "base 'moved' has digest", "--model"],
            "--run", done / "out", *out, "--model", other)  # fmt: skip


def test_a_stage_that_is_not_done(done: Path, tmp_path: Path, job: Job) -> None:
    shutil.copytree(done / "base", tmp_path / "base")
    shutil.copytree(done / "data", tmp_path / "data")
    trained(tmp_path, steps=1)
    where = ("--run", tmp_path / "out", "--out", tmp_path / "m")
    refused(job, 1, ["E1603", "no checkpoint yet"], *where)
    trained(tmp_path, steps=3)
    refused(job, 2, ["E1001", "the stage is not done: step 2 of 4", "--step 2"], *where)
    said = job(*where, "--step", "2")
    assert (said.returncode, json.loads(said.stdout)["step"]) == (0, 2)


def test_a_damaged_checkpoint_is_not_exported(done: Path, tmp_path: Path, job: Job) -> None:
    shutil.copytree(done / "out", tmp_path / "out")
    where = ("--run", tmp_path / "out", "--out", tmp_path / "m")
    for step in (4, 2):
        file = next((tmp_path / "out" / "checkpoints").glob(f"*{step}/*.safetensors"))
        file.write_bytes(file.read_bytes()[:-4] + b"\0\0\1\0")
        refused(job, 1, ["E1603", f"step {step} is not whole"], *where, "--step", str(step))
        if step == 4:
            refused(job, 2, ["E1001", "step 2 of 4"], *where)
    refused(job, 1, ["E1603", "none of 2 checkpoints is whole"], *where)


def test_a_write_that_fails_leaves_nothing(
    done: Path, tmp_path: Path, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".m.killed.partial").mkdir()  # of a try that was killed

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export.weights, "copy_files", full)
    said = job("--run", done / "out", "--out", tmp_path / "m")
    assert (said.returncode, "E1503" in said.stderr) == (5, True)
    assert "nothing of it is kept" in said.stderr
    assert not list(tmp_path.iterdir())


def test_an_adapter_alone_and_merged(done: Path, tmp_path: Path, job: Job) -> None:
    shutil.copytree(done / "base", tmp_path / "base")
    shutil.copytree(done / "data", tmp_path / "data")
    trained(tmp_path, lora={"rank": 2, "alpha": 8.0})
    where = ("--run", tmp_path / "out", "--out")
    for name, more in (("merged", []), ("adapter", ["--adapter"])):
        said = job(*where, tmp_path / name, *more)
        assert said.returncode == 0, said.stderr
    assert json.loads(said.stdout) == {"exported": "adapter", "step": 4, "adapter": True}
    settings = ModelSettings(path=str(tmp_path / "base"), adapter=str(tmp_path / "adapter"))
    sampler = SamplerSettings(gen_length=4, block_length=4, steps=2)
    with Predictor.load(settings, AnswerSettings(sampler=sampler)) as predictor:
        [answer] = predictor.answer([Request("Is there a vessel?", next(tiny.rows()).images)])
    assert isinstance(answer, Answer)
    base, sha256 = weights.load(tmp_path / "base"), weights.digest(tmp_path / "base")
    before = base.state_dict()["model.layers.0.self_attn.q_proj.weight"].clone()
    lora.load_adapter(base, tmp_path / "adapter", sha256, merge=True)
    merged = weights.load(tmp_path / "merged").state_dict()
    found = base.state_dict()
    assert found.keys() == merged.keys()
    assert all(torch.equal(found[name], merged[name]) for name in found)
    assert not torch.equal(found["model.layers.0.self_attn.q_proj.weight"], before)


def test_an_adapter_cannot_change_its_bases_attention(done: Path, tmp_path: Path, job: Job) -> None:
    shutil.copytree(done / "base", tmp_path / "base")
    shutil.copytree(done / "data", tmp_path / "data")
    trained(tmp_path, lora={"rank": 2}, attention="dialogue", max_steps=1)
    refused(job, 2, ["E1001", "attention=dialogue, its base has full", "merged"],
            "--run", tmp_path / "out", "--out", tmp_path / "m", "--adapter")  # fmt: skip


def test_best_and_step_exclude_each_other_and_best_needs_one(
    done: Path, tmp_path: Path, job: Job
) -> None:
    line = ("--run", done / "out", "--out", tmp_path / "model", "--best")
    refused(job, 2, ["E1001", "--best and --step"], *line, "--step", "4")
    refused(job, 2, ["E1001", "--best", "no best validation", "--validate-every"], *line)
