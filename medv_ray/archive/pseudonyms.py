"""Salted digests in place of row ids and picture names.

A pseudonym is the first 128 bits of HMAC-SHA256 under the run's salt. Ids are compared, and seeds
drawn from them, before they are replaced: a run answers the same with pseudonyms and without.

The salt lies in `private/` of the run folder, or in a file of the user's, with mode 0600.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import stat
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, Self
from uuid import uuid4

from pydantic import model_validator

from medv_ray import files
from medv_ray.archive.manifest import read_manifest
from medv_ray.archive.store import Store, writing
from medv_ray.errors import SettingsError
from medv_ray.settings import Settings
from medv_ray.tables.ids import normal

FOLDER = "private"
SALT = f"{FOLDER}/salt"
LEAST_SALT = 32
"""Bytes: who guesses the salt finds the 7 digits of a record number in seconds."""
DIGITS = 32


class PrivacySettings(Settings):
    """What a run folder's rows say of where they come from."""

    ids: Literal["plain", "digest"] = "plain"
    """`digest`: row ids and picture names in rows/, quarantine/, report and exports are salted
    digests. Questions and answers stay: they are the results."""
    salt_file: str | None = None
    """A file of the salt, 32 bytes or more, readable by its owner alone; made where there is none.
    Runs with one salt have the same pseudonyms. Default: a salt of the run's own, in private/."""
    mapping: bool = False
    """Write private/mapping, which leads from pseudonyms back to ids and picture names."""

    @model_validator(mode="after")
    def _only_with_digests(self) -> Self:
        if self.ids == "plain" and (self.mapping or self.salt_file is not None):
            raise ValueError("salt_file and mapping go with ids=digest")
        return self


@dataclass(frozen=True, repr=False)
class Pseudonyms:
    """The digests of one salt. The repr holds nothing of it: Ray writes reprs into its logs."""

    salt: bytes
    mapping: bool = False

    def of_id(self, row_id: str) -> str:
        """Of a row's id, as ids are compared: 32 hex digits."""
        return self._digest("id", normal(row_id))

    def of_image(self, name: str) -> str:
        """Of a picture's path inside the archive: 32 hex digits."""
        return self._digest("image", name)

    def of_file(self, name: str) -> str:
        """Of the name of an input file."""
        return self._digest("file", name)

    @property
    def identity(self) -> dict[str, Any]:
        """What must be equal for a resume."""
        check = self._digest("salt", "")
        return {"ids": "digest", "salt_check": check, "mapping": self.mapping}

    def _digest(self, kind: str, text: str) -> str:
        data = f"{kind}\0{text}".encode(errors="surrogatepass")
        return hmac.new(self.salt, data, hashlib.sha256).hexdigest()[:DIGITS]

    def hide(self, record: dict[str, Any]) -> dict[str, Any]:
        """An output row with pseudonyms in place of id and picture names."""
        paths = record["image_paths"]
        hidden = paths and [None if path is None else self.of_image(path) for path in paths]
        return {**record, "id": self.of_id(record["id"]), "image_paths": hidden}


def find(settings: PrivacySettings, out: str, new_run: bool = False) -> Pseudonyms | None:
    """The pseudonyms of a run, on a salt that is there already or is made up here; None for plain
    ids. Writes nothing.

    Raises SettingsError E1001 for a salt that is too short or that others can read, and for an
    object store, which has no file modes.
    """
    if settings.ids == "plain":
        return None
    store = Store(out)
    if not store.local and (settings.mapping or settings.salt_file is None):
        what = "a mapping" if settings.mapping else "a salt of the run's own"
        text = f"privacy: {what} needs a run folder on a disk; give privacy.salt_file alone."
        raise SettingsError("E1001", text)
    path = settings.salt_file or store.path(SALT)
    is_new = new_run and settings.salt_file is None
    salt = None if is_new else read_salt(path)
    return Pseudonyms(salt or secrets.token_hex(LEAST_SALT).encode(), settings.mapping)


def read_salt(path: str) -> bytes | None:
    """The salt in a file; None where there is none. Raises SettingsError E1001."""
    try:
        with open(path, "rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            salt = file.read(2**16).strip()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise SettingsError("E1001", f"the salt cannot be read ({type(error).__name__}).") from None
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise SettingsError("E1001", "others can read the file of the salt: chmod 600 it.")
    if len(salt) < LEAST_SALT:
        text = f"the salt has {len(salt)} bytes, fewer than {LEAST_SALT}: openssl rand -hex 32."
        raise SettingsError("E1001", text)
    return salt


def keep_salt(settings: PrivacySettings, out: str, pseudonyms: Pseudonyms) -> None:
    """Have the salt in its file, if it is not there.

    Raises RunError E1503, E1511, and SettingsError E1001 where another job made the file meanwhile.
    """
    path = settings.salt_file
    if path is None:
        store = Store(out)
        path = store.path(SALT)
        if not store.exists(SALT):
            write_private(store, SALT, pseudonyms.salt + b"\n")
    else:
        with writing("the salt", 0), suppress(FileExistsError):
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(handle, "wb") as file:
                file.write(pseudonyms.salt + b"\n")
                file.flush()
                os.fsync(file.fileno())
    if read_salt(path) != pseudonyms.salt:
        raise SettingsError("E1001", "another job made this salt meanwhile; start again.")


def write_private(store: Store, name: str, data: bytes) -> None:
    """A local file that its owner alone may read, in place as a whole. Raises RunError E1503,
    E1511."""
    path = store.path(name)
    hidden = f"{path}.{uuid4().hex[:8]}.tmp"
    with writing(path, len(data)):
        os.makedirs(store.path(FOLDER), mode=0o700, exist_ok=True)
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        files.write_durably(hidden, data, mode=0o600)
        files.put_in_place(hidden, path)


def of_run(out: str, salt_file: str | None = None) -> Pseudonyms | None:
    """What the rows of a run are named by; None for plain ids.

    Raises SettingsError E1001 where its salt is not there, or is another one.
    """
    known = ((read_manifest(Store(out)) or {}).get("identity") or {}).get("privacy")
    if known is None:
        return None
    salt = read_salt(salt_file or Store(out).path(SALT))
    if salt is None:
        text = "the rows hold digests of ids: give --salt-file, or --mapping with the way back."
        raise SettingsError("E1001", text)
    found = Pseudonyms(salt, known["mapping"])
    if found.identity != known:
        raise SettingsError("E1001", "this is not the salt of the run.")
    return found
