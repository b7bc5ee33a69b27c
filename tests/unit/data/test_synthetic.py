"""Tiles, questions and archives are seeded, balanced, and share no picture between splits."""

from __future__ import annotations

import hashlib
import io
from collections import Counter, defaultdict
from itertools import islice

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from medv_ray.data import synthetic, toy_questions
from medv_ray.data.tissue import Scene, draw


def undrawn(*args, **named):
    """Rows with one tile for all: to draw takes the most time, and not all look at the pictures."""
    tile = draw(scene())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(synthetic, "draw", lambda *_: tile)
        return list(synthetic.rows(*args, **named))


@pytest.fixture(scope="module")
def held_out():
    return undrawn(600, seed=5)


def digests(rows):
    return {hashlib.sha256(row.image).hexdigest() for row in rows}


@pytest.fixture(scope="module")
def few():
    return list(synthetic.rows(60, seed=5))


def test_same_arguments_give_the_same_rows(few, held_out):
    assert list(synthetic.rows(60, seed=5)) == few
    assert [row.id for row in held_out] == sorted({row.id for row in held_out})


def test_splits_and_seeds_share_no_picture(few):
    others = [synthetic.rows(60, seed=5, split=split) for split in ("train", "validation")]
    others.append(synthetic.rows(60, seed=6))
    seen = digests(few)
    assert len(seen) == 20
    for other in others:
        pictures = digests(other)
        assert len(pictures) == 20
        assert not seen & pictures


def test_every_question_has_all_its_answers_equally_often(held_out):
    per_question = defaultdict(Counter)
    for row in held_out:
        per_question[row.question_type, row.question][row.answer] += 1
    assert Counter(row.question_type for row in held_out) == dict.fromkeys(
        toy_questions.QUESTION_TYPES, 120
    )
    for (kind, question), answers in per_question.items():
        options = {
            target.answer for target in toy_questions.targets(kind) if target.question == question
        }
        assert set(answers) == options
        assert len(set(answers.values())) == 1, (question, answers)


def test_answers_are_true_of_the_tile(held_out):
    for row in held_out:
        (target,) = [
            target
            for target in toy_questions.targets(row.question_type)
            if (target.question, target.answer) == (row.question, row.answer)
        ]
        assert all(row.attributes[name] in values for name, values in target.needs.items())


def test_the_other_answers_are_false_of_the_tile(held_out):
    for row in held_out:
        wrong = [
            target
            for target in toy_questions.targets(row.question_type)
            if target.question == row.question and target.answer != row.answer
        ]
        for target in wrong:
            assert any(row.attributes[name] not in v for name, v in target.needs.items())


def test_captions_name_every_attribute():
    rows = list(synthetic.rows(9, captions=True))
    captions = [row for row in rows if row.question_type == "caption"]
    assert (len(rows), len(captions)) == (12, 3)
    for row in captions:
        assert row.attributes["colour"] in row.answer
        assert row.attributes["count"] in row.answer
        assert ("no pigment" in row.answer) == (row.attributes["pigment"] == "no")
        assert ("no vessel" in row.answer) == (row.attributes["vessel"] == "none")


@pytest.mark.parametrize("num_rows", [1, 7, 601])
def test_any_number_of_rows(num_rows):
    assert len(undrawn(num_rows, per_image=4)) == num_rows


def scene(**changes):
    values = {"colour": "red", "count": "two", "vessel": "none", "pigment": "no", "band": "no"}
    return Scene(**(values | changes), seed=(1, 2))


def test_a_vessel_shows_on_its_side():
    plain = np.asarray(draw(scene()), int)
    for side, part in {
        "left": np.s_[:, :32],
        "right": np.s_[:, -32:],
        "top": np.s_[:32],
        "bottom": np.s_[-32:],
    }.items():
        white = np.asarray(draw(scene(vessel=side)), int).min(axis=2) > 235
        assert white[part].sum() > 0.9 * white.sum() > 100
        assert (plain.min(axis=2) > 235).sum() == 0


def test_a_larger_size_shows_the_same_tile():
    small, large = draw(scene()), draw(scene(), (700, 400))
    assert large.size == (700, 400)
    shrunk = np.asarray(large.resize(small.size, Image.Resampling.BOX), int)
    assert np.abs(shrunk - np.asarray(small, int)).mean() < 4


