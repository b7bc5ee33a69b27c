"""The embedded checkpoint: small, in the real format, right on fresh tiles and blind on grey."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest

import medv_ray
from medv_ray.data import synthetic, toy_questions
from medv_ray.data.prompts import SpecialIds, load_tokenizer
from medv_ray.engine import Answer, Predictor, Request
from medv_ray.model import weights
from medv_ray.settings import AnswerSettings, ModelSettings, SamplerSettings

pytestmark = pytest.mark.integration

ASSET = Path(medv_ray.__file__).parent / "assets" / "medv-tiny"
SAMPLER = SamplerSettings(gen_length=8, block_length=8, steps=8)
LONG_SAMPLER = SamplerSettings(gen_length=24, block_length=24, steps=24)
SPECIAL_TOKENS = (
    *("<|startoftext|>", "<|endoftext|>", "[CLS]", "[gMASK]", "<|mdm_mask|>", "<role>", "</role>"),
    *("<|arithmetic_start|>", "<|arithmetic_end|>", "<|number_start|>", "<|number_end|>"),
    *("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
)


@pytest.fixture(scope="module")
def rows():
    """Fresh: another split and seed than training and its own evaluation."""
    return list(synthetic.rows(60, seed=4711, captions=True))


@pytest.fixture(scope="module")
def questions(rows):
    return [row for row in rows if row.question_type != "caption"]


@pytest.fixture(scope="module")
def ask():
    settings = AnswerSettings(sampler=SAMPLER)
    with Predictor.load(ModelSettings(path=str(ASSET), device="cpu"), settings) as predictor:

        def ask(rows, sampler=SAMPLER, image=None):
            asked = [Request(r.question, (image or r.image,), sampler=sampler) for r in rows]
            answers = predictor.answer(asked)
            assert all(isinstance(answer, Answer) for answer in answers)
            return answers

        yield ask


def by_type(rows, answers):
    hits = defaultdict(list)
    for row, answer in zip(rows, answers, strict=True):
        hits[row.question_type].append(answer.text == row.answer)
    return {kind: sum(right) / len(right) for kind, right in hits.items()}


def test_at_most_3_megabytes():
    assert sum(file.stat().st_size for file in ASSET.iterdir()) <= 3 * 2**20


def test_loads_under_the_published_names():
    model = weights.load(ASSET)
    names = model.state_dict().keys()
    for name in ("model.embed_tokens.weight", "model.mm_projector.2.bias", "model.image_newline"):
        assert name in names
    assert model.config.vision is not None
    assert model.config.language.vocab_size > len(load_tokenizer(ASSET))


def test_tokenizer_has_the_names_of_llada():
    tokenizer = load_tokenizer(ASSET)
    added = {token.content for token in tokenizer.added_tokens_decoder.values()}
    assert added >= set(SPECIAL_TOKENS)
    assert len(set(SpecialIds.of(tokenizer))) == 6
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": " Hello "}], tokenize=False)
    assert prompt == (
        "<|startoftext|><|start_header_id|>user<|end_header_id|>\n\nHello<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )


def test_answers_fresh_tiles(questions, ask):
    answers = ask(questions)
    scores = by_type(questions, answers)
    assert set(scores) == set(toy_questions.QUESTION_TYPES)
    assert min(scores.values()) >= 0.95, scores
    assert {answer.finish for answer in answers} == {"stop"}


def test_answers_and_describes_fresh_tiles_at_24_tokens(rows, ask):
    half = rows[: len(rows) // 2]  # of every type; at once all of them are asked below
    answers = ask(half, LONG_SAMPLER)
    scores = by_type(half, answers)
    assert set(scores) == {*toy_questions.QUESTION_TYPES, "caption"}
    assert min(scores.values()) >= 0.95, scores
    assert {answer.finish for answer in answers} == {"stop"}


def test_is_sure_of_every_token_from_the_first_step(rows, ask):
    """Behind the end of an answer too: faster samplers are measured by what they leave of this."""
    at_once = LONG_SAMPLER.model_copy(update={"steps": 1, "stop": ()})
    answers = ask(rows, at_once)
    assert min(by_type(rows, answers).values()) >= 0.9
    sure = np.array([answer.token_confidence for answer in answers])
    assert sure.shape == (len(rows), 24)
    assert sure.mean(axis=0).min() >= 0.95


def test_knows_nothing_without_the_picture(questions, ask):
    said = defaultdict(Counter)
    for row in questions:
        said[row.question_type][row.answer] += 1
    blind = ask(questions, image=synthetic.grey_image())
    for kind, score in by_type(questions, blind).items():
        majority = max(said[kind].values()) / said[kind].total()
        assert score <= majority + 0.05, (kind, score, majority)
