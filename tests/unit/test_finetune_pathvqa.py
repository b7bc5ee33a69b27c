"""The finetuning job refuses what cannot be trained before Ray starts, and writes nothing then."""

import json
import runpy
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from medv_ray.data.dataset import Dataset, image_path
from medv_ray.data.dataset_writer import Row, write_dataset
from medv_ray.on_ray import train
from tests.unit.training import tiny

ROOT = Path(__file__).parents[2]
ONE = ("--num-workers", "1")


class Done(NamedTuple):
    returncode: int
    stderr: str


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finetune")
    tiny.settings(folder)
    return folder


@pytest.fixture
def run(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Done]:
    """The job as `python jobs/finetune_pathvqa.py ...`, in this process; a path of None leaves the
    option out."""

    def no_ray(*_: Any) -> None:
        raise AssertionError("Ray was started")

    def job(*arguments: str, **paths: Path | None) -> Done:
        given = {"model": home / "base", "data": home / "data", "out": tmp_path / "out", **paths}
        path = str(ROOT / "jobs" / "finetune_pathvqa.py")
        options = [part for n, p in given.items() if p for part in (f"--{n}", str(p))]
        monkeypatch.setattr(sys, "argv", [path, *options, *arguments])
        monkeypatch.setattr(train, "running_ray", no_ray)
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(path, run_name="__main__")
        assert not (tmp_path / "out").exists(), "something was written"
        said = capsys.readouterr()
        assert said.out == ""
        return Done(int(ended.value.code or 0), said.err)

    return job


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--set", "stage.lr=abc"], ["E1001", "stage.lr", "valid number", "'abc'"]),
        (["--set", "stage.lr=0"], ["E1001", "stage.lr", "greater than 0"]),
        (
            ["--set", "stage.learning_rate=1"],
            ["E1001", "stage.learning_rate", "no such setting; there are: name, trainable"],
        ),
        (["--set", "stages.lr=1"], ["E1001", "stages", "no such setting; there are: stage"]),
        (["--set", "stage.lr"], ["E1001", "--set 'stage.lr'", "name=value"]),
        (["--set", "stage.micro_batch_size=0"], ["E1001", "micro_batch_size", "greater than 0"]),
        (["--set", "stage.micro_batch_size=3"], ["E1601", "batch_size=8", "micro_batch_size=3"]),
        (["--num-workers", "3"], ["E1601", "batch_size=8", "1 x 3 workers", "1, 2, 4, 8"]),
        (["--num-workers", "0"], ["E1001", "workers.num_workers", "greater than 0"]),
        (["--num-gpus", "2"], ["E1001", "workers.num_gpus", "less than or equal to 1"]),
        (["--stage", "sd_sft_pathvqqa"], ["E1001", "--stage 'sd_sft_pathvqqa'", "sd_sft_pathvqa"]),
        (
            ["--num-workers", "2", "--set", "shard.engine=plain"],
            ["E1001", "shard.engine=plain", "2 workers", "zero3"],
        ),
        (
            ["--set", "stage.trainable=projector, language"],
            ["E1001", "stage.trainable", 'a JSON list, such as ["projector", "language"]'],
        ),
        (["--set", "stage.betas=[0.9, 2]"], ["E1001", "stage.betas.1", "less than 1"]),
        (["--set", "stage.lr=Infinity"], ["E1001", "stage.lr", "finite"]),
        (["--out", "s3://bucket/run"], ["E1001", "out:", "folders that all workers see"]),
        (["--set", "stage.trainable=[]"], ["E1001", "trainable", "at least one of projector"]),
        (["--set", "split=test"], ["E1113", "no split 'test'", "it has train"]),
        (["--set", "stage.epochs=0.1"], ["E1001", "19 rows x 0.1 epochs", "stage.batch_size=8"]),
        (["--set", "stage.max_length=10"], ["E1118", "rows of train are over 10 tokens", "Leave"]),
        (["--config", "nope.yaml"], ["E1001", "--config", "nope.yaml"]),
        (["--validate-every", "0"], ["E1001", "validation.every", "greater than 0"]),
        (["--set", "validation.patience=2"], ["E1001", "validation", "--validate-every"]),
        (
            ["--validate-every", "5", "--set", "validation.split=dev"],
            ["E1113", "validation: the dataset has no split 'dev'", "it has train, validation"],
        ),
        (
            ["--validate-every", "5", "--set", "validation.sampler.cache=dual"],
            ["E1001", "validation.sampler.cache=dual", "cache=none"],
        ),
        (
            ["--validate-every", "5", "--set", "validation.sampler.gen_length=256"],
            ["E1118", "9 rows of validation are over 256 tokens", "an answer takes 256"],
        ),
    ],
)
def test_a_setting_that_cannot_be_is_one_line(
    run: Callable[..., Done], arguments: list[str], words: list[str]
) -> None:
    refused(run(*ONE, *arguments), words)


