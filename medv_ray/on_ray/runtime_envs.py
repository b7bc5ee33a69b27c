"""What is wrong with a runtime environment, in a file of its own or within another."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from medv_ray.on_ray.file_checks import under

UPLOADED = re.compile(r"\$\{RAY_RUNTIME_ENV_CREATE_WORKING_DIR\}(?:/([\w./-]+))?(?:\[([\w,-]+)\])?")
"""The folder that Ray put the upload into: a file of it, or extras of the package in it."""


def runtime_env_faults(document: dict[str, Any], local: bool = True) -> Iterator[str]:
    """`local`: folders are of this machine and must be there, as seen from where Ray is called."""
    from ray.runtime_env import RuntimeEnv, RuntimeEnvConfig

    known = sorted(one for one in RuntimeEnv.known_fields if not one.startswith("_"))
    for key in document.keys() - set(known):
        near = get_close_matches(str(key), known) or known
        yield f"{key}: no such field; there are: {', '.join(near)}"
    for key in ("env_vars", "config"):
        if not isinstance(document.get(key, {}), dict):
            yield f"{key}: must hold names and values"
            return
    for key in under(document, "config").keys() - RuntimeEnvConfig.known_fields:
        yield f"config.{key}: no such field; Ray would pass over it"
    modules = document.get("py_modules", [])
    if not isinstance(modules, list):
        yield "py_modules: must be a list of folders"
        return
    work = document.get("working_dir")
    given = [work, *modules] if local else []
    for folder in (one for one in given if isinstance(one, str) and "://" not in one):
        if not Path(folder).is_dir():
            yield f"there is no folder {folder}, as seen from here"
        elif folder in modules and not Path(folder, "__init__.py").is_file():
            yield f"py_modules: {folder} is no package; it has no __init__.py"
    if local and isinstance(work, str) and Path(work).is_dir():
        yield from _uploaded(str(document), Path(work))
    shipped = ("working_dir", "py_modules")  # uploaded by the caller; Ray's check wants them there
    try:
        RuntimeEnv(**{k: v for k, v in document.items() if k in known and k not in shipped})
    except Exception as error:
        yield str(error).splitlines()[0]


def _uploaded(text: str, folder: Path) -> Iterator[str]:
    """What pip or uv takes of the uploaded folder."""
    project = folder / "pyproject.toml"
    if not project.is_file() and UPLOADED.search(text):
        yield "the working_dir, as seen from here, has no pyproject.toml"
        return
    try:
        found = tomllib.loads(project.read_text()) if project.is_file() else {}
    except ValueError:  # of TOML, or of UTF-8
        yield "the working_dir's pyproject.toml is no TOML"
        return
    extras = under(under(found, "project"), "optional-dependencies")
    for path, names in UPLOADED.findall(text):
        if path and not (folder / path).exists():
            yield f"there is no {path} in the working_dir"
        for name in names.split(",") if names else ():
            if name not in extras:
                yield f"there is no extra {name}; there are: {', '.join(sorted(extras))}"
