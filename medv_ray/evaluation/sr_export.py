"""Reports of a run as files: one a row with an answer, made once."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError

from medv_ray import files
from medv_ray.archive.manifest import read_manifest
from medv_ray.archive.pacs_listing import client_of, pacs_errors, read_kept
from medv_ray.archive.plan import Plan
from medv_ray.archive.reading import iter_rows
from medv_ray.archive.results import Choice, rows_of
from medv_ray.archive.settings import ArchiveSettings
from medv_ray.archive.store import Store, writing
from medv_ray.dicomweb.address import parse
from medv_ray.dicomweb.client import Client, Trouble
from medv_ray.dicomweb.search import Instance
from medv_ray.errors import DataError, RunError, SettingsError
from medv_ray.evaluation.sr_document import HEADER, About, document, header_of, silent
from medv_ray.evaluation.stored_calibration import StoredCalibration
from medv_ray.settings import identity_digest

LIST = "reports.jsonl"
HEADER_TAGS = {f"{tag_for_keyword(keyword):08X}" for keyword in HEADER}
COLUMNS = (
    "id", "file", "row", "question", "answer", "confidence", "image_sha256", "image_paths",
    "warnings",
)  # fmt: skip
Key = tuple[int, int]
Rows = Mapping[Key, Mapping[str, Any]]
Headers = Callable[[Rows], Iterator[tuple[Key, Dataset | None]]]
"""Of some rows, the header of each one's picture; None where it is no DICOM object. Rows that are
not in the archive any more are left out."""


@dataclass(frozen=True)
class Model:
    """What a report says of the model beside its digest."""

    name: str
    licence: str


@dataclass
class Made:
    """What became of the rows."""

    written: int = 0
    already_there: int = 0
    without_source: int = 0
    """Of all reports, those with a placeholder, though identifiers were asked for."""
    abstained: int = 0
    quarantined: int = 0

    def as_json(self) -> dict[str, int]:
        """Counts by name."""
        return asdict(self)


def about_run(out: str, model: Model, calibration: StoredCalibration | None = None) -> About:
    """What the reports of a run say. Raises RunError E1507 where none is, SettingsError E1001 for
    the calibration of another model."""
    manifest = read_manifest(Store(out))
    if manifest is None:
        raise RunError("E1507", "there is no run in this folder.")
    identity = manifest["identity"]
    why = calibration.differs(identity) if calibration is not None else None
    if why is not None:
        raise SettingsError("E1001", f"--calibration: it is not this run's: {why}.")
    said = None if calibration is None else f"calibrated on {calibration.n} answers"
    begun = f"{identity_digest(identity)} {manifest['started']} {model} {said}"
    return About(
        run=hashlib.sha256(begun.encode()).hexdigest(),
        started=manifest["started"],
        model=model.name,
        model_sha256=identity["model"]["sha256"],
        adapter_sha256=identity["model"].get("adapter_sha256"),
        settings_sha256=identity_digest(identity["settings"]),
        licence=model.licence,
        calibration=said,
    )


def export(
    out: str,
    folder: Path,
    about: About,
    headers: Headers | None = None,
    calibration: StoredCalibration | None = None,
) -> Made:
    """Write the reports that are not there yet, and `reports.jsonl`, which leads from each to its
    row. With `headers`, patients are named; both are readable by the owner alone. Some ten thousand
    rows are held at a time.

    Raises RunError E1503, E1511, E1506; SettingsError E1001 for a folder of other reports.
    """
    made, lost = Made(), 0
    key = about.uid("reports", headers is not None)
    with writing(LIST, 0):
        listed = listing(folder, key)
        for table in rows_of(out, Choice()):
            rows: dict[Key, dict[str, Any]] = {}
            for row in table.select([*COLUMNS, "status"]).to_pylist():
                status = row.pop("status")
                if status == "answered":
                    rows[row["file"], row["row"]] = row
                else:
                    setattr(made, status, getattr(made, status) + 1)
            lost += len(rows)
            for place, source in (headers or nameless)(rows):
                lost -= 1
                made.without_source += headers is not None and source is None
                name = f"{place[0]}-{place[1]:08d}.dcm"
                if name in listed:
                    made.already_there += 1
                    continue
                row = rows[place]
                if calibration is not None:
                    row["confidence"] = calibrated(calibration, row["confidence"])
                report = document(row, about, source)
                write(folder / name, report)
                with private(folder / LIST) as file:
                    entry = {"name": name, "id": row["id"], "uid": str(report.SOPInstanceUID)}
                    file.write(json.dumps(entry) + "\n")
                made.written += 1
    if lost:
        raise DataError("E1107", f"{lost} rows of the run are not in --archive any more.")
    return made


def nameless(rows: Rows) -> Iterator[tuple[Key, Dataset | None]]:
    """No header at all: `Headers` where no patient is to be named."""
    return ((place, None) for place in rows)


def calibrated(found: StoredCalibration, confidence: float) -> float:
    """The confidence that the calibration gives for this one."""
    return float(found.calibrator(np.asarray([confidence]))[0])


def listing(folder: Path, key: str) -> set[str]:
    """Names of the reports that are there as a whole. Raises SettingsError E1001."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LIST
    lines = path.read_text().split("\n") if path.exists() else [""]
    if len(lines) == 1:  # not there, or a full disk cut the first line short: no report is, either
        if any(one != path for one in folder.iterdir()):
            raise SettingsError("E1001", "--out: the folder is not empty and holds no reports.")
        with private(path) as file:
            file.truncate(0)
            file.write(json.dumps({"reports": key}) + "\n")
        return set()
    if json.loads(lines[0]).get("reports") != key:
        text = "--out: it holds reports of another run, or made with other options."
        raise SettingsError("E1001", text)
    if lines[-1]:  # a crash cut the last one short: it never happened
        os.truncate(path, sum(len(line.encode()) + 1 for line in lines[:-1]))
    return {json.loads(line)["name"] for line in lines[1:-1]}


