"""Which archive is read, by which columns, and how it is cut."""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from medv_ray.dicomweb.address import is_dicomweb
from medv_ray.settings import Settings
from medv_ray.tables.columns import Asked
from medv_ray.tables.encoding import known_encoding
from medv_ray.tables.record import CELL_BYTES
from medv_ray.tables.records import Reading

QUESTION = "question"
"""In a prompt: the row's question, whatever its column is called."""
BRACES = re.compile(r"\{\{|\}\}|\{([^{}]+)\}")


def names_of(prompt: str) -> list[str]:
    """The columns that a prompt names."""
    return [name for name in BRACES.findall(prompt) if name]


def check_prompt(prompt: str) -> None:
    """Raises ValueError for braces that name nothing."""
    if not prompt.strip():
        raise ValueError("--prompt is empty or white space")
    if re.search(r"[{}]", BRACES.sub("", prompt)):
        rule = "has a brace without its partner; {{ and }} are braces of the text"
        raise ValueError(f"--prompt {rule}")


class ArchiveSettings(Settings):
    """Where the rows lie, which columns they have, and how they are cut into chunks."""

    archive: str
    """File, folder, or pattern with `*`; local, or an `s3://` or `gs://` URI; a dataset of the
    hub, `hf://datasets/org/name@revision/folder`. Or a PACS:
    `dicomweb+https://host/dicom-web?Modality=CT`."""
    questions: str | None = None
    """A csv, tsv, jsonl, json or parquet file of questions; `archive` is then the folder of its
    images."""
    images: str | None = None
    """Folder that image paths in columns are relative to. Default: the archive's own folder."""
    question: str | None = None
    """One question for every image; a question column is then not looked at."""
    id_column: str | None = None
    """Column of row ids. Default: `id` where there is one, else ids made of file and row number;
    `none`: these in any case."""
    image_column: str = "image"
    """Encoded bytes, base64, a struct {bytes, path}, a path, or a list of these. Where there is no
    `image`, that of a known layout is taken (`images`, SLAKE's `img_name`)."""
    question_column: str = "question"
    """Text. Where there is no `question`, a dialogue is taken (`messages`, `conversations`)."""
    answer_column: str | None = None
    """The known answer, copied to the output as `reference`. Default: `answer` where it exists."""
    choices_column: str | None = None
    """Allowed answers, a list of two texts or more: each is scored beside the free answer. Default:
    `choices` where it exists; `none`: no column."""
    prompt: str | None = None
    """What is asked, with the row's question and columns: `Modality: {modality}. {question}`. `{{`
    is a brace. Without `{question}` no question column is looked at."""
    system_column: str | None = None
    """Column of system sentences, in place of the one of the prompt settings; an empty cell
    leaves that."""
    chunk_rows: Annotated[int, Field(ge=1, le=4096)] = 32
    """Rows that are read, answered and committed together: what a kill can cost."""
    limit: PositiveInt | None = None
    """Only the first rows of the archive."""
    fingerprint: Literal["fast", "full"] = "fast"
    """How a changed input file is noticed: by size, time and both ends, or by its whole content."""
    encoding: str | None = None
    """Of csv, tsv and json files, such as `latin-1` or `cp1252`. Default: by the mark at the
    beginning of the file, else UTF-8."""
    max_cell_bytes: PositiveInt = CELL_BYTES
    """Longer questions and answers are quarantined; characters of a cell of text. Cells of
    other columns may have 2^26 at least."""
    token_file: str | None = None
    """Of a PACS: a file that holds its token, or `Basic user:password`, on each machine of a job.
    Default: the one that MEDV_DICOMWEB_TOKEN_FILE names."""
    max_image_bytes: PositiveInt = 256 * 2**20
    """Larger encoded images are quarantined, before they are read where the format allows it."""

    @model_validator(mode="after")
    def _one_source_of_questions(self) -> Self:
        if self.question is not None and not self.question.strip():
            raise ValueError("question is empty or white space")
        if self.question is not None and self.questions is not None:
            raise ValueError("give questions or question, not both")
        if self.prompt is not None:
            check_prompt(self.prompt)
        if self.encoding is not None:
            known_encoding(self.encoding)
        if is_dicomweb(self.archive):
            if self.question is None:
                raise ValueError("a PACS needs `question`, asked of every image")
            if self.images is not None or self.fingerprint == "full":
                raise ValueError("a PACS has no `images`, and no `fingerprint=full`")
        return self

    @property
    def asked(self) -> Asked:
        """The columns that are looked for."""
        named = [] if self.prompt is None else names_of(self.prompt)
        no_question = self.question is not None or bool(named) and QUESTION not in named
        return Asked(
            self.image_column,
            None if no_question else self.question_column,
            self.id_column,
            self.answer_column,
            self.choices_column,
            tuple(
                name
                for name in dict.fromkeys([*named, self.system_column])
                if name and name != QUESTION
            ),
        )

    @property
    def reading(self) -> Reading:
        """How text tables are read."""
        return Reading(self.encoding, self.max_cell_bytes)
