"""Multiple-choice benchmarks in the layouts in which they are published.

The question, the options and the text of the right one become a row; letters and instructions are
the recipe's (`medv_ray.evaluation.recipes`). Sources: the data sets' cards.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from string import ascii_uppercase as LETTERS

from medv_ray.data.vqa.entries import (
    Entry,
    Form,
    Read,
    Record,
    by_words,
    groups_of,
    question_entry,
    text,
)
from medv_ray.data.vqa.files import records_of
from medv_ray.data.vqa.settings import PrepareSettings
from medv_ray.errors import DataError
from medv_ray.tables.cells import any_list, distinct
from medv_ray.tables.columns import NO_COLUMN, Asked
from medv_ray.tables.ids import id_text
from medv_ray.tables.records import Reading

NO_LABEL = ("", "?")
"""What stands for an answer that is not published."""
OPTIONS_TAKEN_OUT = "questions listed their options themselves; the recipe's prompt does"
PICTURES_NAMED = "questions mark their pictures (<image 1>) in the text; there it reads `image 1`"
_NAMED_PICTURE = re.compile(r"<image (\d)>")
_LISTED = re.compile(r"\s*Answer Choices:\s*\(A\).*\Z", re.DOTALL)


def choice_entry(
    image: object, question: object, options: Sequence[object], label: object, **more: object
) -> Entry:
    """Of a question with its options and the letter of the right one.

    Raises DataError E1109 for another letter, E1117 for none, E1308 for options that cannot be
    told apart, and what `question_entry` raises.
    """
    choices = distinct([text(one) for one in options])
    if not choices:
        raise DataError("E1308", "there are no options.")
    letter = text(label)
    if letter in NO_LABEL:
        raise DataError("E1117", "the answer is empty.")
    if letter not in LETTERS[: len(choices)] or len(letter) > 1:
        raise DataError("E1109", f"the answer is the letter of none of the {len(choices)} options.")
    answer = choices[LETTERS.index(letter)]
    return question_entry(image, question, answer, answer_type="closed", choices=choices, **more)


def options_of(value: object) -> Sequence[object]:
    """Of a list, or of the text of one as JSON or Python writes it. Raises DataError E1109."""
    found = any_list(value) if isinstance(value, str) else value
    if not isinstance(found, list | tuple):
        raise DataError("E1109", "the options are no list.")
    return found


def pictures_of_columns(row: Record) -> list[object]:
    """The cells of image_1, image_2, ... that hold a picture, in order."""
    numbered = (name for name in row if re.fullmatch(r"image_\d+", name))
    names = sorted(numbered, key=lambda name: int(name.removeprefix("image_")))
    empty = (None, {"bytes": None, "path": None})
    return [row[name] for name in names if row[name] not in empty]


def _reader(asked: Asked) -> Callable[[Path, PrepareSettings], Iterator[Read]]:
    return lambda path, settings: records_of(path, Reading(settings.encoding), asked)


# PMC-VQA: csv, choices with their letters before them


def _find_pmc(source: Path) -> dict[str, list[Path]]:
    if source.is_file():
        return {"train": [source]}
    found = by_words(source, ("{}_clean.csv", "{}.csv", "{}_2.csv", "{}2.csv"))
    return {split: paths for split, paths in found.items() if split != "validation"}


def _pmc_entry(row: Record, split: str, settings: PrepareSettings) -> Entry:
    options = []
    for letter in LETTERS[:4]:
        option = text(row[f"Choice {letter}"])
        options.append(re.sub(rf"\A{letter}\s*[:.)]\s*", "", option))
    # version 2 has the letter in the column of the answer
    label = row["Answer_label"] if "Answer_label" in row else row["Answer"]
    return choice_entry(row["Figure_path"], row["Question"], options, label)


PMC_VQA = Form(
    "test_clean.csv or test.csv (train.csv), or one such file as --source, and images/",
    _find_pmc,
    _reader(Asked("Figure_path", "Question", NO_COLUMN)),
    _pmc_entry,
    ("images", "images_2", "figures", "."),
)


# OmniMedVQA: a JSON list for each of the datasets it was made of


def _find_omni(source: Path) -> dict[str, list[Path]]:
    if source.is_file():
        return {"test": [source]}
    for folder in ("QA_information/Open-access", "Open-access", "."):
        paths = sorted(path for path in (source / folder).glob("*.json") if path.is_file())
        if paths:
            return {"test": paths}
    return {}


def _omni_entry(row: Record, split: str, settings: PrepareSettings) -> Entry:
    cells = [text(row.get(f"option_{letter}")) for letter in LETTERS[:4]]
    options = [cell for cell in cells if cell]
    answer = text(row["gt_answer"])
    if answer and answer not in options:
        raise DataError("E1109", f"the answer is none of the {len(options)} options.")
    # one record of the release has `modality`
    kind = "modality_type" if "modality_type" in row else "modality"
    return choice_entry(
        row["image_path"],
        row["question"],
        options,
        LETTERS[options.index(answer)] if answer else "",
        id=id_text(row["question_id"]),
        question_type=text(row.get("question_type")) or None,
        groups=groups_of(row, modality=kind, dataset="dataset"),
    )


OMNIMEDVQA = Form(
    "QA_information/Open-access/*.json and Images/, or one such file as --source and --images",
    _find_omni,
    _reader(Asked("image_path", "question", NO_COLUMN)),
    _omni_entry,
    (".",),
    ("holds the open-access part; of the restricted one, pictures must be got from their owners",),
)


# MMMU's subjects of health and medicine: parquet, options as Python writes a list

SUBJECTS = (
    "Basic_Medical_Science",
    "Clinical_Medicine",
    "Diagnostics_and_Laboratory_Medicine",
    "Pharmacy",
    "Public_Health",
)


def _find_mmmu(source: Path) -> dict[str, list[Path]]:
    found = {}
    for split, word in (("train", "dev"), ("validation", "validation")):
        patterns = (f"{subject}/{word}-*.parquet" for subject in SUBJECTS)
        paths = [path for pattern in patterns for path in sorted(source.glob(pattern))]
        if paths:
            found[split] = paths
    return found


def _mmmu_entry(row: Record, split: str, settings: PrepareSettings) -> Entry:
    row_id = id_text(row["id"])
    options = [_named(text(one)) for one in options_of(row["options"])]
    asked = text(row["question"])
    subject = re.fullmatch(r"(?:dev|validation)_(\w+)_\d+", row_id or "")
    groups = groups_of(row, subfield="subfield", difficulty="topic_difficulty")
    if subject:
        groups["subject"] = subject[1]
    kind = text(row.get("question_type")) or None
    images, question = pictures_of_columns(row), _named(asked)
    remarks = (PICTURES_NAMED,) if question != asked else ()
    if options:
        made = choice_entry(
            images,
            question,
            options,
            row["answer"],
            id=row_id,
            question_type=kind,
            groups=groups,
        )
    else:  # an open question; several answers may be right, and the first stands for them
        answer = text(row["answer"])
        several = any_list(answer)
        answer = text(several[0]) if several else answer
        made = question_entry(
            images,
            question,
            "" if answer in NO_LABEL else answer,
            id=row_id,
            answer_type="open",
            question_type=kind,
            groups=groups,
        )
    return made._replace(remarks=(*made.remarks, *remarks))


def _named(words: str) -> str:
    """A text in which pictures are named and not marked: they stand before the question."""
    return _NAMED_PICTURE.sub(r"image \1", words)


MMMU_MED = Form(
    f"{{{','.join(SUBJECTS)}}}/{{dev,validation}}-*.parquet",
    _find_mmmu,
    _reader(Asked("image_1", "question", NO_COLUMN)),
    _mmmu_entry,
    notes=("MMMU's dev is called train; the answers of its test split are not published",),
)


# MedXpertQA, the part with pictures: JSON lines, options by letter


def _find_medxpert(source: Path) -> dict[str, list[Path]]:
    found = {}
    for split, word in (("train", "dev"), ("test", "test")):
        for path in (source / "MM" / f"{word}.jsonl", source / f"{word}.jsonl"):
            if path.is_file() and split not in found:
                found[split] = [path]
    return found


def _medxpert_entry(row: Record, split: str, settings: PrepareSettings) -> Entry:
    lettered = row["options"]
    if not isinstance(lettered, Mapping):
        raise DataError("E1109", "the options are no object of letters.")
    options = [lettered[letter] for letter in LETTERS[: len(lettered)]]
    asked = text(row["question"])
    question = _LISTED.sub("", asked)
    made = choice_entry(
        row["images"],
        question,
        options,
        row["label"],
        id=id_text(row["id"]),
        question_type=text(row.get("question_type")) or None,
        groups=groups_of(row, task="medical_task", body_system="body_system"),
    )
    remarks = (OPTIONS_TAKEN_OUT,) if question != asked else ()
    return made._replace(remarks=(*made.remarks, *remarks))


MEDXPERTQA = Form(
    "MM/test.jsonl (MM/dev.jsonl) and images/",
    _find_medxpert,
    _reader(Asked("images", "question", NO_COLUMN)),
    _medxpert_entry,
    ("images", "MM/images", "../images"),
    ("MedXpertQA's dev is called train",),
)


# MedFrameQA: parquet, several frames of a video a question


def _find_medframe(source: Path) -> dict[str, list[Path]]:
    found = by_words(source, ("data/{}-*.parquet", "{}-*.parquet", "{}.parquet"))
    return {split: paths for split, paths in found.items() if split == "test"}


def _medframe_entry(row: Record, split: str, settings: PrepareSettings) -> Entry:
    return choice_entry(
        pictures_of_columns(row),
        row["question"],
        options_of(row["options"]),
        row["correct_answer"],
        id=id_text(row["question_id"]),
        groups=groups_of(row, body_system="system", organ="organ", modality="modality"),
    )


MEDFRAMEQA = Form(
    "data/test-*.parquet with question, options, correct_answer, image_1, image_2, ...",
    _find_medframe,
    _reader(Asked("image_1", "question", NO_COLUMN)),
    _medframe_entry,
)
