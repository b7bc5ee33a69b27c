"""`medv push`: an exported folder on the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medv_ray.cli.terminal import print_json

Option = typer.Option


def push_command(
    folder: Annotated[Path, typer.Argument(help="Of jobs/export_checkpoint.py, with its card.")],
    repository: Annotated[str, typer.Argument(help="org/name on the hub.")],
    public: Annotated[
        bool, Option("--public", help="Everybody may have it; default: private.")
    ] = False,
    message: Annotated[str, Option(help="Of the commit.")] = "",
) -> None:
    """Put a model or an adapter on the Hugging Face hub; the same folder again is no new commit."""
    from medv_ray.model.publishing import push

    print_json({"summary": "pushed", **push(folder.absolute(), repository, public, message)})
