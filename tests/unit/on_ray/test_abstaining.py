"""The threshold that lies beside a model: when a scoring job takes it, and when it does not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from medv_ray.archive.manifest import write_manifest
from medv_ray.archive.settings import ArchiveSettings
from medv_ray.archive.store import Store
from medv_ray.cli import app, score_settings
from medv_ray.errors import SettingsError
from medv_ray.evaluation.calibrators import Calibrator
from medv_ray.evaluation.stored_calibration import (
    StoredCalibration,
    decisive,
    read_calibration,
    write_calibration,
)
from medv_ray.model import weights
from medv_ray.on_ray.abstaining import with_stored
from medv_ray.on_ray.options import ScoreSettings, checkpoint_defaults
from medv_ray.settings import (
    CALIBRATION,
    TOY,
    AnswerSettings,
    ModelSettings,
    SamplerSettings,
    build,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(TOY, tmp_path / "toy"))


def settings(folder: Path, **more: Any) -> ScoreSettings:
    return ScoreSettings(
        **{
            "out": str(folder.parent / "run"),
            "archive": ArchiveSettings(archive="a"),
            "model": ModelSettings(path=str(folder)),
            **more,
        }
    )


def store(folder: Path, **more: Any) -> StoredCalibration:
    values = {
        "model_sha256": weights.digest(folder),
        "held": {"dtype": "float32", "device": "cpu", "logit_size": "tokenizer"},
        "answer": decisive(AnswerSettings()),
        "rows": "validation",
        "n": 200,
        "right": 0.8,
        "calibrator": Calibrator(method="temperature", slope=0.5),
        "ece_before": 0.2,
        "ece_after": 0.05,
        "target_risk": 0.1,
        "abstain_below": 0.75,
        "coverage": 0.6,
        "risk": 0.04,
        "risk_bound": 0.09,
    }
    made = StoredCalibration(**{**values, **more})
    write_calibration(folder, made)
    return made


def test_it_is_taken_and_said_and_the_weights_stay_the_same(folder: Path) -> None:
    assert with_stored(settings(folder)) == (settings(folder), None)
    before = weights.digest(folder)
    made = store(folder)
    assert weights.digest(folder) == before == weights.digest(TOY)
    assert read_calibration(folder) == made
    found, said = with_stored(settings(folder))
    assert found.abstain_below == found.answer.abstain_below == 0.75
    assert found.identity("m")["settings"]["abstain_below"] == 0.75
    assert said is not None
    for word in ("abstain_below=0.75", "keeps 60.0%", "4.0% are wrong", "at most 9.0%"):
        assert word in said


@pytest.mark.parametrize("given", [None, 0.3])
def test_what_a_user_gives_stands(folder: Path, given: float | None) -> None:
    store(folder)
    found, said = with_stored(settings(folder, abstain_below=given))
    assert (found.abstain_below, said) == (given, None)


def test_one_for_other_settings_or_weights_is_not_used(folder: Path) -> None:
    store(folder)
    other = settings(folder, sampler=SamplerSettings(preset="fast"))
    found, said = with_stored(other)
    assert found.abstain_below is None
    assert said is not None
    assert "not used: sampler.preset, sampler.rule differ" in said
    assert with_stored(settings(folder, seed=7))[0].abstain_below == 0.75
    for held in ({"dtype": "bfloat16"}, {"device": "cuda"}, {"logit_size": "checkpoint"}):
        other = settings(folder, model=ModelSettings(path=str(folder), **held))
        found, said = with_stored(other)
        assert found.abstain_below is None
        assert f"not used: model.{next(iter(held))} differ" in str(said)
    store(folder, held=None)
    found, said = with_stored(settings(folder))
    assert found.abstain_below is None
    assert "of before dtype, device and logit_size were noted" in str(said)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "x": 1}))
    found, said = with_stored(settings(folder))
    assert (found.abstain_below, said) == (
        None, "the calibration beside the model is not used: the model has changed",
    )  # fmt: skip


@pytest.mark.parametrize("limit", [None, 0.5])
def test_a_run_that_goes_on_keeps_what_it_began_with(folder: Path, limit: float | None) -> None:
    store(folder)
    begun = {"identity": settings(folder, abstain_below=limit).identity("m")}
    out = Store(str(folder.parent / "run"))
    out.make()
    write_manifest(out, begun)
    assert with_stored(settings(folder))[0].abstain_below == limit
    assert with_stored(settings(folder), new_run=True)[0].abstain_below == 0.75


def test_one_without_a_threshold_and_a_damaged_one(folder: Path) -> None:
    store(folder, abstain_below=None)
    found, said = with_stored(settings(folder))
    assert found.abstain_below is None
    assert "no threshold" in str(said)
    wild = (folder / CALIBRATION).read_text().replace('"abstain_below": null', '"abstain_below": 5')
    for text in ("{", "[]", '{"format": 2}', wild):
        (folder / CALIBRATION).write_text(text)
        with pytest.raises(SettingsError, match="E1001"):
            with_stored(settings(folder))
        assert with_stored(settings(folder, abstain_below=None))[1] is None


def test_null_in_a_file_or_a_flag_is_given(folder: Path, tmp_path: Path) -> None:
    flags = {"out": "o", "archive": {"archive": "a"}, "model": {"path": str(folder)}}
    (tmp_path / "c.yaml").write_text("abstain_below: null\n")
    for config, assignments, given in (
        (None, [], False),
        (None, ["abstain_below=null"], True),
        (tmp_path / "c.yaml", [], True),
        (None, ["abstain_below=0.5"], True),
    ):
        made = score_settings(config, flags, assignments)
        assert ("abstain_below" in made.model_fields_set) == given


def test_scoring_says_it(folder: Path, tmp_path: Path) -> None:
    sampler = build(SamplerSettings, checkpoint_defaults(str(folder))["sampler"])
    store(folder, answer=decisive(AnswerSettings(sampler=sampler)))
    pq.write_table(pa.table({"question": ["q?"], "image": [b"x"]}), tmp_path / "a.parquet")
    flags = ["--archive", tmp_path / "a.parquet", "--model", folder, "--out", tmp_path / "run"]
    for more, said in (([], True), (["--set", "abstain_below=null"], False)):
        result = CliRunner().invoke(app, ["score", "--plan", *map(str, flags), *more])
        assert result.exit_code == 0, result.output
        assert ("abstain_below=0.75, from the calibration" in result.stderr) == said
