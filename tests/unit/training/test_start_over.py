"""`--new-run`: what the run made goes, what a user put beside it stays."""

from pathlib import Path

import pytest

from medv_ray.errors import RunError
from medv_ray.training import run
from medv_ray.training.check import check
from medv_ray.training.export import export
from medv_ray.training.start_over import remove_run
from tests.unit.training.test_run import job, train

pytestmark = pytest.mark.integration

OURS = (
    *("events.jsonl", "watch.json", "note", "stop", "failed.json", "failed.json.41", "run.tmp"),
    *("checkpoints/step-00000003.tmp/rank-00000.json", "wandb/run-1/files/x", "ray/snapshot.json"),
    *("tensorboard/events.out.tfevents.1.host", "model/LICENSE", "model/adapter_config.json"),
    *("curves.svg", "model/README.md"),
)
FOREIGN = (
    *("notes.txt", "scored/rows/part-0.parquet", "failed.md", "events.jsonl.bak", ".hidden"),
    *("checkpoints/README.md", "tensorboard/plot.png"),
)


def filled(home: Path, tmp_path: Path) -> tuple[run.TrainSettings, Path]:
    """A run that is done, with traces of all that a run may leave, and files of a user."""
    settings = job(home, tmp_path, max_steps=2)
    train(settings)
    out = Path(settings.out)
    export(settings, out / "model")
    for name in (*OURS, *FOREIGN, "lock"):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text(name)
    return settings, out


def files(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


def test_a_users_files_stay(home: Path, tmp_path: Path) -> None:
    settings, out = filled(home, tmp_path)
    assert any("model/" in name for name in files(out))
    (out / "linked").symlink_to(home / "data")
    run.begin(settings, check(settings), new_run=True)
    assert files(out) == {*FOREIGN, "lock", "run.json"}
    assert (out / "linked" / "dataset.json").is_file()
    assert not (out / "model").exists()
    assert [report.step for report in train(settings)] == [1, 2]


def test_a_folder_that_was_linked_is_not_emptied(home: Path, tmp_path: Path) -> None:
    settings, out = filled(home, tmp_path)
    (out / "checkpoints").rename(tmp_path / "elsewhere")
    (out / "checkpoints").symlink_to(tmp_path / "elsewhere")
    before = files(tmp_path / "elsewhere")
    remove_run(out)
    assert files(tmp_path / "elsewhere") == before
    assert not (out / "run.json").exists()


def test_files_in_the_way_of_the_next_model_are_named(home: Path, tmp_path: Path) -> None:
    settings, out = filled(home, tmp_path)
    (out / "model" / "mine.ipynb").write_text("x")
    before = files(out)
    with pytest.raises(RunError, match=r"E1507: model/ holds .*: mine.ipynb. Move it") as caught:
        run.begin(settings, check(settings), new_run=True)
    assert caught.value.exit_code == 2
    assert files(out) == before
