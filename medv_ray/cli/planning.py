"""`medv plan score`: what a scoring job past this machine would take. Nothing is started."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medv_ray.cli.terminal import print_json
from medv_ray.errors import SettingsError

if TYPE_CHECKING:
    from medv_ray.archive.scale import ScalePlan

Option = typer.Option
MOST_BYTES = 2**20


def plan_score_command(
    rows: Annotated[float, Option(help="Of the archive: 1e8.")],
    gpu: Annotated[str, Option(help="Kind of GPU: h200. Its rate is not guessed.")],
    nodes: Annotated[int, Option(help="GPU nodes.")] = 1,
    rate: Annotated[float | None, Option(help="Rows that one GPU answers in a second.")] = None,
    probe: Annotated[
        Path | None, Option(help="What `medv score ... --num-gpus 1 --plan` printed on such a GPU.")
    ] = None,
    price_per_hour: Annotated[float | None, Option(help="Of one node, in any currency.")] = None,
    gpus_per_node: Annotated[int | None, Option(help="GPUs of a node.")] = None,
    cores: Annotated[int | None, Option(help="CPU cores of a node that decode.")] = None,
    decode_rate: Annotated[
        float | None, Option(help="Pictures that one core decodes in a second.")
    ] = None,
    image_bytes: Annotated[float | None, Option(help="Of an encoded picture.")] = None,
    network: Annotated[float | None, Option(help="MB/s of a node.")] = None,
    store: Annotated[str | None, Option(help="s3 or disk: where archive and run lie.")] = None,
    chunk_rows: Annotated[int | None, Option(help="archive.chunk_rows of the job.")] = None,
    assignments: Annotated[
        list[str] | None, Option("--set", help="Any figure, over its flag: --set request_ms=60.")
    ] = None,
    as_json: Annotated[bool, Option("--json", help="Figures as JSON.")] = False,
) -> None:
    """Hours, price, requests and the first bottleneck of scoring so many rows on so many GPUs."""
    from medv_ray.archive.scale import ScaleSettings, scale_plan
    from medv_ray.settings import build, override

    kind = checked_gpu(gpu)
    values = {
        "rows": rows, "nodes": nodes, "gpus": gpus_per_node, "rate": rate,
        "price_per_hour": price_per_hour, "cores": cores, "decode_rate": decode_rate,
        "image_bytes": image_bytes, "network": network, "store": store, "chunk_rows": chunk_rows,
    }  # fmt: skip
    values = override({k: v for k, v in values.items() if v is not None}, assignments or [])
    if ("rate" in values) == (probe is not None):
        why = "--rate and --probe exclude each other" if probe else f"no rate of a {kind} is known"
        raise SettingsError(
            "E1001",
            f"{why}. Measure it on one: medv score ... --num-gpus 1 --plan > probe.json, and then "
            "--probe probe.json; or give --rate ROWS_PER_S of one GPU.",
        )
    if probe is not None:
        values["rate"] = probed_rate(probe, kind)
    planned = scale_plan(build(ScaleSettings, values), "given" if probe is None else "measured")
    if as_json:
        print_json(scale_json(planned, kind))
    else:
        show(planned, kind)


def checked_gpu(text: str) -> str:
    """The kind of a GPU in the words of `medv plan train`, or their first part: h200.

    Raises SettingsError E1001.
    """
    from medv_ray.training.gpus import GPUS

    kinds = {name.partition("-")[0] for name in GPUS}
    kind = text.lower()
    if kind not in kinds and kind not in GPUS:
        raise SettingsError("E1001", f"--gpu {text[:20]!r}: one of {', '.join(sorted(kinds))}.")
    return kind.partition("-")[0]


def probed_rate(path: Path, kind: str) -> float:
    """Rows a second of one GPU, by what `medv score --plan` printed.

    Raises SettingsError E1001 for another file, and for a probe of another processor.
    """

    def wrong(what: str) -> SettingsError:
        way = "It is what `medv score ... --num-gpus 1 --plan` prints."
        return SettingsError("E1001", f"--probe {path.name}: {what}. {way}")

    try:
        with path.open("rb") as file:
            found = json.loads(file.read(MOST_BYTES))["probe"]
        seconds, processor = found["seconds_per_row"], str(found["processor"])
    except OSError as error:
        raise wrong(error.strerror or type(error).__name__) from None
    except (ValueError, LookupError, TypeError):
        raise wrong("no probe is in it") from None
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds < 1e9:
        raise wrong("its seconds_per_row is no time")
    words = processor.lower().replace("-", " ").split()
    if "mig" in words:
        raise wrong(f"it was measured on a part of a GPU, {processor[:40]!r}")
    if kind not in words:
        raise wrong(f"it was measured on {processor[:40]!r}, not on a {kind}")
    return 1 / float(seconds)


def scale_json(planned: ScalePlan, kind: str) -> dict[str, Any]:
    """All figures with their sources."""
    from medv_ray.archive.scale import REQUESTS

    return {
        "gpu": kind,
        "hours": planned.hours,
        "rows_per_s": planned.rows_per_s,
        "price": planned.price,
        "price_per_million_rows": planned.price_per_million,
        "first_bottleneck": planned.stages[0].name,
        "stages": [stage._asdict() for stage in planned.stages],
        "read_mb_per_s": planned.read_mb_per_s,
        "read_mb_per_s_of_node": planned.read_mb_per_s / planned.settings.nodes,
        "requests_per_s": planned.requests_per_s,
        "requests_of_chunk": vars(REQUESTS),
        "chunks": planned.chunks,
        "merges": planned.merges,
        "files": planned.files,
        "figures": {name: figure._asdict() for name, figure in planned.figures.items()},
    }


def show(planned: ScalePlan, kind: str) -> None:
    """The same for a person."""
    from rich.console import Console
    from rich.table import Table

    asked = planned.settings
    first = planned.stages[0]
    lines = [
        f"{asked.rows:,.0f} rows on {asked.nodes} x {asked.gpus} {kind}: "
        f"{planned.hours:,.2f} h at {planned.rows_per_s:,.1f} rows/s",
        f"first bottleneck: {first.name} ({first.why})",
    ]
    if planned.price is not None:
        lines.append(
            f"price: {planned.price:,.2f}, {planned.price_per_million:,.2f} a million rows "
            f"({asked.nodes} nodes x {asked.price_per_hour:g} an hour)"
        )
    lines.append(
        f"from the store: {planned.read_mb_per_s:,.1f} MB/s, "
        f"{planned.read_mb_per_s / asked.nodes:,.1f} a node"
        + (f"; {planned.requests_per_s:,.0f} requests/s" if asked.store == "s3" else "")
    )
    lines.append(
        f"ledger: {planned.chunks:,} parts and commits, about {planned.merges:,} merges, "
        f"{planned.files:,} files in the end"
    )
    stages = Table("stage", "rows/s", "in use", "because", box=None, pad_edge=False)
    for stage in planned.stages:
        used = f"{planned.rows_per_s / stage.rows_per_s:.1%}"
        stages.add_row(stage.name, f"{stage.rows_per_s:,.1f}", used, stage.why)
    figures = Table("figure", "value", "", box=None, pad_edge=False)
    for name, figure in planned.figures.items():
        value = figure.value
        shown = f"{value:,.12g}" if isinstance(value, int | float) else str(value or "-")
        figures.add_row(name, shown, figure.source)
    console = Console(width=None if sys.stdout.isatty() else 140)
    for part in ("\n".join(lines), "", stages, "", figures):
        console.print(part, highlight=False)
