"""The table of faults in docs/reliability.md is that of tests/chaos/faults.py, and all that it
names is there.
"""

from __future__ import annotations

import ast
import importlib.util
import re
from pathlib import Path

import pytest

from tests.chaos import faults

TESTS = Path(__file__).parents[1]
DOCS = TESTS.parent / "docs" / "reliability.md"
MAKEFILE = TESTS.parent / "Makefile"


def test_the_docs_have_the_table() -> None:
    written = DOCS.read_text().partition(faults.START)[2].partition(faults.END)[0]
    assert written.strip() == faults.table().strip()


def test_every_kind_is_there_once_and_injected() -> None:
    assert [fault.number for fault in faults.FAULTS] == list(range(1, 21))
    assert all(fault.tests or fault.runs for fault in faults.FAULTS)


@pytest.mark.parametrize("fault", faults.FAULTS, ids=lambda fault: f"F{fault.number}")
def test_what_injects_it_is_there(fault: faults.Fault) -> None:
    for name in fault.tests:
        file, _, test = name.partition("::")
        tree = ast.parse((TESTS / file).read_text())
        assert test in {n.name for n in tree.body if isinstance(n, ast.FunctionDef)}, name
    for run in fault.runs:
        module, *words = run.split()
        assert importlib.util.find_spec(f"tests.chaos.{module}")
        assert f"-m tests.chaos.{module}\n" in MAKEFILE.read_text(), "make chaos does not run it"
        source = (TESTS / "chaos" / f"{module}.py").read_text()
        for only in words[1::2]:
            assert re.search(rf"^(async )?def {only}\(", source, re.MULTILINE), run
