"""Metrics and judge scores, per row and in aggregate.

The folder is `metrics` of the golden root, or the root itself where it holds corner_cases.json; the
committed rows leave out three that quote published answers, and with them the aggregates.
"""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from medv_ray.evaluation import judge_scores, llava_med, slake_rule
from medv_ray.evaluation.metrics import METRICS, Judged, values

OURS = {
    "exact_match": "exact_match",
    "f1": "f1",
    "precision": "precision",
    "recall": "recall",
    "bleu": "bleu",
    "bleu_1": "bleu_1",
    "bleu_2": "bleu_2",
    "bleu_3": "bleu_3",
    "open_hit_substring_run_eval_batch": "open_contained",
    "open_hit_candidate_run_eval": "open_candidates",
    "closed_hit_run_eval": "closed_gated",
    "closed_hit_run_eval_batch": "closed",
    "closed_recall_batch": "closed_recall",
}
"""Our metric by the golden's name."""
QUESTIONS = Path(__file__).parents[3] / "shared/data/llava_med_qa50/llava_med_eval_qa50_qa.jsonl"


def read(golden: Any, name: str) -> list[dict[str, Any]]:
    """The file in every root that has it; skips the test where none has."""
    paths = [root / part / name for root in golden.roots for part in ("metrics", ".")]
    found = [json.loads(path.read_text()) for path in paths if path.is_file()]
    if not found:
        pytest.skip(f"golden metrics have no {name} here")
    return found


def judged(case: dict[str, Any]) -> list[Judged]:
    return [
        Judged(str(row["id"]), row["pred"], row["gt"], row["answer_type"].strip().lower())
        for row in case["rows"]
    ]


def test_normalised_text(golden: Any) -> None:
    for case in read(golden, "corner_cases.json"):
        for row in case["rows"]:
            for side in ("gt", "pred"):
                once = llava_med.prepared(row[side])
                assert once == row[f"{side}_norm"], row["id"]
                assert llava_med.normalize(once) == row[f"{side}_norm2"], row["id"]


def test_metrics_of_each_row(golden: Any) -> None:
    for case in read(golden, "corner_cases.json"):
        got = values(judged(case), candidates=case["candidates"]["0"])
        compared = 0
        for row in case["rows"]:
            for theirs, ours in OURS.items():
                mine = got[f"llava_med.{ours}"].get(str(row["id"]))
                if row.get(theirs) is not None and mine is not None:
                    assert mine == pytest.approx(row[theirs], rel=1e-12, abs=0), (row["id"], ours)
                    compared += 1
        assert compared >= 2 * len(case["rows"])


def test_aggregates(golden: Any) -> None:
    cases = [
        case for case in read(golden, "corner_cases.json") if "aggregate_full_precision" in case
    ]
    if not cases:
        pytest.skip("the aggregates are over all rows, and those are not committed")
    for case in cases:
        got = values(judged(case), candidates=case["candidates"]["0"])
        for theirs, want in case["aggregate_full_precision"].items():
            if theirs in OURS:
                mine = 100 * fmean(got[f"llava_med.{OURS[theirs]}"].values())
                assert mine == pytest.approx(want, abs=1e-9), theirs


def test_slake_rule(golden: Any) -> None:
    for case in read(golden, "lmms_slake.json"):
        for row in case["rows"]:
            answer, reference = row["pred"], row["doc"]["answer"]
            assert slake_rule.normalize(answer) == row["prediction_normalized"], row["doc"]["qid"]
            assert slake_rule.normalize(reference) == row["target_normalized"], row["doc"]["qid"]
            assert slake_rule.is_right(answer, reference) == row["is_correct"], row["doc"]["qid"]
        for name, want in case.get("aggregate", {}).items():
            group = name.removeprefix("slake_").removesuffix("accuracy").strip("_")
            hits = [row["is_correct"] for row in case["rows"] if in_group(row["doc"], group)]
            assert fmean(hits) == pytest.approx(want, abs=1e-12), name


def in_group(doc: dict[str, Any], group: str) -> bool:
    said = {doc[name].lower().replace("-", "") for name in ("answer_type", "modality")}
    return group in ("", doc["content_type"].lower()) or group in said


def test_replies_that_the_published_parser_takes_or_not(golden: Any) -> None:
    for case in read(golden, "judge.json"):
        for entry in case["malformed_single_review"]:
            reply = entry["result"]
            if "all" in entry:
                found = judge_scores.group([judge_scores.published_scores(reply)])
                assert found.relative == pytest.approx(entry["all"]["pred_relative_score"])
                assert judge_scores.scores_of(reply) == judge_scores.published_scores(reply)
            else:
                with pytest.raises((ValueError, ZeroDivisionError)):
                    judge_scores.group([judge_scores.published_scores(reply)])


def test_means_of_reviews(golden: Any) -> None:
    cases = [case for case in read(golden, "judge.json") if "reviews" in case]
    if not cases or not QUESTIONS.is_file():
        pytest.skip("reviews or questions are not here")
    lines = [json.loads(line) for line in QUESTIONS.read_text().splitlines()]
    questions = {line["question_id"]: line for line in lines}
    for case in cases:
        reviews = [
            (questions[one["question_id"]], judge_scores.published_scores(one["result"]))
            for one in case["reviews"]
        ]
        got = judge_scores.groups(reviews)
        for name, want in case["aggregate"]["v1_ChatEvaluation.eval"].items():
            mine = got["overall" if name == "all" else name]
            assert mine.reference == pytest.approx(want["gpt4_score"], abs=1e-9)
            assert mine.model == pytest.approx(want["pred_score"], abs=1e-9)
            assert mine.relative == pytest.approx(want["pred_relative_score"], abs=1e-9)
            assert mine.n == want["data_size"]


def test_every_metric_has_a_kind() -> None:
    assert {kind for metric in METRICS.values() for kind in metric.kinds} == {"open", "closed"}
