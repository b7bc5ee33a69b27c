"""Commands around the endpoint."""

from __future__ import annotations

import json
import sys
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

import typer

from medv_ray.cli import options
from medv_ray.cli.terminal import merged, print_json, read_yaml, told_cleanly
from medv_ray.errors import RunError, SettingsError

Option = typer.Option
Text = str | None


def serve_command(
    model: Annotated[Text, Option(help=options.A_MODEL)] = None,
    host: Annotated[str, Option(help="Address to listen at; others than this machine's own need "
                                "--keys-file.")] = "127.0.0.1",
    port: Annotated[int, Option(help="TCP port.", min=1, max=65535)] = 8000,
    keys_file: Annotated[Text, Option(help="File of API keys, one `name key` a line.")] = None,
    adapter: Annotated[
        list[str] | None, Option(help="NAME=FOLDER: a LoRA adapter that clients call by NAME.")
    ] = None,
    num_gpus: Annotated[float | None, Option(help="GPUs of a replica.")] = None,
    max_replicas: Annotated[int | None, Option(help="Replicas at most.")] = None,
    batch_folder: Annotated[
        Text, Option(help="Where files and batches lie; without it there are none.")
    ] = None,
    config: options.Config = None,
    assignments: options.Sets = None,
    address: options.Address = None,
) -> int:  # fmt: skip
    """Answer over HTTP as OpenAI's API does, with a page to look at."""
    from medv_ray.on_ray.endpoint import run_endpoint
    from medv_ray.on_ray.options import serve_settings
    from medv_ray.settings import override

    flags = {
        "model": {"path": model},
        "keys_file": keys_file,
        "adapters": dict(pair(text) for text in adapter or []),
        "scaling": {"num_gpus": num_gpus, "max_replicas": max_replicas},
        "batch": {"folder": batch_folder},
    }
    values = override(merged(read_yaml(config) if config else {}, flags), assignments or [])
    settings = serve_settings(values)
    if settings.served_name == "medv-tiny":
        typer.echo("the embedded toy answers; --model FOLDER serves a real checkpoint.", err=True)
    return run_endpoint(settings, host, port, address, typer.echo)


def pair(text: str) -> tuple[str, str]:
    """Name and folder of an adapter. Raises SettingsError E1001."""
    name, equals, folder = text.partition("=")
    if not equals or not name or not folder:
        raise SettingsError("E1001", f"--adapter {text[:60]!r}: expected NAME=FOLDER.")
    return name, folder


bench_app = typer.Typer(no_args_is_help=True, help="Measure what runs.")


@bench_app.command("serve")
@told_cleanly
def bench_serve_command(
    url: Annotated[Text, Option(help="The endpoint; default http://127.0.0.1:8000. A key comes "
                                "from the environment's MEDV_API_KEY.")] = None,
    model: Annotated[Text, Option(help="Its name there; default: the first.")] = None,
    clients: Annotated[int | None, Option(help="Closed loop: so many ask, wait for the answer "
                                          "and ask again; default 20.")] = None,
    rate: Annotated[float | None, Option(help="Open loop: requests per second, at times that do "
                                         "not wait for answers.")] = None,
    seconds: Annotated[float | None, Option(help="How long requests begin; default 60.")] = None,
    requests: Annotated[int | None, Option(help="Requests at most.")] = None,
    stream: Annotated[bool | None, Option("--stream/--no-stream",
                                          help="How answers come; default --stream.")] = None,
    max_tokens: Annotated[int | None, Option(help="Response tokens of each.")] = None,
    limit_s: Annotated[float | None, Option(help="Goodput counts answers that are whole within "
                                            "so many seconds; default 2.")] = None,
    archive: Annotated[Text, Option(help="Rows to ask, as `medv score` takes them; default: "
                                    "synthetic tiles.")] = None,
    questions: Annotated[Text, Option(help="Table of questions: csv, jsonl or json.")] = None,
    question: Annotated[Text, Option(help="One question for every image.")] = None,
    images: Annotated[Text, Option(help="Folder that image paths are relative to.")] = None,
    out: Annotated[Path | None, Option(help="JSON file of the figures.")] = None,
    config: options.Config = None,
    assignments: Annotated[
        list[str] | None, Option("--set", help="Any setting: --set rows=64, timeout_s=30, seed=1.")
    ] = None,
) -> int:  # fmt: skip
    """Put load on a running endpoint and say how it answers; exit code 1 if nothing was answered.

    Figures hold nothing of questions and answers.
    """
    from medv_ray.settings import build, override

    given = {
        "url": url, "model": model, "clients": clients, "rate": rate, "seconds": seconds,
        "requests": requests, "stream": stream, "max_tokens": max_tokens, "limit_s": limit_s,
        "archive": {
            "archive": archive, "questions": questions, "question": question, "images": images
        },
    }  # fmt: skip
    values = override(merged(read_yaml(config) if config else {}, given), assignments or [])
    from medv_ray.client.questions import LoadSettings

    figures = _bench(build(LoadSettings, values))
    if out is not None:
        try:
            out.write_text(json.dumps(figures, indent=1) + "\n")
        except OSError as error:
            kind = type(error).__name__
            raise RunError("E1511", f"{out.name} could not be written ({kind}).") from None
    if sys.stdout.isatty():
        _show(figures)
    else:
        print_json(figures)
    return int(not figures["answers"])


def _bench(settings: Any) -> dict[str, Any]:
    import asyncio

    from medv_ray.client.endpoint import Endpoint
    from medv_ray.client.load import Load
    from medv_ray.client.questions import questions
    from medv_ray.client.report import report

    with closing(Endpoint(settings.url, timeout_s=10)) as endpoint:
        model = endpoint.model(settings.model)
    asked = questions(settings, model["id"])
    load = Load(settings, asked.bodies)
    asyncio.run(load.run())
    return report(settings, load, asked, model)


def _show(figures: dict[str, Any]) -> None:
    """A table for a person."""
    from rich.console import Console
    from rich.table import Table

    title = f"{figures['endpoint']['model']}, {figures['seconds']:.1f} s"
    table = Table("what", "figure", title=title)
    for name, value in figures.items():
        if name in ("bench", "date", "endpoint", "versions", "seconds"):
            continue
        if isinstance(value, dict):
            value = ", ".join(f"{k} {v}" for k, v in value.items() if v is not None)
        table.add_row(name, "-" if value in (None, "") else str(value))
    Console().print(table)


def chat_command(
    image: Annotated[Path, typer.Argument(help="JPEG, PNG, TIFF, BMP, GIF, WebP or DICOM.")],
    model: Annotated[Text, Option(help="Checkpoint folder; default: the embedded toy. With --url "
                                  "a name there; default: the first.")] = None,
    url: Annotated[Text, Option(help="Ask this endpoint. A key comes from the environment's "
                                "MEDV_API_KEY.")] = None,
    assignments: Annotated[
        list[str] | None, Option("--set", help="A setting: --set sampler.steps=32.")
    ] = None,
) -> int:  # fmt: skip
    """Talk about an image; answers are seen coming out of the mask."""
    from medv_ray.on_ray.chat import Local, Remote, chat

    if url is None and model in (None, "toy"):
        typer.echo("the embedded toy answers; --model FOLDER asks a real checkpoint.", err=True)
    sets = assignments or []
    asked = Local(model or "toy", sets) if url is None else Remote(url, model, sets)
    with closing(asked):
        return chat(asked, image)
