"""The index of a DICOM folder as the archive."""

from pathlib import Path

import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from medv_ray.dicom_walk import referenced_files
from medv_ray.errors import DataError
from tests.frame_files import dicom


def index(make, *paths: list[str], in_use: int = 0xFFFF, undefined: bool = False) -> str:
    """Write a DICOMDIR that names files; the archive's setting of it."""
    records = []
    for path in paths:
        record = Dataset()
        record.OffsetOfTheNextDirectoryRecord = 0
        record.RecordInUseFlag = in_use
        record.DirectoryRecordType = "IMAGE"
        record.ReferencedFileID = path
        records.append(record)
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.1.3.10"
    ds.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.DirectoryRecordSequence = records
    ds["DirectoryRecordSequence"].is_undefined_length = undefined
    path = make.archive / "DICOMDIR"
    ds.save_as(path, enforce_file_format=True)
    return str(path)


def rows_and_left_out(make, archive: str) -> tuple[list[str], dict[tuple[str, str], int]]:
    planned = make.plan(archive=archive, question="What?")
    groups = {key: count for key, (count, _) in planned.left_out.groups.items()}
    return [row.id for row in make.rows(planned)], groups


@pytest.mark.filterwarnings("ignore:Invalid value for VR CS")
@pytest.mark.parametrize("undefined", [False, True])
def test_what_it_names_is_the_archive(make, undefined: bool) -> None:
    for name in ("ST0/IM0", "ST0/IM1", "ST1/im2", "ST1/EXTRA"):
        make.text(name, dicom([7]))
    make.text("README.txt", "hello")
    wanted = [
        *(["ST0", "IM1"], ["ST0", "IM0"], ["ST1", "IM2"], ["ST0", "IM1"]),
        *(["ST0", "GONE"], ["..", "up"], ["ST0", "IM0/../../x"]),
    ]
    ids, left_out = rows_and_left_out(make, index(make, *wanted, undefined=undefined))
    assert ids == ["ST0:IM0", "ST0:IM1", "ST1:im2"]
    assert left_out == {
        ("", "index of DICOM files"): 1,
        ("", "named by the DICOMDIR and not there"): 1,
        ("", "named by the DICOMDIR, out of its folder"): 2,
        ("", "not in the DICOMDIR"): 1,
        (".txt", "not in the DICOMDIR"): 1,
    }


def test_a_folder_that_has_one_is_read_as_any(make) -> None:
    for name in ("IM0", "EXTRA"):
        make.text(name, dicom([7]))
    index(make, ["IM0"])
    ids, left_out = rows_and_left_out(make, str(make.archive))
    assert ids == ["EXTRA", "IM0"]
    assert left_out == {("", "index of DICOM files"): 1}


def test_records_that_are_not_in_use(make) -> None:
    make.text("IM0", dicom([7]))
    with pytest.raises(DataError) as caught:
        make.plan(archive=index(make, ["IM0"], in_use=0), question="What?")
    assert caught.value.code == "E1110"


@pytest.mark.parametrize("content", [b"", b"no DICOM", dicom([7])])
def test_what_is_no_index(make, content: bytes) -> None:
    make.text("DICOMDIR", content)
    with pytest.raises(DataError, match="DICOMDIR: is no index") as caught:
        make.plan(archive=str(make.archive / "DICOMDIR"), question="What?")
    assert caught.value.code == "E1105"


@pytest.mark.parametrize("undefined", [False, True])
def test_an_index_that_was_cut_is_none(make, undefined: bool) -> None:
    """Wherever: the files that its end names would be missing in silence."""
    names = ["IM0", "IM1", "IM2"]
    for name in names:
        make.text(name, dicom([7]))
    path = Path(index(make, *([name] for name in names), undefined=undefined))
    whole = path.read_bytes()
    assert len(referenced_files(whole)) == 3
    for end in range(whole.index(b"IM0"), len(whole)):
        with pytest.raises(ValueError):  # noqa: PT011
            referenced_files(whole[:end])
    path.write_bytes(whole[: whole.index(b"IM2")])
    with pytest.raises(DataError, match="E1105: .*or damaged"):
        make.plan(archive=str(path), question="What?")
