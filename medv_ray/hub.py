"""Models of the Hugging Face hub: a name becomes a local folder here, and nowhere else.

`org/name@revision` is resolved to a commit once; what is needed of it lies in the hub's own cache
(HF_HOME), under `models--org--name/snapshots/<commit>`. That path is what settings, workers and
manifests hold: it says by itself which commit it is, and a worker on another machine fetches the
same one (`here`). Only weights, JSON, tokenizer and licence are fetched: no pickle, no code.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from medv_ray.errors import CheckpointError, MedvError, RunError, SettingsError

log = logging.getLogger(__name__)

SCHEME = "hf://"
NAME = r"[A-Za-z0-9][\w.-]{0,95}"
REPOSITORY = re.compile(rf"{NAME}/{NAME}")
COMMIT = re.compile(r"[0-9a-f]{40}")
SNAPSHOT = re.compile(rf"models--({NAME}?)--({NAME})/snapshots/([0-9a-f]{{40}})/?$")
NEEDED = ("*.safetensors", "*.json", "*.jinja", "*.txt", "README.md", "LICENSE*", "LICENCE*")
"""What may be fetched of a model, of its top folder alone."""
BLOCK = 2**20


class Reference(NamedTuple):
    """A model or a dataset of the hub at a revision."""

    repository: str
    revision: str

    def __str__(self) -> str:
        return f"{self.repository}@{self.revision}"


def reference(model: str) -> Reference | None:
    """What a name means: a hub's model, or None for a folder.

    What exists on this disk under just this name is a folder. Else `org/name@revision` is the
    hub's, and `hf://org/name` always, which is its `main`. Nothing is asked of a network for a
    mistyped folder. Raises SettingsError E1001 for a name without its revision.
    """
    text = model.removeprefix(SCHEME)
    surely = text != model
    if not surely and os.path.exists(model):
        return None
    repository, at, revision = text.partition("@")
    if not REPOSITORY.fullmatch(repository):
        if surely:
            raise SettingsError("E1001", f"{model[:80]!r} is no {SCHEME}org/name@revision.")
        return None
    if surely and not at:
        revision = "main"
    if not re.fullmatch(r"\w[\w./-]{0,99}", revision):
        raise SettingsError(
            "E1001",
            f"model {model[:80]!r}: no such folder here; a model of the hub is named with its "
            f"revision: {repository}@COMMIT, or {repository}@main for the newest.",
        )
    return Reference(repository, revision)


def origin(folder: str) -> Reference | None:
    """The repository and commit of a folder in a hub's cache; None for any other folder."""
    found = SNAPSHOT.search(folder)
    return found and Reference(f"{found[1]}/{found[2]}", found[3])


def name_of(folder: str) -> str:
    """`org/name@commit` of a folder in a hub's cache; of another one, its own name."""
    return str(origin(folder) or Path(folder).name)


def fetched(asked: Reference) -> str:
    """The local folder of a hub's model, whole and checked; nothing is asked of a network that the
    cache knows for this commit.

    Raises CheckpointError E1406 and E1415 to E1418, RunError E1503.
    """
    from huggingface_hub import snapshot_download

    at = Reference(asked.repository, commit_of(asked))
    with hub_errors(at):
        before = set(os.listdir(cached(at))) if os.path.isdir(cached(at)) else set()
        folder = snapshot_download(
            asked.repository,
            revision=at.revision,
            allow_patterns=list(NEEDED),
            ignore_patterns="*/*",
            library_name="medv_ray",
        )
    names = os.listdir(folder) if os.path.isdir(folder) else []
    for name in sorted({*names} - before):
        check_blob(Path(folder, name), at)
    if not any(name.endswith(".safetensors") for name in names):
        text = "no safetensors in its top folder; weights as pickles are not fetched"
        raise CheckpointError("E1406", f"{at}: {text}.")
    return folder


def commit_of(
    asked: Reference, kind: str = "model", raised: type[MedvError] = CheckpointError
) -> str:
    """The commit that a revision is now, 40 hex digits; where the hub is not reached, the one that
    it was when it was last asked. Raises `raised` with E1415 to E1417."""
    from huggingface_hub import HfApi

    if COMMIT.fullmatch(asked.revision):
        return asked.revision
    with hub_errors(asked, raised):
        api = HfApi(library_name="medv_ray")
        found = api.resolve_revision(asked.repository, repo_type=kind, revision=asked.revision)
    log.warning("%s is commit %s; @%s stays with it", asked, found.resolved, found.resolved)
    return found.resolved


