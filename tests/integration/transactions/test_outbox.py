"""What becomes of committed messages: order, full queues, outages, what a dead process has left."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Sequence
from typing import Any

import asyncpg
import pytest
import redis.asyncio
from tests.integration.agent.conftest import Hive, eventually, hive_on
from tests.integration.transactions.conftest import MESSAGING, Ledger, Surroundings

from agenthive import Agent, AgentContext
from agenthive.bus import BusUnavailable, QueueFull
from agenthive.protocol import AgentMessage
from agenthive.relay import Relay
from agenthive.store import schema_name, upgrade
from agenthive.telemetry import Telemetry


def listening(name: str) -> tuple[Agent, list[Any]]:
    """An agent that notes the ``n`` of every message it gets."""
    agent, got = Agent(name), []
    agent.on("x")(lambda message: got.append(message.body["n"]))
    return agent, got


def relay_of(ctx: AgentContext) -> Relay:
    transactions = ctx._resources.transactions
    assert transactions is not None
    return transactions.relay


async def send(ctx: AgentContext, to: str, numbers: Sequence[int], **options: Any) -> None:
    async with ctx.transaction() as tx:
        for n in numbers:
            tx.send(to, "x", {"n": n}, **options)


async def test_messages_to_one_recipient_go_in_the_order_of_the_commits(
    hive: Hive, ledger: Ledger, surroundings: Surroundings
) -> None:
    _, ctx = await surroundings()
    for first in range(0, 900, 90):
        await send(ctx, "silent", range(first, first + 90), ordering_key="one")
    await eventually(lambda: hive.bus.queue("silent"), lambda queue: queue.backlog == 900, "all messages")
    agent, got = listening("silent")
    await hive.start(agent, agent="silent", concurrency=1)
    await hive.until(lambda: len(got) == 900, "all handled")
    assert got == list(range(900))
    await ledger.empty_outbox()


async def test_a_full_queue_holds_up_no_other_recipient(
    hive: Hive, ledger: Ledger, surroundings: Surroundings, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setattr("agenthive.outbox_lanes.TRY_SECONDS", 0.2)
    monkeypatch.setattr("agenthive.outbox_lanes.MOST_WAITING", 20)
    monkeypatch.setattr("agenthive.outbox_lanes.ROOM_SECONDS", 0.3)
    small = {**MESSAGING, "queue": {"max_length": 5}}
    runner, ctx = await surroundings(messaging=small)
    await send(ctx, "full", range(30))
    await eventually(lambda: hive.bus.queue("full"), lambda queue: queue.backlog == 5, "the full queue")
    with pytest.raises(QueueFull, match=r"messages of committed transactions wait to be sent to full.*rolled back"):
        await send(ctx, "full", [99])
    other, got_by_other = listening("other")
    await hive.start(other, agent="other", messaging=small)
    await send(ctx, "other", range(10))
    await hive.until(lambda: got_by_other == list(range(10)), "those for the other one")
    await hive.until(lambda: "messages of transactions wait for full" in caplog.text, "the log says so")
    monkeypatch.setattr("agenthive.outbox_lanes.ROOM_SECONDS", 20)
    agent, got = listening("full")
    waiting = asyncio.create_task(send(ctx, "full", [30]))
    await hive.start(agent, agent="full", concurrency=1, messaging=small)
    await waiting
    await hive.until(lambda: len(got) == 31, "all handled")
    assert got == list(range(31))
    await ledger.empty_outbox()
    assert caplog.text.count("messages of transactions wait for full") == 1
    assert runner.telemetry.outbox_waiting() == 0


async def test_a_topic_gets_what_was_committed(hive: Hive, ledger: Ledger, surroundings: Surroundings) -> None:
    agent, got = listening("subscriber")
    await hive.start(agent, agent="subscriber", topics=("news",))
    _, ctx = await surroundings()
    with contextlib.suppress(LookupError):
        async with ctx.transaction() as tx:
            tx.publish("news", "x", {"n": "never"})
            raise LookupError
    async with ctx.transaction() as tx:
        tx.publish("news", "x", {"n": 1})
        tx.publish("news", "x", {"n": 2}, ttl=60)
    await hive.until(lambda: got == [1, 2], "the copies")
    await ledger.empty_outbox()


async def test_delayed_deduplicated_and_unacknowledged_messages(
    hive: Hive, ledger: Ledger, surroundings: Surroundings
) -> None:
    agent, got = listening("other")
    await hive.start(agent, agent="other")
    _, ctx = await surroundings()
    await send(ctx, "other", [1, 2], deduplication_key="same")
    await send(ctx, "other", [3], require_ack=False)
    await send(ctx, "other", [4], delay=0.5)
    await send(ctx, "other", [5, 6], message_id="an id names one message")
    await hive.until(lambda: sorted(got) == [1, 3, 4, 5], "what was to come")
    await ledger.empty_outbox()
    await send(ctx, "other", [7], message_id="an id names one message")
    await ledger.empty_outbox()
    assert sorted(got) == [1, 3, 4, 5], "as long as Redis keeps its final status"


@pytest.fixture
async def own_hive(own_valkey: Any, postgres_url: str, unique: str) -> AsyncIterator[Hive]:
    """A hive on a Valkey of the test's own."""
    pool = {"circuit_breaker": {"failure_threshold": 3, "reset_seconds": 0.2}}
    changes = {"messaging": {**MESSAGING, "lease_seconds": 2}, "postgres_url": postgres_url, "redis_pool": pool}
    async with hive_on(own_valkey.url, unique, **changes) as hive:
        await upgrade(postgres_url, schema_name(hive.settings.scope))
        yield hive


