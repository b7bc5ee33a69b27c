import pytest

from medv_ray.errors import DataError, SettingsError


@pytest.mark.parametrize(
    ("names", "settings", "code"),
    [
        ([], {}, "E1110"),
        (["notes.doc"], {}, "E1110"),
        (["a.png"], {}, "E1001"),
        (["a.parquet", "a.tar"], {}, "E1001"),
    ],
)
def test_an_archive_without_a_clear_kind(make, names, settings, code):
    for name in names:
        make.text(name, "x")
    with pytest.raises((DataError, SettingsError)) as caught:
        make.plan(**settings)
    assert caught.value.code == code
    assert str(make.root) not in str(caught.value)
