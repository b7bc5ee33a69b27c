"""A row's answer as a DICOM structured report: TID 1500, by highdicom.

Every report says which model answered under which settings, that nobody checked it, and whether the
confidence is calibrated. UIDs follow from run and row: a report that is made or sent again is the
same object.
"""

from __future__ import annotations

import hashlib
import logging
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from highdicom.sr import (
    AlgorithmIdentification,
    CodedConcept,
    ComprehensiveSR,
    DeviceObserverIdentifyingAttributes,
    Measurement,
    MeasurementReport,
    MeasurementsAndQualitativeEvaluations,
    ObservationContext,
    ObserverContext,
    RelationshipTypeValues,
    SourceImageForMeasurementGroup,
    TextContentItem,
    TrackingIdentifier,
)
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes

from medv_ray import __version__

NOTICE = "Research use only, not for diagnosis. The answer of a model, which nobody has checked."
SCHEME = "99MEDV"
IMAGING_PROCEDURE = CodedConcept("363679005", "SCT", "Imaging procedure")
SERIES_NUMBER = 9901
NAME_CHARACTERS = 64
"""Of a value of VR LO, PN or SH with room to spare."""
HEADER = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyInstanceUID"),
    *("StudyDate", "StudyTime", "StudyID", "AccessionNumber", "ReferringPhysicianName"),
    *("SeriesInstanceUID", "SOPClassUID", "SOPInstanceUID", "SpecificCharacterSet"),
    *("Rows", "Columns", "NumberOfFrames"),
)
"""What is taken from a source object, where identifiers are asked for."""
CHECKED = ("PatientBirthDate", "PatientSex", "StudyDate", "StudyTime")
"""highdicom takes no value of another form than theirs, as 12:00:00 in old files; a report has what
its study has."""
_FRAME = re.compile(r"frame:(\d+)/\d+|first_of_frames:\d+")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


@dataclass(frozen=True)
class About:
    """What every report of a run says."""

    run: str
    """64 hex digits: the run, and what its reports say beside the rows."""
    started: float
    """Seconds since 1970."""
    model: str
    model_sha256: str
    adapter_sha256: str | None
    settings_sha256: str
    """Of sampler, prompt and image settings: the recipe."""
    licence: str
    calibration: str | None
    """In words, how the confidences became calibrated ones; None: they did not."""

    def uid(self, *of: object) -> str:
        """A UID that follows from the run (PS3.5 B.2)."""
        text = "\0".join(map(str, (self.run, *of)))
        return f"2.25.{int(hashlib.sha256(text.encode()).hexdigest()[:32], 16)}"


