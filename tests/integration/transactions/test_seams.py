"""Where transactions meet the pool, the sender, the cache and calls that are cached."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from tests.integration.agent.conftest import Hive, eventually
from tests.integration.transactions.conftest import Ledger, Surroundings

from agenthive import Agent, AgentMessage, Context, cached
from agenthive.cache_entries import Change
from agenthive.relay import Relay
from agenthive.settings import PostgresPool


async def test_a_rollback_that_is_cancelled_gives_the_connection_back(
    hive: Hive, ledger: Ledger, surroundings: Surroundings
) -> None:
    _, ctx = await surroundings(postgres_pool=PostgresPool(min_size=1, max_size=3))
    loop = asyncio.get_running_loop()

    async def fail_and_be_cancelled() -> None:
        async with ctx.transaction() as tx:
            await tx.execute("INSERT INTO public.ledger VALUES ('never')")
            task = asyncio.current_task()
            assert task is not None
            loop.call_soon(task.cancel)  # heard while the ROLLBACK is under way
            raise LookupError

    for _ in range(8):
        await asyncio.wait({loop.create_task(fail_and_be_cancelled())})
    async with asyncio.timeout(10):
        async with ctx.transaction() as tx:
            await tx.execute("INSERT INTO public.ledger VALUES ('once')")
        assert await ctx.state.get_versioned("k", default="none") == ("none", 0)
    assert await ledger.effects() == ["once"]


async def test_a_message_sent_anew_under_its_id_runs_anew_beside_an_outbox(
    hive: Hive, ledger: Ledger, surroundings: Surroundings
) -> None:
    handled: list[str] = []
    agent = Agent("worker")

    @agent.on("plain")
    async def plain(message: AgentMessage) -> None:
        handled.append(message.message_id)

    _, ctx = await surroundings(agent)
    for number in range(1, 11):
        recovered = [ctx.message_to("worker", "plain", message_id="recovered")]
        await asyncio.gather(
            ctx.send("worker", "plain", message_id="plain"), ctx.bus.send_in_order(recovered), ctx.bus.queue("worker")
        )
        await eventually(
            lambda: ctx.bus.queue("worker"), lambda queue: queue.backlog == queue.in_flight == 0, "empty queue"
        )
        assert handled.count("plain") == number
    assert handled.count("recovered") == 1, "its final status is known"


async def test_a_cached_call_that_finds_its_message_handled_ends(hive: Hive, ledger: Ledger) -> None:
    agent = Agent("worker")
    ended: list[str] = []

    @cached(ttl=20, key=lambda ctx: ctx.message.message_id)
    async def work(ctx: Context) -> int:
        async with ctx.transaction() as tx:
            await tx.execute("INSERT INTO public.ledger VALUES ('once')")
        return 1

    @agent.on("x")
    async def handle(message: AgentMessage, ctx: Context) -> None:
        try:
            await work(ctx)
        finally:
            ended.append(message.message_id)
            await work.invalidate(ctx)

    await hive.start(agent)
    await hive.ask("worker", body={}, message_id="m1")
    await hive.send("worker", body={}, message_id="m1")
    await eventually(lambda: asyncio.sleep(0, len(ended)), lambda n: n == 2, "both ended")
    assert await ledger.effects() == ["once"]


async def test_the_cache_is_told_before_a_message_leaves(
    surroundings: Surroundings, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, ctx = await surroundings()
    cache = ctx._resources.cache
    assert cache is not None
    order: list[str] = []
    changed, hand_over = cache.changed, Relay.hand_over

    async def tell(changes: Sequence[Change]) -> None:
        await asyncio.sleep(0.01)
        await changed(changes)
        order.append("cache")

    def send(self: Relay, items: Any) -> None:
        order.append("relay")
        hand_over(self, items)

    monkeypatch.setattr(cache, "changed", tell)
    monkeypatch.setattr(Relay, "hand_over", send)
    async with ctx.transaction() as tx:
        await tx.state.shared.set("k", 1)
        tx.send("worker", "nothing")
    assert order == ["cache", "relay"]


async def test_who_gives_up_waiting_for_another_handling_leaves_no_backend_behind(hive: Hive, ledger: Ledger) -> None:
    agent = Agent("worker")
    tries: list[int] = []

    @agent.on("x", timeout=0.2)
    async def handle(message: AgentMessage, ctx: Context) -> None:
        tries.append(ctx.attempt)
        async with ctx.transaction():
            pass

    async def backends() -> int:
        return int(
            await ledger.connection.fetchval(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        )

    other = ledger.connection.transaction()
    await other.start()
    await ledger.connection.execute(
        f'INSERT INTO "{ledger.schema}".inbox (agent, message_id, keep_until) VALUES ($1, $2, now())', "worker", "m1"
    )
    await hive.start(agent, postgres_pool=PostgresPool(min_size=1, max_size=2))
    await hive.send("worker", message_id="m1", delivery_options={"max_retries": 50})
    await eventually(lambda: asyncio.sleep(0, len(tries)), lambda n: n >= 6, "six tries")
    await eventually(backends, lambda n: n <= 2, "the pool's connections and no others")
    await other.rollback()
    await eventually(ledger.marks, lambda marks: marks == ["m1"], "handled in the end")
