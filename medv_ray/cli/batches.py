"""`medv run-batch`: a file of requests, answered without a server."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medv_ray.cli import options
from medv_ray.cli.terminal import merged, print_json, read_yaml

if TYPE_CHECKING:
    from medv_ray.serving.batch.journal import Progress

INTERVAL_S = 10.0
Option = typer.Option
Text = str | None


def run_batch_command(
    requests: Annotated[Path, typer.Argument(help="JSON lines as OpenAI's batches have them.")],
    answers: Annotated[Path, typer.Argument(help="JSON lines to write; errors go beside it.")],
    model: Annotated[Text, Option(help="Checkpoint folder; default: the embedded toy.")] = None,
    name: Annotated[
        Text, Option(help="What the lines call the model; default: its folder.")
    ] = None,
    adapter: Annotated[
        list[str] | None, Option(help="NAME=FOLDER: a LoRA adapter that lines call by NAME.")
    ] = None,
    config: options.Config = None,
    assignments: options.Sets = None,
) -> int:
    """Answer a batch file; the same command goes on after a kill. Exit code 1 if lines failed.

    Settings are those of `medv serve`.
    """
    from medv_ray.cli.serving import pair
    from medv_ray.on_ray.options import model_digests, serve_settings
    from medv_ray.settings import override

    flags = {
        "model": {"path": model},
        "name": name,
        "adapters": dict(pair(text) for text in adapter or []),
    }
    values = override(merged(read_yaml(config) if config else {}, flags), assignments or [])
    settings = serve_settings(values)
    if settings.served_name == "medv-tiny":
        typer.echo("the embedded toy answers; --model FOLDER asks a real checkpoint.", err=True)
    from medv_ray.model import lora
    from medv_ray.serving.batch.offline import BatchRun, answer_file
    from medv_ray.serving.service import Service

    run = BatchRun(str(requests), str(answers))
    run.check()
    started_s = time.monotonic()
    identity = {
        "settings": settings.answer.model_dump(mode="json"),
        "model": model_digests(settings.model)[0],
        "adapters": {name: lora.adapter_digest(one) for name, one in settings.adapters.items()},
        "name": settings.served_name,
    }
    done = answer_file(run, identity, lambda: Service.load(settings), progress_lines())
    print_json(
        {
            "summary": "done",
            "lines": done.total,
            "answered": done.completed,
            "errors": done.failed,
            "error_file": Path(run.errors).name if done.failed else None,
            "input_tokens": done.input_tokens,
            "output_tokens": done.output_tokens,
            "seconds": round(time.monotonic() - started_s, 2),
        }
    )
    return int(done.failed > 0)


def progress_lines(interval_s: float = INTERVAL_S) -> Callable[[Progress], None]:
    """Says how far a file has come: a line of JSON on stderr, so often at most."""
    said_s = time.monotonic()

    def tell(done: Progress) -> None:
        nonlocal said_s
        if time.monotonic() - said_s < interval_s:
            return
        said_s = time.monotonic()
        over = done.completed + done.failed
        state = {
            "progress": round(over / done.total, 4) if done.total else 1.0,
            "lines": over,
            "total": done.total,
            "answered": done.completed,
            "errors": done.failed,
        }
        typer.echo(json.dumps(state), err=True)

    return tell
