"""The demonstration: a synthetic archive, scored by the embedded toy through the real job."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq

from medv_ray.data import synthetic
from medv_ray.files import put_in_place
from medv_ray.on_ray.options import ScoreSettings, checkpoint_defaults
from medv_ray.on_ray.score import Outcome, score
from medv_ray.settings import TOY

ROWS = 600
SEED = 2026
"""Split `test` of this seed shares no picture with anything that the toy was trained on."""
PICTURES = 6


def write_demo(folder: Path, num_rows: int) -> Path:
    """The archive of the demonstration, and some of its pictures as files. Kept if it exists."""
    archive = folder / "archive" / f"synthetic-{num_rows}.parquet"
    if archive.exists():
        return archive
    archive.parent.mkdir(parents=True, exist_ok=True)
    partial = archive.with_suffix(".tmp")
    synthetic.write_archive(partial, num_rows, SEED)
    (folder / "images").mkdir(exist_ok=True)
    seen: list[bytes] = []
    for row in synthetic.rows(num_rows, SEED):
        if row.image not in seen and row.image.startswith(b"\x89PNG"):
            (folder / "images" / f"{len(seen)}.png").write_bytes(row.image)
            seen.append(row.image)
        if len(seen) == PICTURES:
            break
    put_in_place(partial, archive)
    return archive


def demo_settings(folder: Path, archive: Path) -> ScoreSettings:
    """Score `archive` with the toy into `folder`/run."""
    return ScoreSettings.model_validate(
        {
            **checkpoint_defaults(str(TOY)),
            "out": str(folder / "run"),
            "archive": {"archive": str(archive), "chunk_rows": 16},
            "model": {"path": str(TOY)},
        }
    )


def run_demo(folder: Path, num_rows: int = ROWS) -> Outcome:
    """Score, and compare with the known answers: accuracy overall and by type of question."""
    archive = write_demo(folder, num_rows)
    settings = demo_settings(folder, archive)
    known = pq.read_table(archive, columns=["id", "question_type"]).to_pydict()
    return score(settings, kinds=dict(zip(known["id"], known["question_type"], strict=True)))


def describe(outcome: Outcome, folder: Path) -> list[str]:
    """What happened, in lines for a person."""
    done, summary = outcome.session, outcome.summary
    if summary is None:
        return ["stopped; the same command goes on."]
    reasons = f" {json.dumps(summary.reasons)}" if summary.reasons else ""
    lines = [
        f"{summary.rows} rows: {summary.answered} answered, {summary.abstained} abstained, "
        f"{summary.quarantined} quarantined{reasons}"
    ]
    scores = dict(summary.accuracy or {})
    if scores:
        overall = scores.pop("overall").share
        kinds = ", ".join(f"{kind} {one.share:.3f}" for kind, one in sorted(scores.items()))
        lines.append(f"accuracy: {overall:.3f} overall ({kinds})")
    if done.rows:
        lines.append(
            f"{done.rows} rows in {done.seconds:.1f} s, {done.rate:.1f} rows/s once it ran; "
            f"{done.counters['decodes']} pictures decoded, "
            f"{done.counters['tower_runs']} runs of the vision tower"
        )
    else:
        lines.append("nothing left to do")
    lines.append(f"run folder: {folder.name}/run (rows/, quarantine/, run.json, metrics.json)")
    return lines
