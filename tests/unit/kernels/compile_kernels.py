"""Compile every kernel for an H100 or H200 (sm_90), to machine code; no GPU is needed.

    python tests/unit/kernels/compile_kernels.py [EXPRESSION]

With an expression only kernels whose name matches it. Prints a line per kernel: name and options,
PTX instructions, bytes of machine code. Not under TRITON_INTERPRET=1, which replaces the compiler.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from medv_kernels import fused, triton_commit, triton_loss, triton_select

TARGET = GPUTarget("cuda", 90, 32)
ALIGNED = [["tt.divisibility", 16]]
POINTERS = {
    "numbers": "*fp64",
    "uniform": "*fp64",
    "keys": "*i64",
    "temperature": "*fp64",
    "forbidden": "*i32",
    "unranked": "*i32",
    "token": "*i64",
    "rest": "*fp64",
    "gap": "*fp64",
    "alpha": "fp32",
}
"""Types of arguments by name; logits and heads are given by the case, all else is i32."""


LOSS_TYPES = {
    "targets": "*i64",
    **dict.fromkeys(("losses", "tops", "totals", "scales"), "*fp32"),
}
STATE_TYPES = {
    **dict.fromkeys(("x", "new", "k", "num_masks", "sequences", "sizes"), "*i64"),
    **dict.fromkeys(("limit", "stop", "step"), "*i64"),
    **dict.fromkeys(("key", "rest"), "*fp64"),
    **dict.fromkeys(("masked", "eligible", "failed", "chosen"), "*i8"),
    "rank": "*i32",
    "rule": "*fp64",
    "token_confidence": "*fp32",
    "token_step": "*i32",
}


def step_types(rule: int) -> dict[str, str]:
    """A step's k are integers."""
    return STATE_TYPES | ({"rule": "*i64"} if rule == 0 else {})


Case = tuple[str, Callable[[], Any]]
"""A line's name, and what compiles the kernel."""


def compile_one(kernel: Any, types: dict[str, str], options: dict[str, Any], **launch: int) -> Any:
    """The kernel compiled for the types of its arguments and the values of its constexprs."""
    names = kernel.arg_names
    signature = {
        name: "constexpr" if name in options else types.get(name, POINTERS.get(name, "i32"))
        for name in names
    }
    aligned = {
        (i,): ALIGNED
        for i, name in enumerate(names)
        if signature[name].startswith("*")
        or (name.endswith(("stride", "vocabulary")) and name not in options)
    }
    constants = {(names.index(name),): value for name, value in options.items()}
    source = ASTSource(kernel, signature, constants, aligned)
    return triton.compile(source, target=TARGET, options=launch)


def cases() -> Iterator[Case]:
    """Every kernel, with the options that change its code."""
    for dtype in ("bf16", "fp16", "fp32"):
        yield from selections(dtype)
        yield from losses(dtype)
    for second in (False, True):
        options = {"SPLITS": 64, "SECOND": second}
        yield (
            f"select.merge {second}",
            partial(compile_one, triton_select.merge, {}, options, num_warps=1),
        )
    yield from commits()
    for name, kernel, types, options in small():
        ones = dict.fromkeys(set(SIZES) & set(kernel.arg_names), 1)
        yield f"{name} of size 1", partial(compile_one, kernel, types, {**options, **ones})


SIZES = (
    *("cond_stride", "free_stride", "uniform_stride", "rows_stride", "head_stride", "stride"),
    *("out_stride", "vocabulary", "splits", "length", "start", "mask_id", "count"),
    *("width", "field"),
)
"""Integers that Triton compiles in where they are 1, and then are no tensors in the kernel."""


