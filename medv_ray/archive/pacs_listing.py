"""The instances of a PACS as a listing: under names that tell nobody whose they are.

A name is a keyed digest of the instance's UID. The key and the UIDs lie in one file of the run
folder, which only its owner can read.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from typing import Literal, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from medv_ray.archive.left_out import LeftOut
from medv_ray.archive.pseudonyms import FOLDER
from medv_ray.archive.settings import ArchiveSettings
from medv_ray.archive.store import Store, Stored
from medv_ray.dicom_objects import kind_of_class
from medv_ray.dicomweb.address import parse
from medv_ray.dicomweb.client import Client, Trouble
from medv_ray.dicomweb.search import Instance, search
from medv_ray.dicomweb.token import token_of
from medv_ray.errors import DataError, MedvError, RunError

NAME = "dicomweb"
"""Of the one file that such an archive has in run.json: the address may hold identifiers."""
FILE = f"{FOLDER}/instances.parquet"
DIGITS = 24
"""Of a name, hexadecimal: two of 10^9 instances meet with probability 1e-11."""
UNKNOWN_BYTES = 2**20


class Listed(NamedTuple):
    """The instances of a PACS that are rows."""

    images: tuple[Stored, ...]
    """By study, series and number; the size is what their pixels would take."""
    instances: dict[str, Instance]
    """By name."""
    salt: str


def listed(settings: ArchiveSettings, left_out: LeftOut, salt: str = "") -> Listed:
    """Ask the PACS. Without `salt` a new one is made.

    Raises SettingsError E1001, DataError E1110 for no instance, RunError E1110 for a PACS that does
    not answer, E1125 for one that refuses.
    """
    salt = salt or secrets.token_hex(16)
    address = parse(settings.archive)
    with pacs_errors("E1110"):
        found = search(client_of(address.base, settings.token_file), address)
    if found.unnamed:
        left_out.add("", "instances whose UID is none", found.unnamed)
    images, instances = [], {}
    for one in found.instances:
        kind = kind_of_class(one.sop_class)
        if kind:
            left_out.add("", f"no picture ({kind})")
            continue
        name = name_of(salt, one.uid)
        pixels = 2 * one.rows * one.columns * max(one.frames, 1)
        images.append(Stored(name, pixels or UNKNOWN_BYTES, 0))
        instances[name] = one
    if not images:
        why = f"; left out: {left_out}" if left_out.total else ""
        raise DataError("E1110", f"the PACS lists no picture for this query{why}.")
    return Listed(tuple(images), instances, salt)


def name_of(salt: str, uid: str) -> str:
    """24 hexadecimal digits."""
    return hmac.new(salt.encode(), uid.encode(), hashlib.sha256).hexdigest()[:DIGITS]


@lru_cache(maxsize=4)
def client_of(base: str, token_file: str | None) -> Client:
    """One client a process and server. Raises SettingsError E1001."""
    return Client(base, token_of(token_file))


@contextmanager
def pacs_errors(code: Literal["E1107", "E1110", "E1511"]) -> Iterator[None]:
    """Turn what a PACS did into an error of ours: `code`, or E1125 where it refuses."""
    try:
        yield
    except Trouble as trouble:
        raise pacs_error(trouble, code) from None


def pacs_error(trouble: Trouble, code: Literal["E1107", "E1110", "E1511"]) -> MedvError:
    """RunError, which ends a job, but for what only one object is to blame for."""
    if trouble.kind == "refused":
        return RunError("E1125", f"the PACS: {trouble.said}.")
    if trouble.kind == "away" or code != "E1107":
        return RunError(code, f"the PACS: {trouble.said}.")
    if trouble.kind == "gone":
        return DataError("E1111", "the instance is not in the PACS any more.")
    if trouble.kind == "large":
        return DataError("E1112", "the object is larger than max_image_bytes; it was not loaded.")
    return DataError(code, f"the PACS, of an object: {trouble.said}; its chunk is not scored.")


def keep(store: Store, salt: str, instances: Mapping[str, Instance]) -> None:
    """Write the names' key and meaning where only the run's owner reads them."""
    columns = {"name": list(instances)} | {
        field: [getattr(one, field) for one in instances.values()]
        for field in ("study", "series", "uid", "sop_class")
    }
    table = pa.table(columns).replace_schema_metadata({"salt": salt})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    store.write(FILE, sink.getvalue().to_pybytes(), mode=0o600)


def read_kept(store: Store) -> tuple[str, dict[str, Instance]]:
    """What `keep` wrote. Raises RunError E1506 where it is not there or damaged."""
    try:
        table = pq.read_table(pa.BufferReader(store.read(FILE)))
        names, *fields = (column.to_pylist() for column in table.columns)
        salt = table.schema.metadata[b"salt"].decode()
    except (FileNotFoundError, pa.ArrowException, KeyError, TypeError, ValueError):
        text = f"{FILE}, which holds the meaning of its ids, is missing or damaged."
        raise RunError("E1506", text) from None
    return salt, {n: Instance(*one) for n, *one in zip(names, *fields, strict=True)}


def read_salt(store: Store) -> str:
    """The salt alone. Raises as `read_kept`."""
    return read_kept(store)[0]
