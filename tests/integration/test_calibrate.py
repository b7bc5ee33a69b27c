"""A labelled split through the job, once and several times."""

from __future__ import annotations

from pathlib import Path

import pytest

from medv_ray.archive.rows import read_run
from medv_ray.evaluation.judged_rows import judged_rows
from medv_ray.on_ray.calibrate import Asked, agreement, origin, sampler_of, score_split
from medv_ray.on_ray.evaluate import synthetic_dataset
from medv_ray.on_ray.options import PoolSettings, model_digests
from medv_ray.settings import TOY, ModelSettings

pytestmark = pytest.mark.usefixtures("local_ray")


@pytest.mark.slow
def test_a_split_is_answered_and_sampled_with_other_seeds(tmp_path: Path) -> None:
    model = ModelSettings(path=str(TOY))
    data = synthetic_dataset(tmp_path / "data")
    pool = PoolSettings(max_actors=1)
    asked = Asked(data, "test", tmp_path / "out", model, sampler_of(model, {}), pool, limit=12)
    run = score_split(asked)
    rows = judged_rows(run)
    assert rows.right == [True] * 12
    assert origin(run).model == model_digests(model)
    assert origin(run).answer.abstain_below is None
    noisy = asked._replace(sampler=asked.sampler.changed({"temperature": 20.0}))
    sampled = score_split(noisy, copies=3)
    texts = [row for table in read_run(sampled, ["id", "answer"]) for row in table.to_pylist()]
    assert len({row["id"] for row in texts}) == 36
    assert len({row["answer"] for row in texts}) > 3, "seeds differ"
    shares = agreement(rows, sampled)
    assert len(shares) == 12
    assert min(shares) < 1.0
