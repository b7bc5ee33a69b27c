import pytest

from medv_ray.archive.settings import ArchiveSettings
from medv_ray.archive.sources import open_archive
from medv_ray.errors import DataError


def test_patterns_choose_files(make):
    for name in ("x/train-0.parquet", "x/test-0.parquet", "y/test-1.parquet", "_tmp.parquet"):
        make.parquet(name, rows=1)
    names = lambda pattern: [  # noqa: E731
        f.name for f in open_archive(ArchiveSettings(archive=f"{make.archive}/{pattern}")).files
    ]
    assert names("x/*.parquet") == ["test-0.parquet", "train-0.parquet"]
    assert names("*/test-*.parquet") == ["x/test-0.parquet", "y/test-1.parquet"]
    assert names("**/test-*.parquet") == ["x/test-0.parquet", "y/test-1.parquet"]
    assert names("") == ["x/test-0.parquet", "x/train-0.parquet", "y/test-1.parquet"]


def test_an_archive_that_is_not_there(make):
    with pytest.raises(DataError) as caught:
        make.plan(archive=str(make.root / "nowhere"))
    assert caught.value.code == "E1110"
