"""Rows with choices through the scorer of chunks: answered as ever, and their choices scored."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from medv_ray.archive.plan import plan
from medv_ray.archive.sources import open_archive
from medv_ray.archive.store import Store
from medv_ray.data import synthetic
from medv_ray.engine import Predictor
from medv_ray.on_ray.chunk import ChunkScorer, reasons_of
from medv_ray.settings import TOY, AnswerSettings, ModelSettings, SamplerSettings
from tests.integration import stub

ANSWER = AnswerSettings(sampler=SamplerSettings(gen_length=8, block_length=8, steps=8))


def test_choices_of_rows_end_in_their_records(tmp_path: Path) -> None:
    made = [row for row in synthetic.rows(40, 3, split="validation") if row.answer in ("yes", "no")]
    cells = [["yes", "no"], ["no", "yes"], None, ["yes", "yes "], ["yes", "x" * 4000]]
    table = {
        "id": list("abcde"),
        "image": [row.image for row in made[:5]],
        "question": [row.question for row in made[:5]],
        "choices": pa.array(cells, pa.list_(pa.string())),
    }
    records = {}
    for name in ("choices", "plain"):
        folder = tmp_path / name
        folder.mkdir()
        columns = {key: table[key] for key in table if key != "choices" or name == "choices"}
        pq.write_table(pa.table(columns), folder / "in.parquet")
        settings = stub.settings(folder)
        asked = {"choices_column": "choices"} if name == "choices" else {}
        planned = plan(open_archive(settings.archive.model_copy(update=asked)), "digest")
        scorer = ChunkScorer(
            planned.archive,
            Store(settings.out),
            ANSWER,
            lambda: Predictor.load(ModelSettings(path=str(TOY)), ANSWER),
        )
        records[name] = scorer.answer(scorer.read(planned.chunks[0]))
        scorer.write(planned.chunks[0], records[name])
        scorer.close()
    assert reasons_of(records["choices"]) == {"bad_choices": 2}
    for index, (one, free) in enumerate(zip(records["choices"], records["plain"], strict=True)):
        assert "choice" not in free
        if index > 2:
            assert (one["status"], one["code"]) == ("quarantined", "E1308")
            continue
        assert {key: one[key] for key in free if key != "seconds"} == {
            key: free[key] for key in free if key != "seconds"
        }
        if cells[index] is None:
            assert "choices" not in one
        else:
            assert one["choices"] == cells[index]
            assert sum(one["choice_probabilities"]) == pytest.approx(1)
            best = one["choice_probabilities"].index(max(one["choice_probabilities"]))
            assert one["choice"] == cells[index][best] == made[index].answer
