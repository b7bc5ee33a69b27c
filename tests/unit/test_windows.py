"""`image.window`: what may be asked for, and what is refused."""

import pytest

from medv_ray.errors import SettingsError
from medv_ray.settings import ImageSettings, build
from medv_ray.windows import PRESETS, Window, parse


def test_what_may_be_asked_for() -> None:
    assert parse("file") == Window(1)
    assert parse("number:2") == Window(2)
    assert parse("Lung") == Window(0, (-600, 1500), "lung")
    assert parse("soft-tissue").preset == "soft_tissue"
    assert parse("-600/1500") == Window(0, (-600, 1500))
    assert parse("40.5/1").centre_width == (40.5, 1)
    assert all(width >= 1 for _, width in PRESETS.values())


@pytest.mark.parametrize(
    "text",
    ["", "lungs", "number:0", "number:-1", "40", "40/0", "40/-5", "nan/400", "40/inf", "1/2/3"],
)
def test_anything_else_is_refused_with_what_is_allowed(text: str) -> None:
    with pytest.raises(ValueError, match="number:2"):
        parse(text)
    with pytest.raises(SettingsError, match="lung"):
        build(ImageSettings, {"window": text})
