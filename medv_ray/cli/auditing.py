"""`medv audit`: whether an endpoint's log is as it was written."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medv_ray.cli.terminal import told_cleanly
from medv_ray.errors import RunError

audit_app = typer.Typer(no_args_is_help=True, help="Audit logs of endpoints.")


@audit_app.callback()
def audit() -> None:
    """Audit logs of endpoints."""


@audit_app.command("verify")
@told_cleanly
def verify_command(
    files: Annotated[list[Path], typer.Argument(help="One or more; each replica has its own.")],
    head: Annotated[
        str | None, typer.Option(help="Digest of a line that must be there, as printed before.")
    ] = None,
) -> int:
    """Follow the chain of each file; exit code 1 where a line does not follow, or all are empty."""
    from medv_ray.serving.audit import verify

    broken, count, has_head = 0, 0, head is None
    for number, path in enumerate(files, 1):
        try:
            found = verify(str(path))
            has_head = has_head or verify(str(path), head).has_head
        except OSError as error:
            kind = type(error).__name__
            raise RunError("E1511", f"file {number} cannot be read ({kind}).") from None
        count += found.lines
        said = f"file {number}: {found.lines} lines follow from each other, head {found.head}"
        if not found.lines:
            said = f"file {number}: NO LINE IS THERE, nothing to verify"
        if found.torn:
            lines = ", ".join(map(str, found.torn))
            said += f"; cut short by a kill or a full disk: line {lines}"
        if found.broken is not None:
            said += f"; LINE {found.broken} DOES NOT FOLLOW: changed, taken out, put in or moved"
            broken += 1
        typer.echo(said)
    if not has_head:
        typer.echo("NO LINE HAS THE DIGEST OF --head: lines were taken out at the end, or changed")
    return int(bool(broken) or not has_head or not count)
