"""The file of API keys."""

from __future__ import annotations

from pathlib import Path

import pytest

from medv_ray.errors import SettingsError
from medv_ray.serving.auth import KEYS_FILE, Keys

ALICE, BOB = "key-of-alice-0123456789", "key-of-bob-0123456789"


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEYS_FILE, raising=False)


def load(folder: Path, text: str | bytes) -> Keys:
    path = folder / "keys"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return Keys.load(str(path))


def test_a_file_of_names_and_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = load(tmp_path, f"# ours\n\n alice  {ALICE}\nbob\t{BOB}  # until May\r\n")
    assert keys
    assert keys.owner(f"Bearer {ALICE}") == "alice"
    assert keys.owner(f"bearer  {BOB} ") == "bob"
    for wrong in ("", "Bearer", ALICE, f"Basic {ALICE}", f"Bearer {ALICE}x", "Bearer alice"):
        assert keys.owner(wrong) is None
    assert ALICE not in repr(vars(keys))
    monkeypatch.setenv(KEYS_FILE, str(tmp_path / "keys"))
    assert Keys.load(None).owner(f"Bearer {BOB}") == "bob"


def test_no_file_means_no_keys() -> None:
    assert not Keys.load(None)
    assert Keys.load(None).owner(f"Bearer {ALICE}") is None


@pytest.mark.parametrize(
    "text",
    [
        "", "# nothing\n", "alice\n", f"alice {ALICE} more\n", "alice short\n",
        f"alice {ALICE}\nalice {BOB}\n", f"alice {ALICE}\nbob\n", b"\xff\xfe\x00",
        f"alice {ALICE[:15]}#{ALICE}\n", "alice schlüssel-von-alice-1234\n",
    ],
)  # fmt: skip
def test_a_file_that_is_wrong(tmp_path: Path, text: str | bytes) -> None:
    with pytest.raises(SettingsError) as caught:
        load(tmp_path, text)
    assert caught.value.code == "E1702"
    assert ALICE[:15] not in str(caught.value)
    assert str(tmp_path) not in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(SettingsError) as caught:
            Keys.load(str(path))
        assert caught.value.code == "E1702"
        assert str(tmp_path) not in str(caught.value)
    monkeypatch.setenv(KEYS_FILE, str(tmp_path / "none"))
    with pytest.raises(SettingsError):
        Keys.load(None)
