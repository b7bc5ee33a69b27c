"""What kind of object a DICOM file holds, where it is no picture of a patient, and which kinds may
show text.

By SOP class: DICOM PS3.4 annex B.5 and PS3.6 annex A. By modality where the class is absent or
unknown: PS3.3 C.7.3.1.1.1.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_STANDARD = "1.2.840.10008."
_STORAGE = f"{_STANDARD}5.1.4.1.1."
"""Left out of the numbers below."""
_CLASSES = (  # the first that fits counts
    (r"1\.2\.840\.10008\.1\.3\.10", "a DICOMDIR, an index of files"),
    (r"88\.59", "a key object selection, a list of other objects"),
    (r"88\..*", "a structured report"),
    (r"9\..*", "a waveform (ECG, say)"),
    (r"11\..*", "a presentation state, which tells how to show other objects"),
    (r"66\.4|66\.7", "a segmentation, a mask and no picture"),
    (r"66\.5", "a surface segmentation"),
    (r"66\.6", "tractography results"),
    (r"66\.[123]", "a registration of other objects"),
    (r"66", "raw data of a scanner"),
    (r"67", "a mapping to real-world values"),
    (r"30", "a parametric map"),
    (r"4\.2", "MR spectroscopy"),
    (r"68\..*", "a surface scan"),
    (r"9[01]\..*", "annotations of other objects"),
    (r"481\.2", "a radiotherapy dose grid, which is no picture"),
    (r"481\.3", "a radiotherapy structure set"),
    (r"481\.([58]|1[0-5]|2[125])", "a radiotherapy plan"),
    (r"481\.([4679]|1[6-9]|20)", "a radiotherapy treatment record"),
    (r"104\.1", "an encapsulated PDF"),
    (r"104\.2", "an encapsulated CDA document"),
    (r"104\..*", "an encapsulated 3D model"),
    (r"38\.1|1\.2\.840\.10008\.5\.1\.4\.38\.1", "a hanging protocol"),
    (r"1\.2\.840\.10008\.5\.1\.4\.39\.1", "a colour palette"),
    (r"78\..*|79\.1|80\.1", "measurements of eyes"),
    (r"1\.2\.840\.10008\.5\.1\.4\.34\..*", "a worklist, or an item of one"),
    (r"131|200\..*|201\..*", "a protocol or display description"),
)
_MODALITIES = {
    "SR": "a structured report",
    "KO": "a key object selection, a list of other objects",
    "PR": "a presentation state, which tells how to show other objects",
    "SEG": "a segmentation, a mask and no picture",
    "RTDOSE": "a radiotherapy dose grid, which is no picture",
    "RTSTRUCT": "a radiotherapy structure set",
    "RTPLAN": "a radiotherapy plan",
    "RTRECORD": "a radiotherapy treatment record",
    "REG": "a registration of other objects",
    "DOC": "an encapsulated document",
    **dict.fromkeys(("ECG", "HD", "EPS", "AU", "RESP"), "a waveform (ECG, say)"),
}
_MAPS = re.compile(r"66\.[47]|481\.2")
_MAP_MODALITIES = ("SEG", "RTDOSE")
_WITH_TEXT = ("US", "IVUS", "SC", "OT", "ES", "XC", "GM", "SM", "ECHO", "DOC", "HC", "BDUS")
_CT = ("2", "2.1", "2.2")
_CAPTURES = re.compile(r"7(\..*)?")


def kind_of(head: Dataset) -> str:
    """In words, what an object is that has no picture by its class; empty for pictures."""
    uid = _class(head)
    return kind_of_class(uid) if uid.startswith(_STANDARD) else _MODALITIES.get(_modality(head), "")


def kind_of_class(uid: str) -> str:
    """The same by the UID of a SOP class alone."""
    number = uid.removeprefix(_STORAGE)
    return next((words for pattern, words in _CLASSES if re.fullmatch(pattern, number)), "")


def is_map(head: Dataset) -> bool:
    """Whether the pixels are labels or doses: a segmentation or a dose grid."""
    uid = _class(head)
    if uid.startswith(_STANDARD):
        return bool(_MAPS.fullmatch(uid.removeprefix(_STORAGE)))
    return _modality(head) in _MAP_MODALITIES


def is_ct(head: Dataset) -> bool:
    """CT by its class or its modality."""
    return _class(head).removeprefix(_STORAGE) in _CT or _modality(head) == "CT"


def may_show_text(head: Dataset) -> bool:
    """Kinds of objects into whose pixels devices and people often write: ultrasound, captures."""
    number = _class(head).removeprefix(_STORAGE)
    return _modality(head) in _WITH_TEXT or bool(_CAPTURES.fullmatch(number))


def code_of(head: Dataset, name: str) -> str:
    """A coded element (VR CS) as it is compared; empty where it is absent."""
    return coded(head.get(name))


def coded(value: Any) -> str:
    """The first value in capitals, without padding: writers pad with NUL, blanks in front and
    behind, and some write small letters."""
    if not isinstance(value, str) and isinstance(value, Sequence):
        value = value[0] if value else None
    return " ".join(str(value or "").strip("\0").upper().split())


def _class(head: Dataset) -> str:
    return str(head.get("SOPClassUID") or "").strip("\0 ")


def _modality(head: Dataset) -> str:
    return code_of(head, "Modality")
