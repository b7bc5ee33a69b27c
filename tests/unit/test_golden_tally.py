"""A golden sub-case that no process ran fails the session, however many processes there are."""

from types import SimpleNamespace

import pytest

from tests.golden.tally import Session, Tally


def finished(*parts: Tally) -> tuple[Session, SimpleNamespace]:
    first = Session()
    for part in parts:
        first.pytest_testnodedown(SimpleNamespace(workeroutput={"golden": part.sent()}), None)
    session = SimpleNamespace(config=SimpleNamespace(), exitstatus=pytest.ExitCode.OK)
    first.pytest_sessionfinish(session)  # type: ignore[arg-type]
    return first, session


@pytest.mark.parametrize("lost", [False, True])
def test_what_two_processes_ran_is_added(lost: bool) -> None:
    found = {"01 a", "01 b", "02 c", "02 errors"}
    parts = [Tally(True, found, {"02 errors"}, {name}, set()) for name in ("01 a", "01 b", "02 c")]
    first, session = finished(*parts[: 2 if lost else 3])
    missing = ["golden: 02 c failed or was not run"] if lost else []
    told = f"golden: {3 - lost} run, 1 not supported, {int(lost)} failed"
    assert first.tally.lines() == [told, *missing]
    assert (session.exitstatus == pytest.ExitCode.TESTS_FAILED) == lost


def test_a_failure_in_one_process_is_not_mended_by_another() -> None:
    parts = [Tally(True, {"01 a"}, set(), {"01 a"}, failed) for failed in (set(), {"01 a"})]
    assert finished(*parts)[1].exitstatus == pytest.ExitCode.TESTS_FAILED


def test_of_a_part_of_the_tests_nothing_is_missed() -> None:
    first, session = finished(Tally(False, {"01 a", "01 b"}, set(), {"01 a"}, set()))
    assert first.tally.lines() == ["golden: 1 run of a part of the tests"]
    assert session.exitstatus == pytest.ExitCode.OK