def refused(done: Done, words: list[str], code: int = 2) -> None:
    assert done.returncode == code, done.stderr
    assert all(word in done.stderr for word in words), done.stderr
    assert done.stderr.count("\n") == 1
    assert str(Path.home()) not in done.stderr
    assert "/tmp" not in done.stderr


@pytest.mark.parametrize(
    "more",
    [("--new-run",), ("--num-workers", "1"), ("--stage", "md_sft"), ("--validate-every", "2")],
)
def test_the_demonstration_takes_no_other_options(
    run: Callable[..., Done], more: tuple[str, ...]
) -> None:
    done = run("--demo", *more, model=None, data=None)
    refused(done, ["E1001", "--demo", "only --out and --address"])


@pytest.mark.parametrize("name", ["model", "data"])
def test_a_missing_option_is_named(run: Callable[..., Done], name: str) -> None:
    refused(run(*ONE, **{name: None}), ["E1001", f"--{name} is missing", "--help"])


def test_folders_that_hold_something_else(
    run: Callable[..., Done], home: Path, tmp_path: Path
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    refused(run(*ONE, data=empty), ["E1113", "no dataset.json"])
    refused(run(*ONE, data=tmp_path / "nowhere"), ["E1113", "no dataset.json"])
    refused(run(*ONE, model=empty), ["E1401", "'empty' lacks config.json"])
    refused(run(*ONE, model=home / "data"), ["E1401", "lacks config.json"])


@pytest.fixture
def base(home: Path, tmp_path: Path) -> Path:
    shutil.copytree(home / "base", tmp_path / "base")
    return tmp_path / "base"


def edit(base: Path, **values: Any) -> None:
    config = base / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | values))


def test_a_base_of_another_shape(run: Callable[..., Done], base: Path) -> None:
    edit(base, intermediate_size=48)
    refused(run(*ONE, model=base), ["E1404", "mlp", "[64, 32], not [48, 32]"])
    edit(base, intermediate_size=64, num_hidden_layers=3)
    refused(run(*ONE, model=base), ["E1402", "missing: model.layers.2"])


def test_a_base_without_its_tokenizer(run: Callable[..., Done], base: Path) -> None:
    (base / "tokenizer.json").unlink()
    refused(run(*ONE, model=base), ["E1401", "no tokenizer.json"])


def test_a_merge_that_the_base_cannot_do(run: Callable[..., Done], base: Path) -> None:
    from medv_ray.model import weights
    from medv_ray.model.medv import Medv

    made = weights.load(base).config
    shutil.rmtree(base)
    flat = Medv(type(made)(made.language, made.vision, "square", (), "flat", 256))
    weights.save(flat, base, tiny.TOY)
    done = run(*ONE, "--set", "stage.merge=spatial_unpad", model=base)
    refused(done, ["E1001", "stage.merge=spatial_unpad", "use flat or checkpoint"])


def test_a_base_that_cannot_see(run: Callable[..., Done], base: Path) -> None:
    from medv_ray.model import weights
    from medv_ray.model.medv import Medv

    made = weights.load(base).config
    shutil.rmtree(base)
    weights.save(Medv(type(made)(made.language, None)), base, tiny.TOY)
    refused(run(*ONE, model=base), ["E1410", "cannot see images"])
    done = run(*ONE, "--stage", "alignment", "--set", "stage.batch_size=8", model=base)
    refused(done, ["E1001", "stage.trainable=projector", "language alone"])


def data(folder: Path, *answers: str) -> Path:
    picture = next(tiny.rows()).images
    talk = {"from": "human", "value": "Is there a vessel?"}
    rows = [
        Row(str(n), picture, [talk, {"from": "gpt", "value": answer}])
        for n, answer in enumerate(answers)
    ]
    write_dataset(folder, "bad", {"train": rows})
    return folder


