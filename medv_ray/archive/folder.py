"""Which files a run folder has, and which folders may become one."""

from __future__ import annotations

import os
import posixpath

from medv_ray.archive import ledger, lock, manifest, prior, pseudonyms, rows
from medv_ray.archive.listing import would_list
from medv_ray.archive.plan import Plan
from medv_ray.archive.store import Store, is_local
from medv_ray.errors import RunError

EVENTS, METRICS, QUARANTINE = "events.jsonl", "metrics.json", "quarantine/quarantine.parquet"
OWN = (
    manifest.FILE, ledger.FILE, ledger.FOLDER, rows.FOLDER, lock.NAME, EVENTS, METRICS,
    "quarantine", "report.html", "events", prior.FOLDER, pseudonyms.FOLDER,
)  # fmt: skip


def check_is_run_folder(store: Store) -> None:
    """Raises RunError E1507 for a folder that holds anything but a run, E1511 for no folder."""
    tops = {name.removesuffix(".tmp") for name in store.top()}
    strange = sorted(tops - set(OWN))
    headless = manifest.FILE not in tops and (
        ledger.FILE in tops or bool(store.listing(rows.FOLDER))
    )
    if strange or headless:
        others = f"it holds {len(strange)} other names"
        what = others if strange else f"it has rows but no {manifest.FILE}"
        raise RunError("E1507", f"the output folder is neither empty nor a run: {what}.")


def check_outside(out: str, plan: Plan) -> None:
    """Raises RunError E1507 when the output folder holds input, or would be listed as input."""
    archive = plan.archive
    if archive.kind == "dicomweb":
        return
    folder = canonical(out)
    inputs = [(archive.uri, archive.settings.questions or archive.settings.archive)]
    if archive.settings.questions is not None:
        inputs.append((archive.images_uri, archive.settings.archive))
    for uri, pattern in inputs:
        if is_local(uri) != is_local(out):
            continue
        root = canonical(uri)
        by_name = archive.uri == uri and archive.kind != "images"
        held = [f"{root}/{file.path}" for file in archive.files] if by_name else [root]
        if any(path.startswith(folder + "/") for path in held) or root == folder:
            raise RunError("E1507", "the output folder holds the archive.")
        name = f"{folder}/rows/part-0.parquet".removeprefix(root + "/")
        if folder.startswith(root + "/") and would_list(pattern, name):
            raise RunError("E1507", "the output folder lies inside the archive.")


def canonical(uri: str) -> str:
    path = Store(uri).root
    return os.path.realpath(path) if is_local(uri) else posixpath.normpath(path)
