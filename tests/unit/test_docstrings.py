"""Shapes stand in the docstring of every public function that takes or gives tensors or arrays."""

import ast
import re
from collections.abc import Iterator

import pytest

from tests.unit.test_layers import sources

Function = ast.FunctionDef | ast.AsyncFunctionDef
TENSORS = re.compile(r"\b(Tensor|ndarray|NDArray)\b")
SHAPE = re.compile(r"\b(float|int|uint|bool|any)(8|16|32|64)?\[[^\[\]\n]*\]")
"""`float[B, L]`, `int64[N]`, a scalar's `float32[]`; `any[...]` where all dtypes or shapes do."""
TYPE = re.compile(r"\b(int|float|bool)\[\s*(int|str|float|bool|Tensor|Any|None)\b")
"""No shape, but a Python type in brackets."""


def functions(tree: ast.AST) -> Iterator[tuple[str, Function]]:
    """The public functions of a module, and the public methods of its public classes."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from ((f"{node.name}.{name}", inner) for name, inner in functions(node))
        elif isinstance(node, Function) and not node.name.startswith("_"):
            yield node.name, node


def takes_tensors(function: Function) -> bool:
    arguments = function.args
    every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    every += [a for a in (arguments.vararg, arguments.kwarg) if a is not None]
    annotations = [a.annotation for a in every] + [function.returns]
    return any(TENSORS.search(ast.unparse(a)) for a in annotations if a is not None)


def shapeless(tree: ast.AST) -> list[str]:
    """Names of functions with tensors whose docstring has no shape."""
    return [
        name
        for name, function in functions(tree)
        if takes_tensors(function)
        and not SHAPE.search(TYPE.sub("", ast.get_docstring(function) or ""))
    ]


FOUND = {module: shapeless(ast.parse(path.read_text())) for module, path in sources()}


def test_every_public_tensor_function_tells_its_shapes() -> None:
    without = {module: names for module, names in FOUND.items() if names}
    assert not without, "write shapes as `float[B, L]`"


@pytest.mark.parametrize(
    ("docstring", "shaped"),
    [
        ("float[B, L] -> int64[B].", True),
        ("A scalar, float32[].", True),
        ("Any tensor, any[...].", True),
        ("", False),
        ("The rows, by the positions [start, end).", False),
        ("A list of float [N].", False),
        ("tuple of int[Tensor], and Callable[[int], Tensor].", False),
        ("See noise[0] and int[str].", False),
    ],
)
def test_what_is_a_shape(docstring: str, shaped: bool) -> None:
    for code in (
        f'def f(x: "Tensor"):\n    """{docstring}"""',
        f'def f(*, x: int = 0) -> Sequence[np.ndarray]:\n    """{docstring}"""',
        f'class A:\n    def f(self, *x: Tensor | None):\n        """{docstring}"""',
    ):
        assert (shapeless(ast.parse(code)) == []) == shaped
    assert shapeless(ast.parse(f'def _f(x: Tensor):\n    """{docstring}"""')) == []
