"""Files of settings: what is none ends in E1001, and nothing of it stands in the message."""

from __future__ import annotations

from pathlib import Path

import pytest

from medv_ray.cli.terminal import read_yaml
from medv_ray.errors import SettingsError

WORD = "Zacharias"


@pytest.mark.parametrize(
    "text",
    [
        f"a: !!bool {WORD}",
        "a: !!int ''",
        f"a: !!int {WORD}",
        f"a: !!float {WORD}",
        f"a: !!timestamp {WORD}",
        "a: 2024-13-01",
        "seed: " + "9" * 5000,
        "seed: 0x" + "f" * 5000,
        "[" * 5000,
        f"{WORD}: [",
        f"a: !!python/object:{WORD} 1",
    ],
)
def test_a_value_that_is_none_is_told_without_its_text(tmp_path: Path, text: str) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text(text)
    with pytest.raises(SettingsError, match="E1001: --config: settings.yaml is no readable") as one:
        read_yaml(path)
    assert WORD.lower() not in str(one.value).lower()


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("seed: 1\nseed: 2", "a name is given twice"),
        ("a: &x [1]\nb: *x", "an alias"),
        ("[1]", "must hold names and values"),
        ("a: " + "x" * 2**20, "over 1048576 bytes"),
    ],
)
def test_a_rule_is_named(tmp_path: Path, text: str, rule: str) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text(text)
    with pytest.raises(SettingsError, match=rule):
        read_yaml(path)
