"""A model of the hub becomes a local folder, or an error that says what to do."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from medv_ray import hub as rooms
from medv_ray.errors import CATALOGUE, CheckpointError, MedvError, SettingsError
from medv_ray.settings import TOY, model_folder
from tests.hub_server import Hub, Reply, hub

pytestmark = pytest.mark.integration

NAME = "org/model"
TOKEN = "hf_" + "s3cret" * 5


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.chdir(tmp_path)
    with hub(monkeypatch, str(tmp_path / "cache")) as held:
        yield held


def files(**more: bytes) -> dict[str, bytes]:
    """Of a model: what is needed, and what must never be fetched."""
    held = {"config.json": b"{}", "tokenizer.json": b"[]", "model.safetensors": b"w" * 1000}
    held |= {"pytorch_model.bin": b"pickle", "modeling.py": b"import os", "sub/config.json": b"{}"}
    return held | {name.replace("__", "."): data for name, data in more.items()}


def refused(model: str) -> MedvError:
    with pytest.raises(MedvError) as raised:
        model_folder(model)
    said = str(raised.value)
    assert raised.value.code in CATALOGUE
    assert TOKEN not in said
    assert "/cache" not in said
    assert "127.0.0.1" not in said
    return raised.value


def test_a_branch_becomes_a_folder_of_its_commit(
    served: Hub, caplog: pytest.LogCaptureFixture
) -> None:
    commit = served.put(f"models/{NAME}", files())
    folder = model_folder(f"{NAME}@main")
    assert sorted(os.listdir(folder)) == ["config.json", "model.safetensors", "tokenizer.json"]
    assert rooms.origin(folder) == (NAME, commit)
    assert rooms.name_of(folder) == f"{NAME}@{commit}"
    assert commit in caplog.text
    assert Path(folder).is_relative_to(Path("cache/hub").absolute())  # HF_HOME
    assert not [one for one in served.asked if ".bin" in one or ".py" in one]


def test_a_commit_in_the_cache_asks_no_network(served: Hub) -> None:
    commit = served.put(f"models/{NAME}", files())
    folder = model_folder(f"{NAME}@{commit}")
    served.put(f"models/{NAME}", files(config__json=b"[]"))
    served.asked.clear()
    assert model_folder(f"{NAME}@{commit}") == folder
    assert rooms.here(folder) == folder
    assert not served.asked
    assert Path(model_folder(f"hf://{NAME}"), "config.json").read_bytes() == b"[]"


def test_another_machine_gets_the_same_commit(
    served: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The path that a driver hands to a worker, whose cache lies elsewhere."""
    commit = served.put(f"models/{NAME}", files())
    folder = model_folder(f"{NAME}@main")
    served.put(f"models/{NAME}", files(config__json=b"[]"))
    shutil.rmtree("cache")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "other"))
    there = rooms.here(folder)
    assert there != folder
    assert rooms.origin(there) == (NAME, commit)
    assert Path(there, "config.json").read_bytes() == b"{}"


def test_a_folder_of_that_name_wins(served: Hub) -> None:
    Path(NAME).mkdir(parents=True)
    Path(f"{NAME}@main").mkdir()
    for name in (NAME, f"{NAME}@main", f"./{NAME}", "toy"):
        assert rooms.reference(name) is None
    assert model_folder("toy") == str(TOY)
    assert rooms.reference(f"{NAME}@dev") == (NAME, "dev")
    assert rooms.reference(f"hf://{NAME}@main") == (NAME, "main")
    assert not served.asked


def test_a_mistyped_folder_asks_no_network(served: Hub) -> None:
    assert refused("runs/modle").code == "E1001"
    assert "runs/modle@main" in str(refused("runs/modle"))
    assert refused("hf://runs").code == "E1001"
    assert refused("hf://a/b@" + "x" * 200).code == "E1001"
    assert rooms.reference("/no/such/folder") is None  # loading it says what is missing
    assert not served.asked


@pytest.mark.parametrize(
    ("name", "code", "words"),
    [
        ("org/nothing@main", "E1415", "without a token"),
        (f"{NAME}@v9", "E1415", "no such revision"),
        (f"{NAME}@{'ab' * 20}", "E1415", "no such revision"),
        ("org/private@main", "E1415", "without a token"),
        ("org/gated@main", "E1416", "gated"),
        ("org/pickles@main", "E1406", "pickles"),
        ("org/empty@main", "E1406", "safetensors"),
    ],
)
def test_what_the_hub_has_not_or_hides(served: Hub, name: str, code: str, words: str) -> None:
    served.put(f"models/{NAME}", files())
    served.put("models/org/private", files(), private=True)
    served.put("models/org/gated", files(), gated=True)
    served.put("models/org/pickles", {"config.json": b"{}", "pytorch_model.bin": b"x"})
    served.put("models/org/empty", {"notes.md": b""})
    found = refused(name)
    assert found.code == code
    assert words in str(found)