async def rows_of(hive: Hive, postgres_url: str) -> int:
    connection = await asyncpg.connect(postgres_url)
    try:
        return int(await connection.fetchval(f'SELECT count(*) FROM "{schema_name(hive.settings.scope)}".outbox'))
    finally:
        await connection.close()


async def context_on(hive: Hive, **changes: Any) -> AgentContext:
    agent, contexts = Agent("worker"), []
    agent.on("nothing")(lambda message: None)
    agent.on_start(contexts.append)
    await hive.start(agent, **changes)
    return contexts[0]


async def test_what_redis_forgets_is_sent_again(
    own_hive: Hive, own_valkey: Any, postgres_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    ctx = await context_on(own_hive)
    await send(ctx, "other", range(300))
    await eventually(lambda: own_hive.bus.queue("other"), lambda queue: queue.backlog == 300, "all are in Redis")
    assert await rows_of(own_hive, postgres_url) == 300
    async with redis.asyncio.Redis.from_url(own_valkey.url) as raw:
        await raw.flushall()
    agent, got = listening("other")
    await own_hive.start(agent, agent="other", concurrency=1)
    await own_hive.until(lambda: len(got) == 300, "all handled")
    assert got == list(range(300))
    await eventually(lambda: rows_of(own_hive, postgres_url), lambda count: count == 0, "empty outbox")
    assert "Redis does not know 300 messages of transactions any more" in caplog.text


async def test_an_outage_of_redis_costs_no_message_and_no_order(
    own_hive: Hive, own_valkey: Any, postgres_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    ctx = await context_on(own_hive)
    own_valkey.kill()
    for n in range(100):
        await send(ctx, "other", [n], ordering_key="one")
    with pytest.raises(BusUnavailable):
        await own_hive.bus.queue("other")
    await asyncio.to_thread(own_valkey.start)
    agent, got = listening("other")
    await own_hive.start(agent, agent="other")
    await own_hive.until(lambda: len(got) == 100, "all handled")
    assert got == list(range(100))
    await eventually(lambda: rows_of(own_hive, postgres_url), lambda count: count == 0, "empty outbox")
    assert caplog.text.count("Redis is not available (outbox)") == 1


class Leftover:
    """Rows as a process leaves them that dies after its commit."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger

    async def add(
        self, message: AgentMessage, *, kind: str = "message", cause: str | None = None, due: str = "-1 s",
        age: str = "1 min", document: str = "",
    ) -> uuid.UUID:  # fmt: skip
        row = uuid.uuid4()
        recipient = message.to_agent.removeprefix("#")
        await self.ledger.connection.execute(
            f"""
            INSERT INTO "{self.ledger.schema}".outbox
            VALUES ($1, 'worker', $2, $3, $4, $5, $6, now() - $7::text::interval, now() + $8::text::interval)
            """,
            row, cause, kind, message.message_id, recipient, document or message.to_json().decode(), age, due,
        )  # fmt: skip
        return row

    async def left(self) -> set[uuid.UUID]:
        return {row["id"] for row in await self.ledger.outbox()}


def numbered(n: int, to: str = "other", **fields: Any) -> AgentMessage:
    return AgentMessage(from_agent="worker", to_agent=to, message_type="x", body={"n": n}, **fields)


async def test_the_next_process_sends_what_the_last_one_left(
    hive: Hive, ledger: Ledger, surroundings: Surroundings
) -> None:
    left = Leftover(ledger)
    agent, got = listening("other")
    await hive.start(agent, agent="other", topics=("news",), concurrency=1)
    for n in range(3):
        await left.add(numbered(n), due="59 s", age=f"{10 - n} s")
    await left.add(numbered(3, "#news"), kind="topic", due="59 s", age="1 s")
    await surroundings()
    await hive.until(lambda: len(got) == 4, "all handled")
    assert [n for n in got if n < 3] == [0, 1, 2]
    await ledger.empty_outbox()


async def test_a_sweep_looks_after_each_row_as_it_stands(
    hive: Hive, ledger: Ledger, surroundings: Surroundings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agenthive.relay.SWEEP_ROWS", 3)
    _, ctx = await surroundings()
    relay, left = relay_of(ctx), Leftover(ledger)
    runner = await hive.start(listening("other")[0], agent="other")
    done = numbered(1)
    await hive.bus.send(done)
    await hive.final("other", done.message_id)
    await hive.stop(runner)
    pending, unknown, later = numbered(2), numbered(3), numbered(4)
    await hive.bus.send(pending)
    answered = AgentMessage(from_agent="test", to_agent="worker", message_type="nothing", reply_to="@test/1")
    await hive.bus.send(answered)
    await hive.final("worker", answered.message_id)
    lost = answered.model_copy(update={"message_id": "lost"})
    rows = {
        "final": await left.add(done),
        "pending": await left.add(pending),
        "unknown": await left.add(unknown),
        "not due": await left.add(later, due="1 h"),
        "reply of a final one": await left.add(answered.reply(1), kind="reply", cause=answered.message_id),
        "reply of a lost one": await left.add(lost.reply(1), kind="reply", cause="lost"),
        "old reply of a lost one": await left.add(lost.reply(2), kind="reply", cause="lost", age="2 h"),
    }
    assert await relay.sweep() == 6
    await eventually(lambda: hive.bus.queue("other"), lambda queue: queue.backlog == 2, "the unknown one was sent")
    assert await hive.bus.find("other", later.message_id) is None
    kept = {rows[name] for name in ("pending", "unknown", "not due", "reply of a lost one")}
    await eventually(left.left, lambda found: found == kept, "the others are deleted")
    due = {row["id"]: row for row in await ledger.outbox()}
    assert due[rows["pending"]]["tries"] == 1
    assert due[rows["not due"]]["tries"] == 0
    assert await relay.sweep() == 0, "due again in a minute"
    await hive.start(listening("other")[0], agent="other")
    await eventually(left.left, lambda found: found == kept - {rows["pending"], rows["unknown"]}, "their end was seen")


async def test_two_processes_share_what_is_due(hive: Hive, ledger: Ledger, surroundings: Surroundings) -> None:
    _, ctx = await surroundings()
    left = Leftover(ledger)
    await eventually(hive.bus.agents, lambda names: "worker" in names, "the worker")
    outbox = ctx.store.outbox
    for n in range(40):
        await left.add(numbered(n))
    parts = await asyncio.gather(*(outbox.take(20) for _ in range(2)))
    ids = [row.id for part in parts for row in part]
    assert len(set(ids)) == len(ids) == 40
    assert await outbox.take(100) == []


async def test_what_cannot_be_sent_stays_and_is_told(
    hive: Hive, ledger: Ledger, surroundings: Surroundings, caplog: pytest.LogCaptureFixture
) -> None:
    _, ctx = await surroundings(messaging={**MESSAGING, "queue": {"max_bytes": 2000}})
    left = Leftover(ledger)
    agent, got = listening("other")
    await hive.start(agent, agent="other")
    broken = await left.add(numbered(1), document="{}")
    large = await left.add(numbered(2).model_copy(update={"body": {"n": "n" * 4000}}))
    await left.add(numbered(3))
    assert await relay_of(ctx).sweep() == 3
    await hive.until(lambda: got == [3], "the good one")
    await eventually(left.left, lambda found: found == {broken, large}, "only those are left")
    for row, why in ((broken, "not a valid message"), (large, "queue.maxBytes")):
        (line,) = [record.getMessage() for record in caplog.records if str(row) in record.getMessage()]
        assert "stays in the outbox" in line
        assert why in line


async def test_the_limits_of_the_hive_may_have_shrunk_since_the_commit(
    hive: Hive, ledger: Ledger, surroundings: Surroundings, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    _, ctx = await surroundings()
    agent, got = listening("other")
    await hive.start(agent, agent="other")
    async with ctx.transaction() as tx:
        tx.send("other", "x", {"n": "a" * 4000})
        tx.send("other", "x", {"n": 1})
        shrunk = ctx.bus.messaging.model_copy(
            update={"queue": ctx.bus.messaging.queue.model_copy(update={"max_bytes": 2000})}
        )
        monkeypatch.setattr(ctx.bus, "messaging", shrunk)
    await hive.until(lambda: got == [1], "the one that fits")
    assert "stays in the outbox" in caplog.text
    assert len(await ledger.outbox()) >= 1


async def test_the_relay_survives_an_outage_of_postgresql(
    own_postgres: Any, redis_url: str, unique: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agenthive.store.database.RETRY_SECONDS", 0.1)
    async with hive_on(redis_url, unique, messaging=MESSAGING, postgres_url=own_postgres.url()) as hive:
        await upgrade(own_postgres.url(), schema_name(hive.settings.scope))
        ctx = await context_on(hive)
        agent, got = listening("other")
        await hive.start(agent, agent="other")
        await send(ctx, "other", [1], delay=0.3)
        own_postgres.kill()
        await hive.until(lambda: got == [1], "the message")
        await hive.until(lambda: "PostgreSQL is not available (outbox)" in caplog.text, "its row cannot be deleted")
        await asyncio.to_thread(own_postgres.start)
        await eventually(lambda: rows_of(hive, own_postgres.url()), lambda count: count == 0, "empty outbox")


async def test_closing_gives_up_in_time(
    hive: Hive, ledger: Ledger, surroundings: Surroundings, caplog: pytest.LogCaptureFixture
) -> None:
    _, ctx = await surroundings(messaging={**MESSAGING, "queue": {"max_length": 1}})
    await send(ctx, "full", [1, 2])
    relay = relay_of(ctx)
    await relay.aclose(0.2)
    assert "messages of transactions are left in the outbox: they could not be sent in time" in caplog.text
    assert len(await ledger.outbox()) == 2


async def test_a_defect_stops_neither_sending_nor_watching(
    hive: Hive, ledger: Ledger, surroundings: Surroundings, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setattr("agenthive.outbox_lanes.LONGEST_DELAY", 0.01)
    monkeypatch.setattr("agenthive.relay.LONGEST_DELAY", 0.01)
    agent, got = listening("other")
    await hive.start(agent, agent="other")
    _, ctx = await surroundings()
    calls = dict.fromkeys(("send_in_order", "statuses"), 0)

    def failing_once(name: str) -> Any:
        real = getattr(ctx.bus, name)

        async def call(*args: Any, **options: Any) -> Any:
            calls[name] += 1
            if calls[name] == 1:
                raise ZeroDivisionError
            return await real(*args, **options)

        return call

    for name in calls:
        monkeypatch.setattr(ctx.bus, name, failing_once(name))
    await send(ctx, "other", [1])
    await hive.until(lambda: got == [1], "the message")
    await ledger.empty_outbox()
    assert min(calls.values()) > 1
    assert "sending messages of transactions to other failed; going on" in caplog.text
    assert "looking after the outbox failed; going on" in caplog.text


async def test_a_long_outbox_is_watched_as_far_as_there_is_room(
    hive: Hive, ledger: Ledger, surroundings: Surroundings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agenthive.relay.MOST_WATCHED", 2)
    runner, ctx = await surroundings()
    await send(ctx, "other", range(5))
    await hive.until(lambda: runner.telemetry.outbox_sent == 5, "all are sent")
    assert runner.telemetry.outbox_waiting() == 2


async def test_marks_are_forgotten_in_time(hive: Hive, ledger: Ledger, surroundings: Surroundings) -> None:
    _, ctx = await surroundings(retention={"inbox_days": 2})
    marks = f'"{ledger.schema}".inbox'
    await ledger.connection.execute(
        f"INSERT INTO {marks} SELECT 'worker', 'old' || n, now(), now() - interval '1 s' FROM generate_series(1, 9) n"
    )
    agent = Agent("other")

    @agent.on("x")
    async def handle(message: AgentMessage, ctx: Any) -> None:
        async with ctx.transaction():
            pass

    await hive.start(agent, agent="other", retention={"inbox_days": 2})
    await hive.send("other", message_id="new", ttl=7200)
    await hive.final("other", "new")
    await ctx.store.maintain()
    assert await ledger.marks() == ["new"]
    kept = await ledger.connection.fetchval(f"SELECT keep_until - handled_at FROM {marks}")
    assert kept.total_seconds() == 2 * 86_400 + 7200


async def test_statuses_are_asked_before_they_are_gone(
    surroundings: Surroundings,
) -> None:
    _, ctx = await surroundings()
    for seconds, longest in ((1, 0.25), (20, 5.0), (3600, 60.0)):
        ctx.bus.messaging = ctx.bus.messaging.model_copy(update={"status_seconds": seconds})
        assert Relay("a", ctx.bus, ctx.store.outbox, Telemetry("a"))._longest_look == longest
