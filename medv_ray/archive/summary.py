"""The end of a job: every row accounted for, the quarantine and metrics.json written."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from medv_ray.archive import rows
from medv_ray.archive.accuracy import MOST_ROWS, Accuracy, accuracy, listed
from medv_ray.archive.folder import METRICS, QUARANTINE
from medv_ray.archive.ledger import Ledger
from medv_ray.archive.plan import Plan
from medv_ray.archive.slides import slide_counts
from medv_ray.archive.store import Store
from medv_ray.errors import RunError
from medv_ray.schema import ANSWER_SCHEMA


@dataclass(frozen=True, slots=True)
class Summary:
    """Every row of the archive, by what became of it."""

    rows: int
    answered: int
    abstained: int
    quarantined: int
    not_scored: int
    """Rows of files that vanished or changed while the job ran; a later run scores them."""
    unreadable_files: int
    """Files that could not be planned; how many rows they have is not known."""
    reasons: dict[str, int]
    """Quarantined rows by reason word."""
    accuracy: dict[str, Accuracy] | None = None
    """Of the answers that the archive knows; None for more rows than are compared."""

    @property
    def exit_code(self) -> int:
        """0 when every row of every file is accounted for, else 1."""
        return 1 if self.not_scored or self.unreadable_files else 0


def not_scored(plan: Plan, ledger: Ledger, skipped: Mapping[str, tuple[str, int]]) -> int:
    """How many rows were skipped and have no earlier answer; `skipped` as in `Run`.

    Raises RunError E1510 unless answered + abstained + quarantined + these = rows.
    """
    counts = ledger.counts()
    # the rows of a chunk that was to be tried again still stand
    rest = sum(skipped[key][1] for key in skipped.keys() - ledger.commits.keys())
    total = counts["answered"] + counts["abstained"] + counts["quarantined"]
    if total != counts["rows"] or total + rest != plan.rows:
        raise RunError(
            "E1510",
            f"{counts['answered']} answered + {counts['abstained']} abstained + "
            f"{counts['quarantined']} quarantined + {rest} not scored is not {plan.rows} rows.",
        )
    return rest


def summarize(
    store: Store, plan: Plan, ledger: Ledger, rest: int, kinds: Mapping[str, str] | None
) -> Summary:
    """The counts of a run whose parts are all in place; writes its quarantine.

    `rest` are the rows that are not scored; `kinds` as in `Run.finish`.
    """
    counts = ledger.counts()
    reasons = write_quarantine(store, ledger)
    return Summary(
        plan.rows, counts["answered"], counts["abstained"], counts["quarantined"],
        rest, len(plan.unreadable), reasons,
        accuracy(store.uri, kinds) if plan.rows <= MOST_ROWS else None,
    )  # fmt: skip


def write_quarantine(store: Store, ledger: Ledger) -> dict[str, int]:
    """Write the quarantined rows; their counts by reason word."""
    columns = ["id", "file", "row", "image_paths", "frame", "code", "reason", "chunk"]
    found = []
    for name, source_keys in ledger.held.items():
        commits = [ledger.commits[key] for key in source_keys]
        if not any(commit.quarantined for commit in commits):
            continue
        sha256 = ledger.files[name].sha256
        table = rows.read_part(store, name, sha256, [*columns, "status"])
        table = rows.only(table, {commit.key for commit in commits}, None)
        mask = pc.equal(table.column("status"), "quarantined")
        found.append(table.filter(mask).select(columns))
    empty = ANSWER_SCHEMA.empty_table().select(columns)
    whole = pa.concat_tables([empty, *found]).sort_by(rows.ORDER)
    store.write(QUARANTINE, rows.render(whole))
    return dict(sorted(Counter(whole.column("reason").to_pylist()).items()))


def write_metrics(
    store: Store,
    plan: Plan,
    summary: Summary,
    files_not_scored: list[str],
    names: Callable[[str], str] = str,
) -> None:
    """Write metrics.json; `names` says what stands for the name of a file."""
    left_out = plan.left_out
    metrics = {
        "rows": summary.rows,
        "answered": summary.answered,
        "abstained": summary.abstained,
        "quarantined": summary.quarantined,
        "not_scored": summary.not_scored,
        "reasons": summary.reasons,
        "files_not_scored": list(map(names, files_not_scored)),
        "unreadable_files": [{"name": names(u.name), "code": u.code} for u in plan.unreadable],
        "accuracy": listed(summary.accuracy),
        "left_out": {"files": left_out.total, "groups": left_out.listed(names)},
        "several_rows": plan.several_rows,
    }
    slides = slide_counts(plan.inputs)
    if slides is not None:
        metrics["slides"] = {n: v for n, v in slides._asdict().items() if n != "names"}
    store.write(METRICS, (json.dumps(metrics, indent=1) + "\n").encode())
