"""What a job says before it scores."""

import pytest

from medv_ray.archive.plan import plan
from medv_ray.archive.sources import ArchiveSettings, open_archive
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
