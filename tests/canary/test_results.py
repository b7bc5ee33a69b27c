"""What leaves a run: rows on the terminal, reports for a PACS. Identifiers only where asked."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from medv_ray.cli import app
from tests.canary import planting, search
from tests.canary.conftest import Medv
from tests.canary.planting import ANSWER, FILE, FOLDER, NUMBER, QUESTION, WORD
from tests.dicomweb_server import Pacs, Reply, serving
from tests.integration import stub

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("in_process")]
SR = "1.2.840.10008.5.1.4.1.1.88.33"


def scored(root: Path, medv: Medv, *more: object) -> list[Any]:
    """`medv score` of a folder of pictures; the words that name the archive."""
    archive = ["--archive", planting.write_folder(root), "--question", QUESTION]
    model = stub.write_model(root / "model")
    medv("score", *archive, "--model", model, "--out", root / "run", *more)
    return archive


def without_content(text: str) -> str:
    """Questions and answers are the results; they stay wherever rows are."""
    return " ".join(text.split()).replace(QUESTION, "").replace(ANSWER, "")


def test_rows_on_the_terminal(tmp_path: Path, medv: Medv, printed: SimpleNamespace) -> None:
    scored(tmp_path, medv, "--pseudonymise", "--mapping")
    run = str(tmp_path / "run")
    for more in ([], ["--status", "quarantined"], ["--limit", "2"], ["--by-slide"],
                 ["--reason", "E1203"], ["--sort", "-confidence"]):  # fmt: skip
        done = CliRunner().invoke(app, ["rows", run, *more])
        assert done.exit_code == 0
        assert search.in_text(done.stderr, without_content(done.stdout)) == [], more
    back = ["rows", run, "--mapping", f"{run}/private/mapping"]
    done = CliRunner().invoke(app, back)
    with search.planted():  # where it is asked for
        assert search.in_text(without_content(done.stdout))
    assert search.in_text(done.stderr) == []
    assert printed.hits() == []


def test_reports(tmp_path: Path, medv: Medv) -> None:
    archive = scored(tmp_path, medv)
    export = ["export-sr", tmp_path / "run", "--model", tmp_path / "model", "--out"]
    for _ in range(2):
        said = json.loads(medv(*export, tmp_path / "plain"))
    assert said["already_there"] >= 4
    for report in (tmp_path / "plain").glob("*.dcm"):
        text = report.read_bytes().decode(errors="replace")
        assert search.in_text(without_content(text)) == []
    medv(*export, tmp_path / "named", "--identifiers", *archive)
    texts = [p.read_bytes().decode(errors="replace") for p in (tmp_path / "named").glob("*.dcm")]
    named = next(text for text in texts if "PLACEHOLDER" not in text)
    with search.planted():  # as --identifiers asks
        search.in_text(without_content(named))
    folder = Path(archive[1]) / FOLDER
    for path in folder.glob("*.dcm"):
        path.write_bytes(planting.dicom(9))
    medv(*export, tmp_path / "other", "--identifiers", *archive, fails=True)
    medv(*export, tmp_path / FILE, "--licence", planting.everything())
    (tmp_path / "run" / "run.json").write_text(planting.everything())
    medv(*export, tmp_path / "x", fails=True)


@pytest.mark.usefixtures("unhurried")
def test_storing(tmp_path: Path, medv: Medv) -> None:
    archive = scored(tmp_path, medv)
    medv("export-sr", tmp_path / "run", "--out", tmp_path / "sr", "--identifiers", *archive)
    token = tmp_path / "token"
    token.write_text(WORD)
    words = ["store", tmp_path / "sr", "--token-file", token, "--to"]
    said = planting.everything().encode()
    with serving(Pacs(authorization=f"Bearer {WORD}")) as pacs:
        words.append(f"dicomweb+{pacs.url}")
        for reply in (
            Reply(503, {"retry-after": WORD}, said), Reply(401, {"www-authenticate": WORD}, said),
            Reply(409, {}, said), Reply(200, {"content-type": f"text/{WORD}"}, said),
            Reply(307, {"location": f"https://{WORD}.example.org/{NUMBER}"}, said),
        ):  # fmt: skip
            pacs.faults[:] = [lambda method, path, reply=reply: reply]
            done = CliRunner().invoke(app, list(map(str, words)))
            assert search.in_text(done.output) == []
        pacs.faults.clear()
        pacs.refuses = {SR}
        (tmp_path / "sr" / "stored.jsonl").unlink(missing_ok=True)
        medv(*words, fails=True)
        pacs.refuses = set()
        for _ in range(2):
            medv(*words)
    assert search.hits((tmp_path / "sr" / "stored.jsonl").read_bytes()) == []
