"""Metrics with their quirks, and the strict ones without."""

from __future__ import annotations

import unicodedata

import pytest

from medv_ray.archive import strict
from medv_ray.evaluation import llava_med
from medv_ray.evaluation.judge_scores import Scores, group, groups, scores_of
from medv_ray.evaluation.metrics import METRICS, Judged, values


@pytest.mark.parametrize(
    ("answer", "reference", "published", "right"),
    [
        ("The lungs are normal.", "no", True, False),
        ("I don't know", "no", True, False),
        ("eyes", "yes", True, False),
        ("Yes, there is no effusion", "no", True, False),
        ("No, nothing.", "no", True, True),
        ("no yes", "yes", True, False),
        ("on the left side", "left", True, True),
        ("cleft", "left", True, False),
        ("the right lower lobe", "right upper lobe", False, False),
        ("", "yes", False, False),
        ("", "", True, False),
    ],
)
def test_closed_by_substring_and_by_words(
    answer: str, reference: str, published: bool, right: bool
) -> None:
    assert llava_med.contained(answer, reference) is published
    assert strict.closed(answer, reference) is right


@pytest.mark.parametrize(
    ("spelling", "want"),
    [("dont", "don't"), ("couldntve", "couldntve"), ("couldnt've", "couldn't've"),
     ("yall", "y'all"), ("shes", "shes"), ("somebody'd", "somebodyd"), ("Im", "im"),
     ("oclock", "o'clock")],
)  # fmt: skip
def test_short_forms(spelling: str, want: str) -> None:
    assert llava_med.normalize(spelling) == want


def test_values_go_to_the_questions_that_a_metric_is_asked_of() -> None:
    rows = [Judged("a", "lung", "lung", "open"), Judged("b", "no", "yes", "closed")]
    found = values(rows, candidates=["heart", "lung"])
    assert found["llava_med.recall"] == {"a": 1.0}
    assert found["llava_med.closed"] == {"b": 0.0}
    assert found["lmms.slake"] == {"a": 1.0, "b": 0.0}
    assert found["llava_med.open_candidates"] == {"a": 1.0}
    assert values(rows, ["strict.open"]) == {"strict.open": {"a": 1.0}}
    with pytest.raises(KeyError):
        values(rows, ["strict.bleu"])
    assert "llava_med.open_candidates" not in METRICS


def test_of_equal_candidates_the_first_counts() -> None:
    rule = llava_med.Candidates(["left lung", "right lung"])
    assert rule.is_right("lung", "left lung")
    assert not rule.is_right("lung", "right lung")
    assert rule.is_right("nothing of these", "left lung"), "no token in common: the first"
    assert not llava_med.Candidates([]).is_right("lung", "lung")


@pytest.mark.parametrize(
    ("reply", "want"),
    [
        ("8 9", Scores(8, 9)),
        ("Assistant 1: 8/10\nAssistant 2: 7.5/10\nThe first ...", Scores(8, 7.5)),
        ("**Answer 1: 8, Answer 2: 9**", Scores(8, 9)),
        ("\n\n8 out of 10, 9 out of 10\nbecause of 3 things", Scores(8, 9)),
        ("I cannot rate this.", None),
        ("8", None),
        ("8 9 10", None),
        # labels say whose a score is
        ("Answer 2: 3\nAnswer 1: 9", Scores(9, 3)),
        ("**Assistant 2:** 3/10, **Assistant 1:** 9 out of 10", Scores(9, 3)),
        ("1. 8\n2. 6", Scores(8, 6)),
        ("1: 8\n2: 6", Scores(8, 6)),
        ("(2) 6\n(1) 8", Scores(8, 6)),
        ("2 - 6\n1 - 8", Scores(8, 6)),
        ("Score 1: 8\nScore 2: 6", Scores(8, 6)),
        ("Rating 2: 1/10\nRating 1: 2/10", Scores(2, 1)),
        ("1. Answer 1: 8\n2. Answer 2: 6", Scores(8, 6)),
        ("Answer 1\n8\n\nAnswer 2\n6\n\nAnswer 1\nIt is right.", Scores(8, 6)),
        ("Ratings for answer 2 and answer 1:\n6 8", Scores(8, 6)),
        ("I'd give 6 for answer 2 and 8 for answer 1", Scores(8, 6)),
        ('```json\n{"answer_2": 6, "answer_1": 8}\n```', Scores(8, 6)),
        ("Answer 2: 6\n8", None),
        ("Answer 1: 9\nAnswer 1: 3", None),
        ("Answer 1: 9\nAnswer 2: 3\nAnswer 1: 4", None),
        ("1. Answer 2: 3\n2. Answer 1: 9", None),
        ("Score 1, 8", None),
        ("1. 8 6", None),
        ("1.5 8", Scores(1.5, 8)),
        ("1/10 2/10", Scores(1, 2)),
        ("Score 1/10 2/10", Scores(1, 2)),
        ("(1, 8)", Scores(1, 8)),
        ("8 6\nScore 1: 8\nScore 2: 6", Scores(8, 6)),
        # a minus is no separator
        ("-8 6", None),
        ("8 \u22126", None),
        ("Answer 1: -8\nAnswer 2: 6", None),
        ("8 - 6", Scores(8, 6)),
        ("8-6", Scores(8, 6)),
        # what is thought is not said
        ("<think>Answer 1: 3\n4 5</think>\n\n8 6", Scores(8, 6)),
        ("4 5, or rather\n</think>8 6", Scores(8, 6)),
        ("<think>\n8 6\n", None),
        ("```\n8 6\n```\nbecause", Scores(8, 6)),
        ("`8 6`", Scores(8, 6)),
        ("0 5", None),
        ("11 5", None),
        ("I cannot. There are 2 lesions and 3 nodes", None),
    ],
)
def test_replies_of_a_judge(reply: str, want: Scores | None) -> None:
    assert scores_of(reply) == want


def test_a_question_of_two_domains_counts_in_the_first() -> None:
    question = {"type": "conversation", "domain": {"ct_scan": True, "chest_xray": True}}
    found = groups([(question, Scores(8, 4)), ({"type": "conversation"}, Scores(4, 4))])
    assert set(found) == {"conversation", "chest_xray", "overall"}
    assert found["overall"].relative == pytest.approx(75)
    assert found["overall"].ratio_of_means == pytest.approx(100 * 4 / 6)
    with pytest.raises(ValueError, match="no reviews"):
        group([])


def test_a_sign_that_means_something_is_looked_at() -> None:
    assert not strict.same("HER2+", "HER2-")
    assert not strict.same("< 5 mm", "> 5 mm")
    assert strict.same("HER2 +.", "her2+")
    assert strict.same("X-ray", "x ray")
    assert strict.closed("it is 5 mm, >= 2 of them", "5 mm")


def test_an_accent_in_a_character_of_its_own_is_the_same_letter() -> None:
    joined, apart = (unicodedata.normalize(form, "Sjögren, née") for form in ("NFC", "NFD"))
    assert joined != apart
    assert strict.same(apart, joined)
    assert strict.closed(f"It is {apart}.", joined)