@contextmanager
def silent() -> Iterator[None]:
    """Without what pydicom and highdicom warn of and log, which repeats values: a patient's name,
    say, or a UID."""
    for name in ("highdicom", "pydicom"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@silent()
def document(row: Mapping[str, Any], about: About, source: Dataset | None = None) -> Dataset:
    """The report of a row with an answer.

    Args:
        row: columns of an answer file; `confidence` already calibrated where `about` says so.
        source: header of the picture's own object: the report names its patient, study and UIDs.
            Without one it has a placeholder patient, a study of the run's own, and in place of the
            row's id a digest.
    """
    origin = placeholder(about) if source is None else source
    seen = place(row, source)
    sound = deepcopy(origin)
    for keyword in CHECKED:
        setattr(sound, keyword, "")
    report: Dataset = ComprehensiveSR(
        evidence=[sound],
        content=content(row, about, source)[0],
        series_instance_uid=about.uid("series", origin.StudyInstanceUID),
        series_number=SERIES_NUMBER,
        sop_instance_uid=about.uid("report", *seen, row["answer"], row["confidence"]),
        instance_number=int(row["row"]) + 1,
        manufacturer="medv_ray",
        is_complete=True,
        series_description="Answers of a model. RESEARCH USE ONLY",
        manufacturer_model_name=short(about.model),
        software_versions=f"medv_ray {__version__}",
        device_serial_number=about.model_sha256[:32],
        specific_character_set="ISO_IR 192",
    )
    if source is None:  # nothing that exists is referred to
        for kind in ("CurrentRequestedProcedure", "PertinentOther"):
            keyword = f"{kind}EvidenceSequence"
            if keyword in report:
                delattr(report, keyword)
    for keyword in CHECKED:
        report.add(origin[keyword])
    moment = datetime.fromtimestamp(about.started, UTC)
    if source is None:  # the times of a study that exists are of its own zone
        report.TimezoneOffsetFromUTC = "+0000"
    for part in ("Content", "InstanceCreation", "Series"):
        setattr(report, f"{part}Date", moment.strftime("%Y%m%d"))
        setattr(report, f"{part}Time", moment.strftime("%H%M%S"))
    for equipment in report.get("ContributingEquipmentSequence", []):  # highdicom itself
        equipment.ContributionDateTime = moment.strftime("%Y%m%d%H%M%S+0000")
    return report


def content(row: Mapping[str, Any], about: About, source: Dataset | None) -> MeasurementReport:
    """The tree of TID 1500: one group (TID 1501) with question, answer and confidence."""
    algorithm = AlgorithmIdentification(
        name=plain(about.model),
        version=f"medv_ray {__version__}, weights {about.model_sha256[:16]}",
        parameters=[f"{name}: {value}" for name, value in identity(about).items()],
    )
    calibrated = about.calibration is not None
    word = "calibrated" if calibrated else "not calibrated"
    name = CodedConcept(
        "confidence-cal" if calibrated else "confidence-raw",
        SCHEME,
        f"Mean token confidence, {word}",
    )
    confidence = Measurement(name=name, value=float(row["confidence"]), unit=codes.UCUM.NoUnits)
    seen = place(row, source)
    group = MeasurementsAndQualitativeEvaluations(
        tracking_identifier=TrackingIdentifier(
            uid=about.uid("row", *seen),
            identifier=plain(row["id"]) if source is not None else about.uid("id", *seen)[-16:],
        ),
        algorithm_id=algorithm,
        measurements=[confidence],
        source_images=None if source is None else [
            SourceImageForMeasurementGroup(
                source.SOPClassUID, source.SOPInstanceUID, frames_seen(row)
            )
        ],
    )  # fmt: skip
    group[0].ContentSequence.extend(
        text(code, meaning, value)
        for code, meaning, value in (
            ("question", "Question", row["question"]),
            ("answer", "Answer", row["answer"]),
            ("calibration", "Calibration of the confidence", about.calibration or word),
            ("licence", "Licence of the model", about.licence),
        )
    )
    device = DeviceObserverIdentifyingAttributes(
        uid=about.uid("device", about.model_sha256),
        name=short(about.model),
        manufacturer_name="medv_ray",
        model_name="LLaDA-MedV",
        serial_number=about.model_sha256[:32],
    )
    observer = ObserverContext(codes.DCM.Device, device)
    report = MeasurementReport(
        observation_context=ObservationContext(observer_device_context=observer),
        procedure_reported=IMAGING_PROCEDURE,
        imaging_measurements=[group],
    )
    report[0].ContentSequence.append(
        TextContentItem(codes.DCM.Comment, NOTICE, RelationshipTypeValues.CONTAINS)
    )
    return report


def place(row: Mapping[str, Any], source: Dataset | None) -> tuple[int, int, bool]:
    """What tells a report from others of its run; one without names from the one with them, too."""
    return row["file"], row["row"], source is not None


def frames_seen(row: Mapping[str, Any]) -> list[int] | None:
    """The frame that was looked at, of an object that has several; None for others, and for a row
    of several pictures, whose words do not say of which they are."""
    if len(row["image_paths"] or ()) > 1:
        return None
    words = [_FRAME.fullmatch(word) for word in row["warnings"] or ()]
    return [int(found[1] or 1) for found in words if found] or None


def identity(about: About) -> dict[str, str]:
    """Digests of what answered, and how."""
    return {
        "weights sha256": about.model_sha256,
        **({} if about.adapter_sha256 is None else {"adapter sha256": about.adapter_sha256}),
        "recipe sha256": about.settings_sha256,
    }


def text(code: str, meaning: str, value: str) -> TextContentItem:
    """A text of our own scheme."""
    name = CodedConcept(code, SCHEME, meaning)
    return TextContentItem(name, plain(value), RelationshipTypeValues.CONTAINS)


def plain(value: str) -> str:
    """A text without characters that a report may not have."""
    return _CONTROL.sub(" ", value).strip() or "-"


def short(value: str) -> str:
    """A value of VR LO, in which a backslash would begin the next one."""
    return " ".join(plain(value).replace("\\", "/").split())[:NAME_CHARACTERS]


def placeholder(about: About) -> Dataset:
    """What a source object would tell, of nobody."""
    moment = datetime.fromtimestamp(about.started, UTC)
    one = Dataset()
    one.PatientName, one.PatientID = "RESEARCH^PLACEHOLDER", f"MEDV-{about.run[:12]}"
    one.PatientBirthDate, one.PatientSex = "", "O"
    one.StudyInstanceUID = about.uid("study")
    one.StudyDate, one.StudyTime = moment.strftime("%Y%m%d"), moment.strftime("%H%M%S")
    one.StudyID = one.AccessionNumber = one.ReferringPhysicianName = ""
    one.SeriesInstanceUID, one.SOPInstanceUID = about.uid("none"), about.uid("none", "object")
    one.SOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    one.Rows = one.Columns = 1
    return one


def header_of(found: Dataset) -> Dataset | None:
    """Of a source object, what reports take over; None where it has not the UIDs."""
    if not all(found.get(f"{level}InstanceUID") for level in ("Study", "Series", "SOP")):
        return None
    one = Dataset()
    for keyword in HEADER:
        if keyword in found:
            one.add(found[keyword])
        elif keyword.startswith(("Patient", "Study", "Accession", "Referring")):
            setattr(one, keyword, "")
    return one
