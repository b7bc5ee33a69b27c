"""Structured reports of a run, and their way into a PACS."""

import hashlib
import io
import json
import stat
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import highdicom as hd
import pydicom
import pytest
from typer.testing import CliRunner

from medv_ray.archive import pacs_listing, results
from medv_ray.archive.left_out import LeftOut
from medv_ray.archive.plan import plan
from medv_ray.archive.prior import Prior
from medv_ray.archive.reading import read_rows
from medv_ray.archive.settings import ArchiveSettings
from medv_ray.archive.sources import open_archive
from medv_ray.cli import app
from medv_ray.data.frames import splitter
from medv_ray.dicomweb.client import Client
from medv_ray.errors import DataError, RunError, SettingsError
from medv_ray.evaluation import sr_export, sr_store
from medv_ray.evaluation.sr_document import NOTICE, About, document
from medv_ray.evaluation.sr_export import Model
from tests.dicomweb_server import Pacs, Reply, holding, picture
from tests.unit.archive.conftest import Make

ABOUT = About("ab" * 32, 1.7e9, "toy", "cd" * 32, None, "ef" * 32, "Apache-2.0", None)
ROW = {
    "id": "CANARY-7", "file": 0, "row": 7, "question": "Ist das ein Schatten? \u00e4\x1b",
    "answer": "yes, \u5de6", "confidence": 0.625, "image_paths": None, "warnings": None,
}  # fmt: skip


def reread(report: pydicom.Dataset) -> hd.sr.ComprehensiveSR:
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, report, enforce_file_format=True)
    buffer.seek(0)
    found = hd.sr.srread(buffer)
    assert isinstance(found, hd.sr.ComprehensiveSR)
    return found


def texts(report: hd.sr.ComprehensiveSR) -> dict[str, str]:
    """All texts of the tree by the meaning of their names."""
    found, items = {}, list(report.ContentSequence)
    while items:
        item = items.pop()
        if item.ValueType == "TEXT":
            meaning = item.ConceptNameCodeSequence[0].CodeMeaning
            found[meaning] = found.get(meaning, "") + item.TextValue
        items += item.get("ContentSequence", [])
    return found


def test_a_report_says_what_answered_and_that_it_is_for_research() -> None:
    source = pydicom.dcmread(io.BytesIO(picture(3, PatientName="M\u00fcller^J")))
    report = reread(document(ROW, ABOUT, sr_export.header_of(source)))
    said = texts(report)
    assert said["Question"] == "Ist das ein Schatten? \u00e4"
    assert (said["Answer"], said["Comment"]) == (ROW["answer"], NOTICE)
    assert "Research use only, not for diagnosis" in NOTICE
    assert (said["Algorithm Name"], said["Licence of the model"]) == ("toy", "Apache-2.0")
    assert "weights sha256: " + "cd" * 32 in said["Algorithm Parameters"]
    assert "recipe sha256: " + "ef" * 32 in said["Algorithm Parameters"]
    assert said["Calibration of the confidence"] == "not calibrated"
    (group,) = report.content.get_image_measurement_groups()
    (measured,) = group.get_measurements()
    assert (measured.value, measured.name.meaning) == (
        0.625, "Mean token confidence, not calibrated",
    )  # fmt: skip
    assert str(report.PatientName) == "M\u00fcller^J"
    assert (report.PatientID, report.StudyInstanceUID) == ("CANARY-MRN-1", "2.25.1")
    assert report.SeriesInstanceUID != source.SeriesInstanceUID
    (used,) = group.source_images
    assert used.referenced_sop_instance_uid == "2.25.1.1.3"
    assert (report.VerificationFlag, report.Modality) == ("UNVERIFIED", "SR")
    assert document(ROW, ABOUT, sr_export.header_of(source)) == document(
        ROW, ABOUT, sr_export.header_of(source)
    )


def test_without_identifiers_a_report_leads_to_nobody() -> None:
    report = reread(document(ROW, ABOUT))
    assert str(report.PatientName) == "RESEARCH^PLACEHOLDER"
    written = str(report)
    for word in ("CANARY", "2.25.1.1", "EvidenceSequence", "Referenced SOP"):
        assert word not in written
    other = document({**ROW, "answer": "no"}, ABOUT)
    assert other.StudyInstanceUID == report.StudyInstanceUID
    assert other.SOPInstanceUID != report.SOPInstanceUID


@pytest.mark.parametrize(
    "told",
    [
        {"PatientBirthDate": "unknown", "PatientSex": "male", "StudyTime": "12:00:00"},
        {"StudyDate": "2024-01-02"},
        {"StudyDate": "", "PatientBirthDate": ""},
    ],
)
def test_a_study_is_named_as_its_objects_name_it(told: dict[str, str]) -> None:
    """Also in a form that no report of highdicom may begin with."""
    for source in (
        sr_export.header_in(picture(3, **told)),
        pydicom.Dataset.from_json(pydicom.dcmread(io.BytesIO(picture(3, **told))).to_json()),
    ):
        report = reread(document(ROW, ABOUT, source))
        assert {name: str(report.get(name)) for name in told} == told
        assert report.PatientID == "CANARY-MRN-1"


