"""The address of a PACS with a query: `dicomweb+https://host/dicom-web?Modality=CT&...`.

A query's values are identifiers of patients: no message repeats one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import NamedTuple
from urllib.parse import parse_qsl, urlsplit

from medv_ray.errors import SettingsError

MARK = "dicomweb+"
UID = re.compile(r"[0-9.]{1,64}")


class Filter(NamedTuple):
    """An attribute that can be asked for."""

    tag: str
    rule: re.Pattern[str]
    example: str


_UID = re.compile(r"[0-9.]{1,64}(,[0-9.]{1,64})*")
_WORD = re.compile(r"[A-Z0-9_ ]{1,16}(\\[A-Z0-9_ ]{1,16})*")
_DATE = re.compile(r"\d{8}|\d{8}-|-\d{8}|\d{8}-\d{8}")
_TEXT = re.compile(r"[^\x00-\x1f\\]{1,64}")
FILTERS = {
    "StudyInstanceUID": Filter("0020000D", _UID, "1.2.840.1"),
    "SeriesInstanceUID": Filter("0020000E", _UID, "1.2.840.1.1"),
    "SOPInstanceUID": Filter("00080018", _UID, "1.2.840.1.1.1"),
    "SOPClassUID": Filter("00080016", _UID, "1.2.840.10008.5.1.4.1.1.2"),
    "Modality": Filter("00080060", _WORD, "CT"),
    "ModalitiesInStudy": Filter("00080061", _WORD, "CT"),
    "StudyDate": Filter("00080020", _DATE, "20240101-20240131"),
    "PatientID": Filter("00100020", _TEXT, "MRN-1"),
    "AccessionNumber": Filter("00080050", _TEXT, "A-1"),
    "BodyPartExamined": Filter("00180015", _WORD, "CHEST"),
    "StationName": Filter("00081010", _TEXT, "CT1"),
}


@dataclass(frozen=True)
class Address:
    """Where a DICOMweb service lies, and which of its instances are meant."""

    base: str = field(repr=False)
    """`https://host/dicom-web`."""
    filters: dict[str, str] = field(repr=False)
    """Values by keyword, in the order of FILTERS."""

    @property
    def search_path(self) -> str:
        """The resource of QIDO-RS: the narrowest, as every server has those of a study."""
        path = ""
        for keyword, level in (("StudyInstanceUID", "studies"), ("SeriesInstanceUID", "series")):
            value = self.filters.get(keyword)
            if value is None or UID.fullmatch(value) is None:
                break
            path += f"{level}/{value}/"
        return path + "instances"

    @property
    def search_filters(self) -> dict[str, str]:
        """The filters that are no part of the path."""
        in_path = self.search_path.split("/")[1::2]
        keywords = ("StudyInstanceUID", "SeriesInstanceUID")[: len(in_path)]
        return {name: value for name, value in self.filters.items() if name not in keywords}


def is_dicomweb(uri: str) -> bool:
    """Whether a PACS is meant, and no file."""
    return uri.startswith(MARK)


def parse(uri: str, flag: str = "--archive") -> Address:
    """The address in a URI. Raises SettingsError E1001, which says the rule and not the value."""

    def wrong(rule: str) -> SettingsError:
        return SettingsError("E1001", f"{flag}: {rule}")

    try:
        parts = urlsplit(uri.removeprefix(MARK))
        port_is_sound = parts.port is None or parts.port > 0
        asked = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
    except ValueError:
        raise wrong("no URL of the form dicomweb+https://host/dicom-web?Modality=CT.") from None
    if parts.scheme not in ("https", "http") or not parts.hostname or not port_is_sound:
        raise wrong("a PACS is dicomweb+https://host/dicom-web, or dicomweb+http://...")
    if parts.username is not None or parts.password is not None:
        raise wrong("no user and no password in a URL: --token-file names a file of them.")
    if parts.fragment:
        raise wrong("a URL of a PACS has no part behind '#'.")
    values: dict[str, str] = {}
    for keyword, value in asked:
        if keyword not in FILTERS:
            known = ", ".join(FILTERS)
            raise wrong(f"the query may ask for {known}; `--limit N` takes the first rows.")
        rule = FILTERS[keyword]
        if keyword in values or rule.rule.fullmatch(value) is None:
            raise wrong(f"{keyword} is given once, as in {keyword}={rule.example}.")
        values[keyword] = value
    base = f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"
    return Address(base, {name: values[name] for name in FILTERS if name in values})
