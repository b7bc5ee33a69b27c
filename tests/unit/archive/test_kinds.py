import pytest

from medv_ray.data.dataset_writer import Row, write_dataset
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


def test_a_dataset_prepared_for_training_is_no_archive(make):
    """Its pictures have no names, so that every row would be quarantined."""
    said = [{"from": "human", "value": "what?"}, {"from": "gpt", "value": "yes"}]
    folder = make.archive / "prepared"
    write_dataset(folder, "toy", {"train": [Row("r0", (b"a picture",), said, "closed")]})
    with pytest.raises(SettingsError, match="prepared for training.*medv eval --data"):
        make.plan(archive=str(folder))
    (folder / "dataset.json").unlink()
    assert make.plan(archive=str(folder)).chunks  # nothing else than its index tells