def here(folder: str) -> str:
    """The same folder on this machine: one of a hub's cache is fetched, or made whole, where it is
    not there. Raises as `fetched`."""
    asked = origin(folder)
    if asked is None:
        return folder
    mine = os.path.realpath(cached(asked)) == os.path.realpath(folder)
    return folder if os.path.isdir(folder) and not mine else fetched(asked)


def cached(at: Reference) -> str:
    """Where this machine keeps a commit."""
    from huggingface_hub.constants import HF_HUB_CACHE

    repository = at.repository.replace("/", "--")
    return os.path.join(HF_HUB_CACHE, f"models--{repository}", "snapshots", at.revision)


def check_blob(file: Path, at: Reference) -> None:
    """A file's content beside the digest that the cache names it by: SHA-256, or git's SHA-1.

    Raises CheckpointError E1418, and takes the file out of the cache: the next run fetches it.
    """
    blob = file.resolve()
    if not re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", blob.name):
        return  # a cache without links
    digest = hashlib.sha256()
    if len(blob.name) == 40:
        digest = hashlib.sha1(b"blob %d\0" % blob.stat().st_size, usedforsecurity=False)
    with blob.open("rb") as opened:
        while block := opened.read(BLOCK):
            digest.update(block)
    if digest.hexdigest() != blob.name:
        file.unlink()
        blob.unlink()
        raise CheckpointError("E1418", f"{at}: {file.name} is not what the hub says it is.")


@contextmanager
def hub_errors(asked: Reference | str, raised: type[MedvError] = CheckpointError) -> Iterator[None]:
    """Turn what the hub's client raises into errors of the catalogue, without its text: that names
    addresses and paths."""
    import httpx2
    from huggingface_hub import errors
    from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]
    from huggingface_hub.utils import logging as hub_logging

    # its warnings hold addresses
    hub_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    if not sys.stderr.isatty():
        disable_progress_bars()
    try:
        yield
    except errors.HFValidationError:
        raise SettingsError("E1001", f"{asked} is no name of the hub.") from None
    except (httpx2.HTTPError, OSError, errors.RevisionResolutionError) as error:
        raise problem(asked, error, raised) from None


def problem(asked: Reference | str, error: BaseException, raised: type[MedvError]) -> MedvError:
    """What is wrong, by the error that lies deepest."""
    from huggingface_hub import errors

    while error.__cause__ is not None and not isinstance(error, errors.HfHubHTTPError):
        error = error.__cause__
    token = "the token that is set does" if has_token() else "without a token (HF_TOKEN) one does"
    status = error.response.status_code if isinstance(error, errors.HfHubHTTPError) else 0
    if isinstance(error, errors.GatedRepoError):
        return raised("E1416", f"{asked} is gated, and {token} not open it.")
    if isinstance(error, errors.RevisionNotFoundError):
        return raised("E1415", f"{asked}: the hub has no such revision.")
    if isinstance(error, errors.RepositoryNotFoundError):
        text = f"{asked}: the hub has none of that name, or it is private: {token} not see it."
        return raised("E1415", text)
    if isinstance(error, errors.EntryNotFoundError) and status:
        return raised("E1415", f"{asked}: the hub has no such file.")
    if isinstance(error, errors.DisabledRepoError) or status in (401, 403):
        return raised("E1416", f"{asked}: the hub refuses ({status}); {token} not do.")
    if status:
        return raised("E1417", f"{asked}: the hub answers {status}.")
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return RunError("E1503", "the hub's cache (HF_HOME): no space is left.")
    if isinstance(error, OSError) and str(error).startswith("Consistency check failed"):
        return raised("E1418", f"{asked}: a file came cut short.")
    if isinstance(error, errors.OfflineModeIsEnabled):
        return raised("E1417", f"{asked}: HF_HUB_OFFLINE is set, and the cache has not all of it.")
    return raised("E1417", f"{asked}: the hub is not reached ({type(error).__name__}).")


def has_token() -> bool:
    """Whether the environment, or the hub's own file, has a token."""
    from huggingface_hub import get_token

    return get_token() is not None
