"""The batcher: what flies together, who gets which result, what happens when it goes wrong."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

import asyncpg
import pytest

from agenthive.store.batch import Batcher
from agenthive.store.errors import InvalidValue, StoreClosed, StoreError, StoreUnavailable, VersionConflict


class Runway:
    """A flush function that a test holds back and lets go."""

    def __init__(self) -> None:
        self.flights: list[list[int]] = []
        self.deadlines: list[float] = []
        self.clear = asyncio.Event()
        self.clear.set()
        self.started = asyncio.Event()

    async def flush(self, items: Sequence[int], deadline: float) -> list[int | StoreError]:
        self.flights.append(list(items))
        self.deadlines.append(deadline)
        self.started.set()
        await self.clear.wait()
        if any(item < 0 for item in items):
            raise asyncpg.CheckViolationError("bad row")
        if 1313 in items:
            raise StoreUnavailable("no connection")
        if 666 in items:
            raise KeyError("defect")
        return [VersionConflict("k", 1, 2) if item == 99 else item * 10 for item in items]


def explain(error: BaseException) -> StoreError:
    if isinstance(error, StoreError):
        return error
    return InvalidValue(f"refused: {error}") if isinstance(error, asyncpg.PostgresError) else StoreError(repr(error))


@pytest.fixture
async def runway() -> Runway:
    return Runway()


@pytest.fixture
async def batcher(runway: Runway) -> AsyncIterator[Batcher[int, int]]:
    batcher: Batcher[int, int] = Batcher(
        "test", runway.flush, explain=explain, patience=30.0, max_items=4, max_bytes=100, max_queued=6
    )
    yield batcher
    runway.clear.set()
    await batcher.aclose(timeout=5)


async def queued(batcher: Batcher[int, int], count: int) -> None:
    async with asyncio.timeout(5):
        while batcher.queued != count:  # noqa: ASYNC110 - polled: the batcher has no event for it
            await asyncio.sleep(0)


async def test_an_idle_batcher_flushes_at_once_and_what_comes_together_flies_together(
    batcher: Batcher[int, int], runway: Runway
) -> None:
    assert await batcher.submit(1) == 10
    assert await asyncio.gather(*(batcher.submit(n) for n in (2, 3, 4))) == [20, 30, 40]
    assert runway.flights == [[1], [2, 3, 4]]


async def test_what_comes_during_a_flight_makes_the_next_one(batcher: Batcher[int, int], runway: Runway) -> None:
    runway.clear.clear()
    first = asyncio.create_task(batcher.submit(1))
    await runway.started.wait()
    later = [asyncio.create_task(batcher.submit(n)) for n in range(2, 8)]
    await queued(batcher, 6)
    assert runway.flights == [[1]], "one flight at a time"
    runway.clear.set()
    assert await asyncio.gather(first, *later) == [10, 20, 30, 40, 50, 60, 70]
    assert runway.flights == [[1], [2, 3, 4, 5], [6, 7]], "at most four, in order"


async def test_a_batch_is_bounded_in_bytes(batcher: Batcher[int, int], runway: Runway) -> None:
    await asyncio.gather(*(batcher.submit(n, size=size) for n, size in [(1, 60), (2, 60), (3, 40), (4, 500), (5, 1)]))
    assert runway.flights == [[1], [2, 3], [4], [5]]


async def test_a_full_queue_makes_its_callers_wait(batcher: Batcher[int, int], runway: Runway) -> None:
    runway.clear.clear()
    tasks = [asyncio.create_task(batcher.submit(0))]
    await runway.started.wait()
    tasks += [asyncio.create_task(batcher.submit(n)) for n in range(1, 20)]
    await queued(batcher, 6)
    for _ in range(10):
        await asyncio.sleep(0)
    assert batcher.queued == 6
    tasks[10].cancel()  # one that waits for room: the others still get theirs
    runway.clear.set()
    done = await asyncio.gather(*tasks, return_exceptions=True)
    assert [r for r in done if not isinstance(r, BaseException)] == [n * 10 for n in range(20) if n != 10]
    assert max(len(flight) for flight in runway.flights) <= 4


async def test_one_bad_row_fails_its_caller_alone(batcher: Batcher[int, int], runway: Runway) -> None:
    results = await asyncio.gather(*(batcher.submit(n) for n in (1, 2, -3, 4)), return_exceptions=True)
    assert results[:2] + results[3:] == [10, 20, 40]
    assert isinstance(results[2], InvalidValue)
    assert str(results[2]) == "refused: bad row"
    assert isinstance(results[2].__cause__, asyncpg.CheckViolationError)
    assert runway.flights == [[1, 2, -3, 4], [1, 2], [-3, 4], [-3], [4]]


async def test_an_error_of_the_connection_fails_all_without_halving(batcher: Batcher[int, int], runway: Runway) -> None:
    results = await asyncio.gather(*(batcher.submit(n) for n in (1, 1313)), return_exceptions=True)
    assert [type(result) for result in results] == [StoreUnavailable] * 2
    assert results[0] is not results[1]
    assert runway.flights == [[1, 1313]]
    assert await batcher.submit(2) == 20, "and the batcher goes on"


async def test_a_result_may_be_the_error_of_one_caller(batcher: Batcher[int, int]) -> None:
    results = await asyncio.gather(*(batcher.submit(n) for n in (1, 99)), return_exceptions=True)
    assert results[0] == 10
    assert isinstance(results[1], VersionConflict)


async def test_a_defect_in_the_flush_function_hangs_nobody(batcher: Batcher[int, int]) -> None:
    results = await asyncio.gather(*(batcher.submit(n) for n in (1, 666)), return_exceptions=True)
    assert [type(result) for result in results] == [StoreError] * 2
    assert await batcher.submit(2) == 20


async def test_too_few_results_are_a_defect_that_hangs_nobody(caplog: pytest.LogCaptureFixture) -> None:
    async def short(items: Sequence[int], deadline: float) -> list[int]:
        return []

    batcher: Batcher[int, int] = Batcher("short", short, explain=explain, patience=1.0)
    with pytest.raises(StoreError, match="shorter"):
        await batcher.submit(1)
    assert "short: a batch of 1 failed" in caplog.text
    await batcher.aclose(timeout=1)


async def test_a_caller_cancelled_before_the_flight_takes_its_item_back(
    batcher: Batcher[int, int], runway: Runway
) -> None:
    runway.clear.clear()
    first = asyncio.create_task(batcher.submit(1))
    await runway.started.wait()
    waiting, kept = asyncio.create_task(batcher.submit(2)), asyncio.create_task(batcher.submit(3))
    await queued(batcher, 2)
    waiting.cancel()
    first.cancel()  # in flight already: done anyway, its result is nobody's
    await asyncio.wait({waiting, first})
    runway.clear.set()
    assert await kept == 30
    assert runway.flights == [[1], [3]]


async def test_patience_counts_from_the_oldest_item(runway: Runway, batcher: Batcher[int, int]) -> None:
    loop = asyncio.get_running_loop()
    before = loop.time()
    await batcher.submit(1)
    assert before + 30 <= runway.deadlines[0] <= loop.time() + 30


async def test_closing_flushes_what_waits_and_refuses_what_comes(batcher: Batcher[int, int], runway: Runway) -> None:
    runway.clear.clear()
    tasks = [asyncio.create_task(batcher.submit(0))]
    await runway.started.wait()
    tasks += [asyncio.create_task(batcher.submit(n)) for n in range(1, 9)]  # two of them wait for room
    await queued(batcher, 6)
    closing = asyncio.create_task(batcher.aclose(timeout=5))
    await asyncio.sleep(0)
    with pytest.raises(StoreClosed):
        await batcher.submit(50)
    runway.clear.set()
    await closing
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert results[:7] == [0, 10, 20, 30, 40, 50, 60]
    assert [type(result) for result in results[7:]] == [StoreClosed] * 2


async def test_closing_gives_up_after_its_timeout(
    batcher: Batcher[int, int], runway: Runway, caplog: pytest.LogCaptureFixture
) -> None:
    runway.clear.clear()
    tasks = [asyncio.create_task(batcher.submit(0))]
    await runway.started.wait()
    tasks += [asyncio.create_task(batcher.submit(n)) for n in (1, 2)]
    await queued(batcher, 2)
    await batcher.aclose(timeout=0.01)
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(result) for result in results] == [StoreClosed] * 3
    assert "2 items were not written" in caplog.text
