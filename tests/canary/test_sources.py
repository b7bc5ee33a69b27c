"""Archives that are more than folders of pictures: a PACS, a DICOMDIR, slides, files of several
frames. Scored through the command, with what is damaged or does not answer."""

from __future__ import annotations

import io
import json
import logging
from pathlib import Path
from typing import Any

import pydicom
import pytest
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from typer.testing import CliRunner

from medv_ray.cli import app
from tests.canary import planting, search
from tests.canary.conftest import Medv
from tests.canary.planting import ANSWER, FILE, FOLDER, IDENTIFIERS, NUMBER, QUESTION, WORD
from tests.dicomweb_server import Pacs, Reply, serving
from tests.integration import stub
from tests.slides import scan, write_slide

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("in_process")]
HELD = ("rows", "quarantine", "inputs", "run.json", "metrics.json", "private")


def words_of(root: Path, archive: object, *more: object) -> list[Any]:
    model = stub.write_model(root / "model")
    given = ["score", "--archive", archive, "--question", QUESTION, "--model", model]
    return [*given, "--out", root / "run", *more]


def objects(count: int = 5) -> list[bytes]:
    """Instances of one patient, as a PACS has them."""
    found = []
    for number in range(count):
        one = pydicom.dcmread(io.BytesIO(planting.dicom(number)))
        one.SOPInstanceUID = f"{IDENTIFIERS['uid']}.{number}"
        one.file_meta.MediaStorageSOPInstanceUID = one.SOPInstanceUID
        one.StudyDate, one.InstanceNumber = "20240101", number
        buffer = io.BytesIO()
        pydicom.dcmwrite(buffer, one, enforce_file_format=True)
        found.append(buffer.getvalue())
    return found


@pytest.mark.usefixtures("unhurried")
def test_a_pacs(tmp_path: Path, medv: Medv) -> None:
    said = planting.everything().encode()
    token = tmp_path / "token"
    token.write_text(WORD)
    with serving(Pacs(authorization=f"Bearer {WORD}")) as pacs:
        for data in objects():
            pacs.add(data)
        query = f"PatientID={IDENTIFIERS['record number']}&AccessionNumber=ACC{NUMBER}"
        address = f"dicomweb+{pacs.url}"
        words = words_of(tmp_path, f"{address}?{query}", "--token-file", token)
        words[words.index(QUESTION)] = "what?"  # run.json has it by design
        replies = {
            "busy": Reply(503, {}, said),
            "no": Reply(403, {"www-authenticate": f'Bearer realm="{WORD}"'}, said),
            "gone": Reply(404, {}, said),
            "broken": Reply(500, {}, said),
            "page": Reply(200, {"content-type": f"text/{WORD}"}, said),
            "JSON": Reply(200, {"content-type": "application/dicom+json"}, b'[{"%s": 1}]' % said),
            "list": Reply(200, {"content-type": "application/dicom+json"}, b"[1, {}]"),
            "elsewhere": Reply(302, {"location": f"https://{WORD}.example.org/{NUMBER}"}),
        }
        for reply in replies.values():
            pacs.faults[:] = [lambda method, path, reply=reply: reply]
            medv(*words, fails=True)
        pacs.faults.clear()
        for odd in (f"Patient{WORD}=1", f"PatientID={WORD}&PatientID={WORD}", f"StudyDate={WORD}"):
            medv(*[f"{address}?{odd}" if "?" in str(word) else word for word in words], fails=True)
        medv(*words, "--plan")
        first, second = list(pacs.datasets)[:2]
        pacs.objects[first] = pacs.objects[second]  # another one than asked for
        medv(*words, fails=True)
        pacs.objects[first] = said
        medv(*words)
        pacs.faults[:] = [lambda m, p: Reply(404, {}, said) if p.endswith(second) else None]
        medv(*words, "--allow-mixed")
        pacs.faults.clear()
        moved = pacs.datasets[first]
        moved.SeriesInstanceUID = f"{IDENTIFIERS['uid']}.9"
        medv(*words, fails=True)
        del pacs.datasets[first]
        medv(*words, "--allow-added", fails=True)
    run = tmp_path / "run"
    assert search.in_folder(run, lambda name: name.startswith(("rows", "private"))) == []
    done = CliRunner().invoke(app, ["rows", str(run)])
    assert search.in_text(done.output.replace(ANSWER, "")) == [], "ids and names are digests"
    with search.planted():
        search.in_folder(run / "private")


