"""The scoring job in one process, without Ray, with the canaries' reader in place of a model."""

from __future__ import annotations

from typing import Any

import pytest

from medv_ray.archive import pseudonyms
from medv_ray.archive.run import Run
from medv_ray.archive.store import Store
from medv_ray.errors import DataError
from medv_ray.on_ray import score as job
from medv_ray.on_ray.chunk import ChunkScorer
from medv_ray.on_ray.options import ScoreSettings
from tests.canary.reader import READER, Reader

CALLERS = ("medv_ray.on_ray.score", "medv_ray.on_ray.evaluate", "medv_ray.on_ray.calibrate")
"""Modules in which commands find the job by its name."""


def score(settings: ScoreSettings, *_: object, **__: object) -> job.Outcome:
    """As `medv_ray.on_ray.score.score`, which hands chunks to actors."""
    settings = settings.located(on_cluster=False)
    privacy, out = settings.privacy, settings.out
    known = pseudonyms.find(privacy, out)
    plan, identity = job.planned(settings, None, known)
    job.tell(plan)
    session = job.Session()
    keep = (lambda: None) if known is None else lambda: pseudonyms.keep_salt(privacy, out, known)
    with Run.open(out, plan, identity, pseudonyms=known, keep=keep) as run:
        job.tell_growth(plan)
        scorer = ChunkScorer(plan.archive, Store(out), settings.answer, Reader, known)
        for chunk in run.todo():
            try:
                part, _ = scorer.score(chunk)
            except DataError as error:
                run.skip(chunk, error)
            else:
                run.commit(part)
                session.rows += len(chunk.rows)
        scorer.close()
        session.skipped_files = sorted({name for name, _ in run.skipped.values()})
        unreadable = tuple(file.name for file in plan.unreadable)
        summary = run.finish()
        committed = run.ledger.counts()["rows"]
    return job.Outcome(
        summary, session, committed, plan.rows, unreadable, plan.left_out, plan.growth.rows,
        plan.several_rows,
    )  # fmt: skip


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Commands that score do it by `score` above; a plan tries its rows on the canaries' reader."""
    monkeypatch.setattr("medv_ray.on_ray.preview.PREDICTOR", READER)
    for module in CALLERS:
        monkeypatch.setattr(f"{module}.score", score)
