"""`medv doctor`."""

from __future__ import annotations

from typing import Annotated

import typer
from typer import Option

from medv_ray.cli import options
from medv_ray.cli.terminal import print_json, told_cleanly


@told_cleanly
def doctor_command(
    model: Annotated[str, Option(help=options.A_MODEL)] = "toy",
    dashboard: Annotated[
        str | None, Option(help="Address of a Ray dashboard to look at, beside this machine's own.")
    ] = None,
    out: Annotated[
        str | None, Option(help="Folder for results: is it writable, is there room?")
    ] = None,
    as_json: Annotated[bool, Option("--json", help="Print one JSON document.")] = False,
) -> int:
    """Check this machine: versions, GPU, kernels, memory, disk, clock, Ray, a model.

    Ends with 1 where there is a fault, else with 0; warnings change nothing.
    """
    from medv_ray.on_ray.doctor import check_all

    found = []
    for check in check_all(model, dashboard, out):
        found.append(check)
        if not as_json:
            typer.echo(f"{check.state:8} {check.name}: {check.said}")
            if check.fix:
                typer.echo(f"{'':8} -> {check.fix}")
    faults, warnings = (sum(one.state == state for one in found) for state in ("fault", "warning"))
    if as_json:
        checks = [one._asdict() for one in found]
        print_json({"faults": faults, "warnings": warnings, "checks": checks})
    else:
        typer.echo(f"{faults} faults, {warnings} warnings")
    return int(faults > 0)
