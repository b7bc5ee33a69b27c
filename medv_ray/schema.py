"""The row contract and the columns of an answer file.

Every row of the input ends as exactly one of `answered`, `abstained`, `quarantined`; the three sum
to the input.
"""

from __future__ import annotations

from typing import Literal

import pyarrow as pa

Status = Literal["answered", "abstained", "quarantined"]
STATUSES: tuple[Status, ...] = ("answered", "abstained", "quarantined")

ANSWER_SCHEMA = pa.schema(
    [
        pa.field(
            "id", pa.string(), nullable=False
        ),  # the archive's id, or "<file>:<row>" where it has none
        pa.field("file", pa.int32(), nullable=False),  # index of the input file in run.json
        pa.field("row", pa.int64(), nullable=False),  # row number in that file, from 0
        pa.field(
            "image_paths", pa.list_(pa.string())
        ),  # one a picture, inside the archive (tar: shard.tar/member); null where it has none
        pa.field(
            "frame", pa.int32()
        ),  # which frame or page of that file, from 1; null where a file is one row
        pa.field("tile_x", pa.int64()),  # of a slide's tile, on the slide's finest level: left edge
        pa.field("tile_y", pa.int64()),  # upper edge; all tile_* are null where a row is no tile
        pa.field("tile_width", pa.int32()),  # pixels of the finest level
        pa.field("tile_height", pa.int32()),  # as tile_width
        pa.field("tile_mpp", pa.float32()),  # micrometres a pixel of what the model was given
        pa.field("tile_magnification", pa.float32()),  # power of an objective that shows so much
        pa.field("tile_tissue", pa.float32()),  # share that shows tissue; null: not looked for
        pa.field("question", pa.string()),  # the row's own, without `prompt.question_suffix`
        pa.field("status", pa.string(), nullable=False),  # answered | abstained | quarantined
        pa.field(
            "reason", pa.string()
        ),  # null when answered; empty_answer, low_confidence; else of the error catalogue
        pa.field("code", pa.string()),  # E.... when quarantined
        pa.field("answer", pa.string()),  # decoded text, up to the stop; null when quarantined
        pa.field(
            "reference", pa.string()
        ),  # the archive's own answer column, copied where there is one
        pa.field("answer_type", pa.string()),  # open | closed, where the archive says so
        pa.field(
            "confidence", pa.float32()
        ),  # mean over the answer's tokens, of the commit confidence
        pa.field("finish", pa.string()),  # stop | length | cancelled
        pa.field("token_ids", pa.list_(pa.int32())),  # of the answer, up to its end
        pa.field("token_confidence", pa.list_(pa.float32())),  # of each, when it was committed
        pa.field(
            "token_step", pa.list_(pa.int32())
        ),  # the step at which each token was committed, from 0
        pa.field("forward_passes", pa.int32()),  # of the language tower, for this answer
        pa.field("seconds", pa.float32()),  # from the first look at the request to its end
        pa.field(
            "warnings", pa.list_(pa.string())
        ),  # what was changed to read picture or row; empty for plain RGB and grey
        pa.field("image_sha256", pa.string()),  # of the encoded bytes; several with blanks between
        pa.field(
            "prompt_sha256", pa.string()
        ),  # of the prompt's token ids, image slots as -200, little-endian int64
        pa.field("choices", pa.list_(pa.string())),  # the row's own; null where it has none
        pa.field(
            "choice_probabilities", pa.list_(pa.float64())
        ),  # of each among them, in their order
        pa.field("choice", pa.string()),  # the likeliest; of equal ones the first
        pa.field("chunk", pa.string(), nullable=False),  # of the ledger line that committed it
    ]
)
"""Columns of `rows/*.parquet`, in order. Behind them, where the answers have a form: `blank_X`,
`confidence_X` and, of a choice, `probabilities_X` of each blank X. A file of an older version lacks
the younger ones: it is read as if they were null. Units: seconds of wall time; confidences are
probabilities."""
OF_BLANKS = ("blank_", "confidence_", "probabilities_")
"""How the columns of a run's own blanks begin."""


def is_of_blank(name: str) -> bool:
    """Whether a column is one of the run's blanks."""
    return name.startswith(OF_BLANKS) and name not in ANSWER_SCHEMA.names
