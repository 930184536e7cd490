"""How handlings end from outside: by a time limit, by the end of the process, by a Redis that does not listen."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
import redis.asyncio

from agenthive import Agent, Context
from agenthive.protocol import AgentMessage


@pytest.fixture
async def raw(redis_url: str) -> AsyncIterator[redis.asyncio.Redis]:
    """A plain client, to change things behind the bus's back."""
    async with redis.asyncio.Redis.from_url(redis_url, protocol=2) as client:
        yield client


async def test_a_time_limit_cancels_and_counts_as_a_failure(hive: Any) -> None:
    agent, cancelled = Agent("worker"), []

    @agent.on("x", timeout=0.05)
    async def handle(message: AgentMessage, ctx: Context) -> None:
        try:
            await asyncio.sleep(60)
        finally:
            cancelled.append(ctx.attempt)

    @agent.on("stubborn", timeout=0.05)
    async def stubborn(message: AgentMessage) -> str:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(60)
        return "as if nothing had happened"

    runner = await hive.start(agent)
    status = await hive.final("worker", await hive.send("worker"))
    assert (status.status, status.attempts, cancelled) == ("failed", 3, [1, 2, 3])
    assert "the time limit of 0.05 s was exceeded by" in status.error
    status = await hive.final("worker", await hive.send("worker", "stubborn"))
    assert "the time limit of 0.05 s" in status.error
    assert runner.telemetry.types["x"].results["timed_out"] == 3


@pytest.mark.parametrize("kind", ["task", "thread"])
async def test_waiting_for_a_free_slot_does_not_eat_the_time_limit(hive: Any, kind: str) -> None:
    agent = Agent("worker")

    @agent.on("task", timeout=1)
    async def in_task(message: AgentMessage) -> str:
        await asyncio.sleep(0.2)
        return "in time"

    @agent.on("thread", timeout=1)
    def in_thread(message: AgentMessage) -> str:
        time.sleep(0.2)
        return "in time"

    await hive.start(agent, concurrency=1)
    started = time.monotonic()
    # The last one waits longer than its limit before it runs.
    assert await asyncio.gather(*(hive.ask("worker", kind) for _ in range(6))) == ["in time"] * 6
    assert time.monotonic() - started >= 1.2


async def test_the_hives_time_limit_is_for_handlers_without_their_own(hive: Any) -> None:
    agent = Agent("worker")

    @agent.on("own", timeout=30)
    async def own(message: AgentMessage) -> str:
        await asyncio.sleep(0.3)
        return "in time"

    @agent.on("hives")
    async def hives(message: AgentMessage) -> None:
        await asyncio.sleep(60)

    messaging = hive.settings.messaging.model_copy(update={"handler_timeout_seconds": 0.1})
    await hive.start(agent, messaging=messaging)
    assert await hive.ask("worker", "own") == "in time"
    status = await hive.final("worker", await hive.send("worker", "hives"))
    assert "the time limit of 0.1 s" in status.error


async def test_a_thread_past_its_limit_keeps_its_message_until_it_returns(hive: Any) -> None:
    agent, release, running = Agent("worker"), threading.Event(), []

    @agent.on("x", timeout=0.05)
    def handle(message: AgentMessage, ctx: Context) -> None:
        running.append(ctx.attempt)
        release.wait(20)

    await hive.start(agent)
    message_id = await hive.send("worker", delivery_options={"max_retries": 0})
    await hive.until(lambda: bool(running), "handler")
    await asyncio.sleep(0.2)  # well past the limit: nothing may happen, so there is nothing to wait for
    assert (await hive.bus.status("worker", message_id)).status == "pending"
    assert (await hive.bus.queue("worker")).in_flight == 1
    release.set()
    status = await hive.final("worker", message_id)
    assert "the time limit of 0.05 s" in status.error
    assert running == [1]


