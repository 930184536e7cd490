"""Handlers on the real bus: what they get, how they end, and what becomes of their messages."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from typing import Any

import pytest
import redis

from agenthive import Agent, Context, Reject, Retry, StoreNotConfigured
from agenthive.bus import QueueStats, RequestFailed
from agenthive.loader import ConfigurationError
from agenthive.protocol import AgentMessage, MessagePriority
from agenthive.runner import StartFailed
from agenthive.store import upgrade
from agenthive.store.naming import schema_name


async def test_a_handler_gets_its_message_and_its_result_is_the_reply(hive: Any) -> None:
    agent = Agent("worker")

    @agent.on("x")
    async def handle(message: AgentMessage, ctx: Context) -> dict[str, Any]:
        return {
            "body": message.body,
            "same": ctx.message is message,
            "attempt": ctx.attempt,
            "agent": ctx.agent,
            "logger": ctx.log.name,
            "hive": ctx.settings.hive,
        }

    await hive.start(agent)
    assert await hive.ask("worker", body={"a": [1, None]}) == {
        "body": {"a": [1, None]},
        "same": True,
        "attempt": 1,
        "agent": "worker",
        "logger": "agent.worker",
        "hive": hive.settings.hive,
    }


async def test_the_name_of_the_agent_resource_wins(hive: Any) -> None:
    agent = Agent("in-code")
    agent.on("x")(lambda message, ctx: ctx.agent)
    await hive.start(agent, agent="in-hive")
    assert await hive.ask("in-hive") == "in-hive"


async def test_handlers_send_ask_and_gather(hive: Any) -> None:
    front, back = Agent("front"), Agent("back")
    got: asyncio.Queue[AgentMessage] = asyncio.Queue()

    @back.on("double")
    async def double(message: AgentMessage) -> int:
        return int(message.body["n"]) * 2

    @back.on("note")
    async def note(message: AgentMessage) -> None:
        got.put_nowait(message)

    @front.on("x")
    async def handle(message: AgentMessage, ctx: Context) -> dict[str, Any]:
        await ctx.send("back", "note", {"k": 1}, priority=MessagePriority.HIGH, ttl=77, max_retries=0)
        await ctx.send("back", "note", delay=0.2, message_id="later")
        return {
            "ask": await ctx.ask("back", "double", {"n": 4}),
            "gather": await ctx.gather("back", "double", [{"n": n} for n in range(20)]),
        }

    await hive.start(back, pod="back")
    await hive.start(front, pod="front")
    started = time.monotonic()
    message_id = "the-cause"
    result = await hive.ask("front", message_id=message_id, traceparent="00-trace")
    assert result == {"ask": 8, "gather": [n * 2 for n in range(20)]}
    first, later = await asyncio.wait_for(got.get(), 10), await asyncio.wait_for(got.get(), 10)
    assert (first.from_agent, first.body, first.priority, first.ttl) == ("front", {"k": 1}, MessagePriority.HIGH, 77)
    assert first.delivery_options.max_retries == 0
    assert (first.correlation_id, first.traceparent) == (message_id, "00-trace")
    assert later.message_id == "later"
    assert later.ttl == hive.settings.messaging.ttl_seconds
    assert time.monotonic() - started >= 0.2


async def test_gather_gives_errors_a_place_or_raises_the_first(hive: Any) -> None:
    front, back = Agent("front"), Agent("back")

    @back.on("half")
    async def half(message: AgentMessage) -> int:
        if message.body["n"] % 2:
            raise Reject("odd")
        return int(message.body["n"]) // 2

    @front.on("x")
    async def handle(message: AgentMessage, ctx: Context) -> list[str]:
        found = await ctx.gather("back", "half", [{"n": 2}, {"n": 3}], return_exceptions=True)
        with pytest.raises(RequestFailed, match="odd"):
            await ctx.gather("back", "half", [{"n": 5}, {"n": 6}])
        return [str(item) for item in found]

    await hive.start(back, pod="back")
    await hive.start(front, pod="front")
    assert await hive.ask("front") == ["1", "rejected: odd"]


async def test_a_plain_function_runs_in_a_thread_and_can_use_the_bus(hive: Any) -> None:
    agent = Agent("worker")
    loop_thread = threading.get_ident()

    @agent.on("x")
    def handle(message: AgentMessage, ctx: Context) -> dict[str, Any]:
        other = ctx.run(ctx.ask("worker", "y"))
        return {"in_thread": threading.get_ident() != loop_thread, "other": other}

    @agent.on("y")
    async def on_the_loop(message: AgentMessage, ctx: Context) -> str:
        with pytest.raises(RuntimeError, match="write `await` instead"):
            ctx.run(asyncio.sleep(0))
        return "ok"

    await hive.start(agent)
    assert await hive.ask("worker") == {"in_thread": True, "other": "ok"}


async def test_logs_of_a_handler_carry_its_message(hive: Any, caplog: pytest.LogCaptureFixture) -> None:
    from agenthive.context import current

    agent, seen = Agent("worker"), []

    @agent.on("thread")
    def in_thread(message: AgentMessage, ctx: Context) -> None:
        seen.append(current.get() is ctx)

    @agent.on("task")
    async def in_task(message: AgentMessage, ctx: Context) -> None:
        seen.append(await asyncio.create_task(same(ctx)))

    async def same(ctx: Context) -> bool:
        return current.get() is ctx

    await hive.start(agent)
    await hive.ask("worker", "thread")
    await hive.ask("worker", "task")
    assert seen == [True, True]
    assert current.get() is None


async def test_no_more_handlers_than_concurrency_and_nothing_claimed_ahead(hive: Any) -> None:
    agent = Agent("worker")
    release = asyncio.Event()
    running = most = 0

    @agent.on("x")
    async def handle(message: AgentMessage) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await release.wait()
        running -= 1

    ids = [await hive.send("worker") for _ in range(12)]
    await hive.start(agent, concurrency=4)

    async def queue() -> QueueStats:
        found: QueueStats = await hive.bus.queue("worker")
        return found

    stats = await queue()
    while stats.in_flight < 4:
        await asyncio.sleep(0.01)
        stats = await queue()
    assert (stats.in_flight, stats.backlog) == (4, 8)
    release.set()
    for message_id in ids:
        assert (await hive.final("worker", message_id)).status == "delivered"
    assert most == 4


async def test_a_failure_is_retried_and_then_given_up_with_the_error(hive: Any) -> None:
    agent, attempts = Agent("worker"), []

    @agent.on("x")
    async def handle(message: AgentMessage, ctx: Context) -> None:
        attempts.append(ctx.attempt)
        raise KeyError("topic")

    await hive.start(agent)
    status = await hive.final("worker", await hive.send("worker"))
    assert (status.status, status.attempts) == ("failed", 3)
    assert attempts == [1, 2, 3]
    (letter,) = await hive.bus.dead_letters("worker")
    assert letter.error.startswith("KeyError: 'topic'\n")
    assert 'raise KeyError("topic")' in letter.error


async def test_retry_waits_as_long_as_it_says(hive: Any) -> None:
    agent, times = Agent("worker"), []

    @agent.on("x")
    async def handle(message: AgentMessage, ctx: Context) -> str:
        times.append(time.monotonic())
        if ctx.attempt == 1:
            raise Retry(after=0.4, reason="not yet")
        return "done"

    await hive.start(agent)
    assert await hive.ask("worker") == "done"
    assert times[1] - times[0] >= 0.4


async def test_reject_gives_up_at_once(hive: Any) -> None:
    agent = Agent("worker")

    @agent.on("x")
    def handle(message: AgentMessage) -> None:
        raise Reject("no such topic")

    await hive.start(agent)
    with pytest.raises(RequestFailed, match="no such topic"):
        await hive.ask("worker")
    (letter,) = await hive.bus.dead_letters("worker")
    assert (letter.attempts, letter.reason) == (1, "rejected")


async def test_a_type_nobody_handles_is_rejected_with_what_is_handled(hive: Any) -> None:
    agent = Agent("worker")
    agent.on("x", "y")(lambda message: None)
    runner = await hive.start(agent)
    status = await hive.final("worker", await hive.send("worker", "zzz"))
    assert status.status == "failed"
    assert status.error == "rejected: agent worker has no handler for message_type 'zzz'; it handles: x, y"
    assert runner.telemetry.types["(unknown)"].results["rejected"] == 1


@pytest.mark.parametrize("error", [StopIteration("s"), SystemExit(3), asyncio.CancelledError()])
@pytest.mark.parametrize("kind", ["task", "thread"])
async def test_whatever_a_handler_raises_ends_only_its_own_handling(hive: Any, error: BaseException, kind: str) -> None:
    agent = Agent("worker")
    agent.on("good")(lambda message: "still here")

    @agent.on("task")
    async def in_task(message: AgentMessage) -> None:
        raise error

    @agent.on("thread")
    def in_thread(message: AgentMessage) -> None:
        raise error

    await hive.start(agent)
    status = await hive.final("worker", await hive.send("worker", kind, delivery_options={"max_retries": 0}))
    assert status.status == "failed"
    assert await hive.ask("worker", "good") == "still here"


@pytest.mark.parametrize(
    "error", [ValueError("\ud800 \0"), Reject("\udfff"), Reject(KeyError("k")), Retry(0, "\ud800")]
)
async def test_an_error_of_odd_characters_ends_as_any_other(hive: Any, error: Exception) -> None:
    agent = Agent("worker")

    @agent.on("x")
    async def handle(message: AgentMessage) -> None:
        raise error

    await hive.start(agent)
    with pytest.raises(RequestFailed):
        await hive.ask("worker", delivery_options={"max_retries": 1})
    assert len(await hive.bus.dead_letters("worker")) == 1


async def test_a_result_that_is_no_json_is_rejected_with_the_reason(hive: Any) -> None:
    agent = Agent("worker")
    agent.on("x")(lambda message: {1, 2})
    await hive.start(agent)
    with pytest.raises(RequestFailed, match=r"the result of .* cannot be sent as a reply: body: .*set"):
        await hive.ask("worker")
    status = await hive.final("worker", await hive.send("worker"))
    assert status.status == "delivered", "nobody waits for this one's result"


async def test_without_a_store_the_agent_runs_and_says_what_is_missing(hive: Any) -> None:
    agent = Agent("worker")

    @agent.on("x")
    async def handle(message: AgentMessage, ctx: Context) -> str:
        for use in (lambda: ctx.store, lambda: ctx.state, lambda: ctx.metrics):
            with pytest.raises(StoreNotConfigured, match="agent worker runs without a store: set AGENTHIVE_POSTGRES"):
                use()
        return "ok"

    await hive.start(agent)
    assert await hive.ask("worker") == "ok"


# Tests with a store name its database before the hive, so that it goes after it: a store whose database is gone closes
# only when its patience ends.


async def test_with_a_store_state_survives(postgres_url: str, hive: Any) -> None:
    agent = Agent("worker")

    @agent.on("x")
    async def handle(message: AgentMessage, ctx: Context) -> int:
        count = int(await ctx.state.get("count", default=0)) + 1
        await ctx.state.set("count", count)
        await ctx.metrics.record("count", float(count))
        one: int = await ctx.store.pool.fetchval("SELECT 1")
        return count + one - 1

    await upgrade(postgres_url, schema_name(hive.settings.scope))
    runner = await hive.start(agent, postgres_url=postgres_url)
    assert [await hive.ask("worker") for _ in range(3)] == [1, 2, 3]
    assert await runner._ready() == (True, "ok")
    await hive.stop(runner)
    await hive.start(agent, postgres_url=postgres_url)
    assert await hive.ask("worker") == 4


async def test_failures_reach_the_message_log(postgres_url: str, hive: Any) -> None:
    agent = Agent("worker")
    agent.on("good")(lambda message: None)

    @agent.on("bad")
    async def bad(message: AgentMessage) -> None:
        raise ValueError("wrong")

    await upgrade(postgres_url, schema_name(hive.settings.scope))
    runner = await hive.start(agent, postgres_url=postgres_url)
    await hive.final("worker", await hive.send("worker", "good"))
    bad_id = await hive.send("worker", "bad", {"n": 1})
    await hive.final("worker", bad_id)
    await hive.final("worker", await hive.send("worker", "bad", delivery_options={"persistent": False}))
    log = runner._store.messages
    await log.flush()
    (row,) = await log.recent()
    assert (row.message_id, row.status, row.attempts, row.body) == (bad_id, "failed", 3, {"n": 1})
    assert row.error.startswith("ValueError: wrong")


async def test_what_redis_gives_up_reaches_the_message_log(postgres_url: str, redis_url: str, hive: Any) -> None:
    agent = Agent("worker")
    agent.on("x")(lambda message: None)
    late = await hive.send("worker", body={"n": 1}, ttl=0.001)
    await hive.send("worker", ttl=0.001, delivery_options={"persistent": False})
    huge = await hive.send("worker", body={"n": "x" * 700_000}, ttl=0.001)
    left_out = await hive.send("worker", body={"n": "x" * 700_000}, ttl=0.001)
    with redis.Redis.from_url(redis_url) as raw:
        queue = f"{hive.settings.scope.key_prefix('worker')}q:2"
        raw.xadd(queue, {"hello": "world"})
        raw.xadd(queue, {"m": "04000000000000\nno-json\n{"})
    await upgrade(postgres_url, schema_name(hive.settings.scope))
    runner = await hive.start(agent, postgres_url=postgres_url)
    await hive.until(lambda: runner.telemetry.given_up.total() == 6, "six messages given up")
    assert runner.telemetry.given_up == {"expired": 4, "malformed": 2}
    log = runner._store.messages
    await log.flush()
    rows = {row.message_id: row for row in await log.recent()}
    assert rows.keys() == {late, huge, "", "no-json"}, f"{left_out} is one too large to come along"
    row = rows[late]
    assert (row.status, row.attempts, row.body, row.from_agent) == ("expired", 0, {"n": 1}, "test")
    assert row.error == "expired: its time to live ended before it was handled"
    assert rows["no-json"].error.startswith("malformed: not a valid message: Invalid JSON")
    assert (rows["no-json"].status, rows["no-json"].to_agent, rows["no-json"].body) == ("failed", "worker", None)


async def test_hooks_run_around_the_messages(hive: Any) -> None:
    agent, calls = Agent("worker"), []

    @agent.on_start
    async def start(ctx: Any) -> None:
        calls.append("start")
        await ctx.send("worker", "x")

    @agent.on("x")
    async def handle(message: AgentMessage) -> None:
        calls.append("x")

    @agent.on_stop
    async def broken() -> None:
        raise ValueError("the stop goes on")

    @agent.on_stop
    async def stop(ctx: Any) -> None:
        calls.append("stop")
        await ctx.send("worker", "x", message_id="after")

    runner = await hive.start(agent)
    await hive.until(lambda: len(calls) == 2, "message")
    await hive.stop(runner)
    assert calls == ["start", "x", "stop"]
    assert (await hive.bus.status("worker", "after")).status == "pending"


async def test_a_start_hook_that_fails_ends_the_process_before_any_message(hive: Any) -> None:
    agent, calls = Agent("worker"), []
    agent.on("x")(lambda message: calls.append("x"))

    @agent.on_start
    def broken() -> None:
        raise ValueError("no model file")

    agent.on_stop(lambda: calls.append("stop"))
    await hive.send("worker")
    with pytest.raises(StartFailed, match=r"start hook .*broken failed: ValueError: no model file; in .*test_worker"):
        await hive.start(agent)
    assert calls == []


async def test_a_taken_port_is_explained(hive: Any) -> None:
    agent = Agent("worker")
    agent.on("x")(lambda message: None)
    runner = await hive.start(agent)
    with pytest.raises(ConfigurationError, match=rf"127.0.0.1:{runner.port}: .*in use.*AGENTHIVE_HTTP_PORT"):
        await hive.start(agent, pod="other", http_port=runner.port)


async def test_thousands_of_messages_are_each_handled_once(hive: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    agent, seen = Agent("worker"), []

    @agent.on("x", timeout=30)
    async def handle(message: AgentMessage) -> None:
        seen.append(message.body["n"])
        if message.body["n"] % 3 == 0:
            await asyncio.sleep(0)

    total = 3000
    await asyncio.gather(*(hive.send("worker", body={"n": n}) for n in range(total)))
    runner = await hive.start(agent, concurrency=50)
    figures = runner.telemetry.types["x"]
    await hive.until(lambda: figures.results["delivered"] == total, "end")
    assert sorted(seen) == list(range(total))
    stats = await hive.bus.queue("worker")
    assert (stats.backlog, stats.in_flight, stats.dead_letters) == (0, 0, 0)
    assert runner.telemetry.claimed == total
    assert runner.telemetry.in_flight() == 0
    assert caplog.text == ""
