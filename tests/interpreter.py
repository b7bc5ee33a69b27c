"""Triton's interpreter, told once a launch what it is to interpret."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any


class _Launch:
    """What a launch has put in the place of triton.language's functions."""

    def __init__(self, scope: Any) -> None:
        self.scope = scope

    def restore(self) -> None:
        self.scope.restore()
        _launches.clear()


_launches: list[_Launch] = []


def patch_once() -> None:
    """Where the interpreter is loaded: it looks through all of triton.language at every call of a
    function by a kernel, which takes half of its time; with this at every launch only."""
    interpreter: Any = sys.modules.get("triton.runtime.interpreter")
    real = getattr(interpreter, "_patch_lang", None)
    if real is None:  # not loaded, or another version: slower, and as good
        return
    language = interpreter.tl
    both = SimpleNamespace(__globals__={"tl": language, "core": language.core})

    def patch(function: object) -> _Launch:
        if not _launches:
            _launches.append(_Launch(real(both)))
        return _launches[0]

    interpreter._patch_lang = patch
