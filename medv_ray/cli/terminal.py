"""What every command and job needs: exit codes, settings from a file, JSON for machines."""

from __future__ import annotations

import functools
import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec

import typer

from medv_ray.errors import MedvError, SettingsError

P = ParamSpec("P")
MAX_CONFIG_BYTES = 2**20
AGAIN_S = 0.02


def exit_code_of(call: Callable[[], int | None]) -> int:
    """Run; errors become one line on stderr. MEDV_DEBUG=1 shows where they come from."""
    # so does Ray's own handler while it runs; a lock in an object store is let go of on the way
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    sys.unraisablehook = _send_again
    try:
        return call() or 0
    except KeyboardInterrupt:
        text, code = "interrupted; what was committed is kept.", 128 + signal.SIGINT
    except SystemExit:
        text, code = "terminated; what was committed is kept.", 128 + signal.SIGTERM
    except Exception as error:
        if os.environ.get("MEDV_DEBUG"):
            raise
        kind = type(error).__name__
        text, code = f"E1509: unexpected {kind}; MEDV_DEBUG=1 shows where.", 1
        if isinstance(error, MedvError):
            text, code = str(error), error.exit_code
    typer.echo(text, err=True)
    from medv_ray.on_ray.cluster import leave

    leave(code)
    return code


def _send_again(dropped: sys.UnraisableHookArgs) -> None:
    """A signal that came while a destructor or an import's callback ran: Python drops what its
    handler raises there, and would only print it."""
    kinds = {SystemExit: signal.SIGTERM, KeyboardInterrupt: signal.SIGINT}
    number = kinds.get(dropped.exc_type)
    if number is None:
        sys.__unraisablehook__(dropped)
    else:  # once the destructor has returned
        threading.Timer(AGAIN_S, os.kill, (os.getpid(), number)).start()


def told_cleanly(command: Callable[P, int | None]) -> Callable[P, None]:
    """A command that ends with `exit_code_of` itself."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        code = exit_code_of(lambda: command(*args, **kwargs))
        if code:
            raise typer.Exit(code)

    return run


def read_yaml(path: Path) -> dict[str, Any]:
    """A file of nested settings. Raises SettingsError E1001."""
    import yaml  # type: ignore[import-untyped]

    def wrong(what: str) -> SettingsError:
        return SettingsError("E1001", f"--config: {path.name}: {what}.")

    def check(node: Any, seen: set[int]) -> None:
        if id(node) in seen:
            raise wrong("an alias: nested ones grow without bound")
        seen.add(id(node))
        if isinstance(node, yaml.MappingNode):
            names = [name.value for name, _ in node.value]
            if len(set(names)) < len(names):
                raise wrong("a name is given twice")
        for inner in node.value if isinstance(node, yaml.CollectionNode) else ():
            check(inner[1] if isinstance(inner, tuple) else inner, seen)

    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise wrong(f"over {MAX_CONFIG_BYTES} bytes")
        text = path.read_text()
        check(yaml.compose(text, yaml.SafeLoader), set())
        found = yaml.safe_load(text)
        json.dumps(found)  # a date, say, is no setting
    except SettingsError:
        raise
    # a value that is none of its tag (!!bool x, a 13th month) raises whatever it stumbles over
    except Exception as error:
        kind = type(error).__name__
        raise SettingsError(
            "E1001", f"--config: {path.name} is no readable YAML ({kind})."
        ) from None
    if not isinstance(found, dict):
        raise SettingsError("E1001", f"--config: {path.name} must hold names and values.")
    return found


def merged(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Nested values; what is None in `over` does not count."""
    result = dict(under)
    for name, value in over.items():
        if isinstance(value, dict):
            below = result.get(name)
            inner = merged(below if isinstance(below, dict) else {}, value)
            if inner:
                result[name] = inner
        elif value is not None:
            result[name] = value
    return result


def print_json(value: dict[str, Any]) -> None:
    """One line, or many for a person."""
    indent = 1 if sys.stdout.isatty() else None
    typer.echo(json.dumps(value, indent=indent))
