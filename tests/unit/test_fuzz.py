"""Parsers on inputs that are almost sound, some of each; `python -m tests.fuzz` tries as many as
one wants."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from medv_ray.errors import DataError
from tests.corpus.sound import CANARY
from tests.fuzz.judge import judge
from tests.fuzz.mutations import mutated
from tests.fuzz.targets import TARGETS

MANY = ("frames", "ledger", "pickle", "weights")
"""Those that take little time get 200 inputs, the others 40."""


@pytest.mark.integration
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("name", TARGETS)
def test_almost_sound_inputs_end_in_a_value_or_an_error_of_ours(name: str, tmp_path: Path) -> None:
    target = TARGETS[name]
    run, seeds = target.make(tmp_path), list(target.seeds())

    @settings(
        max_examples=200 if name in MANY else 40, derandomize=True, database=None, deadline=None,
        phases=[Phase.generate], suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(mutated(seeds))
    def one(data: bytes) -> None:
        assert judge(run, data, tmp_path).faults == []

    for seed in seeds:
        assert judge(run, seed, tmp_path).faults == []
    one()


@pytest.mark.parametrize(
    ("error", "fault"),
    [
        (KeyError("x"), "KeyError came out of it"),
        (DataError("E1509", "a defect"), "E1509 is no error of a user's"),
        (DataError("E1105", "at 0x7f4259ef0b30"), "a message holds an address"),
        (DataError("E1105", "no /tmp/a"), "a message holds an absolute path"),
        (DataError("E1105", f"{CANARY}?"), "a message holds content of a row"),
    ],
)
def test_what_breaks_the_promise_is_told(tmp_path: Path, error: Exception, fault: str) -> None:
    def run(data: bytes) -> list[str]:
        raise error

    found = judge(run, b"", tmp_path).faults
    assert len(found) == 1
    assert found[0].startswith(fault)
    assert judge(lambda data: [f"said of {CANARY}"], b"", tmp_path).faults
    assert judge(lambda data: ["plain"], b"", tmp_path).faults == []
