"""What an install without extras can import: scoring and serving need none of their packages.

Read from the syntax trees: a module needs what it imports at its top, and what those modules need.
"""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
IMPORTED_AS = {
    "python-gdcm": "gdcm",
    "openslide-python": "openslide",
    "lmms-eval": "lmms_eval",
    "tensorboardx": "tensorboardX",
}
ASK_FOR_MORE = {
    "medv_ray.evaluation.plots": {"matplotlib"},
    "medv_ray.evaluation.sweep_plots": {"matplotlib"},
    "medv_ray.evaluation.sr_document": {"highdicom", "pydicom"},
    "medv_ray.evaluation.sr_export": {"highdicom", "pydicom"},
    "medv_ray.evaluation.sr_store": {"highdicom", "pydicom"},
    "medv_ray.lmms_eval.manifest": {"lmms_eval"},
    "medv_ray.lmms_eval.model": {"lmms_eval"},
}
"""What an install without extras cannot import; whoever uses one imports it in a function."""


def packages_of_extras() -> set[str]:
    """Import names that only an extra brings."""
    named = sum(PROJECT["optional-dependencies"].values(), [])
    asked = {canonicalize_name(Requirement(one).name) for one in named}
    given = {canonicalize_name(Requirement(one).name) for one in PROJECT["dependencies"]}
    return {IMPORTED_AS.get(name, name.replace("-", "_")) for name in asked - given} - {"medv_ray"}


def top_level(nodes: list[ast.stmt]) -> Iterator[ast.Import | ast.ImportFrom]:
    """Imports that run with the module: within `try` and `if` too, but for TYPE_CHECKING."""
    for node in nodes:
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif isinstance(node, ast.Try):
            yield from top_level(node.body)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" not in ast.unparse(node.test):
            yield from top_level([*node.body, *node.orelse])


def modules() -> dict[str, Path]:
    found = {}
    for path in (ROOT / "medv_ray").rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def imports() -> dict[str, frozenset[str]]:
    """Each module to the names that it imports at its top, folders of ours included."""
    known, found = modules(), {}
    for name, path in known.items():
        named = set[str]()
        for node in top_level(ast.parse(path.read_text()).body):
            if isinstance(node, ast.Import):
                named |= {alias.name for alias in node.names}
            elif node.module:
                inner = {f"{node.module}.{alias.name}" for alias in node.names}
                named |= {node.module} | (inner & known.keys())
        ours = {one for one in named if one.startswith("medv_ray")}
        above = {one.rsplit(".", n)[0] for one in ours for n in range(1, one.count(".") + 1)}
        found[name] = frozenset(named | above)
    return found


def needs(module: str) -> set[str]:
    """Packages of extras without which the module cannot be imported."""
    seen, todo, extras = set[str](), [module], packages_of_extras()
    found = set[str]()
    while todo:
        one = todo.pop()
        if one in seen:
            continue
        seen.add(one)
        found |= {one.split(".")[0]} & extras
        todo += imports().get(one, ())
    return found


def test_only_these_need_an_extra() -> None:
    assert {"matplotlib", "pydicom", "deepspeed", "highdicom"} <= packages_of_extras()
    assert {name: found for name in modules() if (found := needs(name))} == ASK_FOR_MORE


def test_a_module_that_needs_one_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """As scoring did, by way of the charts of calibration."""
    added = imports()["medv_ray.evaluation.calibrating"] | {"medv_ray.evaluation.plots"}
    changed = {**imports(), "medv_ray.evaluation.calibrating": added}
    monkeypatch.setattr(f"{__name__}.imports", lambda: changed)
    assert needs("medv_ray.on_ray.abstaining") == {"matplotlib"}


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("import matplotlib", ["matplotlib"]),
        ("try:\n    import matplotlib\nexcept ImportError:\n    pass", ["matplotlib"]),
        ("if TYPE_CHECKING:\n    import matplotlib", []),
        ("def draw():\n    import matplotlib", []),
    ],
)
def test_what_counts_as_an_import(text: str, names: list[str]) -> None:
    found = [alias.name for node in top_level(ast.parse(text).body) for alias in node.names]
    assert found == names
