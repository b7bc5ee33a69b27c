"""An exported folder on the hub: private, one commit, and none for what has not changed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from medv_ray.errors import MedvError
from medv_ray.hub import fetched, reference
from medv_ray.model import weights
from medv_ray.model.publishing import push
from tests.hub_server import Hub, Reply, hub
from tests.unit.model.conftest import make_model

pytestmark = pytest.mark.integration

NAME, TOKEN = "org/mine", "hf_writer"


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with hub(monkeypatch, str(tmp_path / "cache")) as held:
        held.writers = (TOKEN,)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield held


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "export"
    weights.save(make_model(), made)
    (made / "README.md").write_text("---\nlicense: apache-2.0\n---\n\n# mine\n")
    (made / "notes.bin").write_bytes(b"no file of a model")
    return made


def refused(folder: Path, name: str = NAME, **more: bool) -> MedvError:
    with pytest.raises(MedvError) as raised:
        push(folder, name, **more)
    assert TOKEN not in str(raised.value)
    assert str(folder) not in str(raised.value)
    return raised.value


def test_what_is_pushed_is_what_is_fetched(served: Hub, folder: Path) -> None:
    said = push(folder, NAME)
    assert said["new_commit"]
    assert said["private"]
    assert (said["files"], said["left_out"]) == (3, 1)
    asked = reference(f"{NAME}@{said['commit']}")
    assert asked is not None
    assert weights.digest(fetched(asked)) == weights.digest(folder)
    assert [one for one in served.asked if one.startswith("PUT /lfs/")]  # the weights, by LFS


def test_weights_that_another_repository_holds_are_not_sent_again(
    served: Hub, folder: Path
) -> None:
    held = (folder / "model.safetensors").read_bytes()
    served.put("models/org/first", {"model.safetensors": held})
    push(folder, NAME)
    mine = served.repositories[f"models/{NAME}"]
    assert mine.commits[mine.refs["main"]]["model.safetensors"] == held
    assert not [one for one in served.asked if one.startswith("PUT /lfs/")]


def test_the_command_prints_the_commit(served: Hub, folder: Path) -> None:
    from typer.testing import CliRunner

    from medv_ray.cli import app

    done = CliRunner().invoke(app, ["push", str(folder), NAME])
    said = json.loads(done.stdout.splitlines()[-1])
    assert (done.exit_code, said["summary"], said["private"]) == (0, "pushed", True)
    assert said["commit"] == served.repositories[f"models/{NAME}"].refs["main"]
    (folder / "README.md").unlink()
    assert CliRunner().invoke(app, ["push", str(folder), NAME]).exit_code == 2


def test_the_same_again_is_no_new_commit(served: Hub, folder: Path) -> None:
    first = push(folder, NAME)
    again = push(folder, NAME)
    assert (again["commit"], again["new_commit"]) == (first["commit"], False)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    changed = push(folder, NAME)
    assert changed["new_commit"]
    assert changed["commit"] != first["commit"]


def test_shards_of_an_earlier_push_go(served: Hub, folder: Path) -> None:
    old = {"model-00001-of-00002.safetensors": b"x", "sub/model.safetensors": b"y", "a.py": b"z"}
    served.put(f"models/{NAME}", old, private=True)
    assert push(folder, NAME)["removed"] == 1
    held = served.repositories[f"models/{NAME}"]
    now = held.commits[held.refs["main"]]
    assert {"sub/model.safetensors", "a.py", "model.safetensors"} <= now.keys()
    assert "model-00001-of-00002.safetensors" not in now


def test_nothing_becomes_public_by_itself(served: Hub, folder: Path) -> None:
    served.put(f"models/{NAME}", {"a": b""})
    assert refused(folder).code == "E1001"
    assert not push(folder, NAME, public=True)["private"]
    assert not push(folder, "org/other", public=True)["private"]


def test_without_rights(served: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    served.readers = ("hf_reader",)
    served.put(f"models/{NAME}", {"a": b""}, private=True)
    monkeypatch.setenv("HF_TOKEN", "hf_reader")
    assert refused(folder).code == "E1416"
    assert refused(folder, "org/new").code == "E1416"
    monkeypatch.delenv("HF_TOKEN")
    assert refused(folder, "org/new").code == "E1416"
    assert len(served.repositories[f"models/{NAME}"].commits) == 1


def test_a_commit_in_between_is_not_undone(served: Hub, folder: Path) -> None:
    held = served.put(f"models/{NAME}", {"a": b""}, private=True) and served.repositories
    other: list[str] = []

    def somebody(method: str, path: str) -> Reply | None:
        if "/commit/" in path and not other:
            other.append(held[f"models/{NAME}"].commit({"theirs.json": b"{}"}))
        return None

    served.faults.append(somebody)
    assert refused(folder).code == "E1417"
    assert held[f"models/{NAME}"].refs["main"] == other[0]
    assert push(folder, NAME)["new_commit"]  # the same command again


@pytest.mark.parametrize(
    ("card", "code"),
    [
        (None, "E1419"),
        ("# no front matter\nlicense: mit\n", "E1419"),
        ("---\nlicense: other\n---\n", "E1419"),
        ("---\nlibrary_name: medv_ray\n---\n", "E1419"),
    ],
)
def test_a_folder_without_card_or_licence(
    served: Hub, folder: Path, card: str | None, code: str
) -> None:
    (folder / "README.md").unlink()
    if card is not None:
        (folder / "README.md").write_text(card)
    assert refused(folder).code == code
    assert not served.asked


def test_what_is_no_exported_folder(served: Hub, folder: Path, tmp_path: Path) -> None:
    assert refused(tmp_path / "nothing").code == "E1419"
    assert refused(tmp_path).code == "E1419"
    for name in ("mine", "a/b/c", "org/mine@main", "hf://org/mine"):
        assert refused(folder, name).code == "E1001"
    (folder / "model.safetensors").write_bytes(b"half")
    assert refused(folder).code == "E1407"
    assert not served.asked