def test_data_that_cannot_be_trained_on(run: Callable[..., Done], tmp_path: Path) -> None:
    one = (*ONE, "--set", "stage.batch_size=1")
    empty = data(tmp_path / "empty", "yes", " ", "no")
    refused(run(*one, data=empty), ["E1117", "1 rows of train", "empty answer: 1. Leave them out"])
    long = data(tmp_path / "long", "yes", "a very long answer " * 60)
    words = ["E1118", "1 rows of train are over 256 tokens (the model's own limit)", ": 1. Leave"]
    refused(run(*one, data=long), words)
    lost = data(tmp_path / "lost", "yes")
    image_path(lost, Dataset.open(lost)[0].images[0]).unlink()
    refused(
        run(*one, data=lost),
        ["E1114", "1 rows of train are without an image that they name: 0", "again"],
    )
    spoiled = data(tmp_path / "spoiled", "yes")
    table = spoiled / "train.parquet"
    table.write_bytes(table.read_bytes()[:-50])
    refused(run(*one, data=spoiled), ["E1114", "train.parquet is missing or damaged"])
    index = tmp_path / "long" / "dataset.json"
    index.write_text(index.read_text().replace('"format": 1', '"format": 7'))
    refused(run(*one, data=long), ["E1113", "format 7"])


def test_no_targets(run: Callable[..., Done], home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from medv_ray.markers import IGNORE
    from medv_ray.training.rows import RowEncoder

    real = RowEncoder.__call__

    def untaught(self: RowEncoder, *given: Any) -> Any:
        row = real(self, *given)
        return row._replace(labels=[IGNORE] * len(row.ids))

    monkeypatch.setattr(RowEncoder, "__call__", untaught)
    refused(run(*ONE), ["E1119", "19 rows of train are without a target: 0, 1, 2, 3, 4, ..."])


def test_a_watcher_that_is_not_installed(
    run: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    from medv_ray.training import writers

    monkeypatch.setitem(writers.PACKAGES, "wandb", ("no_such_wandb", "wandb"))
    refused(run(*ONE, "--set", 'watch=["wandb"]'), ["E1001", "watch", "pip install wandb"])


def test_packages_that_are_not_installed(
    run: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    from medv_ray.training import check

    monkeypatch.setattr(check, "find_spec", lambda name: None)
    said = ["E1003", "deepspeed", "pip install 'medv-ray[train]'"]
    assert "peft" not in run(*ONE).stderr
    refused(run(*ONE), said)
    refused(run(*ONE, "--set", "stage.lora.rank=4"), [*said, "deepspeed and peft"])


def test_a_folder_in_which_another_job_trains(
    home: Path, tmp_path: Path, run: Callable[..., Done]
) -> None:
    """Not even with --new-run; when that job is gone, nothing is in the way."""
    from medv_ray.archive.lock import Lock
    from medv_ray.archive.store import Store
    from medv_ray.training.check import check
    from medv_ray.training.run import begin

    settings = tiny.settings(home).model_copy(update={"out": str(tmp_path / "old")})
    begin(settings, check(settings))
    lock = Lock(Store(settings.out))
    lock.acquire()
    files = {file.name for file in (tmp_path / "old").iterdir()}
    for more in ((), ("--new-run",)):
        refused(run(*ONE, *more, out=tmp_path / "old"), ["E1501", "written by process"], code=4)
    assert {file.name for file in (tmp_path / "old").iterdir()} == files
    lock.release()
    refused(run(*ONE, out=tmp_path / "old"), ["E1604"], code=3)


def test_a_run_of_other_settings_is_kept(
    home: Path, tmp_path: Path, run: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    from medv_ray.training.check import check
    from medv_ray.training.run import begin

    settings = tiny.settings(home).model_copy(update={"out": str(tmp_path / "old")})
    begin(settings, check(settings))
    before = (tmp_path / "old" / "run.json").read_bytes()
    refused(run(*ONE, out=tmp_path / "old"), ["E1604", "another", "stage"], code=3)
    assert (tmp_path / "old" / "run.json").read_bytes() == before
    (tmp_path / "old" / "run.json").write_text("{")
    refused(run(*ONE, out=tmp_path / "old"), ["E1507", "no readable run.json"])
    (tmp_path / "old" / "run.json").rename(tmp_path / "old" / "other")
    refused(run(*ONE, out=tmp_path / "old"), ["E1507", "holds no training run"])
