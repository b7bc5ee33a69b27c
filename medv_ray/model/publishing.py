"""An exported folder, with its model card, put on the Hugging Face hub as one commit."""

from __future__ import annotations

import re
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from medv_ray import hub
from medv_ray.errors import CheckpointError, SettingsError
from medv_ray.model import lora, weights
from medv_ray.model.importing import LICENCES

CARD = "README.md"
FRONT = re.compile(r"\A---\n(.*?)\n---\n", re.DOTALL)


def push(folder: Path, repository: str, public: bool = False, message: str = "") -> dict[str, Any]:
    """Put a folder's files in the place of the repository's own, and say which commit has them. The
    same folder again makes no commit; a commit of somebody else in between is not undone.

    Args:
        repository: `org/name`; made, private, where it is not there.
        public: make it public, or push to one that is.

    Raises SettingsError E1001, CheckpointError E14xx: E1419 for what is no exported folder with a
    card and a licence, E1416 for a token that may not write.
    """
    if not hub.REPOSITORY.fullmatch(repository):
        raise SettingsError(
            "E1001", f"{repository[:80]!r} is no org/name, in letters, digits, -_. ."
        )
    check(folder)
    ours = {file.name for file in folder.iterdir() if file.is_file() and is_needed(file.name)}
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, errors

    api = HfApi(library_name="medv_ray")
    with hub.hub_errors(repository):
        try:
            about = api.model_info(repository)
        except errors.RepositoryNotFoundError:
            api.create_repo(repository, private=not public, exist_ok=True)
            about = api.model_info(repository)
        if not (about.private or public):
            text = f"{repository} is public: --public says that everybody may have this model."
            raise SettingsError("E1001", text)
        theirs = {one.rfilename for one in about.siblings or ()}
        stale = sorted(name for name in theirs - ours if "/" not in name and is_needed(name))
        done = api.create_commit(
            repository,
            [
                *(CommitOperationAdd(name, folder / name) for name in sorted(ours)),
                *(CommitOperationDelete(name) for name in stale),
            ],
            commit_message=message or "Export by medv_ray",
            parent_commit=about.sha,
        )
    return {
        "repository": repository,
        "commit": done.oid,
        "new_commit": done.oid != about.sha,
        "private": about.private,
        "files": len(ours),
        "removed": len(stale),
        "left_out": len({*folder.iterdir()}) - len(ours),
    }


def check(folder: Path) -> None:
    """Raises CheckpointError E1419, or what is wrong with the weights (E1401 to E1411)."""
    names = {file.name for file in folder.iterdir()} if folder.is_dir() else set()
    if lora.CONFIG in names:
        lora.adapter_digest(folder)
    elif "config.json" in names:
        weights.read_headers(folder)
    else:
        rule = f"no config.json and no {lora.CONFIG} in it"
        raise CheckpointError("E1419", f"folder {folder.name!r}: {rule}.")
    if CARD not in names:
        raise CheckpointError("E1419", f"folder {folder.name!r} has no model card ({CARD}).")
    front = FRONT.match((folder / CARD).read_text(encoding="utf-8", errors="replace"))
    found = dict(
        re.findall(r"^(license\w*):\s*(\S.*?)\s*$", front[1] if front else "", re.MULTILINE)
    )
    named = found.get("license", "other") != "other" or found.keys() & {"license_name"}
    if not named and not names & {*LICENCES}:
        rule = f"{CARD} names no licence at its top (`license:`; for `other`, `license_name:` too)"
        raise CheckpointError("E1419", f"folder {folder.name!r}: {rule}.")


def is_needed(name: str) -> bool:
    """Whether a model's file of this name is fetched from the hub, and so is put there."""
    return any(fnmatch(name, pattern) for pattern in hub.NEEDED)
