"""The page about a run: what it counts, whom it shows, and that nothing in it runs."""

from __future__ import annotations

import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from medv_ray.archive.plan import Plan, plan
from medv_ray.archive.reading import read_rows
from medv_ray.archive.rows import quarantine_record, write_part
from medv_ray.archive.run import Run
from medv_ray.archive.settings import ArchiveSettings
from medv_ray.archive.sources import open_archive
from medv_ray.cli import app
from medv_ray.errors import RunError
from medv_ray.evaluation import report as module
from medv_ray.evaluation.calibrators import Calibrator
from medv_ray.evaluation.report import Found, report, without
from medv_ray.evaluation.stored_calibration import (
    StoredCalibration,
    decisive,
    write_calibration,
)
from medv_ray.settings import AnswerSettings

EVIL = "<script>alert(1)</script>"


MODEL = {"sha256": "m", "dtype": "float32"}


def png(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def planned(folder: Path) -> Plan:
    settings = ArchiveSettings(archive=str(folder / "pictures"), questions=str(folder / "q.csv"))
    return plan(open_archive(settings), "settings")


@pytest.fixture
def run(tmp_path: Path) -> str:
    """Thirty rows: one names no picture that is there; of the others every third is wrong, and
    confidence rises with the row."""
    (tmp_path / "pictures").mkdir()
    lines = ["image,question,answer"]
    for row in range(30):
        lines.append(f"{row % 3}.png,{EVIL} {row}?,{'yes' if row % 2 else 'left lung'}")
    lines[5] = "gone.png,where is it?,no"
    (tmp_path / "q.csv").write_text("\n".join(lines))
    for row in range(3):
        (tmp_path / "pictures" / f"{row}.png").write_bytes(png(row))
    made, out = planned(tmp_path), str(tmp_path / "run")
    with Run.open(
        out, made, {"settings": AnswerSettings().model_dump(mode="json"), "model": MODEL}
    ) as opened:
        for chunk in opened.todo():
            records = []
            for row in read_rows(made.archive, chunk):
                if row.error is not None:
                    records.append(quarantine_record(row, row.error))
                    continue
                answer = "heart" if row.row % 3 == 0 else row.reference
                records.append(
                    {
                        "id": row.id, "row": row.row, "question": row.question, "answer": answer,
                        "reference": row.reference, "status": "answered", "warnings": ["x:1"],
                        "confidence": row.row / 30,
                    }
                )  # fmt: skip
            opened.commit(write_part(opened.store, chunk, records))
        opened.finish()
    return out


class Seen(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.handlers: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("href", "src")]
        self.handlers += [name for name, _ in attrs if name.startswith("on")]


def test_what_is_counted_and_who_is_shown(run: str, tmp_path: Path) -> None:
    page = report(run, planned(tmp_path))
    assert "<b>29</b>answered" in page
    assert "<b>1</b>quarantined" in page
    assert "E1111 image missing" in page
    assert re.search(r"<td>all</td><td class=\"n\">65\.5&nbsp;%", page), "19 of 29"
    assert page.count('<article class="card">') == 10 + 12 + 1
    wrong = page.split("Surest wrong answers")[1].split("<h2>")[0]
    assert [int(n) for n in re.findall(r"/script&gt; (\d+)\?", wrong)] == [*range(27, -1, -3)]
    unsure = page.split("Least certain answers")[1].split("<h2>")[0]
    assert [int(n) for n in re.findall(r"/script&gt; (\d+)\?", unsure)] == [
        *range(4),
        *range(5, 13),
    ]
    assert page.count("data:image/jpeg;base64,") == 22
    assert "has not ended" not in page


def test_rows_that_are_not_compared_are_told(run: str) -> None:
    page = report(run)
    assert "Not compared here: 1 quarantined rows;" in page
    found = Found()
    found.judged.empty = 1200
    assert without(found) == "1,200 empty answers"
    assert without(Found()) == ""


def test_nothing_in_it_runs_or_leads_elsewhere(run: str, tmp_path: Path) -> None:
    page = report(run, planned(tmp_path))
    seen = Seen(page)
    assert EVIL not in page
    assert "script" not in seen.tags
    assert seen.handlers == []
    assert all(link.startswith("data:image/jpeg;base64,") for link in seen.links)
    assert "default-src 'none'" in page
    assert str(tmp_path) not in page
    assert len(page) < 500_000


def test_a_run_that_goes_on_and_no_archive(run: str) -> None:
    (Path(run) / "metrics.json").unlink()
    page = report(run)
    assert "The job has not ended" in page
    assert "data:image" not in page
    assert "medv report RUN --archive" in page


def test_pictures_that_are_gone_cost_nothing_else(run: str, tmp_path: Path) -> None:
    (tmp_path / "pictures" / "1.png").write_bytes(b"no picture any more")
    (tmp_path / "pictures" / "2.png").unlink()
    page = report(run, planned(tmp_path))
    assert 0 < page.count("data:image/jpeg;base64,") < 22
    assert page.count('<article class="card">') == 23


def test_a_stored_calibration_is_judged_on_the_runs_rows(run: str, tmp_path: Path) -> None:
    stored = StoredCalibration(
        model_sha256="m", held={"dtype": "float32"}, answer=decisive(AnswerSettings()),
        rows="validation", n=100, right=0.5,
        calibrator=Calibrator(method="logistic", slope=0.0, offset=10.0),
        ece_before=0.1, ece_after=0.05, target_risk=0.2, abstain_below=0.5,
    )  # fmt: skip
    write_calibration(tmp_path, stored)
    result = CliRunner().invoke(app, ["report", run, "--calibration", str(tmp_path)])
    assert result.exit_code == 0, result.output
    page = (Path(run) / "report.html").read_text()
    assert "logistic, fitted on validation" in page
    assert re.search(r"\(ECE\)</td><td class=\"n\">[0-9.]+</td><td class=\"n\">0\.345<", page)
    assert "51.7&nbsp;%" in page, "15 of 29 are kept"
    assert "not used here" not in page
    assert "Calibrated:" not in report(run), "29 answers are too few to fit on"
    for other, why in (
        ({"model_sha256": "n"}, "the model has changed"),
        ({"held": {"dtype": "bfloat16"}}, "model.dtype differ"),
        ({"held": None}, "of before dtype"),
        ({"answer": {}}, "sampler.steps"),
    ):
        page = report(run, stored=stored.model_copy(update=other))
        assert "The calibration that was given is not used here: " in page
        assert why in page
        assert "Calibrated:" not in page
        assert "Kept by the model" not in page


def test_many_rows_stay_few_cards(monkeypatch: pytest.MonkeyPatch, run: str) -> None:
    monkeypatch.setattr(module, "SHOWN", 2)
    assert report(run).count('<article class="card">') == 5


def test_the_command_writes_into_the_run_or_elsewhere(run: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["report", run])
    assert result.exit_code == 0, result.output
    assert (Path(run) / "report.html").read_text() == report(run)
    asked = ["--archive", str(tmp_path / "pictures"), "--questions", str(tmp_path / "q.csv")]
    result = CliRunner().invoke(app, ["report", run, "--out", str(tmp_path / "r.html"), *asked])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "r.html").read_text() == report(run, planned(tmp_path))
    result = CliRunner().invoke(app, ["report", run, *asked[2:], "--question", "Which?"])
    assert result.exit_code == 2
    assert "--questions, --question: only with --archive" in " ".join(result.output.split())
    with pytest.raises(RunError, match="E1507"):
        report(str(tmp_path / "none"))
