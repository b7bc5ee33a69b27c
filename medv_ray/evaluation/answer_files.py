"""Answers of an evaluation as the scripts of others read them, so that these count them row by row.

    llava-med    OUT/<dataset>/test.json                  questions with their references
                 OUT/<dataset>/test-answer-file.jsonl     answers, in the same order
                 OUT/<dataset>/train_open_answers.json    candidates, where they are given
    medevalkit   OUT/<DATASET>/results.json               questions, references and answers

Folders are called as the scripts call the benchmarks. Sources: what LLaVA-Med v1.0.0
`llava/eval/run_eval*.py` and MedEvalKit `utils/*/*.py` read.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from medv_ray.disk import disk_errors, output_folder
from medv_ray.errors import DataError, SettingsError
from medv_ray.evaluation.comparison import read_answers, read_results
from medv_ray.evaluation.recipes import Question
from medv_ray.files import write_atomic
from medv_ray.tables.cells import IMAGE_MARK

Form = Literal["llava-med", "medevalkit"]
LLAVA_MED = {"vqa-rad": "data_RAD", "slake": "Slake1.0", "pathvqa": "pvqa"}
"""LLaVA-Med's folder of a benchmark, by the recipe's name; others keep theirs."""
MEDEVALKIT = {"vqa-rad": "VQA_RAD", "slake": "SLAKE", "pathvqa": "PATH_VQA"}
Answers = Mapping[str, str]
Files = dict[str, bytes]
"""Bytes by path below the output folder."""


def export(
    evaluation: Path, form: str, out: Path, candidates: Mapping[str, Sequence[str]] | None = None
) -> dict[str, dict[str, Any]]:
    """Write the files; by benchmark, what they hold and where.

    `candidates`: open answers of the training splits by recipe, for LLaVA-Med's open accuracy.
    Nothing is written before everything has been read. Raises SettingsError E1001, DataError E1105,
    E1121, E1123.
    """
    if form not in FORMS:
        raise SettingsError("E1001", f"--format {form[:20]!r}: one of {', '.join(FORMS)}.")
    files: Files = {}
    found = {}
    for name, one in read_results(evaluation)["recipes"].items():
        questions, answers = read_answers(evaluation / name)
        check(name, questions, one["n"])
        made = FORMS[form](name, questions, answers, (candidates or {}).get(name))
        files |= made
        kinds = Counter(question.kind for question in questions)
        empty = sum(not answer.strip() for answer in answers.values())
        found[name] = {
            "files": list(made), "rows": len(questions), "open": kinds["open"],
            "closed": kinds["closed"], "empty_answers": empty, "whole": one["whole"],
        }  # fmt: skip
    for path, data in files.items():
        output_folder((out / path).parent)
        with disk_errors(path):
            write_atomic(out / path, data)
    return found


def check(name: str, questions: Sequence[Question], count: int) -> None:
    """Raises DataError E1121 for kinds that the scripts do not know, E1123 for other answers than
    those that were counted."""
    if other := sum(one.kind not in ("open", "closed") for one in questions):
        raise DataError("E1121", f"{name}: {other} questions are neither open nor closed.")
    if len(questions) != count or len({one.id for one in questions}) != count:
        raise DataError(
            "E1123", f"{name}: {len(questions)} answers, and results.json counts {count}."
        )


def llava_med(
    name: str,
    questions: Sequence[Question],
    answers: Answers,
    candidates: Sequence[str] | None = None,
) -> Files:
    """Ids are numbers in both files where all are whole numbers, as in LLaVA-Med's own: its scripts
    compare the lists of ids. The conversation stands under both spellings of its key, as one script
    knows only the misspelt one."""
    numbers = all(one.id.isascii() and str(_number(one.id)) == one.id for one in questions)
    truth: list[dict[str, Any]] = []
    said: list[dict[str, Any]] = []
    for one in questions:
        key: int | str = int(one.id) if numbers else one.id
        turns = [
            {"from": "human", "value": f"{one.question}\n{IMAGE_MARK}"},
            {"from": "gpt", "value": one.answer},
        ]
        more = {"question_type": one.groups["question_type"]} if _typed(one) else {}
        kind = {"id": key, "answer_type": one.kind.upper(), **more}
        truth.append({**kind, "conversations": turns, "conversatons": turns})
        row = {"question_id": key, "prompt": one.question, "text": answers[one.id]}
        said.append({**row, "answer_id": one.id, "model_id": "medv_ray", "metadata": {}})
    folder = LLAVA_MED.get(name, name)
    files = {
        f"{folder}/test.json": _json(truth),
        f"{folder}/test-answer-file.jsonl": b"".join(_line(row) for row in said),
    }
    if candidates is not None:
        files[f"{folder}/train_open_answers.json"] = _json({"0": list(candidates)})
    return files


def medevalkit(
    name: str,
    questions: Sequence[Question],
    answers: Answers,
    candidates: Sequence[str] | None = None,
) -> Files:
    """For SLAKE with kind and language; elsewhere MedEvalKit takes yes and no for closed."""
    rows = []
    for one in questions:
        row = {"question": one.question, "answer": one.answer}
        if name == "slake":
            row = {"lang": "en", "answer_type": one.kind.upper(), **row, "prompt": one.question}
        rows.append({"id": one.id, **row, "response": answers[one.id]})
    return {f"{MEDEVALKIT.get(name, name)}/results.json": _json(rows)}


FORMS: dict[str, Callable[..., Files]] = {"llava-med": llava_med, "medevalkit": medevalkit}


def _typed(one: Question) -> bool:
    return "question_type" in one.groups


def _number(text: str) -> int | None:
    return int(text) if text.lstrip("-").isdecimal() else None


def _line(value: object) -> bytes:
    return json.dumps(value).encode() + b"\n"


def _json(value: object) -> bytes:
    return json.dumps(value, indent=1).encode() + b"\n"
