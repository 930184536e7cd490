"""Repeated looks: results at hand, changes told, another target forgets what was found before."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from agenthive_operator.backends.kube import NotLeadingError
from agenthive_operator.reconcile.cache import Key
from agenthive_operator.reconcile.monitor import Monitor

KEY = Key("AgentHive", "ns", "h")


@asynccontextmanager
async def running(monitor: Monitor[str]) -> AsyncIterator[None]:
    task = asyncio.create_task(monitor.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def eventually(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - polls what no event tells, under a deadline
            await asyncio.sleep(0.005)


async def test_a_change_is_told_once_and_the_latest_result_is_at_hand() -> None:
    told: list[Key] = []
    answers = iter(["up", "up", "down", "down", *["down"] * 1000])
    monitor = Monitor[str]("test", told.append, steady=0.005)

    async def check() -> str:
        return next(answers)

    assert monitor.watch(KEY, "url", check) is None
    async with running(monitor):
        await eventually(lambda: monitor.latest(KEY) == "down")
        await eventually(lambda: len(told) >= 2)
    assert told == [KEY, KEY]
    assert monitor.watch(KEY, "url", check) == "down"


async def test_another_target_forgets_the_result_and_a_late_answer_about_the_former_is_dropped() -> None:
    told: list[Key] = []
    slow = asyncio.Event()
    monitor = Monitor[str]("test", told.append, steady=60)

    async def first() -> str:
        await slow.wait()
        return "first"

    async def second() -> str:
        return "second"

    async with running(monitor):
        monitor.watch(KEY, "one", first)
        await eventually(lambda: monitor.queue.schedule.in_flight == 1)
        assert monitor.watch(KEY, "two", second) is None
        slow.set()
        await eventually(lambda: monitor.latest(KEY) is not None)
    assert monitor.latest(KEY) == "second"


async def test_bad_results_are_looked_at_again_soon_and_a_poke_is_at_once() -> None:
    looks = 0

    async def check() -> str:
        nonlocal looks
        looks += 1
        return "bad" if looks < 3 else "good"

    monitor = Monitor[str]("test", lambda key: None, good=lambda result: result == "good", steady=3600)
    async with running(monitor):
        monitor.watch(KEY, "url", check)
        await eventually(lambda: monitor.latest(KEY) == "good")
        seen = looks
        monitor.poke(KEY)
        await eventually(lambda: looks == seen + 1)


async def test_what_is_forgotten_is_not_looked_at() -> None:
    looks = 0

    async def check() -> str:
        nonlocal looks
        looks += 1
        return "x"

    monitor = Monitor[str]("test", lambda key: None, steady=0.005)
    monitor.watch(KEY, "url", check)
    monitor.forget(KEY)
    monitor.poke(KEY)
    async with running(monitor):
        await asyncio.wait_for(monitor.queue.drained(), 5)
    assert looks == 0
    assert monitor.latest(KEY) is None


async def test_nothing_is_looked_at_without_permission(caplog: pytest.LogCaptureFixture) -> None:
    """A replica that may not act neither migrates nor mints, which looks do."""
    asked: list[str] = []

    def permit() -> None:
        asked.append("")
        if len(asked) < 3:
            raise NotLeadingError("the Lease is not held")

    monitor = Monitor[str]("test", lambda key: None, permit=permit)

    async def check() -> str:
        return f"after {len(asked)}"

    with caplog.at_level("INFO"):
        monitor.watch(KEY, "url", check)
        async with running(monitor):
            await eventually(lambda: monitor.latest(KEY) is not None)
    assert monitor.latest(KEY) == "after 3"
    assert "Traceback" not in caplog.text


async def test_what_was_not_looked_at_yet_is_counted() -> None:
    may_end = asyncio.Event()
    told: list[Key] = []
    monitor = Monitor[str]("test", told.append)

    async def check() -> str:
        await may_end.wait()
        return "up"

    assert monitor.unanswered == 0
    async with running(monitor):
        monitor.watch(KEY, "url", check)
        assert monitor.unanswered == 1
        may_end.set()
        await eventually(lambda: told == [KEY])
        assert monitor.unanswered == 0
