"""The demonstration: a synthetic archive, scored by the embedded toy through the real job."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from medv_ray.archive.rows import read_run
from medv_ray.data import synthetic
from medv_ray.on_ray.options import ScoreSettings, checkpoint_defaults
from medv_ray.on_ray.score import Outcome, score
from medv_ray.settings import TOY

ROWS = 600
SEED = 2026
"""Split `test` of this seed shares no picture with anything that the toy was trained on."""
PICTURES = 6
ACCURACY_ROWS = 1_000_000
"""Rows up to which a job ends with a comparison with the known answers. All rows are read again for
it: some seconds for these, minutes for 10^8."""


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
    partial.rename(archive)
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


def run_demo(folder: Path, num_rows: int = ROWS) -> tuple[Outcome, dict[str, Any]]:
    """Score, then compare with the known answers: accuracy overall and by type of question."""
    archive = write_demo(folder, num_rows)
    settings = demo_settings(folder, archive)
    outcome = score(settings)
    known = pq.read_table(archive, columns=["id", "question_type"]).to_pydict()
    types = dict(zip(known["id"], known["question_type"], strict=True))
    return outcome, accuracy(settings.out, types)


def accuracy(out: str, types: dict[str, str] | None = None) -> dict[str, Any]:
    """Share of rows whose answer is the archive's own, after trimming and case folding.

    Rows without a known answer do not count; rows without an answer are wrong. `types` maps ids to
    a kind of question. Empty when no row has a known answer.
    """
    right: dict[str, list[bool]] = defaultdict(list)
    for table in read_run(out, ["id", "answer", "reference"]):
        for row in table.to_pylist():
            if row["reference"] is None:
                continue
            same = normal(row["answer"] or "") == normal(row["reference"])
            right["overall"].append(same)
            if types is not None:
                right[types.get(row["id"], "other")].append(same)
    return {kind: round(_mean(values), 4) for kind, values in right.items()}


def normal(text: str) -> str:
    """Text for comparison."""
    return text.strip().casefold()


def _mean(values: Iterable[bool]) -> float:
    listed = list(values)
    return sum(listed) / len(listed)


def describe(outcome: Outcome, scores: dict[str, Any], folder: Path) -> list[str]:
    """What happened, in lines for a person."""
    done, summary = outcome.session, outcome.summary
    if summary is None:
        return ["stopped; the same command goes on."]
    reasons = f" {json.dumps(summary.reasons)}" if summary.reasons else ""
    lines = [
        f"{summary.rows} rows: {summary.answered} answered, {summary.abstained} abstained, "
        f"{summary.quarantined} quarantined{reasons}"
    ]
    if scores:
        kinds = ", ".join(f"{k} {v:.3f}" for k, v in sorted(scores.items()) if k != "overall")
        lines.append(f"accuracy: {scores['overall']:.3f} overall ({kinds})")
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
