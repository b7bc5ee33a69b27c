"""Where masked positions look: groups of positions, and that nothing else changes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from medv_ray.engine import Engine, Predictor, Request
from medv_ray.engine.attending import GROUPS
from medv_ray.errors import DataError
from medv_ray.settings import AnswerSettings, EngineSettings, ModelSettings, SamplerSettings
from tests.unit.engine.conftest import png

L = 8
SAMPLER = SamplerSettings(gen_length=L, block_length=4, steps=8, stop=())


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[Engine]:
    model = ModelSettings(path=str(folder), device="cpu")
    with Predictor.load(model, AnswerSettings(sampler=SAMPLER), EngineSettings()) as predictor:
        yield predictor.engine


@pytest.mark.parametrize("images", [(), (png(1),), (png(1), png(2))])
@pytest.mark.parametrize("suffix", ["", " so."])
def test_groups_are_counted_and_share_all_attention(
    engine: Engine, images: tuple[bytes, ...], suffix: str
) -> None:
    request = Request("is it?", images, sampler=SAMPLER.changed({"suffix": suffix}))
    answer = Predictor(engine).answer([request])[0]
    ids: list[int | None] = [65, None, 66, *[None] * (L - 3)]
    found = engine.attend(request, ids)
    total = answer.prompt_tokens + L + len(suffix)  # type: ignore[union-attr]
    counts = dict(zip(GROUPS, (round(one * total) for one in found.even), strict=True))
    assert (counts["masks"], counts["tokens"]) == (L - 2, 2 + len(suffix))
    assert (counts["image"] > 0) is bool(images)
    assert sum(counts.values()) == total
    for layer in found.shares:
        assert sum(layer) == pytest.approx(1, abs=1e-5)
        assert (layer[0] > 0) is bool(images)
    assert len(found.near) == len(found.spread) == len(found.shares)
    assert Predictor(engine).answer([request])[0].token_ids == answer.token_ids  # type: ignore[union-attr]


def test_a_state_without_a_mask_is_refused(engine: Engine) -> None:
    with pytest.raises(DataError, match="E1001: a state has gen_length=8"):
        engine.attend(Request("is it?"), [65] * L)
