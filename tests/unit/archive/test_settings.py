import pytest

from medv_ray.archive.settings import ArchiveSettings
from medv_ray.archive.sources import open_archive
from medv_ray.errors import SettingsError
from medv_ray.settings import build


def test_settings_that_contradict_each_other():
    with pytest.raises(SettingsError) as caught:
        build(ArchiveSettings, {"archive": "x", "question": "a", "questions": "b.csv"})
    assert caught.value.code == "E1001"
    with pytest.raises(SettingsError) as caught:
        build(ArchiveSettings, {"archive": "x", "question": " "})
    assert caught.value.code == "E1001"
    with pytest.raises(SettingsError, match="s4://"):
        open_archive(ArchiveSettings(archive="s4://bucket/x"))
