"""What a run left in its folder, taken away so that the next one starts over; nothing else goes."""

from __future__ import annotations

import fnmatch
import shutil
from pathlib import Path

from medv_ray.errors import RunError
from medv_ray.model.importing import LICENCES
from medv_ray.model.lora import CONFIG, TENSORS
from medv_ray.model.lora import NOTE as ADAPTER
from medv_ray.model.shards import INDEX
from medv_ray.model.weights import TOKENIZER_FILES
from medv_ray.training.card import CARD
from medv_ray.training.job import CURVES, FAILED, MANIFEST, MODEL, NOTE, PARTIAL, STOP
from medv_ray.training.watch import EVENTS
from medv_ray.training.writers import RUN_IDS

SHOWN_NAMES = 5
FILES = (
    *(PARTIAL, "run.tmp", EVENTS, RUN_IDS, f"{RUN_IDS}.tmp", CURVES, f"{CURVES}.tmp"),
    *(NOTE, f"{NOTE}.tmp", STOP, FAILED, f"{FAILED}.*"),
)
FOLDERS = {
    "checkpoints": ("step-*",),
    "tensorboard": ("events.out.tfevents.*",),
    "ray": ("*",),  # Ray Train's own
    "wandb": ("*",),
    MODEL: (
        *("config.json", "*.safetensors", INDEX, CONFIG, TENSORS, ADAPTER, CARD),
        *TOKENIZER_FILES,
        *LICENCES,
    ),
}
"""Folders of a run, and the names that it gives in them."""


def remove_run(out: Path) -> None:
    """Remove what a run made in `out`; its manifest last, so that what a kill leaves is a run's.

    What the run did not make stays. Raises RunError E1507, and removes nothing, where that lies in
    the folder that the next run's model needs.
    """
    foreign = sorted(entry.name for entry in _entries(out / MODEL) if not _is_ours(entry))
    if foreign:
        more = ", ..." if len(foreign) > SHOWN_NAMES else ""
        text = f"{MODEL}/ holds what the run did not make: {', '.join(foreign[:SHOWN_NAMES])}{more}"
        raise RunError("E1507", f"{text}. Move it away; nothing was removed.")
    for name in FOLDERS:
        entries = _entries(out / name)
        for entry in filter(_is_ours, entries):
            _remove(entry)
        if entries and not _entries(out / name):
            (out / name).rmdir()
    for entry in _entries(out):
        if any(fnmatch.fnmatchcase(entry.name, pattern) for pattern in FILES):
            _remove(entry)
    (out / MANIFEST).unlink(missing_ok=True)


def _entries(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() and not folder.is_symlink() else []


def _is_ours(entry: Path) -> bool:
    patterns = FOLDERS[entry.parent.name]
    return any(fnmatch.fnmatchcase(entry.name, pattern) for pattern in patterns)


def _remove(entry: Path) -> None:
    if entry.is_dir() and not entry.is_symlink():
        shutil.rmtree(entry)
    else:
        entry.unlink()