def test_archive_has_the_layout_of_hugging_face(tmp_path, few):
    path = synthetic.write_archive(tmp_path / "demo.parquet", 60, seed=5)
    table = pq.read_table(path)
    assert b"huggingface" in table.schema.metadata
    assert table.column("image").to_pylist()[7] == {
        "bytes": few[7].image,
        "path": few[7].image_name,
    }
    for name in ("id", "question", "answer", "question_type", "attributes"):
        assert table.column(name).to_pylist() == [getattr(row, name) for row in few]


@pytest.mark.parametrize("shift", [False, True])
def test_archive_with_captions_has_one_of_each_tile(tmp_path, few, shift):
    path = synthetic.write_archive(
        tmp_path / "c.parquet", 60, seed=5, captions=True, row_group_rows=7, shift=shift
    )
    found = pq.read_table(path).to_pylist()
    want = list(synthetic.rows(60, seed=5, captions=True))
    assert [row["id"] for row in found] == [row.id for row in want]
    assert [row["answer"] for row in found] == [row.answer for row in want]
    said = {row["question"] for row in found if row["question_type"] == "caption"}
    assert said == {"Describe the slide." if shift else synthetic.CAPTION_QUESTION}
    assert len(found) - len(few) == len({row.image for row in few}) == 20


def test_grey_archive_keeps_all_but_the_pictures(tmp_path, few):
    table = pq.read_table(synthetic.write_archive(tmp_path / "g.parquet", 60, seed=5, grey=True))
    assert table.column("answer").to_pylist() == [row.answer for row in few]
    (data,) = {cell["bytes"] for cell in table.column("image").to_pylist()}
    assert np.unique(np.asarray(Image.open(io.BytesIO(data)))).tolist() == [synthetic.GREY]


def test_pathvqa_shape(tmp_path):
    path = synthetic.pathvqa_shaped(
        tmp_path / "p.parquet", 250, 31, max_pixels=200_000, row_group_rows=100
    )
    file = pq.ParquetFile(path)
    assert file.schema_arrow.names == ["image", "question", "answer"]
    assert [file.metadata.row_group(i).num_rows for i in range(3)] == [100, 100, 50]
    cells = file.read().column("image").to_pylist()
    pictures = [Image.open(io.BytesIO(data)) for data in {cell["bytes"] for cell in cells}]
    assert (len(cells), len(pictures)) == (250, 31)
    assert Counter(picture.mode for picture in pictures)["CMYK"] == 3
    assert all(42_000 < picture.width * picture.height < 202_000 for picture in pictures)


def test_rows_are_made_one_block_at_a_time():
    assert len(list(islice(synthetic.rows(10**9), 3))) == 3


def test_true_of_lists_exactly_the_true_answers(held_out):
    for row in held_out[:60]:
        said = toy_questions.true_of(row.attributes)
        assert row.question in said[row.question_type][row.answer]
        for answer, questions in said[row.question_type].items():
            assert answer == row.answer or row.question not in questions


def test_without_a_question_half_of_the_tiles_have_no_vessel():
    rows = [r for r in undrawn(200, per_image=1) if r.question_type == "colour"]
    assert 0.35 < np.mean([row.attributes["vessel"] == "none" for row in rows]) < 0.65


def test_the_other_laboratory_words_and_stains_everything_anew(few):
    asked = {
        t.question for kind in toy_questions.QUESTION_TYPES for t in toy_questions.targets(kind)
    }
    asked.add(synthetic.CAPTION_QUESTION)
    assert set(synthetic.NEW_WORDS) <= asked
    few = [*few, *islice(synthetic.rows(1, captions=True), 1, 2)]
    moved = [synthetic.shifted(row) for row in few]
    assert not {row.question for row in moved} & asked
    for row, other in zip(few, moved, strict=True):
        assert (row.answer, row.question_type) == (other.answer, other.question_type)
        closed = row.question_type in ("yes/no", "presence")
        assert other.question.startswith("Yes or no: ") == closed
    before, after = (np.asarray(Image.open(io.BytesIO(r.image)), int) for r in (few[0], moved[0]))
    mixed = np.round(0.6 * before + 0.4 * before[..., [1, 2, 0]])
    assert np.abs(after - mixed).max() <= 1
    assert np.abs(after - before).max() > 20
