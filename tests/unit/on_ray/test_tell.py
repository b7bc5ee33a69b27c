"""What a job says before it scores."""

import tarfile
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest

from medv_ray.archive.growth import Growth
from medv_ray.archive.plan import plan
from medv_ray.archive.run import Run
from medv_ray.archive.settings import ArchiveSettings
from medv_ray.archive.sources import open_archive
from medv_ray.errors import RunError
from medv_ray.on_ray import score
from medv_ray.on_ray.score import tell


@pytest.mark.parametrize("texts", [0, 1, 2])
def test_what_is_left_out_and_whether_that_is_most_of_it(tmp_path, capsys, texts):
    for name in ["a.png", *(f"{number}.txt" for number in range(texts))]:
        (tmp_path / name).write_text("x")
    tell(plan(open_archive(ArchiveSettings(archive=str(tmp_path), question="q?")), "settings"))
    said = capsys.readouterr().err
    most = "MOST OF THIS ARCHIVE IS LEFT OUT: 1 rows are scored.\n"
    files = "file" if texts == 1 else "files"
    line = f"left out: {texts} {files} ({texts} .txt not an image)\n"
    assert said == (most if texts > 1 else "") + (line if texts else "")


def test_what_could_be_no_row_is_not_most_of_an_archive(tmp_path, capsys):
    for name in ("1.png", "2.png", "3.png", "notes.doc", "more.doc"):
        (tmp_path / name).write_text("x")
    (tmp_path / "q.csv").write_text("image,question\n1.png,a?\n")
    settings = ArchiveSettings(archive=str(tmp_path))
    tell(plan(open_archive(settings), "settings"))
    said = capsys.readouterr().err
    assert said == "left out: 4 files (2 images that no row names, 2 .doc not a table file)\n"


def test_texts_of_a_tar_of_pictures_are_not_most_of_it(tmp_path, capsys):
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for name in ("1.png", "1.txt", "1.json"):
            tar.addfile(tarfile.TarInfo(name))
    tell(plan(open_archive(ArchiveSettings(archive=str(tmp_path), question="q?")), "settings"))
    assert capsys.readouterr().err.startswith("left out: 2 files (")


@pytest.mark.parametrize("taken", [True, False])
def test_growth_is_said_once_the_run_takes_it(tmp_path, capsys, monkeypatch, taken):
    (tmp_path / "a.png").write_text("x")
    made = plan(open_archive(ArchiveSettings(archive=str(tmp_path), question="q?")), "settings")
    made = replace(made, growth=Growth(is_known=True, rows=1))
    settings = SimpleNamespace(located=lambda **_: settings, out="out")
    monkeypatch.setattr(score, "planned", lambda *_: (made, {}))

    def opened(*_, **__):
        if not taken:
            raise RunError("E1502", "another run's.")
        return nullcontext(MagicMock(todo=list))

    monkeypatch.setattr(Run, "open", opened)
    with nullcontext() if taken else pytest.raises(RunError):
        score.score(settings)
    line = "added since the run began: 1 rows, to 0\n"
    assert capsys.readouterr().err == (line if taken else "")
