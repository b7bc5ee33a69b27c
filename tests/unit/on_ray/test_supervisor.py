import asyncio
import random

import pytest

from medv_ray.on_ray.supervisor import (
    BLAMED_DEATHS,
    CHUNK_DEATHS,
    DECODE,
    START_DEATHS,
    Deaths,
    Supervisor,
    death_limit,
)


def try_chunk(deaths: Deaths, source_key: str, rows: range, crashing: set[int]) -> list[int] | None:
    """One attempt of an actor; None when it died, else the rows that it did not try."""
    orders = deaths.start(source_key)
    assert not orders.skip
    for row in rows:
        if row in orders.crashed:
            continue
        if orders.announce:
            deaths.row(source_key, row)
        if row in crashing:
            return None
    deaths.row(source_key, None)
    deaths.done(source_key)
    return list(orders.crashed)


def test_a_crashing_row_costs_three_workers_and_no_other_row() -> None:
    deaths = Deaths(limit=9)
    ends = [try_chunk(deaths, "a", range(8), {5}) for _ in range(4)]
    assert ends == [None, None, None, [5]]


def test_two_crashing_rows_in_a_chunk_are_both_named() -> None:
    deaths = Deaths(limit=9)
    ends = [try_chunk(deaths, "a", range(8), {2, 5}) for _ in range(6)]
    assert ends == [None] * 5 + [[2, 5]]


def test_kills_from_outside_quarantine_no_row() -> None:
    """Each attempt dies at another row: nothing is blamed twice."""
    deaths = Deaths(limit=99)
    for row in (3, 6, 1, 7, 0):
        assert try_chunk(deaths, "a", range(8), {row}) is None
    assert try_chunk(deaths, "a", range(8), set()) == []


def test_a_chunk_that_another_attempt_has_ended_is_no_error() -> None:
    deaths = Deaths(limit=9)
    deaths.start("a")
    deaths.start("a")  # Ray took a living actor for dead
    deaths.done("a")
    deaths.row("a", 3)
    deaths.done("a")


def test_a_first_attempt_announces_nothing() -> None:
    deaths = Deaths(limit=9)
    assert not deaths.start("a").announce
    assert deaths.start("a").announce
    assert not deaths.start("b").announce


def test_a_chunk_that_kills_without_a_row_is_given_up() -> None:
    deaths = Deaths(limit=999)
    seen = [deaths.start("a").skip for _ in range(CHUNK_DEATHS + 2)]
    assert seen == [""] * (CHUNK_DEATHS + 1) + ["lost"]
    assert deaths.start("b").skip == ""


def test_a_worker_that_dies_while_loading_is_not_started_for_ever() -> None:
    deaths = Deaths(limit=99)
    said = [deaths.born("x") for _ in range(START_DEATHS + 1)]
    assert said[:-1] == [""] * START_DEATHS
    assert "loaded" in said[-1]


def test_loading_well_forgets_earlier_deaths() -> None:
    deaths = Deaths(limit=99)
    for _ in range(10):
        assert not deaths.born("x")
        deaths.ready("x")


def test_deaths_without_a_finished_chunk_end_the_job() -> None:
    deaths = Deaths(limit=4)
    said = []
    for _ in range(6):
        said.append(deaths.born("x"))
        deaths.ready("x")
    assert said == [""] * 5 + [said[5]]
    assert "5 times" in said[5]


def test_a_finished_chunk_is_progress() -> None:
    deaths = Deaths(limit=2)
    for number in range(20):
        assert not deaths.born("x")
        deaths.ready("x")
        deaths.start(str(number))
        deaths.done(str(number))
    assert deaths.total == 19


def play_job(actors: int, hopeless: list[bool]) -> tuple[list[int], str]:
    """Actors take chunks in turn, and die on hopeless ones. Chunks given up, and what ended it."""
    deaths = Deaths(death_limit(actors))
    todo = list(enumerate(hopeless))
    held: dict[int, tuple[int, bool]] = {}
    lost = []
    for actor in range(actors):
        deaths.born(str(actor))
        deaths.ready(str(actor))
    while todo or held:
        for actor in range(actors):
            if actor not in held and todo:
                held[actor] = todo.pop(0)
            if actor not in held:
                continue
            number, dies = held[actor]
            skip = deaths.start(str(number)).skip
            if skip:
                lost.append(number)
            if skip or not dies:
                deaths.done(str(number))
                del held[actor]
                continue
            if said := deaths.born(str(actor)):
                return lost, said
            deaths.ready(str(actor))
    return lost, ""


