"""Reports sent to a PACS by STOW-RS (PS3.18 10.5), none twice."""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import pydicom

from medv_ray.archive.pacs_listing import client_of, pacs_errors
from medv_ray.archive.store import writing
from medv_ray.dicomweb.address import parse
from medv_ray.dicomweb.client import Client
from medv_ray.dicomweb.multipart import related
from medv_ray.errors import DataError, SettingsError
from medv_ray.evaluation.sr_export import LIST, private

STORED = "stored.jsonl"
BATCH = 16
SOP, FAILED, DONE, REASON = "00081155", "00081198", "00081199", "00081197"
ODD = (KeyError, TypeError, IndexError, ValueError, OverflowError)
DUPLICATE = 0x0111
"""Failure reason: the server has this SOP instance already (PS3.4 C.4.2)."""


def store(folder: Path, to: str, token_file: str | None) -> dict[str, int]:
    """Send what is not known to be stored there; the counts.

    What the server has taken is noted after each request, so a killed job goes on. Its last request
    may be repeated, with the same UIDs: the server has the object once.

    Raises SettingsError E1001, DataError E1110 for a folder without reports, RunError E1511 for a
    PACS that does not answer, E1125 for one that refuses.
    """
    if not (folder / LIST).exists():
        raise DataError("E1110", "the folder holds no reports of `medv export-sr`.")
    address = parse(to, "--to")
    if address.filters:
        raise SettingsError("E1001", "--to: the address of a PACS, without a query.")
    client = client_of(address.base, token_file)
    place = hashlib.sha256(address.base.encode()).hexdigest()[:16]
    done = known(folder, place)
    names = sorted(path.name for path in folder.glob("*.dcm"))
    todo = [name for name in names if name not in done]
    counts = {"reports": len(names), "stored_before": len(names) - len(todo)}
    counts |= {"stored": 0, "refused": 0}
    reasons: set[str] = set()
    for first in range(0, len(todo), BATCH):
        batch = todo[first : first + BATCH]
        taken, why = send(client, folder, batch)
        reasons |= why
        with writing(STORED, 0), private(folder / STORED) as file:
            file.writelines(json.dumps({"to": place, "name": name}) + "\n" for name in taken)
            file.flush()
            os.fsync(file.fileno())
        counts["stored"] += len(taken)
        counts["refused"] += len(batch) - len(taken)
    if reasons:
        said = ", ".join(sorted(reasons))
        raise DataError(
            "E1511", f"the PACS took {counts['stored']} and refused {counts['refused']}: {said}."
        )
    return counts


def known(folder: Path, place: str) -> set[str]:
    """Names that were stored there."""
    path = folder / STORED
    if not path.exists():
        return set()
    lines = path.read_text().split("\n")
    if lines[-1]:
        os.truncate(path, sum(len(line.encode()) + 1 for line in lines[:-1]))
    found = map(json.loads, lines[:-1])
    return {one["name"] for one in found if one["to"] == place}


def send(client: Client, folder: Path, names: list[str]) -> tuple[list[str], set[str]]:
    """One request: the names that the server has now, and why it has not the others."""
    objects = [(folder / name).read_bytes() for name in names]
    by_uid = {uid_of(folder / name): name for name in names}
    boundary = uuid4().hex
    with pacs_errors("E1511"):
        status, answer = client.store(related(objects, boundary), boundary)
    refused = entries(answer, FAILED)
    failed = {u: code for u, code in refused.items() if code != DUPLICATE and u in by_uid}
    if status == 409 and not refused:
        failed = dict.fromkeys(by_uid, 0)
    has = entries(answer, DONE) | refused
    # a server may answer 200 without a list of what it took
    is_whole = status == 200 and not items(answer, FAILED)
    taken = {uid for uid in by_uid if uid not in failed and (uid in has or is_whole)}
    why = {
        f"failure reason {code:04X}H" if code else f"it answered {status}, without a reason"
        for code in failed.values()
    }
    if len(taken) + len(failed) < len(names):
        why.add("it does not say what became of some")
    return [name for uid, name in by_uid.items() if uid in taken], why


def uid_of(path: Path) -> str:
    """The SOP Instance UID of a file."""
    return str(pydicom.dcmread(path, specific_tags=["SOPInstanceUID"]).SOPInstanceUID)


def items(answer: Any, tag: str) -> list[Any]:
    """A sequence in the server's answer."""
    with suppress(*ODD):
        return list(answer[tag]["Value"])
    return []


def entries(answer: Any, tag: str) -> dict[str, int]:
    """UIDs of a sequence in the server's answer, with the failure reason or 0. An item that names
    no object counts for none, and takes no other with it."""
    found = {}
    for item in items(answer, tag):
        with suppress(*ODD):
            uid = str(item[SOP]["Value"][0])
            found[uid] = 0
            found[uid] = int(item[REASON]["Value"][0])
    return found