def test_a_token_opens_and_is_never_said(served: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    served.readers = (TOKEN,)
    served.put("models/org/private", files(), private=True, gated=True)
    monkeypatch.setenv("HF_TOKEN", TOKEN + "x")
    assert "the token that is set does not see it" in str(refused("org/private@main"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert model_folder("org/private@main")


@pytest.mark.parametrize("status", [500, 503, 429, 403])
def test_a_hub_in_trouble(served: Hub, status: int) -> None:
    served.put(f"models/{NAME}", files())
    served.faults.append(lambda method, path: Reply(status))
    found = refused(f"{NAME}@main")
    assert found.code == ("E1416" if status == 403 else "E1417")


def test_without_a_network_the_cache_answers(served: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = served.put(f"models/{NAME}", files())
    whole = model_folder(f"{NAME}@main")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert model_folder(f"{NAME}@main") == model_folder(f"{NAME}@{commit}") == whole
    said = str(refused("org/other@main"))
    assert "E1417" in said
    assert "HF_HUB_OFFLINE is set" in said
    Path(whole, "model.safetensors").unlink()  # as after a download that was cut short
    assert refused(f"{NAME}@{commit}").code == "E1417"


def test_no_hub_at_all(served: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    found = refused(f"{NAME}@main")
    assert found.code == "E1417"
    assert "ConnectError" in str(found)


def test_half_a_file_is_gone_on_with(served: Hub) -> None:
    """A connection that breaks off: what has arrived stays, the rest is asked for."""
    served.put(f"models/{NAME}", files())
    broken = []

    def once(method: str, path: str) -> Reply | None:
        if method != "GET" or not path.endswith(".safetensors") or broken:
            return None
        broken.append(path)
        return Reply(200, b"w" * 1000, {"Content-Length": "1000"}, cut=400)

    served.faults.append(once)
    folder = model_folder(f"{NAME}@main")
    assert broken
    assert Path(folder, "model.safetensors").read_bytes() == b"w" * 1000


@pytest.mark.parametrize("body", [b"w" * 600, b"w" * 999 + b"x"])
def test_another_file_than_the_hub_names_is_refused_and_not_kept(served: Hub, body: bytes) -> None:
    """Shorter than announced, or of the right length with another digest."""
    served.put(f"models/{NAME}", files())

    def wrong(method: str, path: str) -> Reply | None:
        return Reply(200, body) if method == "GET" and path.endswith(".safetensors") else None

    served.faults.append(wrong)
    assert refused(f"{NAME}@main").code == "E1418"
    served.faults.clear()
    folder = model_folder(f"{NAME}@main")
    assert Path(folder, "model.safetensors").read_bytes() == b"w" * 1000


def test_every_command_that_takes_a_model_takes_the_hubs(served: Hub) -> None:
    """What commands share: settings of a scoring job, of an endpoint, of `ask`, of training."""
    from medv_ray.cli import score_settings
    from medv_ray.on_ray.ask import settings_of
    from medv_ray.on_ray.options import model_digests, serve_settings
    from medv_ray.on_ray.train import located
    from medv_ray.settings import build
    from medv_ray.training.job import TrainSettings
    from medv_ray.training.stages import RECIPES

    held = {one.name: one.read_bytes() for one in TOY.iterdir() if one.is_file()}
    commit = served.put(f"models/{NAME}", held)
    asked = f"{NAME}@main"
    score = score_settings(
        None, {"archive": {"archive": "a"}, "out": "o", "model": {"path": asked}}, []
    )
    assert rooms.origin(score.model.path) == (NAME, commit)
    assert model_digests(score.model) == model_digests(
        score.model.model_copy(update={"path": str(TOY)})
    )
    recommended = json.loads(held["config.json"]).get("medv_defaults", {})
    assert score.sampler.gen_length == recommended.get("gen_length", score.sampler.gen_length)
    endpoint = serve_settings({"model": asked})
    assert endpoint.model.path == score.model.path
    assert endpoint.served_name == "model"
    assert settings_of(asked, [])[0].path == score.model.path
    stage = next(iter(RECIPES.values())).model_dump(mode="json")
    train = build(TrainSettings, {"model": asked, "data": "d", "out": "o", "stage": stage})
    assert located(train).model == score.model.path


def test_results_do_not_go_to_the_hub() -> None:
    from medv_ray.on_ray.options import ScoreSettings
    from medv_ray.settings import build

    out = "hf://datasets/org/results"
    asked = {"archive": {"archive": "a"}, "out": out, "model": {"path": str(TOY)}}
    with pytest.raises(SettingsError, match="commit of git.*hf upload") as raised:
        build(ScoreSettings, asked).located(on_cluster=False)
    assert isinstance(raised.value, SettingsError)
    assert not isinstance(raised.value, CheckpointError)
