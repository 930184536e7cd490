"""The keyed queue: its schedule by calls with a time of their own, its workers with a real loop."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from agenthive_operator.reconcile.queue import Backoff, KeyedQueue, RetryLater, Schedule


def schedule() -> Schedule[str]:
    return Schedule(backoff=Backoff(base=1.0, cap=8.0, floor=0.1), rng=random.Random(7))


def test_a_key_added_twice_is_taken_once() -> None:
    queue = schedule()
    queue.add("a", 0)
    queue.add("b", 0)
    queue.add("a", 1)
    assert [queue.take(2), queue.take(2), queue.take(2)] == ["a", "b", None]


def test_a_key_in_flight_is_not_taken_again_but_comes_back_when_added_meanwhile() -> None:
    queue = schedule()
    queue.add("a", 0)
    assert queue.take(0) == "a"
    queue.add("a", 1)
    assert queue.take(1) is None
    queue.done("a", 2)
    assert queue.take(2) == "a"
    queue.done("a", 3)
    assert queue.take(3) is None


def test_requeue_after_is_honoured_and_an_event_overtakes_it() -> None:
    queue = schedule()
    queue.add("a", 0)
    queue.take(0)
    queue.done("a", 0, requeue_after=30)
    assert queue.next_due(10) == 20
    assert queue.take(29.9) is None
    queue.add("a", 29.9)
    assert queue.take(29.9) == "a"
    queue.done("a", 30)
    assert queue.take(100) is None, "the delayed wish was fulfilled by the event"


def test_the_earliest_of_several_delayed_wishes_wins() -> None:
    queue = schedule()
    queue.add_after("a", 10, 0)
    queue.add_after("a", 5, 0)
    queue.add_after("a", 20, 0)
    assert queue.next_due(0) == 5
    assert queue.take(5) == "a"
    queue.done("a", 5)
    assert queue.take(50) is None


def test_a_dirty_key_does_not_wait_for_its_requeue() -> None:
    queue = schedule()
    queue.add("a", 0)
    queue.take(0)
    queue.add("a", 0)
    queue.done("a", 0, requeue_after=30)
    assert queue.take(0) == "a"


@pytest.mark.parametrize(
    ("failures", "bound"), [(1, 1.0), (2, 2.0), (3, 4.0), (4, 8.0), (5, 8.0), (40, 8.0), (10_000, 8.0)]
)
def test_backoff_doubles_up_to_its_cap_with_full_jitter(failures: int, bound: float) -> None:
    backoff, rng = Backoff(base=1.0, cap=8.0, floor=0.1), random.Random(3)
    delays = [backoff.delay(failures, rng) for _ in range(2000)]
    assert min(delays) >= 0.1
    assert max(delays) <= bound
    assert max(delays) > 0.95 * bound
    assert min(delays) < 0.1 + 0.1 * bound


def test_a_failing_key_backs_off_even_when_dirty_and_success_resets_the_count() -> None:
    queue = schedule()
    queue.add("a", 0)
    queue.take(0)
    queue.add("a", 0)
    delay = queue.failed("a", 0)
    assert queue.take(delay / 2) is None
    assert queue.take(delay) == "a"
    queue.failed("a", delay)
    assert queue.failures("a") == 2
    queue.add("a", delay)
    assert queue.take(delay) == "a"
    queue.done("a", delay)
    assert queue.failures("a") == 0


def test_retry_after_of_the_server_is_a_lower_bound() -> None:
    queue = schedule()
    queue.add("a", 0)
    queue.take(0)
    assert queue.failed("a", 0, retry_after=17) == 17


def test_forget_drops_delay_and_failures() -> None:
    queue = schedule()
    queue.add("a", 0)
    queue.take(0)
    queue.failed("a", 0)
    queue.forget("a")
    assert queue.failures("a") == 0
    assert queue.take(1000) is None
    assert queue.next_due(1000) is None


def test_ages_and_depth() -> None:
    queue = schedule()
    assert (queue.depth, queue.oldest_wait(5), queue.oldest_in_flight(5)) == (0, 0, 0)
    queue.add("a", 1)
    queue.add("b", 2)
    assert (queue.depth, queue.oldest_wait(5)) == (2, 4)
    queue.take(5)
    assert (queue.depth, queue.in_flight) == (1, 1)
    assert queue.oldest_wait(5) == 3
    assert queue.oldest_in_flight(9) == 4


# ---- workers


@asynccontextmanager
async def running(queue: KeyedQueue[str]) -> AsyncIterator[KeyedQueue[str]]:
    task = asyncio.create_task(queue.run())
    try:
        yield queue
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def eventually(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - polls what no event tells, under a deadline
            await asyncio.sleep(0.005)


async def test_one_key_is_handled_by_one_worker_at_a_time_and_others_run_beside_it() -> None:
    running_now: dict[str, int] = {}
    peak: dict[str, int] = {}
    handled: list[str] = []
    together = 0
    go_on = asyncio.Event()

    async def handle(key: str) -> None:
        nonlocal together
        running_now[key] = running_now.get(key, 0) + 1
        peak[key] = max(peak.get(key, 0), running_now[key])
        together = max(together, sum(running_now.values()))
        await go_on.wait()
        running_now[key] -= 1
        handled.append(key)

    async with running(KeyedQueue(handle, workers=3)) as queue:
        for _ in range(4):
            for key in "abc":
                queue.add(key)
            await eventually(lambda: queue.schedule.in_flight == 3)
        go_on.set()
        await asyncio.wait_for(queue.drained(), 5)
    assert peak == {"a": 1, "b": 1, "c": 1}
    assert together == 3
    assert sorted(handled) == sorted("abcabc"), "each once, and once more for what came while it ran"


async def test_workers_end_although_a_handler_loses_the_cancellation() -> None:
    started = asyncio.Event()

    async def handle(key: str) -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise OSError("a driver's translation of it") from None

    queue = KeyedQueue(handle, workers=2)
    task = asyncio.create_task(queue.run())
    queue.add("a")
    await started.wait()
    task.cancel()
    done, _ = await asyncio.wait({task}, timeout=5)
    assert done, "the queue still runs"


async def test_a_key_that_is_added_again_by_each_look_keeps_nobody_else_from_going_on() -> None:
    looks = 0

    async def handle(key: str) -> None:
        nonlocal looks
        looks += 1
        assert looks < 10_000, "nobody else had a turn"
        queue.add(key)

    queue = KeyedQueue(handle, workers=1)
    async with running(queue):
        queue.add("a")
        for _ in range(10):
            await asyncio.sleep(0)
    assert 0 < looks < 10_000


async def test_a_handler_that_raises_is_called_again_and_does_not_stop_others(caplog: pytest.LogCaptureFixture) -> None:
    calls: list[str] = []

    async def handle(key: str) -> None:
        calls.append(key)
        if key == "bad" and calls.count("bad") < 3:
            raise ValueError("no luck")

    with caplog.at_level(logging.ERROR):
        async with running(KeyedQueue(handle, workers=1, backoff=Backoff(base=0.01, floor=0.001))) as queue:
            queue.add("bad")
            queue.add("good")
            await eventually(lambda: calls.count("bad") == 3)
            assert "good" in calls
            await eventually(lambda: queue.schedule.failures("bad") == 0)
    assert "no luck" in caplog.text


async def test_retry_later_backs_off_without_a_traceback(caplog: pytest.LogCaptureFixture) -> None:
    calls: list[str] = []

    async def handle(key: str) -> None:
        calls.append(key)
        if len(calls) == 1:
            raise RetryLater("not yet", after=0.02)

    with caplog.at_level(logging.INFO):
        async with running(KeyedQueue(handle, backoff=Backoff(base=0.001, floor=0.001))) as queue:
            queue.add("a")
            await eventually(lambda: len(calls) == 2)
    assert "not yet" in caplog.text
    assert "Traceback" not in caplog.text


async def test_a_handler_that_hangs_is_cancelled_and_counts_as_failed(caplog: pytest.LogCaptureFixture) -> None:
    calls: list[str] = []

    async def handle(key: str) -> None:
        calls.append(key)
        if len(calls) == 1:
            await asyncio.Event().wait()

    backoff = Backoff(base=0.001, floor=0.001)
    async with running(KeyedQueue(handle, workers=1, timeout=0.05, backoff=backoff)) as queue:
        queue.add("a")
        await eventually(lambda: len(calls) == 2)
    assert "failed (1 in a row)" in caplog.text


async def test_requeue_after_needs_no_event_and_forget_ends_it() -> None:
    calls: list[str] = []

    async def handle(key: str) -> float:
        calls.append(key)
        return 0.01

    async with running(KeyedQueue(handle, workers=2)) as queue:
        queue.add_after("a", 0.01)
        await eventually(lambda: len(calls) >= 3)
        await eventually(lambda: queue.schedule.in_flight == 0)
        queue.forget("a")
        seen = len(calls)
        queue.add("b")
        await eventually(lambda: "b" in calls)
        assert calls.count("a") <= seen + 1


def test_news_does_not_cut_short_what_the_server_asked_for() -> None:
    queue = schedule()
    queue.add("a", 0)
    queue.take(0)
    assert queue.failed("a", 0, retry_after=30) == 30
    queue.add("a", 5)
    queue.add_after("a", 1, 6)
    assert queue.take(29.9) is None
    assert queue.take(30) == "a"
    queue.done("a", 31)
    queue.add("a", 32)
    assert queue.take(32) == "a", "it held for one time"


def test_who_is_forgotten_waits_for_nothing() -> None:
    queue = schedule()
    queue.add("a", 0)
    queue.take(0)
    queue.failed("a", 0, retry_after=30)
    queue.forget("a")
    queue.add("a", 1)
    assert queue.take(1) == "a"
