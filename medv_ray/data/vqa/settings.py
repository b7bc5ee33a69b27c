"""Settings of a preparation."""

from __future__ import annotations

from typing import Literal

from pydantic import field_validator

from medv_ray.settings import ImageSettings, OnePicture, Settings
from medv_ray.tables.encoding import known_encoding

KindName = Literal[
    "pathvqa-hf",
    "pathvqa-official",
    "vqa-rad",
    "slake",
    "llava-med-stage1",
    "llava-med-stage2",
    "llava-med-qa50",
    "llava",
    "table",
    "pmc-vqa",
    "omnimedvqa",
    "mmmu-med",
    "medxpertqa-mm",
    "medframeqa",
]


class PrepareSettings(Settings):
    """What is read, and how strictly."""

    kind: KindName
    """Which release, or form of a table; docs/data.md lists their files."""
    source: str
    """Folder of the unpacked release, or the one file."""
    out: str
    """Folder of the prepared dataset."""
    images: str | None = None
    """Folder that image paths are relative to, where it is not the release's own."""
    splits: tuple[str, ...] = ()
    """train, validation, test. Empty: all that are there."""
    name: str | None = None
    """Of the dataset. None: the kind."""
    licence: str | None = None
    """Stands in dataset.json. None: what the release says of itself."""
    include_frame: bool = False
    """VQA-RAD: take the `frame` rows of data_RAD. They leak the test set."""
    language: Literal["en", "zh", "all"] = "en"
    """SLAKE's questions."""
    id_column: str | None = None
    """None, or `none`: ids are split and row number."""
    image_column: str = "image"
    """Of a table: paths, bytes or base64."""
    question_column: str = "question"
    """Of a table."""
    answer_column: str = "answer"
    """Of a table."""
    answer_type_column: str | None = None
    """Of a table: open or closed."""
    choices_column: str | None = None
    """Allowed answers, the right one among them: a list of two or more, or empty."""
    group_columns: tuple[str, ...] = ()
    """Columns by whose values tables of an evaluation are split: modality, organ."""
    encoding: str | None = None
    """Of csv, tsv and json files, such as `latin-1`. None: by the mark at the beginning of the
    file, else UTF-8."""
    drop_answers: tuple[str, ...] = ()
    """Rows with one of these answers are left out, whatever their case; such as `N/A`."""
    check: Literal["decode", "header"] = "decode"
    """`decode` finds every damaged image now and not in training; `header` is some ten times
    faster."""
    image: OnePicture = ImageSettings()

    @field_validator("encoding")
    @classmethod
    def _encoding_is_known(cls, value: str | None) -> str | None:
        return None if value is None else known_encoding(value)
