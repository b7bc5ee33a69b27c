"""Which sampler a validation answers with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from medv_ray.errors import SettingsError
from medv_ray.on_ray.validation import spec_of, with_sampler
from medv_ray.settings import SamplerSettings, build
from medv_ray.training.job import TrainSettings, ValidationSettings
from tests.unit.training import tiny


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sampler")
    tiny.settings(folder)
    return folder


def sampler(
    home: Path, advice: dict[str, Any] | None, given: dict[str, Any] | None
) -> SamplerSettings:
    config = home / "base" / "config.json"
    raw = json.loads(config.read_text())
    raw.pop("medv_defaults", None)
    config.write_text(json.dumps(raw | ({} if advice is None else {"medv_defaults": advice})))
    values = {"every": 1, "sampler": given}
    made = tiny.settings(home).model_copy(update={"validation": build(ValidationSettings, values)})
    found = with_sampler(made).validation.sampler
    assert found is not None
    # a worker gets the settings as JSON and comes to the same
    again = TrainSettings.model_validate(with_sampler(made).model_dump(mode="json"))
    assert with_sampler(again).validation.sampler == found
    spec = spec_of(with_sampler(made))
    assert spec is not None
    assert spec.gen_length == found.gen_length
    return found


SHORT = {"gen_length": 8, "block_length": 8, "steps": 8}


def test_advice_of_the_base_then_what_is_given(home: Path) -> None:
    none = sampler(home, None, None)
    assert (none.gen_length, none.preset, none.cache) == (64, "fast", "none")
    assert sampler(home, SHORT, None) == SamplerSettings(**SHORT)
    warm = sampler(home, SHORT, {"temperature": 0.5})
    assert (warm.gen_length, warm.temperature) == (8, 0.5)
    turbo = sampler(home, SHORT | {"preset": "turbo"}, None)
    assert (turbo.cache, turbo.refresh_interval, turbo.threshold) == ("none", None, 0.7)


@pytest.mark.parametrize(
    ("advice", "given", "said"),
    [
        (None, {"cache": "dual"}, "E1001: validation.sampler.cache=dual: .*cache=none"),
        ({"cfg_scale": 2.0}, None, "E1001: validation.sampler.cfg_scale=2.0: .*cfg_scale=0"),
        ({"gen_length": 7}, None, "E1002"),
    ],
)
def test_what_validation_does_not_compute(
    home: Path, advice: dict[str, Any] | None, given: dict[str, Any] | None, said: str
) -> None:
    with pytest.raises(SettingsError, match=said):
        sampler(home, advice, given)


def test_the_loss_alone(home: Path) -> None:
    for values, stage in (
        ({"every": None}, {}),
        ({"every": 1, "answers": False}, {}),
        ({"every": 1}, {"template": "pairs"}),
    ):
        update = {"validation": ValidationSettings(**values)}
        made = tiny.settings(home, **stage).model_copy(update=update)
        assert with_sampler(made) is made
        assert spec_of(made) is None