def test_names_with_a_backslash_or_control_characters_are_one_value() -> None:
    name = "a\\b\0\n" + "\u540d" * 70
    report = reread(document({**ROW, "id": "x\0y"}, replace(ABOUT, model=name)))
    assert report.ManufacturerModelName == "a/b " + "\u540d" * 60
    assert texts(report)["Algorithm Name"].startswith("a\\b ")


@pytest.mark.parametrize(
    ("paths", "words", "frames"),
    [
        (["a.dcm"], ["dicom_range:0,9", "frame:16/30"], [16]),
        (["a.dcm"], ["first_of_frames:30"], [1]),
        (["a.dcm"], ["dicom_range:0,9"], None),
        (["a.dcm", "b.dcm"], ["frame:16/30"], None),
    ],
)
def test_a_report_names_the_frame_that_was_seen(
    paths: list[str], words: list[str], frames: list[int] | None
) -> None:
    source = sr_export.header_in(picture(3))
    report = reread(document({**ROW, "image_paths": paths, "warnings": words}, ABOUT, source))
    (group,) = report.content.get_image_measurement_groups()
    assert group.source_images[0].referenced_frame_numbers == frames


def test_times_have_their_zone_where_they_are_all_our_own() -> None:
    assert document(ROW, ABOUT).TimezoneOffsetFromUTC == "+0000"
    named = document(ROW, ABOUT, sr_export.header_in(picture(3)))
    assert "TimezoneOffsetFromUTC" not in named
    (used,) = named.ContributingEquipmentSequence
    assert used.ContributionDateTime == "20231114221320+0000"


def test_calibrated_confidence_is_called_so() -> None:
    about = About(*list(ABOUT.__dict__.values())[:-1], "calibrated on 500 answers")
    report = reread(document(ROW, about))
    assert texts(report)["Calibration of the confidence"] == "calibrated on 500 answers"
    (group,) = report.content.get_image_measurement_groups()
    assert group.get_measurements()[0].name.meaning == "Mean token confidence, calibrated"


@pytest.fixture
def pacs(monkeypatch: pytest.MonkeyPatch) -> Iterator[Pacs]:
    with holding([picture(number + 1) for number in range(5)], monkeypatch) as server:
        yield server


class Scored(Make):
    """A run over a PACS whose rows have what reports need."""

    @staticmethod
    def records(planned, chunk) -> list[dict]:
        found = Make.records(planned, chunk)
        for record in found:
            if record["status"] == "answered":
                name = record["id"]
                record |= {"confidence": 0.5, "image_paths": [name], "image_sha256": "x"}
        found[0]["status"], found[0]["reason"] = "abstained", "low_confidence"
        return found


def scored(tmp_path: Path, pacs: Pacs) -> str:
    make = Scored(tmp_path)
    planned = make.plan(archive=f"dicomweb+{pacs.url}", question="what?", chunk_rows=8)
    identity = {"settings": {"sampler": {}}, "model": {"sha256": "cd" * 32}}
    make.job(planned, tmp_path / "run", identity)
    return str(tmp_path / "run")


