"""What a job would do, before it does anything: `--plan`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from medv_ray.archive import manifest
from medv_ray.archive.ledger import Ledger
from medv_ray.archive.left_out import LeftOut
from medv_ray.archive.plan import Plan, Unreadable
from medv_ray.archive.store import Store


@dataclass(frozen=True, slots=True)
class Survey:
    """Counts of a plan, and of the run that it would continue."""

    rows: int
    chunks: int
    files: int
    duplicates: int
    unreadable: tuple[Unreadable, ...]
    left_out: LeftOut
    named_images: int
    """Distinct image files that rows name by path; embedded images are not counted."""
    missing_images: int
    missing_examples: tuple[str, ...]
    """Some of the names that were looked for."""
    done_rows: int
    """Rows that a resume would skip."""
    done_chunks: int
    changes: tuple[str, ...]
    """What changed since that run began: it would refuse to resume."""
    added_rows: int
    """Rows that were added since that run began or grew."""


def survey(
    plan: Plan,
    out: str | None = None,
    identity: dict[str, Any] | None = None,
    allow_added: bool = False,
) -> Survey:
    """Count; nothing is written, and a run folder may be in use.

    Raises RunError E1506 when the run folder is damaged.
    """
    done_rows = done_chunks = 0
    changes: list[str] = []
    found = None if out is None else manifest.read_manifest(Store(out))
    if out is not None and found is not None:
        ledger = Ledger.load(Store(out))
        for chunk in plan.chunks:
            if chunk.source_key in ledger.commits:
                done_chunks += 1
                done_rows += ledger.commits[chunk.source_key].rows
        if identity is not None:
            now = {**identity, **plan.identity()}
            changes = plan.changes(found["identity"], now, allow_added)
    return Survey(
        plan.rows,
        len(plan.chunks),
        len(plan.files),
        plan.duplicates,
        plan.unreadable,
        plan.left_out,
        plan.images.distinct,
        plan.images.missing,
        plan.images.examples,
        done_rows,
        done_chunks,
        tuple(changes),
        plan.growth.rows,
    )
