"""Names of other packages that begin with an underscore stand in one module for each package."""

import ast
from collections import defaultdict
from types import FunctionType, ModuleType

import pytest

from tests.unit.test_layers import ROOT, sources

LISTED = {
    "medv_kernels.private_torch",
    "medv_ray.on_ray.private_ray",
    "medv_ray.training.private_deepspeed",
}
DOCUMENTED = {
    *("_asdict", "_replace", "_fields", "_make"),  # of a NamedTuple
    "_exit",  # os
    *(
        name
        for kind in (object, type, list, BaseException, ModuleType, FunctionType)
        for name in dir(kind)
    ),
    *("__all__", "__file__", "__main__", "__path__", "__version__", "__unraisablehook__"),
}
LOOKS = {"getattr", "setattr", "hasattr", "delattr", "attrgetter", "methodcaller", "import_module"}


def private(dotted: str) -> list[str]:
    """The parts of a dotted name that begin with an underscore and are no documented name."""
    return [part for part in dotted.split(".") if part[:1] == "_" and part not in DOCUMENTED]


def own(tree: ast.AST) -> set[str]:
    """What a module itself calls so: its functions, classes, variables, attributes of its `self`,
    fields in the bodies of its classes."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif (
            isinstance(node, ast.Attribute)
            and isinstance(node.ctx, ast.Store)
            and isinstance(node.value, ast.Name)
            and node.value.id in ("self", "cls")
        ):
            found.add(node.attr)
    return found


def foreign(tree: ast.AST, ours: set[str]) -> list[str]:
    """The private names of others in a module, of which `ours` are not.

    A dotted name that begins with an imported package of others is told whatever it is called.
    """
    imported = {}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if private(alias.name)]
            imported.update({(a.asname or a.name.split(".")[0]): a.name for a in node.names})
        elif isinstance(node, ast.ImportFrom) and node.module and node.module != "__future__":
            full = {
                alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names
            }
            imported.update(full)
            if not node.module.startswith(("medv_ray", "medv_kernels")):
                found += [name for name in full.values() if private(name)]
    theirs = {
        n for n, full in imported.items() if not full.startswith(("medv_ray", "medv_kernels"))
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and private(node.attr):
            first = node.value
            while isinstance(first, ast.Attribute | ast.Call):
                first = first.value if isinstance(first, ast.Attribute) else first.func
            known = node.attr in ours
            if not known or (isinstance(first, ast.Name) and first.id in theirs):
                found.append(ast.unparse(node))
        elif isinstance(node, ast.Call):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else None
            called = node.func.id if isinstance(node.func, ast.Name) else called
            texts = [a.value for a in node.args if isinstance(a, ast.Constant)]
            named = [t for t in texts if isinstance(t, str) and private(t)]
            if called in LOOKS:
                found += [name for name in named if name not in ours]
    return found


def test_private_names_of_others_stand_in_one_place() -> None:
    trees = {module: ast.parse(path.read_text()) for module, path in sources()}
    # by room: its modules may use each other's private names, no one else's
    ours: dict[str, set[str]] = defaultdict(set)
    for module, tree in trees.items():
        ours[module.rpartition(".")[0]] |= own(tree)
    found = {m: foreign(tree, ours[m.rpartition(".")[0]]) for m, tree in trees.items()}
    assert {module for module in found if found[module]} == LISTED, found


def test_scripts_use_none() -> None:
    for folder in ("benchmarks", "examples", "cluster"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            tree = ast.parse(path.read_text())
            assert not foreign(tree, own(tree)), path.name


@pytest.mark.parametrize(
    "line",
    [
        "import ray._private.services",
        "from torch._C import has_mkl",
        "from torch import _C",
        "import torch\ntorch._C._has_mkldnn",
        "import torch as t\nt.ops.mkldnn._linear_pointwise()",
        "receive._receive_asgi_messages = None",
        "import ray\nray.data.DataContext.get_current()._window",
        "hasattr(zero, '_reassign')",
        "import importlib\nimportlib.import_module('PIL._imaging')",
        "import deepspeed\ndeepspeed.ops.__compatible_ops__['x'] = 1",
    ],
)
def test_each_way_of_using_one_is_seen(line: str) -> None:
    assert foreign(ast.parse(line), {"_window"})


@pytest.mark.parametrize(
    "line",
    ["self._packed = 1", "row._asdict()", "import os\nos._exit(1)", "ledger._load()", "__name__"],
)
def test_what_is_ours_or_documented_is_not(line: str) -> None:
    assert not foreign(ast.parse(line), {"_packed", "_load"})