def test_round_trip_each_report_is_made_and_stored_once(tmp_path: Path, pacs: Pacs) -> None:
    run, folder = scored(tmp_path, pacs), tmp_path / "reports"
    about = sr_export.about_run(run, Model("toy", "Apache-2.0"))
    archive = sr_export.ArchiveSettings(archive=f"dicomweb+{pacs.url}", question="what?")

    def export(out: Path = folder) -> dict[str, int]:
        headers = sr_export.headers_in_pacs(run, archive)
        return sr_export.export(run, out, about, headers).as_json()

    made = export()
    assert (made["written"], made["abstained"], made["without_source"]) == (4, 1, 0)
    files = sorted(folder.glob("*.dcm"))
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}
    first = {path.name: hashlib.sha256(path.read_bytes()).digest() for path in files}
    files[0].unlink()  # killed before its line was written, and in the middle of another's
    lines = (folder / sr_export.LIST).read_text().splitlines(keepends=True)
    kept = [line for line in lines if files[0].name not in line]
    (folder / sr_export.LIST).write_text("".join(kept) + '{"name": "0-')
    made = export()
    assert (made["written"], made["already_there"]) == (1, 3)
    assert {p.name: hashlib.sha256(p.read_bytes()).digest() for p in files} == first

    to = f"dicomweb+{pacs.url}"
    pacs.faults.append(lambda method, path: Reply(401) if method == "POST" else None)
    with pytest.raises(RunError, match="E1125"):
        sr_store.store(folder, to, None)
    pacs.faults.clear()
    counts = sr_store.store(folder, to, None)
    assert counts == {"reports": 4, "stored_before": 0, "stored": 4, "refused": 0}
    again = sr_store.store(folder, to, None)
    assert (again["stored_before"], again["stored"]) == (4, 0)
    assert len(pacs.stored) == len(set(pacs.stored)) == 4
    (folder / sr_store.STORED).unlink()  # killed before it was noted: sent again, there once
    sr_store.store(folder, to, None)
    assert len(pacs.stored) == 8
    assert len(pacs.datasets) == 9
    uid = pacs.stored[0]
    path = f"studies/2.25.1/series/{pacs.datasets[uid].SeriesInstanceUID}/instances/{uid}"
    reader = Client(pacs.url)
    back = hd.sr.srread(io.BytesIO(reader.instance(path, 10**6)))
    reader.close()
    assert back.PatientID == "CANARY-MRN-1"
    rows = pacs_listing.listed(archive, LeftOut()).images
    assert len(rows) == 5, "reports are no rows"

    plain = sr_export.export(run, tmp_path / "plain", about)
    assert plain.written == 4
    assert b"CANARY" not in b"".join(p.read_bytes() for p in (tmp_path / "plain").glob("*.dcm"))
    with pytest.raises(SettingsError, match="reports of another run, or made with other options"):
        sr_export.export(run, folder, about)
    with pytest.raises(SettingsError, match="not empty"):
        sr_export.export(run, tmp_path / "run", about)


def test_what_a_server_refuses_is_said_and_tried_again(tmp_path: Path, pacs: Pacs) -> None:
    run, folder = scored(tmp_path, pacs), tmp_path / "reports"
    sr_export.export(run, folder, sr_export.about_run(run, Model("toy", "-")))
    to = f"dicomweb+{pacs.url}"
    pacs.refuses = {"1.2.840.10008.5.1.4.1.1.88.33"}
    with pytest.raises(DataError, match="E1511: .*took 0 and refused 4: failure reason 0122H"):
        sr_store.store(folder, to, None)
    pacs.refuses = set()
    assert sr_store.store(folder, to, None)["stored"] == 4
    (folder / sr_store.STORED).unlink()
    uids = [json.loads(line)["uid"] for line in
            (folder / sr_export.LIST).read_text().splitlines()[1:]]  # fmt: skip
    item = {"00081197": {"Value": [0x0111]}}
    failed = [{**item, "00081155": {"Value": [uid]}} for uid in uids]
    body = json.dumps({"00081198": {"Value": failed}}).encode()
    pacs.faults.append(lambda method, path: Reply(409, {}, body) if method == "POST" else None)
    assert sr_store.store(folder, to, None)["stored"] == 4, "it has them already"
    (folder / sr_store.STORED).unlink()
    pacs.faults[:] = [lambda m, p: Reply(409, {}, b"") if m == "POST" else None]
    with pytest.raises(DataError, match="it answered 409"):
        sr_store.store(folder, to, None)
    with pytest.raises(DataError, match="E1110"):
        sr_store.store(tmp_path, to, None)
    with pytest.raises(SettingsError, match="without a query"):
        sr_store.store(folder, to + "?Modality=CT", None)


@pytest.mark.parametrize("start", ["", '{"reports": "2.25'])
def test_a_list_that_a_full_disk_cut_short_is_begun_again(tmp_path: Path, start: str) -> None:
    path = tmp_path / sr_export.LIST
    path.write_text(start)
    assert sr_export.listing(tmp_path, "2.25.7") == set()
    assert json.loads(path.read_text()) == {"reports": "2.25.7"}
    assert sr_export.listing(tmp_path, "2.25.7") == set()
    path.write_text(start)
    (tmp_path / "0-00000001.dcm").write_bytes(b"another's")
    with pytest.raises(SettingsError, match="not empty"):
        sr_export.listing(tmp_path, "2.25.7")


def test_a_report_never_names_the_patient_of_another_instance(tmp_path: Path, pacs: Pacs) -> None:
    run = scored(tmp_path, pacs)
    told = json.dumps([pacs.datasets["2.25.1.1.1"].to_json_dict()]).encode()
    pacs.faults.append(lambda method, path: Reply(200, {}, told) if "/meta" in path else None)
    settings = ArchiveSettings(archive=f"dicomweb+{pacs.url}", question="what?")
    headers = sr_export.headers_in_pacs(run, settings)
    about = sr_export.about_run(run, Model("toy", "-"))
    with pytest.raises(DataError, match="another instance") as caught:
        sr_export.export(run, tmp_path / "sr", about, headers)
    assert "CANARY" not in str(caught.value)


