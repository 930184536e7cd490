"""``ctx.transaction()``: one commit for effects, mark, messages and reply, and what comes after it."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import asyncpg
import pytest
from tests.integration.agent.conftest import Hive, eventually, hive_on
from tests.integration.transactions.conftest import MESSAGING, Ledger, Surroundings

import agenthive.testing
from agenthive import Agent, Context
from agenthive.bus import RequestTimeout
from agenthive.context import StoreNotConfigured
from agenthive.protocol import AgentMessage
from agenthive.store import StoreError, StoreUnavailable, schema_name, upgrade

INSERT = "INSERT INTO public.ledger VALUES ($1)"


def inserting(agent: Agent, *, then: Any = None) -> None:
    """A handler of ``x`` that inserts its message's id, commits, and goes on with ``then``."""

    @agent.on("x")
    async def handle(message: AgentMessage, ctx: Context) -> Any:
        async with ctx.transaction() as tx:
            await tx.execute(INSERT, message.message_id)
        return await then(message, ctx) if then is not None else "done"


async def test_effects_messages_and_reply_are_one_commit(hive: Hive, ledger: Ledger) -> None:
    agent, got = Agent("worker"), []

    @agent.on("x")
    async def handle(message: AgentMessage, ctx: Context) -> str:
        async with ctx.transaction() as tx:
            await tx.execute(INSERT, message.body["item"])
            tx.send("worker", "y", {"item": message.body["item"]})
            assert await tx.fetchval("SELECT count(*) FROM public.ledger") == 1
            assert len(await tx.fetch("SELECT item FROM public.ledger")) == 1
            row = await tx.fetchrow("SELECT item FROM public.ledger")
            assert row is not None
            assert row["item"] == "a"
            tx.reply("first")
            tx.reply({"done": 1})
            await asyncio.sleep(0.05)
            assert not got, "nothing is sent before the commit"
        return "dropped"

    @agent.on("y")
    async def follow(message: AgentMessage) -> None:
        got.append((message.body["item"], message.correlation_id))

    runner = await hive.start(agent)
    assert await hive.ask("worker", body={"item": "a"}, message_id="m1") == {"done": 1}
    await hive.until(lambda: got == [("a", "m1")], "the second message")
    assert await ledger.effects() == ["a"]
    assert await ledger.marks() == ["m1"]
    await ledger.empty_outbox()
    assert runner.telemetry.transactions == {"committed": 1}
    assert runner.telemetry.outbox_sent == 1
    assert runner.telemetry.outbox_waiting() == 0


async def test_a_rollback_leaves_and_sends_nothing(hive: Hive, ledger: Ledger) -> None:
    agent, attempts, got = Agent("worker"), [], []

    @agent.on("x")
    async def handle(message: AgentMessage, ctx: Context) -> None:
        attempts.append(ctx.attempt)
        with contextlib.suppress(LookupError):
            async with ctx.transaction() as tx:
                await tx.execute(INSERT, "never")
                tx.send("worker", "y", {"n": "never"})
                tx.reply("never")
                raise LookupError
        async with ctx.transaction() as tx:
            await tx.execute(INSERT, f"attempt {ctx.attempt}")
            tx.send("worker", "y", {"n": ctx.attempt})
            if ctx.attempt < 3:
                raise ValueError

    agent.on("y")(lambda message: got.append(message.body["n"]))
    runner = await hive.start(agent)
    assert await hive.ask("worker") is None
    await hive.until(lambda: got == [3], "the message of the third attempt")
    assert attempts == [1, 2, 3]
    assert await ledger.effects() == ["attempt 3"]
    assert runner.telemetry.transactions == {"rolled_back": 5, "committed": 1}