def small() -> Iterator[tuple[str, Any, dict[str, str], dict[str, Any]]]:
    flags = {"GUIDED": True, "UNIFORM": False, "KEYS": True, "SECOND": True}
    ids = {"NUM_FORBIDDEN": 1, "NUM_UNRANKED": 1, "TILES": 1}
    types = dict.fromkeys(("cond", "free", "rows", "head", "logits", "out"), "*bf16")
    types |= LOSS_TYPES
    yield "select.partials", triton_select.partials, types, {"TILE": 1024, **ids, **flags}
    yield "select.merge", triton_select.merge, {}, {"SPLITS": 1, "SECOND": True}
    tiles = {"HEIGHT": 16, "WIDTH": 128, "DEPTH": 64, "STEPS": 1}
    yield "fused.partials", fused.partials, types, {**tiles, **ids}
    yield "loss.partials", triton_loss.partials, types, {"TILE": 1024, "TILES": 1}
    yield "loss.finish", triton_loss.finish, types, {"SPLITS": 1}
    yield "loss.gradient", triton_loss.gradient, types, {"TILE": 4096}
    options = {"LIMITED": True, "TILE": 64, "TILES": 1}
    yield "commit.ranks", triton_commit.ranks, STATE_TYPES, options
    for rule in (0, 1, 2):
        options = {"ROW": 1, "RULE": rule, "COUNTED": True}
        yield "commit.commit", triton_commit.commit, STATE_TYPES, options
        options = {**options, "NUM_STOPS": 1, "WIDTH": 1}
        yield "commit.commit_step", triton_commit.commit_step, step_types(rule), options


def selections(dtype: str) -> Iterator[Case]:
    flags = {"GUIDED": False, "UNIFORM": False, "KEYS": False, "SECOND": False}
    plain = {"TILE": 4096, "TILES": 31, "NUM_FORBIDDEN": 4, "NUM_UNRANKED": 0, **flags}
    types = {"cond": f"*{dtype}", "free": f"*{dtype}"}
    second = {"SECOND": True, "NUM_UNRANKED": 2}
    for more in ({}, {"KEYS": True}, {"UNIFORM": True}, second, {"GUIDED": True}):
        case = partial(compile_one, triton_select.partials, types, {**plain, **more}, num_warps=8)
        yield f"select.partials {dtype} {more}", case
    types = {"rows": f"*{dtype}", "head": f"*{dtype}"}
    tiles = {"WIDTH": fused.WIDTH, "DEPTH": fused.DEPTH, "TILES": 4, "STEPS": 64}
    for height in fused.HEIGHT:
        options = {**tiles, "HEIGHT": height, "NUM_FORBIDDEN": 4, "NUM_UNRANKED": 2}
        case = partial(compile_one, fused.partials, types, options, num_warps=4, num_stages=3)
        yield f"fused.partials {dtype} {height}", case


def losses(dtype: str) -> Iterator[Case]:
    types = {"logits": f"*{dtype}", "out": f"*{dtype}", **LOSS_TYPES}
    options = {"partials": {"TILE": 4096, "TILES": 3}, "finish": {"SPLITS": 16}}
    for name, constants in {**options, "gradient": {"TILE": 4096}}.items():
        case = partial(compile_one, getattr(triton_loss, name), types, constants, num_warps=8)
        yield f"loss.{name} {dtype}", case


def commits() -> Iterator[Case]:
    for limited in (False, True):
        options = {"LIMITED": limited, "TILE": 64, "TILES": 4}
        yield (
            f"commit.ranks {limited}",
            partial(compile_one, triton_commit.ranks, STATE_TYPES, options),
        )
    for rule in (0, 1, 2):
        for row in (64, 4096):
            options = {"ROW": row, "RULE": rule, "COUNTED": rule == 2}
            case = partial(compile_one, triton_commit.commit, STATE_TYPES, options, num_warps=8)
            yield f"commit.commit {rule} {row}", case
            options = {**options, "NUM_STOPS": 2, "WIDTH": 2}
            case = partial(
                compile_one, triton_commit.commit_step, step_types(rule), options, num_warps=8
            )
            yield f"commit.commit_step {rule} {row}", case


def main() -> None:
    wanted = re.compile(sys.argv[1] if len(sys.argv) > 1 else "")
    for name, compiles in cases():
        if wanted.search(name):
            asm = compiles().asm
            lines = [line for line in asm["ptx"].splitlines() if line.startswith("\t")]
            print(name, len(lines), "PTX lines", len(asm["cubin"]), "bytes", flush=True)


if __name__ == "__main__":
    main()