def private(path: Path) -> Any:
    """A text file to append to, for its owner alone."""
    return open(path, "a", opener=lambda name, flags: os.open(name, flags, 0o600))


def write(path: Path, report: Dataset) -> None:
    """A report as a whole file, for its owner alone."""
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, report, enforce_file_format=True)
    hidden = path.with_suffix(".tmp")
    files.write_durably(hidden, buffer.getvalue(), 0o600)
    files.put_in_place(hidden, path)


def headers_in_pacs(out: str, settings: ArchiveSettings) -> Headers:
    """Of the instances of a PACS, as it has them now."""
    instances = read_kept(Store(out))[1]
    client = client_of(parse(settings.archive).base, settings.token_file)

    def headers(rows: Rows) -> Iterator[tuple[Key, Dataset | None]]:
        for place, row in rows.items():
            one = instances.get((row["image_paths"] or [""])[0] or "")
            yield place, None if one is None else _told(client, one)

    return headers


def _told(client: Client, one: Instance) -> Dataset | None:
    with pacs_errors("E1107"):
        try:
            found, _ = client.json(f"{one.path}/metadata", {})
        except Trouble as trouble:
            if trouble.kind == "gone":
                return None
            raise
    try:
        told = {tag: value for tag, value in found[0].items() if tag in HEADER_TAGS}
        with silent():
            header = header_of(Dataset.from_json(told))
    except (TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
        raise DataError("E1107", "the PACS: its metadata of an instance is none.") from error
    if header is not None and header.SOPInstanceUID != one.uid:
        raise DataError("E1107", "the PACS told of another instance than the one asked for.")
    return header


def headers_in_files(plan: Plan) -> Headers:
    """Of pictures that are DICOM, of a run over this archive.

    Raises DataError E1107 for an archive that is not the run's.
    """

    def headers(rows: Rows) -> Iterator[tuple[Key, Dataset | None]]:
        for chunk in plan.chunks:
            if not any((chunk.file, row) in rows for row in chunk.rows):
                continue
            for one in iter_rows(plan.archive, chunk):
                row = rows.get((one.file, one.row))
                if row is None:
                    continue
                data = one.image or b""
                if row["image_sha256"].split()[0] != hashlib.sha256(data).hexdigest():
                    text = "a picture of --archive is not the one that was scored."
                    raise DataError("E1107", text)
                yield (one.file, one.row), header_in(data)

    return headers


def header_in(data: bytes) -> Dataset | None:
    """Of a file's bytes; None where they are no DICOM object."""
    try:
        with silent():
            found = pydicom.dcmread(
                io.BytesIO(data), stop_before_pixels=True, specific_tags=list(HEADER)
            )
            found.decode()
            return header_of(found)
    except (InvalidDicomError, ValueError, AttributeError, LookupError, OSError, TypeError):
        return None