async def test_one_transaction_at_a_time_and_one_commit(hive: Hive, ledger: Ledger) -> None:
    agent, seen = Agent("worker"), []

    @agent.on("x")
    async def handle(message: AgentMessage, ctx: Context) -> None:
        early = ctx.transaction()
        for use in (lambda: early.send("a", "x"), lambda: early.reply(1), lambda: early.publish("t", "x")):
            with pytest.raises(RuntimeError, match="the transaction is not open"):
                use()
        async with ctx.transaction() as tx:
            with pytest.raises(RuntimeError, match="transactions do not nest, pass `tx` on"):
                async with ctx.transaction():
                    raise AssertionError
            await tx.execute(INSERT, "once")
        with pytest.raises(RuntimeError, match="the transaction is not open"):
            await tx.execute(INSERT, "late")
        with pytest.raises(RuntimeError, match="the transaction is not open"):
            await tx.state.get("late")
        with pytest.raises(RuntimeError, match="entered once"):
            await tx.__aenter__()
        with pytest.raises(RuntimeError, match="has committed its transaction and has only one"):
            async with ctx.transaction():
                raise AssertionError
        seen.append(True)

    await hive.start(agent)
    strange = "it's \\ \"an\" id; -- 'DROP' é 🐝"
    await hive.ask("worker", message_id=strange)
    assert seen == [True]
    assert await ledger.effects() == ["once"]
    assert await ledger.marks() == [strange]


