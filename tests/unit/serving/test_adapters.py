"""Adapters are models of their own by name, around weights that are held once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from medv_ray.engine import Answer, Predictor, Request
from medv_ray.errors import CheckpointError, SettingsError
from medv_ray.model import lora, weights
from medv_ray.on_ray.options import serve_settings
from medv_ray.serving.app import make_app
from medv_ray.serving.guard import App
from medv_ray.serving.options import ServeSettings
from medv_ray.serving.service import Service, load_engines
from medv_ray.settings import TOY, EngineSettings, LoraSettings
from tests.unit.serving.client import MODEL, ask, ask_all, body_of, get, said, tiles
from tests.unit.serving.conftest import NO_KEYS, settings_of

pytestmark = pytest.mark.integration

NAMES = (MODEL, "colour", "organ")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    place, base = tmp_path_factory.mktemp("adapters"), weights.digest(TOY)
    for seed, name in enumerate(NAMES[1:], 1):
        model = weights.load(TOY)
        settings = LoraSettings(rank=2 * seed, alpha=8.0)
        lora.add_lora(model, settings)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for tensor_name, tensor in model.named_parameters():
                if ".lora_B" in tensor_name:
                    tensor.normal_(0, 0.3, generator=generator)
        lora.save_adapter(model, place / name, base, settings)
    return {name: str(place / name) for name in NAMES[1:]}


def served(folders: dict[str, str], **fields: object) -> ServeSettings:
    return settings_of().model_copy(update={"adapters": folders, **fields})


@pytest.fixture(scope="module")
def service(folders: dict[str, str]) -> Iterator[Service]:
    made = Service.load(served(folders))
    yield made
    made.close()


@pytest.fixture(scope="module")
def app(service: Service) -> App:
    return make_app(service, NO_KEYS)


@pytest.fixture(scope="module")
def expected(folders: dict[str, str]) -> dict[str, list[Answer]]:
    settings, found = settings_of(), {}
    asked = [Request(row.question, (row.image,), seed=0) for row in tiles()[:2]]
    for name in NAMES:
        model = settings.model.model_copy(update={"adapter": folders.get(name)})
        with Predictor.load(model, settings.answer) as predictor:
            found[name] = [a for a in predictor.answer(asked) if isinstance(a, Answer)]
    return found


def test_each_name_answers_as_the_predictor_with_its_adapter(
    app: App, expected: dict[str, list[Answer]]
) -> None:
    """All at once, so that the engines take turns; streamed and not."""
    asked = [(name, i, stream) for i in range(2) for name in NAMES for stream in (False, True)]
    bodies = [
        body_of(tiles()[i], model=name, stream=stream, seed=0, logprobs=True)
        for name, i, stream in asked
    ]
    for (name, i, stream), reply in zip(asked, ask_all(app, bodies), strict=True):
        want = expected[name][i]
        if stream:
            assert said(reply) == want.text
            assert {event["model"] for event in reply.events} == {name}
            continue
        shown = reply.json()
        assert shown["model"] == name
        assert shown["choices"][0]["message"]["content"] == want.text
        assert shown["medv"][0]["confidence"] == pytest.approx(want.confidence, abs=1e-6)
    confidences = {tuple(one.confidence for one in expected[name]) for name in NAMES}
    assert len(confidences) == len(NAMES), "the adapters do something, and not the same"


def test_they_are_listed_and_others_refused(app: App) -> None:
    listed = get(app, "/v1/models").json()["data"]
    assert [one["id"] for one in listed] == list(NAMES)
    reply = ask(app, body_of(model="colours"))
    assert (reply.status, reply.error["param"]) == (404, "model")


def test_inspection_is_of_the_model_that_is_named(app: App) -> None:
    shown = []
    for name in NAMES:
        body = body_of(model=name, tokens=[None] * 8, position=2)
        reply = ask(app, body, path="/v1/inspect")
        assert reply.status == 200
        shown.append(reply.json()["alternatives"])
    assert shown[0] != shown[1] != shown[2] != shown[0]


def test_weights_are_held_once_and_base_is_not_changed(service: Service) -> None:
    base, *others = (engine._model for engine in service._engines.values())
    own = dict(base.named_parameters())
    for other in others:
        new = 0
        for name, tensor in other.named_parameters():
            if ".lora_" in name:
                new += tensor.nbytes
                continue
            assert tensor is own.pop(name.replace(".base_layer", ""))
        assert not own
        own = dict(base.named_parameters())
        assert 0 < new < sum(one.nbytes for one in own.values()) / 4
    packed = [
        [m.packed for m in one.modules() if getattr(m, "packed", None) is not None]
        for one in (base, *others)
    ]
    assert all(list(map(id, one)) == list(map(id, packed[0])) for one in packed)
    plain = weights.load(TOY)
    for name, tensor in plain.named_parameters():
        assert torch.equal(tensor, own[name]), name


def test_budgets_are_shared(folders: dict[str, str]) -> None:
    settings = served(folders, engine=EngineSettings(kv_cache_bytes=3000, image_cache_bytes=3000))
    engines = load_engines(settings).values()
    assert [engine._batches.budget_bytes for engine in engines] == [1000] * 3
    assert [engine._images._cache_bytes for engine in engines] == [1000] * 3


def test_a_name_twice_and_an_adapter_of_another_model(
    folders: dict[str, str], tmp_path: Path
) -> None:
    with pytest.raises(SettingsError, match="E1001.*is the name of the model itself"):
        serve_settings({"model": "toy", "adapters": {MODEL: folders["colour"]}})
    with pytest.raises(CheckpointError, match="E1401"):
        load_engines(served({"none": str(tmp_path)}))
