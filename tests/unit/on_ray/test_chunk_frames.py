"""Frames of one file through the real engine, without Ray."""

from pathlib import Path

from medv_ray.archive.rows import read_run
from medv_ray.archive.run import Run
from medv_ray.evaluation.report import report
from medv_ray.on_ray.chunk import ChunkScorer
from medv_ray.on_ray.options import ScoreSettings
from medv_ray.on_ray.predictor import load_predictor
from medv_ray.on_ray.score import planned, tell
from medv_ray.settings import TOY
from tests.frame_files import dicom, greys, page, tiff


def test_each_frame_is_a_picture_of_its_own(tmp_path: Path, capsys) -> None:
    archive = tmp_path / "archive"
    archive.mkdir()
    (archive / "a.dcm").write_bytes(dicom([20, 90, 160, 230]))
    (archive / "b.tif").write_bytes(tiff([page(10, t254=1), page(60), page(120)]))
    (archive / "c.png").write_bytes(greys("PNG", [200]))
    settings = ScoreSettings.model_validate(
        {
            "out": str(tmp_path / "run"),
            "archive": {"archive": str(archive), "question": "what colour?"},
            "model": {"path": str(TOY)},
            "image": {"frames": "all", "decode_seconds": 120},  # on a busy machine, too
            "sampler": {"gen_length": 4, "block_length": 4, "steps": 1},
        }
    )
    made, identity = planned(settings)
    tell(made)
    assert capsys.readouterr().err == (
        "image.frames=all: 3 files, 2 of them several rows each: 7 rows\n"
    )
    with Run.open(settings.out, made, identity) as run:
        [chunk] = run.todo()
        scorer = ChunkScorer(
            made.archive, run.store, settings.answer, lambda: load_predictor(settings)
        )
        part, reasons = scorer.score(chunk)
        counters = scorer.take_counters()
        scorer.close()
        assert run.commit(part)
        assert (run.finish().quarantined, reasons) == (0, {})
    assert (counters["decodes"], counters["tower_runs"], counters["images"]) == (7, 7, 7)
    rows = sorted(next(read_run(settings.out)).to_pylist(), key=lambda row: row["row"])
    assert [(row["image_paths"], row["frame"]) for row in rows] == [
        *((["a.dcm"], frame) for frame in (1, 2, 3, 4)),
        *((["b.tif"], frame) for frame in (1, 2)),
        (["c.png"], None),
    ]
    assert [row["warnings"][0] for row in rows[:4]] == [f"frame:{k}/4" for k in (1, 2, 3, 4)]
    assert rows[4]["warnings"][:2] == ["thumbnail_page_skipped", "frame:1/2"]
    assert rows[6]["warnings"] == []
    assert len({row["image_sha256"] for row in rows}) == 3  # of the files
    assert report(settings.out, made).count("data:image/jpeg") == 7
