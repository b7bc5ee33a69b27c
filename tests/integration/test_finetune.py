"""PathVQA in both of its layouts, from the release to answers: prepare, finetune, export, ask."""

import json
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from medv_ray.data.dataset import Dataset
from medv_ray.engine import Answer, Predictor, Request
from medv_ray.on_ray import train
from medv_ray.settings import TOY, AnswerSettings, ModelSettings, SamplerSettings
from medv_ray.training.job import TrainSettings
from medv_ray.training.run import train_worker
from tests.unit.data.releases import official_row, picture, write_hub, write_official

ROOT = Path(__file__).parents[2]
SPLITS = {"train": "train", "validation": "val", "test": "test"}
"""Hugging Face's words and the release's."""
ASKED = [("Where is this?", "in the liver", "other"), ("Is a cell present?", "yes", "yes/no")]
STAGE = ("batch_size=4", "micro_batch_size=2", "max_steps=2", "lr=1e-3", "warmup_ratio=0")
Job = Callable[..., str]


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Job:
    """`python jobs/NAME.py ...` in this process, with its Ray: the last line of its output."""

    def run(name: str, *arguments: str) -> str:
        path = str(ROOT / "jobs" / f"{name}.py")
        monkeypatch.setattr(sys, "argv", [path, *arguments])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(path, run_name="__main__")
        said = capsys.readouterr()
        assert not ended.value.code, said.err
        return said.out.splitlines()[-1]

    return run


def write_pathvqa(folder: Path) -> dict[str, Path]:
    """The same questions on the same JPEG files in both layouts: folders by kind."""
    hub, official = folder / "hub", folder / "pvqa"
    for number, (split, word) in enumerate(SPLITS.items()):
        cells, records = [], []
        for i in range(6):
            name, data = f"{word}_{i:04d}", picture(50 * number + 8 * i)
            path = official / "images" / word / f"{name}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
            for question, answer, kind in ASKED:
                cells.append((data, question, answer))
                question_id = 1000 * number + len(records)
                records.append(official_row(name, question_id, question, answer, kind))
        write_hub(hub, split, cells)
        write_official(official, word, records)
    return {"pathvqa-hf": hub, "pathvqa-official": official}


def content(data: Path, split: str) -> list[tuple[Any, ...]]:
    """Rows without their ids, which only the release has."""
    rows = Dataset.open(data, split)
    return [(row.images, row.conversations, row.answer_type) for row in rows]


def train_here(settings: TrainSettings, identity: dict[str, Any]) -> None:
    """What one worker does, in this process."""
    for _ in train_worker(settings, identity):
        pass


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_pathvqa_in_both_layouts(tmp_path: Path, job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """ZeRO-3 with two workers on one layout and the plain engine on the other: the rows and the
    losses are the same, and the folder answers. Only the first needs Ray Train's processes."""
    engines = {"pathvqa-hf": ("zero3", 2), "pathvqa-official": ("plain", 1)}
    losses = []
    for kind, source in write_pathvqa(tmp_path).items():
        data, out = tmp_path / f"{kind}-data", tmp_path / f"{kind}-run"
        said = job("prepare_vqa", "--kind", kind, "--source", str(source), "--out", str(data))
        assert said == f"36 rows in {data.name}"
        engine, num_workers = engines[kind]
        if num_workers == 1:
            monkeypatch.setattr(train, "run_workers", train_here)
        shard = ("dtype=float32", "persist_below=1000", f"engine={engine}")
        sets = [f"stage.{one}" for one in STAGE] + [f"shard.{one}" for one in shard]
        said = job(
            "finetune_pathvqa", "--model", str(TOY), "--data", str(data), "--out", str(out),
            "--num-workers", str(num_workers), *(word for one in sets for word in ("--set", one)),
        )  # fmt: skip
        assert json.loads(said)["summary"] == "done"
        ran = json.loads((out / "run.json").read_text())
        assert (ran["settings"]["shard"]["engine"], ran["settings"]["stage"]["name"]) == (
            engine, "sd_sft_pathvqa"
        )  # fmt: skip
        saved = {file.name[:10] for file in (out / "checkpoints").rglob("rank-*.safetensors")}
        assert saved == {f"rank-{rank:05d}" for rank in range(num_workers)}
        events = [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]
        losses.append([event["loss"] for event in events])
        ask(out / "model", data)
    for split in SPLITS:
        assert content(tmp_path / "pathvqa-hf-data", split) == content(
            tmp_path / "pathvqa-official-data", split
        )
    assert len(losses[0]) == 2
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)  # AdamW magnifies rounding


def ask(model: Path, data: Path) -> None:
    """Four test questions of a prepared dataset are answered by a folder."""
    dataset = Dataset.open(data, "test")
    requests = [
        Request(
            row.conversations[0]["value"].removeprefix("<image>\n"), (dataset.image(row.images[0]),)
        )
        for row in list(dataset)[:4]
    ]
    settings = AnswerSettings(sampler=SamplerSettings(gen_length=8, block_length=8, steps=8))
    with Predictor.load(ModelSettings(path=str(model), device="cpu"), settings) as predictor:
        answers = predictor.answer(requests)
    assert all(isinstance(answer, Answer) for answer in answers)
