"""run.json: what a run was started with, and the comparison that guards a resume."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from typing import Any

from medv_ray.archive.store import Store
from medv_ray.errors import SHOW_NAMES, RunError, shows_names

FILE = "run.json"
VERSION = 2
WORDS = ("archive.question", "prompt.question_suffix")
"""Fields whose values may be a row's text; a message says only that they changed."""
IMAGES = "an image that rows name by path was changed, added or removed"
UNREADABLE = "unreadable"
"""Stands for the digest of an input file that could not be planned."""


def flatten(value: Any, prefix: str = "") -> dict[str, str]:
    """`{"a": {"b": 1}}` -> `{"a.b": "1"}`; leaves as JSON."""
    if isinstance(value, dict) and value:
        flat: dict[str, str] = {}
        for name, inner in value.items():
            flat |= flatten(inner, f"{prefix}.{name}" if prefix else str(name))
        return flat
    return {prefix: json.dumps(value, sort_keys=True)}


def seal(manifest: dict[str, Any]) -> bytes:
    """The manifest as a file that notices damage to itself."""
    body = {name: value for name, value in manifest.items() if name != "sha256"}
    canonical = json.dumps(body, sort_keys=True)
    digest = hashlib.sha256(canonical.encode()).hexdigest()
    return (json.dumps({**body, "sha256": digest}, indent=1, sort_keys=True) + "\n").encode()


def read_manifest(store: Store) -> dict[str, Any] | None:
    """The manifest of a run folder; None where there is none. Raises RunError E1506 for damage."""
    try:
        data = store.read(FILE)
    except FileNotFoundError:
        return None
    try:
        manifest = json.loads(data)
        whole = isinstance(manifest, dict) and seal(manifest) == data
    except ValueError:
        whole = False
    if not whole:
        raise RunError("E1506", f"{FILE} does not match its own checksum.")
    return manifest  # type: ignore[no-any-return]


def write_manifest(store: Store, manifest: dict[str, Any]) -> None:
    store.write(FILE, seal(manifest))


def identity_changes(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What changed between two identities, one phrase a field, in the order of the new one."""
    old, new = flatten(before), flatten(now)
    changes = []
    unreadable = json.dumps(UNREADABLE)
    for name in [*new, *(n for n in old if n not in new)]:
        if old.get(name) == new.get(name):
            continue
        if name.startswith("files.") and old.get(name) == unreadable and name in new:
            continue  # the file was repaired: the run has no rows of it yet
        if name.startswith("files."):
            file = name.removeprefix("files.")
            verb = "added" if name not in old else "removed" if name not in new else "changed"
            changes.append(f"input file {file!r} {verb}")
        elif name == "images":
            changes.append(IMAGES)
        elif name.endswith(WORDS):
            changes.append(f"{name} changed")
        else:
            changes.append(f"{name}: {short(old.get(name))} -> {short(new.get(name))}")
    return changes


def short(value: str | None) -> str:
    """A leaf for a message; digests by their first digits."""
    if value is None:
        return "(not set)"
    return value if len(value) <= 48 else f"{value[:13]}..."


def refuse(changes: list[str], hint: str = "") -> None:
    """Raise RunError E1502 naming what changed; return when nothing did."""
    if changes:
        counted = Counter(changes)  # without their names, changes of images are alike
        changes = [c if n == 1 else f"{c} ({n} times)" for c, n in counted.items()]
        more = f", and {len(changes) - 4} more" if len(changes) > 4 else ""
        text = f"changed since the run began: {'; '.join(changes[:4])}{more}."
        if not shows_names() and any(change.startswith("an image ") for change in changes):
            text += f" {SHOW_NAMES}=1 says which."
        raise RunError("E1502", f"{text}{hint}")