async def test_drain_lets_handlers_finish(hive: Any) -> None:
    agent, started = Agent("worker"), asyncio.Event()

    @agent.on("x")
    async def handle(message: AgentMessage) -> None:
        started.set()
        await asyncio.sleep(0.3)

    runner = await hive.start(agent)
    message_id = await hive.send("worker")
    await asyncio.wait_for(started.wait(), 10)
    waiting = await hive.send("worker", "unclaimed")
    await hive.stop(runner)
    assert (await hive.bus.status("worker", message_id)).status == "delivered"
    assert runner.telemetry.types["x"].results["delivered"] == 1
    # The other one may have been claimed before the stop; it was dealt with then, not lost.
    assert (await hive.bus.status("worker", waiting)).status in {"pending", "failed"}


async def test_a_stop_loses_none_of_what_is_acknowledged_when_claimed(hive: Any) -> None:
    agent, handled, total = Agent("worker"), [], 600

    @agent.on("x")
    async def handle(message: AgentMessage) -> None:
        await asyncio.sleep(0)
        handled.append(message.body["n"])

    runs = 3
    for n in range(total):
        await hive.send("worker", body={"n": n}, delivery_options={"require_ack": False})
    for run in range(runs):
        runner = await hive.start(agent, pod=f"pod-{run}", concurrency=20)
        await hive.until(lambda run=run: len(handled) > 100 * (run + 1), "some of them")
        await hive.stop(runner)
        left = (await hive.bus.queue("worker")).backlog
        assert len(handled) + left == total, "each was handled, or is in the queue"
        assert len(set(handled)) == len(handled)


async def test_drain_hands_back_what_does_not_finish_and_it_is_no_attempt(hive: Any) -> None:
    agent, started, cleaned = Agent("worker"), asyncio.Event(), []

    @agent.on("x")
    async def handle(message: AgentMessage, ctx: Context) -> int:
        if ctx.settings.pod != "first":
            return ctx.attempt
        started.set()
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.05)
            cleaned.append(True)
        return 0

    first = await hive.start(agent, pod="first", drain_seconds=0.1)
    asking = asyncio.create_task(hive.ask("worker"))
    await asyncio.wait_for(started.wait(), 10)
    await hive.start(agent, pod="second")
    await hive.stop(first)
    assert cleaned == [True], "handed back only after the handler had ended"
    assert await asking == 1
    assert first.telemetry.types["x"].results["released"] == 1


async def test_drain_never_hands_back_the_message_of_a_running_thread(hive: Any) -> None:
    agent, started, release, attempts = Agent("worker"), threading.Event(), threading.Event(), []

    @agent.on("x")
    def handle(message: AgentMessage, ctx: Context) -> None:
        attempts.append((ctx.settings.pod, ctx.attempt))
        started.set()
        release.wait(20)

    first = await hive.start(agent, pod="first", drain_seconds=0.1)
    message_id = await hive.send("worker")
    await asyncio.to_thread(started.wait, 10)
    await hive.start(agent, pod="second")
    try:
        await hive.stop(first)
        assert first.stuck
        stats = await hive.bus.queue("worker")
        assert (stats.in_flight, stats.backlog) == (1, 0)
        assert attempts == [("first", 1)]
        assert (await hive.bus.status("worker", message_id)).status == "pending"
    finally:
        release.set()
        await first._worker._consumer.aclose()  # a process would end here, and its lease's thread with it


async def test_a_result_that_redis_refused_is_told_again(hive: Any, raw: redis.asyncio.Redis) -> None:
    agent, started, release = Agent("worker"), asyncio.Event(), asyncio.Event()

    @agent.on("x")
    async def handle(message: AgentMessage) -> None:
        started.set()
        await release.wait()

    runner = await hive.start(agent, concurrency=1)
    message_id = await hive.send("worker")
    await asyncio.wait_for(started.wait(), 10)
    # What the acknowledgement is to change is of a type that it cannot change.
    ids = f"{hive.settings.scope.key_prefix('worker')}ids"
    await raw.rename(ids, f"{ids}:kept")
    await raw.set(ids, "no hash")
    release.set()
    await hive.until(lambda: runner.telemetry.bus_errors["settle"] > 0, "refusal")
    await raw.rename(f"{ids}:kept", ids)
    assert (await hive.final("worker", message_id)).status == "delivered"
    results = runner.telemetry.types["x"].results
    await hive.until(lambda: results["delivered"] == 1, "result")
    assert results["lease_lost"] == 0
