"""Compile every kernel for an H100 or H200 (sm_90), to machine code; no GPU is needed.

    python tests/unit/kernels/compile_kernels.py [--show]

Prints a line per kernel: its name and options, PTX instructions, bytes of machine code. Not under
TRITON_INTERPRET=1, which replaces the compiler.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

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
        if signature[name].startswith("*") or name.endswith(("stride", "vocabulary"))
    }
    constants = {(names.index(name),): value for name, value in options.items()}
    source = ASTSource(kernel, signature, constants, aligned)
    return triton.compile(source, target=TARGET, options=launch)


def cases() -> Iterator[tuple[str, Any]]:
    """Name and what was compiled, for every kernel and the options that change its code."""
    from medv_kernels import fused, triton_select

    flags = {"GUIDED": False, "UNIFORM": False, "KEYS": False, "SECOND": False}
    plain = {"TILE": 4096, "TILES": 31, "NUM_FORBIDDEN": 4, "NUM_UNRANKED": 0, **flags}
    for dtype in ("bf16", "fp16", "fp32"):
        types = {"cond": f"*{dtype}", "free": f"*{dtype}"}
        for more in ({}, {"KEYS": True}, {"UNIFORM": True}, {"SECOND": True, "NUM_UNRANKED": 2}):
            done = compile_one(triton_select.partials, types, {**plain, **more}, num_warps=8)
            yield f"select.partials {dtype} {more}", done
        done = compile_one(triton_select.partials, types, {**plain, "GUIDED": True}, num_warps=8)
        yield f"select.partials {dtype} guided", done
        types = {"rows": f"*{dtype}", "head": f"*{dtype}"}
        tiles = {"WIDTH": fused.WIDTH, "DEPTH": fused.DEPTH, "TILES": 4, "STEPS": 64}
        for height in fused.HEIGHT:
            options = {**tiles, "HEIGHT": height, "NUM_FORBIDDEN": 4, "NUM_UNRANKED": 2}
            done = compile_one(fused.partials, types, options, num_warps=4, num_stages=3)
            yield f"fused.partials {dtype} {height}", done
    for second in (False, True):
        options = {"SPLITS": 64, "SECOND": second}
        yield f"select.merge {second}", compile_one(triton_select.merge, {}, options, num_warps=1)


def main() -> None:
    for name, done in cases():
        lines = [line for line in done.asm["ptx"].splitlines() if line.startswith("\t")]
        print(name, len(lines), "PTX lines", len(done.asm["cubin"]), "bytes", flush=True)


if __name__ == "__main__":
    main()
