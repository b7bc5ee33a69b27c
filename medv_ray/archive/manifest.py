"""run.json: what a run was started with, and the comparison that guards a resume."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from medv_ray.archive.store import Store
from medv_ray.errors import RunError

FILE = "run.json"
VERSION = 1
WORDS = ("archive.question", "prompt.question_suffix")
"""Fields whose values may be a row's text; a message says only that they changed."""
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


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What changed between two identities, one phrase a field, in the order of the new one."""
    old, new = flatten(before), flatten(now)
    told = []
    unreadable = json.dumps(UNREADABLE)
    for name in [*new, *(n for n in old if n not in new)]:
        if old.get(name) == new.get(name):
            continue
        if name.startswith("files.") and old.get(name) == unreadable and name in new:
            continue  # the file was repaired: the run has no rows of it yet
        if name.startswith("files."):
            file = name.removeprefix("files.")
            verb = "added" if name not in old else "removed" if name not in new else "changed"
            told.append(f"input file {file!r} {verb}")
        elif name == "images":
            told.append("an image that rows name by path was changed, added or removed")
        elif name.endswith(WORDS):
            told.append(f"{name} changed")
        else:
            told.append(f"{name}: {short(old.get(name))} -> {short(new.get(name))}")
    return told


def short(value: str | None) -> str:
    """A leaf for a message; digests by their first digits."""
    if value is None:
        return "(not set)"
    return value if len(value) <= 48 else f"{value[:13]}..."


def refuse_changes(before: dict[str, Any], now: dict[str, Any]) -> None:
    """Raise RunError E1502 naming the fields that changed; return when none did."""
    told = differences(before, now)
    if told:
        more = f", and {len(told) - 4} more" if len(told) > 4 else ""
        raise RunError("E1502", f"changed since the run began: {'; '.join(told[:4])}{more}.")