@pytest.mark.parametrize("kind", ["raises", "time limit", "drain", "no json"])
async def test_after_the_commit_nothing_makes_it_run_again(
    kind: str, hive: Hive, ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    agent, committed = Agent("worker"), asyncio.Event()

    async def then(message: AgentMessage, ctx: Context) -> Any:
        committed.set()
        if kind == "raises":
            raise KeyError("topic")
        if kind == "no json":
            return object()
        return await asyncio.sleep(60)

    inserting(agent, then=then)
    limit = 0.2 if kind == "time limit" else None
    runner = await hive.start(
        agent, drain_seconds=0, messaging={"retry_delay_seconds": 0.01, "handler_timeout_seconds": limit}
    )
    asking = asyncio.create_task(hive.bus.request(message_to("worker", "m1"), 30))
    await asyncio.wait_for(committed.wait(), 20)
    if kind == "drain":
        await hive.stop(runner)
    status = await hive.final("worker", "m1")
    assert (status.status, status.attempts) == ("delivered", 1)
    # The result is lost with the handler: tx.reply is for those who need it. A reply would have come before the status.
    reply = f"{hive.settings.scope.key_prefix('worker')}r:m1"
    assert await hive.bus._connections.execute([("EXISTS", reply)]) == [0]
    assert not asking.done()
    asking.cancel()
    assert await ledger.effects() == ["m1"]
    assert "after its transaction was committed" in caplog.text or kind == "no json"
    assert "cannot be sent as a reply" in caplog.text or kind != "no json"


def message_to(agent: str, message_id: str, **body: Any) -> AgentMessage:
    return AgentMessage(from_agent="test", to_agent=agent, message_type="x", message_id=message_id, body=body)


async def test_an_id_names_one_message_for_good(hive: Hive, ledger: Ledger) -> None:
    agent, runs = Agent("worker"), []

    @agent.on("x")
    async def handle(message: AgentMessage, ctx: Context) -> None:
        runs.append(message.body)
        with contextlib.suppress(Exception):  # what ends the second run is no Exception
            async with ctx.transaction() as tx:
                await tx.execute(INSERT, message.message_id)
        runs.append("went on")

    runner = await hive.start(agent)
    await hive.send("worker", body={"n": 1}, message_id="m1")
    await hive.final("worker", "m1")
    await hive.send("worker", body={"n": 2}, message_id="m1")  # another message, as far as Redis is concerned
    await hive.until(lambda: runner.telemetry.transactions["already_handled"] == 1, "the mark was found")
    assert (await hive.final("worker", "m1")).status == "delivered"
    assert runs == [{"n": 1}, "went on", {"n": 2}]
    with pytest.raises(RequestTimeout):  # there is no reply any more, and no second effect
        await hive.bus.request(message_to("worker", "m1", n=3), 1)
    assert (await hive.final("worker", "m1")).status == "delivered"
    assert await ledger.effects() == ["m1"]
    assert runner.telemetry.types["x"].results["delivered"] == 3


async def test_a_redelivery_finds_the_mark_before_the_handler_runs(hive: Hive, ledger: Ledger) -> None:
    """As after a crash between commit and acknowledgement: all is there, and the message is not done."""
    agent, runs, got = Agent("worker"), [], []

    @agent.on("x")
    async def handle(message: AgentMessage, ctx: Context) -> None:
        runs.append(ctx.attempt)
        answer = message.reply("from the first run")
        follower = AgentMessage(from_agent="worker", to_agent="worker", message_type="y", message_id="m2")
        await ledger.connection.execute(
            f"INSERT INTO \"{ledger.schema}\".inbox VALUES ('worker', 'm1', now(), now() + interval '1 day')"
        )
        for kind, one in (("message", follower), ("reply", answer)):
            await ledger.connection.execute(
                f'INSERT INTO "{ledger.schema}".outbox VALUES (gen_random_uuid(), '
                "'worker', 'm1', $1, $2, $3, $4, now(), now() + interval '1 day', 0)",
                kind, one.message_id, one.to_agent, one.to_json().decode(),
            )  # fmt: skip
        raise ValueError

    agent.on("y")(lambda message: got.append(message.message_id))
    runner = await hive.start(agent)
    assert await hive.ask("worker", message_id="m1") == "from the first run"
    await hive.until(lambda: got == ["m2"], "what it had sent")
    assert runs == [1]
    await ledger.empty_outbox()
    assert runner.telemetry.types["x"].results == {
        **dict.fromkeys(runner.telemetry.types["x"].results, 0), "failed": 1, "delivered": 1,
    }  # fmt: skip


async def test_a_thread_uses_it_by_ctx_run(hive: Hive, ledger: Ledger) -> None:
    agent = Agent("worker")

    @agent.on("x")
    def handle(message: AgentMessage, ctx: Context) -> str:
        async def once() -> int:
            async with ctx.transaction() as tx:
                await tx.execute(INSERT, message.message_id)
                return int(await tx.fetchval("SELECT count(*) FROM public.ledger"))

        try:
            return str(ctx.run(once()))
        except Exception:
            return "swallowed"

    runner = await hive.start(agent)
    assert await hive.ask("worker", message_id="m1") == "1"
    await hive.send("worker", message_id="m1")
    await hive.until(lambda: runner.telemetry.types["x"].results["delivered"] == 2, "the second one")
    assert await ledger.effects() == ["m1"]


async def test_a_statement_that_failed_spoils_all_but_in_a_savepoint(
    ledger: Ledger, surroundings: Surroundings
) -> None:
    runner, ctx = await surroundings()

    async def go_on_after_an_error(*, then_send: bool) -> None:
        async with ctx.transaction() as tx:
            await tx.execute(INSERT, "never")
            if then_send:
                tx.send("worker", "nothing")
            with contextlib.suppress(asyncpg.UndefinedTableError):
                await tx.execute("SELECT * FROM nowhere")

    with pytest.raises(StoreError, match=r"rolled back: a statement in it had failed.*savepoint"):
        await go_on_after_an_error(then_send=False)
    with pytest.raises(StoreError, match=r"rolled back: a statement in it had failed.*savepoint"):
        await go_on_after_an_error(then_send=True)
    async with ctx.transaction() as tx:
        await tx.execute(INSERT, "kept")
        with contextlib.suppress(asyncpg.UndefinedTableError):
            async with tx.connection.transaction():
                await tx.execute(INSERT, "undone")
                await tx.execute("SELECT * FROM nowhere")
    assert await ledger.effects() == ["kept"]
    assert runner.telemetry.transactions == {"rolled_back": 2, "committed": 1}


@pytest.mark.parametrize("word", ["COMMIT", "ROLLBACK"])
async def test_who_ends_it_inside_is_told(word: str, ledger: Ledger, surroundings: Surroundings) -> None:
    _, ctx = await surroundings(postgres_pool={"max_size": 1})
    with pytest.raises(RuntimeError, match="ended inside its block: leave COMMIT and ROLLBACK to the end"):
        async with ctx.transaction() as tx:
            await tx.execute(word)
    async with ctx.transaction() as tx:
        await tx.execute(INSERT, "the connection is fine")
    assert await ledger.effects() == ["the connection is fine"]


async def test_a_check_at_the_commit_rolls_back(ledger: Ledger, surroundings: Surroundings) -> None:
    await ledger.connection.execute(
        "ALTER TABLE public.ledger ADD CONSTRAINT one UNIQUE (item) DEFERRABLE INITIALLY DEFERRED"
    )
    runner, ctx = await surroundings()

    async def twice() -> None:
        async with ctx.transaction() as tx:
            await tx.execute(INSERT, "a")
            await tx.execute(INSERT, "a")
            tx.send("worker", "nothing")

    with pytest.raises(asyncpg.UniqueViolationError):
        await twice()
    assert await ledger.effects() == []
    assert await ledger.outbox() == []
    assert runner.telemetry.transactions == {"rolled_back": 1}


async def test_what_the_block_sets_is_gone_afterwards(ledger: Ledger, surroundings: Surroundings) -> None:
    _, ctx = await surroundings(postgres_pool={"max_size": 1})
    async with ctx.transaction() as tx:
        await tx.execute("SET statement_timeout = '7s'")
        await tx.execute("SELECT pg_advisory_lock(7)")
    async with ctx.transaction() as tx:
        assert await tx.fetchval("SHOW statement_timeout") == "0"
        assert await tx.fetchval("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") == 0


async def test_transactions_leave_connections_to_the_rest(ledger: Ledger, surroundings: Surroundings) -> None:
    _, ctx = await surroundings(postgres_pool={"max_size": 4})
    release, inside = asyncio.Event(), []

    async def hold(number: int) -> None:
        async with ctx.transaction():
            inside.append(number)
            await release.wait()

    holding = [asyncio.create_task(hold(number)) for number in range(5)]
    await eventually(lambda: asyncio.sleep(0, len(inside)), lambda count: count == 2, "two transactions")
    await ctx.state.set("k", 1)
    assert await ctx.state.get("k") == 1
    assert len(inside) == 2
    release.set()
    await asyncio.gather(*holding)
    assert sorted(inside) == [0, 1, 2, 3, 4]


async def test_a_hook_has_no_message_to_answer(hive: Hive, ledger: Ledger) -> None:
    agent, got = Agent("worker"), []

    @agent.on_start
    async def begin(ctx: agenthive.AgentContext) -> None:
        for n in range(2):
            async with ctx.transaction() as tx:
                await tx.execute(INSERT, str(n))
                tx.send("worker", "x", {"n": n})
                with pytest.raises(RuntimeError, match="a hook has none"):
                    tx.reply(1)

    @agent.on_stop
    async def end(ctx: agenthive.AgentContext) -> None:
        async with ctx.transaction() as tx:
            tx.send("worker", "x", {"n": "stop"})

    agent.on("x")(lambda message: got.append(message.body["n"]))
    runner = await hive.start(agent)
    await hive.until(lambda: got == [0, 1], "both, in order")
    await ledger.empty_outbox()
    assert await ledger.marks() == []
    await hive.stop(runner)
    assert (await hive.bus.queue("worker")).backlog == 1, "sent before the bus was closed"
    await hive.start(agent)
    await hive.until(lambda: "stop" in got, "what the stop hook sent")


async def test_without_a_store_it_says_so(redis_url: str) -> None:
    agent, seen = Agent("worker"), []

    @agent.on("x")
    async def handle(message: AgentMessage, ctx: Context) -> None:
        with pytest.raises(StoreNotConfigured, match="set AGENTHIVE_POSTGRES_URL"):
            async with ctx.transaction():
                raise AssertionError
        seen.append(True)

    async with agenthive.testing.run(agent, redis_url=redis_url) as running:
        await running.ask("x")
    assert seen == [True]


async def test_in_a_test_of_ones_own(redis_url: str, postgres_url: str) -> None:
    agent = Agent("worker")

    @agent.on("x")
    async def handle(message: AgentMessage, ctx: Context) -> None:
        async with ctx.transaction() as tx:
            count = await tx.state.get("count", default=0) + 1
            await tx.state.set("count", count)
            tx.send("worker", "y", {"count": count})
            tx.reply(count)

    @agent.on("y")
    async def follow(message: AgentMessage, ctx: Context) -> None:
        await ctx.state.set("followed", message.body["count"])

    @agent.on("followed")
    async def followed(message: AgentMessage, ctx: Context) -> Any:
        return await ctx.state.get("followed")

    async with agenthive.testing.run(agent, redis_url=redis_url, postgres_url=postgres_url) as running:
        assert await running.ask("x") == 1
        assert await eventually(lambda: running.ask("followed"), bool, "the second message") == 1
        assert running.errors == []


async def test_what_cannot_be_sent_is_refused_at_once(ledger: Ledger, surroundings: Surroundings) -> None:
    _, ctx = await surroundings(messaging={"queue": {"max_bytes": 2000}})
    async with ctx.transaction() as tx:
        with pytest.raises(ValueError, match="is no name of an agent"):
            tx.send("no such name!", "x")
        with pytest.raises(ValueError, match="is no name of a topic"):
            tx.publish("no such name!", "x")
        with pytest.raises(ValueError, match=r"queue\.maxBytes"):
            tx.send("worker", "x", {"text": "a" * 3000})
        with pytest.raises(ValueError, match="body"):
            tx.send("worker", "x", {"it": object()})
        await tx.execute(INSERT, "went on")
    assert await ledger.effects() == ["went on"]
    assert await ledger.outbox() == []


async def test_who_is_cancelled_during_the_commit_hears_of_it_afterwards(
    hive: Hive, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit, committing = asyncpg.transaction.Transaction.commit, asyncio.Event()

    async def slow(transaction: Any) -> None:
        committing.set()
        await asyncio.sleep(0.2)
        await commit(transaction)

    agent, got = Agent("worker"), []

    @agent.on("x")
    async def handle(message: AgentMessage, ctx: Context) -> None:
        async with ctx.transaction() as tx:
            await tx.execute(INSERT, message.message_id)
            tx.send("other", "y")
            monkeypatch.setattr(asyncpg.transaction.Transaction, "commit", slow)
        raise AssertionError("it was cancelled")

    other = Agent("other")
    other.on("y")(lambda message: got.append(1))
    runner = await hive.start(agent, drain_seconds=0)
    await hive.start(other, agent="other")
    await hive.send("worker", message_id="m1")
    await asyncio.wait_for(committing.wait(), 20)
    await hive.stop(runner)
    assert (await hive.bus.status("worker", "m1")).status == "delivered"
    assert await ledger.effects() == ["m1"]
    await hive.until(lambda: got == [1], "what it sent")


async def test_a_lost_answer_to_the_commit_is_found_out_by_the_redelivery(
    hive: Hive, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit, lost = asyncpg.transaction.Transaction.commit, []

    async def commit_and_lose(transaction: Any) -> None:
        if len(lost) == 0:
            lost.append("before")
            raise ConnectionResetError("lost")
        await commit(transaction)
        if len(lost) == 1:
            lost.append("after")
            raise ConnectionResetError("lost")

    agent, got, errors = Agent("worker"), [], []

    @agent.on("x")
    async def handle(message: AgentMessage, ctx: Context) -> None:
        try:
            async with ctx.transaction() as tx:
                await tx.execute(INSERT, f"{message.message_id} attempt {ctx.attempt}")
                tx.send("worker", "y")
                tx.reply(ctx.attempt)
        except StoreUnavailable as error:
            errors.append(str(error))
            raise

    agent.on("y")(lambda message: got.append(1))
    runner = await hive.start(agent)
    monkeypatch.setattr(asyncpg.transaction.Transaction, "commit", commit_and_lose)
    assert await hive.ask("worker", message_id="m1") == 2, "the reply that was committed"
    await hive.until(lambda: got == [1], "what was committed")
    assert await ledger.effects() == ["m1 attempt 2"]
    assert len(errors) == 2
    assert all("whether it was committed cannot be told" in error for error in errors)
    assert runner.telemetry.transactions["in_doubt"] == 2


async def test_a_handling_that_waits_for_another_one_can_be_stopped(hive: Hive, ledger: Ledger) -> None:
    agent = Agent("worker")
    inserting(agent)
    runner = await hive.start(
        agent,
        postgres_pool={"max_size": 1},
        messaging={"retry_delay_seconds": 0.01, "max_retries": 100, "handler_timeout_seconds": 0.5},
    )
    other = ledger.connection.transaction()  # another process is about to handle it, and then does not
    await other.start()
    await ledger.connection.execute(
        f"INSERT INTO \"{ledger.schema}\".inbox VALUES ('worker', 'm1', now(), now() + interval '1 day')"
    )
    asking = asyncio.create_task(hive.ask("worker", message_id="m1"))
    await hive.until(lambda: runner.telemetry.types["x"].results["timed_out"] >= 2, "two that were stopped")
    await other.rollback()
    assert await asking == "done"
    assert await ledger.effects() == ["m1"]


async def test_one_that_sits_idle_is_ended_by_the_server(
    hive: Hive, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agenthive.store.transaction.IDLE_SECONDS", 1)
    agent, ended = Agent("worker"), []

    @agent.on("x")
    async def handle(message: AgentMessage, ctx: Context) -> None:
        try:
            async with ctx.transaction() as tx:
                await tx.execute(INSERT, str(ctx.attempt))
                while ctx.attempt == 1 and not tx.connection.is_closed():  # noqa: ASYNC110 - asyncpg tells nobody
                    await asyncio.sleep(0.05)
        except (StoreUnavailable, asyncpg.InterfaceError) as error:
            ended.append(error)
            raise

    runner = await hive.start(agent)
    assert await hive.ask("worker") is None
    assert len(ended) == 1
    assert await ledger.effects() == ["2"]
    assert runner.telemetry.transactions == {"rolled_back": 1, "committed": 1}


async def test_a_redelivery_does_not_wait_for_postgresql(
    own_postgres: Any, redis_url: str, unique: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agenthive.store.transaction.LOOK_SECONDS", 0.2)
    async with hive_on(redis_url, unique, messaging=MESSAGING, postgres_url=own_postgres.url()) as hive:
        await upgrade(own_postgres.url(), schema_name(hive.settings.scope))
        agent = Agent("worker")

        @agent.on("x")
        async def handle(message: AgentMessage, ctx: Context) -> int:
            if ctx.attempt == 1:
                own_postgres.kill()
                raise ValueError
            return ctx.attempt

        await hive.start(agent)
        assert await hive.ask("worker") == 2
        await asyncio.to_thread(own_postgres.start)


async def test_entering_waits_for_postgresql_to_come_back(own_postgres: Any, redis_url: str, unique: str) -> None:
    async with hive_on(redis_url, unique, messaging=MESSAGING, postgres_url=own_postgres.url()) as hive:
        await upgrade(own_postgres.url(), schema_name(hive.settings.scope))
        agent = Agent("worker")

        @agent.on("x")
        async def handle(message: AgentMessage, ctx: Context) -> int:
            async with ctx.transaction() as tx:
                return int(await tx.fetchval("SELECT 1"))

        runner = await hive.start(agent)
        assert await hive.ask("worker") == 1
        own_postgres.kill()
        asking = asyncio.create_task(hive.ask("worker"))
        await hive.until(lambda: runner.telemetry.in_flight() == 1, "the handler waits")
        await asyncio.to_thread(own_postgres.start)
        assert await asking == 1
        assert runner.telemetry.types["x"].results["failed"] == 0
