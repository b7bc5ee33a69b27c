"""Metrics with their quirks, and the strict ones without."""

from __future__ import annotations

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