def test_pictures_of_a_pacs_come_with_its_token_onto_the_page(tmp_path: Path, pacs: Pacs) -> None:
    run, token = scored(tmp_path, pacs), tmp_path / "token"
    token.write_text("secret")
    pacs.authorization = "Bearer secret"
    words = ["report", run, "--archive", f"dicomweb+{pacs.url}"]
    refused = CliRunner().invoke(app, words)
    assert "E1125" in refused.stderr
    pacs_listing.client_of.cache_clear()
    done = CliRunner().invoke(app, [*words, "--token-file", str(token)])
    assert done.exit_code == 0, done.output
    page = (tmp_path / "run" / "report.html").read_text()
    assert "data:image/" in page
    assert "CANARY" not in page


NO_REASON = {"00081155": {"Value": ["1.2.4"]}, "00081197": {"vr": "US"}}


@pytest.mark.parametrize(
    ("status", "failed", "taken", "why"),
    [
        (200, None, True, set()),
        (200, [], True, set()),
        (200, [NO_REASON], False, {"it answered 200, without a reason"}),
        (202, [NO_REASON], False, {"it answered 202, without a reason"}),
        (409, [NO_REASON, None], False, {"it answered 409, without a reason"}),
        (200, [{"00081197": {"Value": [290]}}], False, {"it does not say what became of some"}),
        (202, [], False, {"it does not say what became of some"}),
    ],
)
def test_an_answer_that_names_no_reason_is_no_success(
    tmp_path: Path, status: int, failed: object, taken: bool, why: set[str]
) -> None:
    name = "0-00000001.dcm"
    (tmp_path / name).write_bytes(picture(4, SOPInstanceUID="1.2.4"))
    answer = {} if failed is None else {"00081198": {"vr": "SQ", "Value": failed}}

    class Answering:
        def store(self, body: bytes, boundary: str) -> tuple[int, object]:
            return status, answer

    found = sr_store.send(Answering(), tmp_path, [name])  # type: ignore[arg-type]
    assert found == ([name] if taken else [], why)


def test_a_file_that_is_no_dicom_has_a_placeholder() -> None:
    assert sr_export.header_in(b"\x89PNG\r\n") is None
    assert sr_export.header_in(b"") is None
    found = sr_export.header_in(picture(1))
    assert found is not None
    assert "PixelData" not in found
    assert found.SOPInstanceUID == "2.25.1.1.1"


class Whole(Make):
    """A run whose rows name their picture's digest, as the job's do."""

    @staticmethod
    def records(planned, chunk) -> list[dict]:
        rows = read_rows(planned.archive, chunk)
        digests = [hashlib.sha256(row.image or b"").hexdigest() for row in rows]
        return [
            {**record, "confidence": 0.5, "image_sha256": digest}
            for record, digest in zip(Make.records(planned, chunk), digests, strict=True)
        ]


@pytest.mark.parametrize("frames", [None, "all", "every:2"])
def test_each_frame_has_a_report_that_names_its_patient(
    tmp_path: Path, frames: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many rows a file as the run has; a few rows are held at a time."""
    make, run = Whole(tmp_path), tmp_path / "run"
    for number in range(1, 6):
        data = picture(number, study=number, NumberOfFrames=3, PixelData=bytes(768))
        (make.archive / f"{number}.dcm").write_bytes(data)
    asked = ArchiveSettings(archive=str(make.archive), question="what?", chunk_rows=4)
    planned = plan(open_archive(asked), "x", Prior(), splitter(frames or "first"))
    identity = {"settings": {}, "model": {"sha256": "cd" * 32}}
    make.job(planned, run, identity)

    def in_twos(out, choice):
        for table in results.rows_of(out, choice):
            yield from (table.slice(start, 2) for start in range(0, table.num_rows, 2))

    monkeypatch.setattr(sr_export, "rows_of", in_twos)
    held = []
    in_files = sr_export.headers_in_files

    def noting(plan):
        headers = in_files(plan)
        return lambda rows: held.append(len(rows)) or headers(rows)

    monkeypatch.setattr(sr_export, "headers_in_files", noting)
    words = ["export-sr", str(run), "--out", str(tmp_path / "sr"), "--identifiers"]
    done = CliRunner().invoke(app, [*words, "--archive", str(make.archive)])
    assert done.exit_code == 0, done.output
    per_file = {None: 1, "all": 3, "every:2": 2}[frames]
    said = json.loads(done.stdout)
    assert (said["written"], said["without_source"]) == (5 * per_file, 0)
    assert max(held) == 2
    patients = [pydicom.dcmread(p).PatientID for p in sorted((tmp_path / "sr").glob("*.dcm"))]
    assert patients == [f"CANARY-MRN-{n}" for n in range(1, 6) for _ in range(per_file)]
