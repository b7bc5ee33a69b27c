"""Identifiers are planted wherever a row has room for them; what is written beside the rows is
searched. Zero may be found. That the search finds what is there is tested first."""

from __future__ import annotations

import base64
import gzip
import json
import urllib.parse
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from medv_ray.archive import pseudonyms
from medv_ray.archive.plan import plan
from medv_ray.archive.prior import Prior
from medv_ray.archive.rows import read_run
from medv_ray.archive.run import Run
from medv_ray.archive.settings import ArchiveSettings
from medv_ray.archive.sources import open_archive
from medv_ray.cli import app, exit_code_of
from medv_ray.errors import RunError
from medv_ray.on_ray import preview
from medv_ray.on_ray.options import ScoreSettings
from tests.canary import planting, scoring, search
from tests.canary.planting import ANSWER, FILE, NUMBER, QUESTION, WORD
from tests.integration import stub

WRITERS = {
    "folder": planting.write_folder,
    "csv": lambda root: planting.write_table(root, "csv"),
    "jsonl": lambda root: planting.write_table(root, "jsonl"),
    "json": lambda root: planting.write_table(root, "json"),
    "parquet": lambda root: planting.write_table(root, "parquet"),
    "dialogues": planting.write_dialogues,
    "tar": planting.write_tar,
}


def score(root: Path, archive: ArchiveSettings, **privacy: Any) -> Path:
    """The job on an archive, without Ray; the run folder."""
    settings = {
        "out": str(root / "run"),
        "archive": archive.model_dump(),
        "model": {"path": str(stub.write_model(root / "model"))},
        "privacy": privacy,
    }
    scoring.score(ScoreSettings.model_validate(settings))
    return root / "run"


def archive_of(kind: str, root: Path) -> ArchiveSettings:
    path = str(WRITERS[kind](root))
    return ArchiveSettings(archive=path, question=QUESTION if kind == "folder" else None)


def test_the_search_finds_every_spelling(tmp_path: Path) -> None:
    for text in (WORD, WORD.title(), WORD.upper(), NUMBER):
        spelt = {
            "plain": text.encode(),
            "url": urllib.parse.quote(f"ä {text}^").encode(),
            "percent": "".join(f"%{ord(c):02X}" for c in text).encode(),
            "json": "".join(f"\\u{ord(c):04X}" for c in text).encode(),
            "hex": text.encode().hex().upper().encode(),
            "utf-16": text.encode("utf-16-le"),
            "utf-16 be": text.encode("utf-16-be"),
            **{f"base64 {n}": base64.b64encode(b"x" * n + text.encode() + b"!") for n in range(3)},
        }
        for name, data in spelt.items():
            with search.planted():
                assert search.hits(b"before " + data + b" after"), (name, data)
    assert not search.hits(b"a canary of another kind; 739184620552")