def write_dicomdir(root: Path) -> Path:
    """An index that names sound, damaged and missing files, and one that leads out."""
    folder = root / "disc" / WORD.upper()
    folder.mkdir(parents=True)
    sound = planting.dicom()
    for number, data in enumerate((sound, *planting.bad(sound))):
        (folder / f"{number}{NUMBER[:7]}").write_bytes(data)
    (folder / FILE).write_bytes(sound)
    index, records = Dataset(), []
    names = sorted(path.name for path in folder.iterdir())
    for path in (*([WORD.upper(), name] for name in names), [WORD, "GONE"], ["..", WORD]):
        record = Dataset()
        record.OffsetOfTheNextDirectoryRecord = 0
        record.RecordInUseFlag, record.DirectoryRecordType = 0xFFFF, "IMAGE"
        record.ReferencedFileID = path
        record.PatientName, record.PatientID = IDENTIFIERS["name"], IDENTIFIERS["record number"]
        records.append(record)
    index.file_meta = FileMetaDataset()
    index.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.1.3.10"
    index.file_meta.MediaStorageSOPInstanceUID = IDENTIFIERS["uid"]
    index.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    index.DirectoryRecordSequence = records
    path = root / "disc" / "DICOMDIR"
    index.save_as(path, enforce_file_format=True)
    return path


@pytest.mark.filterwarnings("ignore:Invalid value for VR CS")
@pytest.mark.filterwarnings("ignore:The value length")
def test_a_dicomdir(tmp_path: Path, medv: Medv, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:  # pydicom warns of what is written here
        patch.setattr(logging.getLogger("pydicom"), "disabled", True)
        archive = write_dicomdir(tmp_path)
    words = words_of(tmp_path, archive)
    medv(*words, "--plan")
    said = json.loads(medv(*words).splitlines()[-1])
    assert said["answered"]
    assert said["quarantined"]
    assert said["left_out"]["files"] >= 3
    run = tmp_path / "run"
    assert search.in_folder(run, lambda name: name.startswith(HELD)) == []
    whole = archive.read_bytes()
    for data in (whole[: len(whole) // 2], planting.everything().encode(), planting.dicom()):
        archive.write_bytes(data)
        medv(*words, "--new-run", fails=True)


def several(number: int, kind: str, **more: Any) -> bytes:
    """Three pages, each full of canaries."""
    pages = [Image.fromarray(planting.pixels(number + page)) for page in range(3)]
    buffer = io.BytesIO()
    pages[0].save(buffer, kind, save_all=True, append_images=pages[1:], **more)
    return buffer.getvalue()


def test_files_of_several_frames(tmp_path: Path, medv: Medv) -> None:
    folder = planting.write_folder(tmp_path) / FOLDER
    tags = dict.fromkeys((270, 315, 305, 316), planting.everything())
    whole = several(0, "TIFF", tiffinfo=tags)
    made = {"t.tif": whole, "g.gif": several(3, "GIF", comment=planting.everything().encode())}
    made |= {f"cut{number}.tif": data for number, data in enumerate(planting.bad(whole))}
    for name, data in made.items():
        (folder / f"{FILE} {name}").write_bytes(data)
    for frames, *plan in (("all", "--plan"), ("every:2",), ("refuse",)):
        out = tmp_path / frames.replace(":", "")
        words = words_of(tmp_path, folder.parent, "--frames", frames)
        words[words.index(tmp_path / "run")] = out
        for more in plan:
            medv(*words, more)
        medv(*words)
        assert search.in_folder(out, lambda name: name.startswith(HELD)) == []
    run = tmp_path / "all"
    archive = ["--archive", folder.parent, "--question", QUESTION]
    for more in ([], ["--identifiers", *archive]):
        medv("export-sr", run, "--out", tmp_path / f"sr{len(more)}", *more)
    medv("report", run, *archive)


def test_slides(tmp_path: Path, medv: Medv) -> None:
    folder = planting.write_folder(tmp_path) / FOLDER
    said = f"|AppMag = 20|MPP = 0.5|{planting.everything().replace('|', ' ')}"
    whole = write_slide(folder / f"{FILE}.svs", scan((256, 192)), said=said).read_bytes()
    for number, data in enumerate((*planting.bad(whole), whole[: len(whole) * 9 // 10])):
        (folder / f"{FILE} {number}.svs").write_bytes(data)
    tiles = ["slides.read=tiles", "slides.magnification=10", "slides.tile=64"]
    sets = [word for one in (*tiles, "slides.most_tiles=2") for word in ("--set", one)]
    for name, more in (("tiles", sets), ("thumbnail", [])):
        words = words_of(tmp_path, folder.parent, *more)
        at = words.index(tmp_path / "run")
        words[at] = tmp_path / name
        medv(*words, "--plan")
        medv(*words)
        assert search.in_folder(tmp_path / name, lambda name: name.startswith(HELD)) == []
    archive = ["--archive", folder.parent, "--question", QUESTION]
    medv("report", tmp_path / "tiles", *archive)
    for more in ([], ["--identifiers", *archive]):
        medv("export-sr", tmp_path / "tiles", "--out", tmp_path / f"sr{len(more)}", *more)
