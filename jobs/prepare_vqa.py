r"""Prepare a dataset for training: a release as it was unpacked -> parquet, images, counts.

    python jobs/prepare_vqa.py --kind vqa-rad --source /data/data_RAD --out /data/vqa_rad
    python jobs/prepare_vqa.py --kind pathvqa-official --source /data/pvqa --out /data/pathvqa
    python jobs/prepare_vqa.py --kind llava-med-stage2 --images /data/images \
        --source /data/llava_med_instruct_60k_inline_mention.json --out /data/stage2
    python jobs/prepare_vqa.py --kind table --source ward7.csv --question-column frage \
        --answer-column antwort --out /data/ward7

Out: dataset.json, <split>.parquet with the columns id, images, conversations, answer_type,
question_type, source, images/, and skipped.csv with every row left out: its line, reason and cause.
Prints the counts beside the published ones, and what looks odd. Kinds and their files:
docs/data.md. Nothing is sent anywhere.
Time: VQA-RAD (2,248 rows, 315 images) 5 s on one core.
"""

from pathlib import Path
from typing import Annotated

import typer

from medv_ray.cli import told_cleanly
from medv_ray.data.vqa.prepare import KINDS, prepare
from medv_ray.data.vqa.published import count_table
from medv_ray.data.vqa.settings import PrepareSettings
from medv_ray.settings import build, override

Option = typer.Option
Text = str | None
DEFAULTS = PrepareSettings(kind="table", source="", out="")


def main(
    kind: Annotated[str, Option(help=f"One of {', '.join(KINDS)}.")],
    source: Annotated[Path, Option(help="Folder of the release, or the one file.")],
    out: Annotated[Path, Option(help="Folder of the prepared dataset.")],
    images: Annotated[Path | None, Option(help="Image folder; default: the release's own.")] = None,
    splits: Annotated[
        list[str] | None, Option("--split", help="train, validation, test; default: all.")
    ] = None,
    name: Annotated[Text, Option(help="Of the dataset; default: the kind.")] = None,
    include_frame: Annotated[
        bool, Option("--include-frame", help="VQA-RAD: frame rows too. They leak the test set.")
    ] = False,
    language: Annotated[str, Option(help="SLAKE: en, zh or all.")] = DEFAULTS.language,
    id_column: Annotated[Text, Option(help="Table: column of ids; default: row numbers.")] = None,
    image_column: Annotated[str, Option(help="Table.")] = DEFAULTS.image_column,
    question_column: Annotated[str, Option(help="Table.")] = DEFAULTS.question_column,
    answer_column: Annotated[str, Option(help="Table.")] = DEFAULTS.answer_column,
    answer_type_column: Annotated[Text, Option(help="Table: open or closed.")] = None,
    choices_column: Annotated[Text, Option(help="Table: allowed answers, a list.")] = None,
    group_columns: Annotated[
        list[str] | None, Option("--group-column", help="Table: modality, organ; several times.")
    ] = None,
    encoding: Annotated[Text, Option(help="Of csv and json: latin-1, say; default UTF-8.")] = None,
    drop_answers: Annotated[
        Text, Option(help="Leave rows with these answers out: 'N/A,nan'.")
    ] = None,
    check: Annotated[str, Option(help="Of images: decode, or header.")] = DEFAULTS.check,
    assignments: Annotated[
        list[str] | None, Option("--set", help="Any setting: --set image.max_pixels=200000000.")
    ] = None,
) -> None:
    """Prepare a dataset for training."""
    values = {
        "kind": kind, "source": str(source), "out": str(out), "splits": splits or (),
        "images": None if images is None else str(images.resolve()), "name": name,
        "include_frame": include_frame, "language": language, "id_column": id_column,
        "image_column": image_column, "question_column": question_column,
        "answer_column": answer_column, "answer_type_column": answer_type_column, "check": check,
        "choices_column": choices_column, "group_columns": group_columns or (),
        "encoding": encoding, "drop_answers": drop_answers.split(",") if drop_answers else (),
    }  # fmt: skip
    settings = build(PrepareSettings, override(values, assignments or []))
    index = prepare(settings)
    for line in count_table(settings.kind, index):
        print(line)
    print(f"{sum(index['splits'].values())} rows in {out.name}")


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
    app.command()(told_cleanly(main))
    app()
