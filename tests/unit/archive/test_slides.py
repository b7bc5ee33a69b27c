"""Slides in an archive: a row a tile, its columns, what has no tiles, growth, counts by slide."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from medv_ray.archive.plan import plan
from medv_ray.archive.prior import Prior
from medv_ray.archive.reading import read_rows
from medv_ray.archive.rows import quarantine_record, read_run, tile_record, write_part
from medv_ray.archive.run import Run
from medv_ray.archive.settings import ArchiveSettings
from medv_ray.archive.slides import by_slide, slide_counts
from medv_ray.archive.sources import open_archive
from medv_ray.cli import app
from medv_ray.data.slide_child import SlideSplitter
from medv_ray.errors import RunError
from medv_ray.settings import ImageSettings, SlideSettings
from tests.slides import GLASS, NoProcess, scan, write_slide

IDENTITY = {"settings": {"sampler": {"steps": 64, "gen_length": 64}}, "model": "sha256:abc"}
TILES = SlideSettings(read="tiles", magnification=10, tile=64, most_tiles=3)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "slides"
    root.mkdir()
    write_slide(root / "b.svs", scan((1024, 768)))
    write_slide(root / "glass.svs", Image.new("RGB", (256, 192), GLASS))
    scan((64, 48)).save(root / "a.png")
    return root


def planned(folder: Path, settings: SlideSettings, out: Path | None = None):
    reader = NoProcess(ImageSettings(), settings)
    split = SlideSplitter(reader, settings, None) if settings.read == "tiles" else None
    prior = Prior() if out is None else Prior.read(str(out))
    given = ArchiveSettings(archive=str(folder), question="What is it?", chunk_rows=2)
    found = replace(open_archive(given, prior.images), slides=reader)
    return plan(found, "settings", prior, split)


def job(made, out: Path, **options) -> None:
    with Run.open(str(out), made, IDENTITY, **options) as run:
        for chunk in run.todo():
            records = []
            for number, row in enumerate(read_rows(made.archive, chunk)):
                if row.error is not None:
                    records.append(quarantine_record(row, row.error))
                    continue
                found = {"id": row.id, "row": row.row, "question": row.question, "frame": None}
                answer = {"answer": " Tumour" if number else "tumour", "status": "answered"}
                places = {"image_paths": [row.image_name], "warnings": list(row.warnings)}
                sure = {"confidence": 0.5 + row.row / 100}
                records.append({**found, **tile_record(row), **answer, **places, **sure})
            run.commit(write_part(run.store, chunk, records))
        run.finish()


def test_a_row_for_each_tile(folder: Path, tmp_path: Path) -> None:
    made = planned(folder, TILES)
    assert made.rows == 5
    counts = slide_counts(made.inputs)
    assert counts is not None
    assert (counts.slides, counts.tiles, counts.grid, counts.names) == (1, 3, 48, {"b.svs": 3})
    assert "1 in 3 tiles" in str(counts)
    assert f"{counts.with_tissue - 3} beyond slides.most_tiles" in str(counts)
    out = tmp_path / "run"
    job(made, out)
    rows = {row["row"]: row for table in read_run(str(out)) for row in table.to_pylist()}
    assert [rows[n]["image_paths"] for n in range(5)] == [
        ["a.png"], ["b.svs"], ["b.svs"], ["b.svs"], ["glass.svs"]
    ]  # fmt: skip
    tile = rows[1]
    assert tile["id"] == f"b.svs#tile={tile['tile_x']},{tile['tile_y']}"
    assert (tile["tile_width"], tile["tile_height"], tile["tile_magnification"]) == (128, 128, 10)
    assert tile["tile_mpp"] == 1
    assert 0.25 <= tile["tile_tissue"] <= 1
    assert rows[0]["tile_x"] is None
    assert (rows[4]["status"], rows[4]["code"], rows[4]["id"]) == (
        "quarantined", "E1215", "glass.svs",
    )  # fmt: skip
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["slides"]["tiles"] == 3
    assert "names" not in metrics["slides"]


def test_thumbnails_are_one_row_a_slide(folder: Path) -> None:
    made = planned(folder, SlideSettings(thumbnail_side=64))
    rows = [row for chunk in made.chunks for row in read_rows(made.archive, chunk)]
    assert [row.warnings for row in rows] == [
        (), ("slide_thumbnail:1024x768",), ("slide_thumbnail:256x192",)
    ]  # fmt: skip
    assert slide_counts(made.inputs) is None
    (folder / "c.mrxs").write_bytes((folder / "a.png").read_bytes())
    made = planned(folder, SlideSettings())
    for reader in (made.archive.slides, None):
        archive = replace(made.archive, slides=reader)
        rows = [row for chunk in made.chunks for row in read_rows(archive, chunk)]
        assert [row.error and row.error.code for row in rows] == [None, None, "E1211", None]


def test_slides_that_come_later_do_not_change_the_earlier_rows(
    folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    job(planned(folder, TILES), out)
    before = {row["id"]: row for table in read_run(str(out)) for row in table.to_pylist()}
    write_slide(folder / "a.svs", scan((512, 384)))
    grown = planned(folder, TILES, out)
    assert grown.rows == 7
    job(grown, out, allow_added=True)
    after = {row["id"]: row for table in read_run(str(out)) for row in table.to_pylist()}
    assert len(after) == 7
    assert {name: after[name] for name in before} == before
    assert {after[name]["row"] for name in after if name.startswith("a.svs")} == {5, 6}
    other = TILES.model_copy(update={"tile": 128})
    with pytest.raises(RunError, match="E1502"):
        job(planned(folder, other, out), out)


def test_links_out_of_the_folder_are_not_followed(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.svs").write_bytes((folder / "b.svs").read_bytes())
    (folder / "c.svs").symlink_to(tmp_path / "secret.svs")
    for settings in (TILES, SlideSettings()):
        made = planned(folder, settings)
        rows = [row for chunk in made.chunks for row in read_rows(made.archive, chunk)]
        codes = {row.id: row.error and row.error.code for row in rows}
        assert codes["c.svs"] == "E1108"


def test_answers_by_slide(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    job(planned(folder, TILES), out)
    found = {row["slide"]: row for row in by_slide(str(out)).to_pylist()}
    slide = found["b.svs"]
    assert (slide["rows"], slide["tiles"], slide["answered"]) == (3, 3, 3)
    assert (slide["top_answer"], slide["top_share"]) == ("tumour", 1)
    assert slide["answers"] == [{"answer": "tumour", "rows": 3, "share": 1}]
    assert slide["mean_confidence"] == pytest.approx(0.52)
    assert slide["surest_confidence"] == pytest.approx(0.53)
    assert slide["surest_id"] == f"b.svs#tile={slide['surest_x']},{slide['surest_y']}"
    assert (found["glass.svs"]["quarantined"], found["glass.svs"]["top_answer"]) == (1, None)
    target = tmp_path / "slides.csv"
    ended = CliRunner().invoke(app, ["rows", str(out), "--by-slide", "--csv", str(target)])
    assert ended.exit_code == 0, ended.output
    with target.open(newline="") as file:
        [picture, line, _] = csv.DictReader(file)
    assert (picture["slide"], picture["tiles"], picture["rows"]) == ("a.png", "0", "1")
    assert (line["slide"], line["tiles"], line["top_answer"]) == ("b.svs", "3", "tumour")
    assert json.loads(line["answers"])[0]["rows"] == 3
    shown = CliRunner().invoke(app, ["rows", str(out), "--by-slide"])
    assert "tumour" in shown.output
    refused = CliRunner().invoke(app, ["rows", str(out), "--by-slide", "--sort", "row"])
    assert refused.exit_code