@pytest.mark.parametrize("actors", [1, 2, 5])
def test_hopeless_chunks_among_healthy_ones_do_not_end_the_job(actors: int) -> None:
    one = [False] * 20
    one[7] = True
    assert play_job(actors, one) == ([7], "")
    # one for each actor, all at the same time, and another one
    many = [False] * 6 + [True] * (actors + 1) + [False] * 20
    lost, said = play_job(actors, many)
    assert sorted(lost) == list(range(6, 7 + actors))
    assert said == ""
    last = [False] * 5 + [True] * actors
    assert play_job(actors, last)[1] == ""


@pytest.mark.parametrize("actors", [1, 2, 5])
def test_a_job_whose_chunks_are_all_hopeless_ends(actors: int) -> None:
    lost, said = play_job(actors, [True] * 1000)
    assert len(lost) <= actors + 1
    assert f"{death_limit(actors) + 1} times" in said


@pytest.mark.parametrize("seed", range(20))
def test_random_kills_and_poison_end_with_every_healthy_row_tried(seed: int) -> None:
    """Outside kills at random rows among crashing ones: only crashing rows are left out."""
    rng = random.Random(seed)
    crashing = set(rng.sample(range(16), 2))
    deaths = Deaths(limit=99)
    for attempt in range(30):
        outside = {rng.randrange(16)} if attempt in (1, 4) else set()
        ended = try_chunk(deaths, "a", range(16), crashing | outside)
        if ended is not None:
            assert set(ended) == crashing
            return
    pytest.fail("the chunk never ended")


def test_blame_needs_the_same_row_twice() -> None:
    assert BLAMED_DEATHS == 2


def test_source_gets_chunks_as_they_are_fed() -> None:
    async def play() -> None:
        supervisor = Supervisor(9)
        waiting = asyncio.create_task(supervisor.take(0))
        await asyncio.sleep(0)
        assert not waiting.done()
        await supervisor.feed(["a", "b"], [], False)
        assert await waiting == ["a", "b"]
        await supervisor.feed(["c"], [0], True)
        assert await supervisor.take(2) == ["c"]
        assert await supervisor.take(3) is None
        # a source that is run again: what is finished is gone, the numbers stay
        assert await supervisor.take(0) == ["", "b", "c"]

    asyncio.run(play())


def test_stop_frees_a_waiting_source_and_skips_queued_chunks() -> None:
    async def play() -> None:
        supervisor = Supervisor(9)
        waiting = asyncio.create_task(supervisor.take(0))
        await asyncio.sleep(0)
        await supervisor.stop()
        assert await waiting is None
        assert (await supervisor.start("a")).skip == "stop"

    asyncio.run(play())


def test_results_reach_the_driver_until_the_end() -> None:
    async def play() -> None:
        supervisor = Supervisor(9)
        waiting = asyncio.create_task(supervisor.results())
        await asyncio.sleep(0)
        await supervisor.start("a")
        await supervisor.done("a", "one")
        assert await waiting == ["one"]
        await supervisor.done("a", "two")
        await supervisor.end()
        assert await supervisor.results() == ["two"]
        assert await supervisor.results() is None

    asyncio.run(play())


def test_the_first_fatal_error_is_kept() -> None:
    async def play() -> None:
        supervisor = Supervisor(9)
        await supervisor.fail("RunError", "E1503", "disk")
        await supervisor.fail("RunError", "E1509", "after that")
        assert (await supervisor.report())["fatal"] == ("RunError", "E1503", "disk")

    asyncio.run(play())


def test_a_chunk_that_decodes_is_no_progress_of_those_that_answer() -> None:
    """Deaths of the two kinds of actors are counted apart."""

    async def play() -> tuple[str, int]:
        supervisor = Supervisor(1, 9)
        why = ""
        for number in range(4):
            why = why or await supervisor.born("model")
            await supervisor.ready("model")
            await supervisor.born("decoder", DECODE)
            await supervisor.ready("decoder", DECODE)
            assert not (await supervisor.start(f"chunk {number}", DECODE)).announce
            await supervisor.decoded(f"chunk {number}")
        await supervisor.stop()
        assert (await supervisor.start("chunk 9", DECODE)).skip == "stop"
        return why, (await supervisor.report())["deaths"]

    why, deaths = asyncio.run(play())
    assert "died 2 times and no chunk was finished" in why
    assert deaths == 5  # of the model's two: the third ends the job
