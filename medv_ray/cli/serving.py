"""Commands around the endpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medv_ray.cli.terminal import merged, read_yaml
from medv_ray.errors import SettingsError

Option = typer.Option
Text = str | None


def serve_command(
    model: Annotated[Text, Option(help="Checkpoint folder; default: the embedded toy.")] = None,
    host: Annotated[str, Option(help="Address to listen at; others than this machine's own need "
                                "--keys-file.")] = "127.0.0.1",
    port: Annotated[int, Option(help="TCP port.", min=1, max=65535)] = 8000,
    keys_file: Annotated[Text, Option(help="File of API keys, one `name key` a line.")] = None,
    adapter: Annotated[
        list[str] | None, Option(help="NAME=FOLDER: a LoRA adapter that clients call by NAME.")
    ] = None,
    num_gpus: Annotated[float | None, Option(help="GPUs of a replica.")] = None,
    max_replicas: Annotated[int | None, Option(help="Replicas at most.")] = None,
    config: Annotated[Path | None, Option(help="YAML file of settings; flags win.")] = None,
    assignments: Annotated[
        list[str] | None, Option("--set", help="Any setting: --set sampler.steps=32.")
    ] = None,
    address: Annotated[Text, Option(help="Ray cluster; default RAY_ADDRESS or none.")] = None,
) -> int:  # fmt: skip
    """Answer over HTTP as OpenAI's API does, with a page to look at."""
    from medv_ray.on_ray.endpoint import run_endpoint
    from medv_ray.on_ray.options import serve_settings
    from medv_ray.settings import override

    flags = {
        "model": {"path": model},
        "keys_file": keys_file,
        "adapters": dict(_pair(text) for text in adapter or []),
        "scaling": {"num_gpus": num_gpus, "max_replicas": max_replicas},
    }
    values = override(merged(read_yaml(config) if config else {}, flags), assignments or [])
    settings = serve_settings(values)
    if settings.served_name == "medv-tiny":
        typer.echo("the embedded toy answers; --model FOLDER serves a real checkpoint.", err=True)
    return run_endpoint(settings, host, port, address, typer.echo)


def _pair(text: str) -> tuple[str, str]:
    name, equals, folder = text.partition("=")
    if not equals or not name or not folder:
        raise SettingsError("E1001", f"--adapter {text[:60]!r}: expected NAME=FOLDER.")
    return name, folder