def test_the_search_finds_what_is_planted_in_a_log(tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    logs.mkdir()
    (logs / "worker.out").write_text("nothing\n" * 1000)
    assert search.in_folder(tmp_path) == []
    places = {
        "worker.err": f"ValueError: {QUESTION}".encode(),
        "old.log.gz": gzip.compress(WORD.encode()),
        f"{WORD}.txt": b"",
    }
    for name, data in places.items():
        (logs / name).write_bytes(data)
        with search.planted():
            assert search.in_folder(tmp_path), name
        (logs / name).unlink()
    table = pa.table({"a": [f"x {NUMBER}"]})
    pq.write_table(table, logs / "t.parquet", compression="zstd")
    with search.planted():
        assert {hit.place for hit in search.in_folder(tmp_path)} == {"logs/t.parquet"}
    assert search.in_folder(tmp_path, lambda name: name.endswith(".parquet")) == []


def test_every_canary_is_one() -> None:
    for value in (*planting.IDENTIFIERS.values(), QUESTION, ANSWER, planting.FOLDER, FILE):
        with search.planted():
            assert search.in_text(value), value
    for name, data in planting.pictures().items():
        if data and name.endswith(("jpg", "png", "tif", "dcm")) and name.count("-") == 1:
            with search.planted():
                assert search.hits(data), name


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize(
    "privacy", [{}, {"ids": "digest", "mapping": True}], ids=["plain", "digest"]
)
def test_a_scoring_run(
    kind: str, privacy: dict[str, Any], tmp_path: Path, printed: SimpleNamespace
) -> None:
    run = score(tmp_path, archive_of(kind, tmp_path), **privacy)
    table = pa.concat_tables(read_run(str(run)))
    assert {"answered", "quarantined"} <= set(table.column("status").to_pylist())
    assert printed.hits() == []
    # what holds rows, or names of files, by design: docs/privacy.md
    held = ("rows", "quarantine", "run.json", "inputs", "private")
    plain = () if privacy else ("metrics.json",)
    assert search.in_folder(run, lambda name: name.startswith((*held, *plain))) == []
    content = ["question", "answer", "reference", "choices", "choice"]
    names = [] if privacy else ["id", "image_paths"]
    assert search.in_value(table.drop_columns([*content, *names]).to_pylist()) == []
    lost = pq.read_table(run / "quarantine" / "quarantine.parquet")
    assert search.in_value(lost.drop_columns(names).to_pylist()) == []
    assert not search.hits(b"".join(map(str.encode, lost.schema.names)))


@pytest.mark.parametrize("kind", ["folder", "csv"])
def test_a_report_and_exports_of_pseudonyms(
    kind: str, tmp_path: Path, printed: SimpleNamespace
) -> None:
    run = score(tmp_path, archive_of(kind, tmp_path), ids="digest")
    out = tmp_path / "out"
    out.mkdir()
    for words in (
        ["report", str(run), "--out", str(out / "report.html")],
        ["rows", str(run), "--csv", str(out / "a.csv"), "--jsonl", str(out / "a.jsonl"),
         "--parquet", str(out / "a.parquet")],
    ):  # fmt: skip
        done = CliRunner().invoke(app, words)
        assert done.exit_code == 0, done.output
        assert search.in_text(done.output) == []
    page = (out / "report.html").read_text().replace("&#39;", "'")
    rows = (out / "a.jsonl").read_text()
    for text in (page, rows, (out / "a.csv").read_text()):
        for content in (QUESTION, ANSWER):
            text = text.replace(content, "")
        cut = text.replace(f"{WORD} <image> inside", "").replace(f"{WORD} &lt;image&gt; inside", "")
        assert FILE not in cut
        assert planting.FOLDER not in cut
        assert f'"{WORD}-0' not in cut
    assert printed.hits() == []


@pytest.mark.parametrize("kind", WRITERS)
def test_a_plan(kind: str, tmp_path: Path, printed: SimpleNamespace) -> None:
    settings = ScoreSettings.model_validate(
        {
            "out": str(tmp_path / "run"),
            "archive": archive_of(kind, tmp_path).model_dump(),
            "model": {"path": str(stub.write_model(tmp_path / "model"))},
        }
    )
    line = preview.preview(settings, factory=stub.STUB)
    assert line["every_row"]["problems"]
    assert search.in_value(line) == []
    assert printed.hits() == []


def test_what_is_refused(tmp_path: Path, printed: SimpleNamespace) -> None:
    """Nothing of a row stands in what ends a command."""
    archive = str(WRITERS["csv"](tmp_path))
    score(tmp_path, ArchiveSettings(archive=archive))
    run, model = str(tmp_path / "run"), str(stub.write_model(tmp_path / "model"))
    table, odd = tmp_path / "odd.csv", tmp_path / f"{FILE}.png"
    table.write_text(f"id,age\n{WORD}-0,1\n{WORD}-0,2\n")
    odd.write_bytes(planting.everything().encode())
    base = ["score", "--out", str(tmp_path / "other"), "--model", model]
    for words in (
        [*base, "--archive", archive, "--question-column", "ask"],
        [*base, "--archive", str(tmp_path / "no" / FILE)],
        [*base, "--archive", archive, "--id-column", "no"],
        ["rows", run, "--join", str(table)],
        ["rows", run, "--join", str(odd)],
        ["rows", run, "--join", str(tmp_path / FILE)],
        ["rows", run, "--csv", str(tmp_path / "no" / f"{FILE}.csv")],
        ["rows", str(tmp_path / FILE)],
        ["report", str(tmp_path / FILE)],
        ["ask", str(odd), QUESTION],
        ["ask", str(tmp_path / "no" / f"{FILE}.png"), QUESTION],
    ):
        done = CliRunner().invoke(app, words)
        assert done.exit_code, words
        assert search.in_text(done.output) == [], words
    # a defect says its name and nothing else
    assert exit_code_of(lambda: int(QUESTION)) == 1
    assert printed.hits() == []


def test_an_archive_that_changed(tmp_path: Path, printed: SimpleNamespace) -> None:
    archive = archive_of("folder", tmp_path)
    score(tmp_path, archive)
    folder = Path(archive.archive) / planting.FOLDER
    first, second, *_ = sorted(folder.glob("*.png"))
    first.unlink()
    second.write_bytes(planting.png(9))
    (folder / f"{FILE} new.png").write_bytes(planting.png(10))
    out = str(tmp_path / "run")
    prior = Prior.read(out)
    planned = plan(open_archive(archive, prior.images), "digest", prior)
    for allow_added in (False, True):
        with pytest.raises(RunError, match="E1502.*image (changed|removed)") as caught:
            Run.open(out, planned, {}, allow_added=allow_added)
        assert search.in_text(str(caught.value)) == []
    assert printed.hits() == []


def test_names_are_shown_where_they_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other level: MEDV_NAMES=1."""
    monkeypatch.setenv("MEDV_NAMES", "1")
    odd = tmp_path / "no" / f"{FILE}.png"
    assert FILE in CliRunner().invoke(app, ["ask", str(odd), "what?"]).output


def test_json_of_a_summary_has_no_names(tmp_path: Path) -> None:
    planned = plan(open_archive(archive_of("folder", tmp_path)), "digest")
    assert planned.left_out.total
    assert search.in_text(json.dumps(planned.left_out.printed()), str(planned.left_out)) == []


def test_what_ray_data_says_of_an_actor(tmp_path: Path) -> None:
    """It writes the arguments of its operators into what it logs and exports."""
    from ray.data._internal.metadata_exporter import sanitize_for_struct

    from medv_ray.on_ray.actor import Work

    salt = pseudonyms.Pseudonyms(WORD.encode() * 4)
    archive = archive_of("folder", tmp_path)
    settings = stub.settings(tmp_path, archive=archive.model_dump())
    work = Work(settings, open_archive(archive), None, pseudonyms=salt)
    with search.planted():
        assert search.in_value(vars(work))
    said = sanitize_for_struct({"fn_constructor_args": (work,)}, 10_000)
    assert search.in_value(said) == []
    assert str(list(salt.salt))[1:20] not in str(said)
