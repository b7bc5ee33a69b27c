"""`medv rows`: look at what a run answered, choose, export."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medv_ray.errors import SettingsError

if TYPE_CHECKING:
    import pyarrow as pa

Option = typer.Option
Text = str | None
SHOWN = ("id", "image_paths", "question", "status", "answer", "confidence")
SLIDES_SHOWN = (
    *("slide", "rows", "tiles", "answered", "quarantined", "top_answer", "top_share"),
    *("mean_confidence", "surest_id"),
)
PIPE_WIDTH = 200


def rows_command(
    run: Annotated[str, typer.Argument(help="Run folder of `medv score`, finished or not.")],
    status: Annotated[Text, Option(help="answered, abstained or quarantined.")] = None,
    reason: Annotated[Text, Option(help="A code or a reason: E1203, corrupt_image.")] = None,
    below: Annotated[float | None, Option(help="Only confidence under this.")] = None,
    sort: Annotated[Text, Option(help="A column; -confidence: largest first.")] = None,
    limit: Annotated[int | None, Option(help="First rows; shown: 20, exported: all.")] = None,
    csv: Annotated[Text, Option(help="Write a csv file; no cell runs as a formula.")] = None,
    jsonl: Annotated[Text, Option(help="Write a file with a JSON object a line.")] = None,
    parquet: Annotated[Text, Option(help="Write a parquet file with all columns.")] = None,
    join: Annotated[Text, Option(help="Your table, whose columns are put beside.")] = None,
    encoding: Annotated[Text, Option(help="Of --join, as latin-1. Default: UTF-8.")] = None,
    on: Annotated[str, Option(help="Its column of ids, or `row` for its order.")] = "id",
    by_slide: Annotated[
        bool, Option("--by-slide", help="A line for each picture file: its tiles, or frames.")
    ] = False,
    mapping: Annotated[
        Text, Option(help="Folder RUN/private/mapping: ids and picture names are put back.")
    ] = None,
    salt_file: Annotated[
        Text, Option(help="Of the run's pseudonyms, for --join. Default: RUN/private/salt.")
    ] = None,
) -> None:
    """Show, choose and export the rows of a run, each with its picture's path."""
    from medv_ray.archive import exports, pseudonyms, results
    from medv_ray.archive.mapping import read_mapping, restore
    from medv_ray.archive.store import absolute

    writers = {
        "--csv": (csv, exports.write_csv),
        "--jsonl": (jsonl, exports.write_jsonl),
        "--parquet": (parquet, exports.write_parquet),
    }
    files = {flag: (path, write) for flag, (path, write) in writers.items() if path is not None}
    if limit is not None and limit < 1:
        raise SettingsError("E1001", "--limit is 1 or more.")
    for flag, (path, _) in files.items():
        if absolute(path) == absolute(join or run) or inside(absolute(path), absolute(run)):
            raise SettingsError("E1001", f"{flag}: neither over the table nor into the run folder.")
    most = 20 if limit is None and not files else limit
    if by_slide:
        others = (status, reason, below, sort, join, mapping)
        if any(one is not None for one in others):
            raise SettingsError("E1001", "--by-slide counts all rows: it takes --limit and files.")
        show_slides(run, files, most)
        return
    choice = results.Choice(status, reason, below, most, sort)
    choice.check()
    beside = None
    if join is not None:
        salted = None if mapping is not None else pseudonyms.of_run(run, salt_file)
        beside = results.joined(run, join, exports.read_table(join, on, encoding), on, salted)
    way_back = None if mapping is None else read_mapping(mapping)

    def chosen() -> Iterator[pa.Table]:
        for table in results.rows_of(run, choice):
            if way_back is not None:
                table = restore(table, way_back)
            yield table if beside is None else beside.add(table)

    for flag, (path, write) in files.items():
        partners = 0 if beside is None else beside.partners
        count = write(path, chosen())
        if beside is not None:
            tell_partners(beside.partners - partners, count)
        typer.echo(f"{count} rows written ({flag}).", err=True)
    if not files:
        shown = list(chosen())
        show(shown, most)
        if beside is not None:
            tell_partners(beside.partners, sum(table.num_rows for table in shown))


def show_slides(run: str, files: dict[str, tuple[str, Any]], most: int | None) -> None:
    """Write or show a line a slide."""
    from medv_ray.archive.slides import by_slide

    table = by_slide(run).slice(0, most)
    for flag, (path, write) in files.items():
        typer.echo(f"{write(path, iter([table]))} slides written ({flag}).", err=True)
    if not files:
        show([table], most, SLIDES_SHOWN)


def tell_partners(partners: int, rows: int) -> None:
    typer.echo(f"{partners} of {rows} rows have a row in the table of --join.", err=True)


def inside(path: str, folder: str) -> bool:
    return path.startswith(folder.rstrip("/") + "/")


def show(tables: list[pa.Table], most: int | None, shown: tuple[str, ...] = SHOWN) -> None:
    """A table for people: a column is as wide as the terminal allows."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    names = [name for name in tables[0].column_names if name in shown] if tables else []
    if shown is SHOWN:
        names += [name for table in tables[:1] for name in table.column_names if is_joined(name)]
    drawn = Table(box=None, pad_edge=False, header_style="bold")
    for name in names:
        drawn.add_column({"image_paths": "picture", "status": "status, reason"}.get(name, name))
    rows = [row for table in tables for row in table.to_pylist()]
    for row in rows:
        drawn.add_row(*(Text(cell(name, row)) for name in names))
    console = Console() if sys.stdout.isatty() else Console(width=PIPE_WIDTH)
    if rows:
        console.print(drawn)
    cut = len(rows) == most
    more = "; there may be more: --limit N shows them, --csv FILE writes all" if cut else ""
    typer.echo(f"{len(rows)} rows{more}.", err=True)


def is_joined(name: str) -> bool:
    """Whether a column is the user's, or what a blank has come to."""
    from medv_ray.schema import ANSWER_SCHEMA, is_of_blank

    return name not in ANSWER_SCHEMA.names and not (
        is_of_blank(name) and not name.startswith("blank_")
    )


def cell(name: str, row: dict[str, Any]) -> str:
    """A cell in a few printable words."""
    value = row[name]
    if name == "status" and row["reason"]:
        value = f"{value}, {row['code'] or ''} {row['reason']}".replace("  ", " ")
    if isinstance(value, list):
        value = ", ".join("-" if one is None else str(one) for one in value)
    if isinstance(value, float):
        value = f"{value:.3f}"
    text = "-" if value is None else str(value)
    printable = "".join(c if c.isprintable() else " " for c in text)
    return printable if len(printable) <= 120 else printable[:117] + "..."
