import pytest

from medv_ray.dicomweb.address import parse
from medv_ray.errors import SettingsError


@pytest.mark.parametrize(
    ("query", "path", "filters"),
    [
        ("", "instances", {}),
        ("?Modality=CT&StudyDate=20240101-20240131", "instances",
         {"Modality": "CT", "StudyDate": "20240101-20240131"}),
        ("?StudyInstanceUID=1.2&SeriesInstanceUID=1.2.3&Modality=MR",
         "studies/1.2/series/1.2.3/instances", {"Modality": "MR"}),
        ("?SeriesInstanceUID=1.2.3", "instances", {"SeriesInstanceUID": "1.2.3"}),
        ("?StudyInstanceUID=1.2,1.3", "instances", {"StudyInstanceUID": "1.2,1.3"}),
        ("?PatientID=A%20B", "instances", {"PatientID": "A B"}),
    ],
)  # fmt: skip
def test_query_becomes_the_narrowest_resource_and_filters(
    query: str, path: str, filters: dict[str, str]
) -> None:
    found = parse("dicomweb+https://pacs.example:8443/dicom-web/" + query)
    assert found.base == "https://pacs.example:8443/dicom-web"
    assert (found.search_path, found.search_filters) == (path, filters)
    assert repr(found) == "Address()"


@pytest.mark.parametrize(
    ("uri", "rule"),
    [
        ("dicomweb+ftp://h/x", "dicomweb"),
        ("dicomweb+https:///x", "dicomweb"),
        ("dicomweb+https://h:0/x", "dicomweb"),
        ("dicomweb+https://h:99999/x", "dicomweb"),
        ("dicomweb+https://u:CANARY@h/x", "--token-file"),
        ("dicomweb+https://h/x#CANARY", "#"),
        ("dicomweb+https://h/x?token=CANARY", "may ask for StudyInstanceUID"),
        ("dicomweb+https://h/x?limit=5", "--limit N"),
        ("dicomweb+https://h/x?CANARY", "URL"),
        ("dicomweb+https://h/x?StudyInstanceUID=../CANARY", "StudyInstanceUID=1.2.840.1"),
        ("dicomweb+https://h/x?StudyInstanceUID=", "StudyInstanceUID=1.2.840.1"),
        ("dicomweb+https://h/x?StudyDate=CANARY", "StudyDate=20240101-20240131"),
        ("dicomweb+https://h/x?Modality=CT&Modality=MR", "Modality is given once"),
    ],
)
def test_what_is_no_address_is_refused_without_its_values(uri: str, rule: str) -> None:
    with pytest.raises(SettingsError, match="E1001") as caught:
        parse(uri)
    assert rule in str(caught.value)
    assert "CANARY" not in str(caught.value)
