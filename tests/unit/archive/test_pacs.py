"""A PACS as an archive: listed once, fetched while rows are scored, resumed like any other."""

import json
import stat
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from medv_ray.archive import pacs_listing
from medv_ray.archive.results import Choice, rows_of
from medv_ray.archive.settings import ArchiveSettings
from medv_ray.errors import SHOW_NAMES, DataError, RunError, SettingsError
from medv_ray.settings import build
from tests.dicomweb_server import Pacs, Reply, holding, picture
from tests.unit.archive.conftest import Make

pytestmark = pytest.mark.integration

REPORT = "1.2.840.10008.5.1.4.1.1.88.33"


@pytest.fixture
def pacs(monkeypatch: pytest.MonkeyPatch) -> Iterator[Pacs]:
    """A server with 7 instances in two series."""
    pictures = [picture(number + 1, series=1 + number // 4) for number in range(7)]
    with holding(pictures, monkeypatch) as server:
        yield server


def planned(make: Make, pacs: Pacs, out: Path | None = None, **more):
    asked = {"archive": f"dicomweb+{pacs.url}", "question": "what?", "chunk_rows": 2, **more}
    if out is None:
        return make.plan(**asked)
    from medv_ray.archive.plan import plan
    from medv_ray.archive.prior import Prior
    from medv_ray.archive.sources import open_archive

    prior = Prior.read(str(out))
    return plan(open_archive(ArchiveSettings(**asked), prior.images, prior.salt), "x", prior)


def ids(out: Path) -> list[str]:
    tables = rows_of(str(out), Choice(sort="row"))
    return [i for table in tables for i in table.column("id").to_pylist()]


def test_a_run_is_killed_resumed_and_holds_no_uid(make: Make, pacs: Pacs, tmp_path: Path) -> None:
    out = tmp_path / "run"
    first = planned(make, pacs, out)
    assert (first.rows, len(first.chunks), first.files[0].name) == (7, 4, "dicomweb")
    make.job(first, out, stop_after=2)
    pacs.datasets = dict(reversed(pacs.datasets.items()))  # the server's order is not ours
    before = len(pacs.seen)
    summary = make.job(planned(make, pacs, out), out)
    assert (summary.rows, summary.answered, summary.not_scored) == (7, 7, 0)
    fetched = [path for _, path in pacs.seen[before:] if "?" not in path]
    assert len(fetched) == 3, "what is committed is not fetched again"
    found = ids(out)
    assert len(set(found)) == 7
    assert all(len(i) == 24 and set(i) <= set("0123456789abcdef") for i in found)
    salt, instances = pacs_listing.read_kept(pacs_listing.Store(str(out)))
    assert [instances[i].uid for i in found] == [
        *(f"2.25.1.1.{n}" for n in (1, 2, 3, 4)), *(f"2.25.1.2.{n}" for n in (5, 6, 7)),
    ]  # fmt: skip
    kept = out / pacs_listing.FILE
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    others = [path for path in out.rglob("*") if path.is_file() and path != kept]
    assert len(others) > 4
    for path in others:
        data = path.read_bytes()
        if path.suffix == ".parquet":
            data = str(pq.read_table(path).to_pydict()).encode()
        for word in (b"2.25.", b"CANARY", salt.encode(), b"127.0.0.1"):
            assert word not in data, path.name


def test_names_of_two_runs_have_nothing_in_common(make: Make, pacs: Pacs) -> None:
    names = [{image.name for image in planned(make, pacs).inputs} for _ in range(2)]
    assert len(names[0] | names[1]) == 14


def test_a_list_that_grew_or_shrank(
    make: Make, pacs: Pacs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SHOW_NAMES, "1")
    out = tmp_path / "run"
    make.job(planned(make, pacs, out), out)
    before = ids(out)
    pacs.add(picture(0))  # before all others by its number
    again = planned(make, pacs, out)
    with pytest.raises(RunError, match=r"E1502: .*image '[0-9a-f]{24}' added.*--allow-added"):
        make.job(again, out)
    assert again.growth.rows == 1
    make.job(again, out, allow_added=True)
    assert ids(out)[:7] == before
    assert len(ids(out)) == 8
    del pacs.datasets["2.25.1.1.2"]
    with pytest.raises(RunError, match=r"E1502: .*image '[0-9a-f]{24}' removed") as caught:
        make.job(planned(make, pacs, out), out, allow_added=True)
    assert "2.25" not in str(caught.value)
    pacs.add(picture(2, SeriesInstanceUID="2.25.1.9", SOPInstanceUID="2.25.1.1.2"))
    with pytest.raises(RunError, match="E1502: .*changed"):
        make.job(planned(make, pacs, out), out, allow_added=True)


def test_reports_are_left_out_and_said(make: Make, pacs: Pacs) -> None:
    """Our own, once stored, too: the archive is then the same as before."""
    pacs.add(picture(9, SOPClassUID=REPORT))
    found = planned(make, pacs)
    assert found.rows == 7
    assert str(found.left_out) == "1 file (1 no picture (a structured report))"
    for number in (1, 23, 13, 20):  # two images, two plans and records
        pacs.add(picture(10 + number, SOPClassUID=f"1.2.840.10008.5.1.4.1.1.481.{number}"))
    found = planned(make, pacs)
    assert (found.rows, found.left_out.total) == (9, 3)
    for uid in [uid for uid, one in pacs.datasets.items() if one.SOPClassUID != REPORT]:
        del pacs.datasets[uid]
    with pytest.raises(DataError, match=r"E1110: .*no picture.*left out: 1 file"):
        planned(make, pacs)


def test_what_one_instance_lacks_costs_its_row_alone(make: Make, pacs: Pacs) -> None:
    found = planned(make, pacs, max_image_bytes=2000)
    del pacs.datasets["2.25.1.1.1"]
    pacs.objects["2.25.1.1.2"] += bytes(2000)
    rows = make.rows(found)
    assert [row.error and row.error.code for row in rows] == ["E1111", "E1112", *[None] * 5]
    assert rows[2].image == picture(3)
    assert "2.25" not in f"{rows[0].error}{rows[1].error}"


@pytest.mark.parametrize(
    ("reply", "error", "code"),
    [
        (Reply(503), RunError, "E1107"),
        (Reply(401), RunError, "E1125"),
        (Reply(500), DataError, "E1107"),
        (Reply(200, {"content-type": "text/html"}, b"<html>"), DataError, "E1107"),
        (Reply(200, {"content-type": "application/dicom"}, picture(5)), DataError, "E1107"),
    ],
    ids=["away", "refused", "broken", "a page", "another's"],
)
def test_what_ends_the_job_and_what_leaves_a_chunk_open(
    make: Make, pacs: Pacs, reply: Reply, error: type[Exception], code: str
) -> None:
    found = planned(make, pacs)
    pacs.faults.append(lambda method, path: reply)
    with pytest.raises(error, match=code) as caught:
        make.rows(found)
    assert type(caught.value) is error
    for word in ("2.25", "127.0.0.1", "Traceback"):
        assert word not in str(caught.value)


def test_a_listing_that_fails_ends_the_job(make: Make, pacs: Pacs) -> None:
    for status, code in ((503, "E1110"), (404, "E1110"), (403, "E1125")):
        pacs.faults[:] = [lambda method, path, status=status: Reply(status)]
        with pytest.raises(RunError, match=code):
            planned(make, pacs)


def test_the_token_is_in_no_file_of_the_run(make: Make, pacs: Pacs, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("CANARY-TOKEN")
    pacs.authorization = "Bearer CANARY-TOKEN"
    out = tmp_path / "run"
    with pytest.raises(RunError, match="E1125"):
        planned(make, pacs)
    found = planned(make, pacs, token_file=str(token))
    make.job(found, out)
    assert "token_file" not in json.dumps(found.identity())
    for path in out.rglob("*"):
        assert path.is_dir() or b"CANARY" not in path.read_bytes()


def test_without_the_private_file_a_run_does_not_go_on(
    make: Make, pacs: Pacs, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    make.job(planned(make, pacs, out), out, stop_after=1)
    (out / pacs_listing.FILE).unlink()
    with pytest.raises(RunError, match="E1506: private/instances.parquet"):
        planned(make, pacs, out)
    make.job(planned(make, pacs), out, new_run=True)
    assert len(ids(out)) == 7


@pytest.mark.parametrize(
    "more", [{}, {"question": "?", "fingerprint": "full"}, {"question": "?", "images": "x"}]
)
def test_settings_that_a_pacs_does_not_have(more: dict[str, str]) -> None:
    with pytest.raises(SettingsError, match="E1001: .*a PACS"):
        build(ArchiveSettings, {"archive": "dicomweb+https://h/x", **more})


def test_limit_takes_the_first_rows_and_identity_stays(make: Make, pacs: Pacs) -> None:
    assert planned(make, pacs, limit=3).rows == 3
    assert "127.0.0.1" not in json.dumps(planned(make, pacs).identity())
