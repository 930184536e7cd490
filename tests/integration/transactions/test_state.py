"""``tx.state``: documents in the transaction, locked by being read."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from tests.integration.agent.conftest import Hive, eventually
from tests.integration.transactions.conftest import Ledger, Surroundings

from agenthive import Agent, AgentContext
from agenthive.store import InvalidValue, VersionConflict


async def test_documents_are_committed_or_rolled_back_with_it(surroundings: Surroundings) -> None:
    _, ctx = await surroundings()
    first = await ctx.state.set("k", {"n": 1})
    with contextlib.suppress(LookupError):
        async with ctx.transaction() as tx:
            assert await tx.state.get_versioned("k") == ({"n": 1}, first)
            assert await tx.state.set("k", {"n": 2}) == first + 1
            assert await tx.state.get("k") == {"n": 2}
            assert await ctx.state.get("k") == {"n": 1}, "not for others yet"
            raise LookupError
    assert await ctx.state.get_versioned("k") == ({"n": 1}, first)
    async with ctx.transaction() as tx:
        assert await tx.state.set("k", 3, expect_version=first) == first + 1
        with pytest.raises(VersionConflict):
            await tx.state.set("k", 4, expect_version=first)
        assert await tx.state.delete("k") is True
        assert await tx.state.delete("k") is False
        assert await tx.state.get("k", default="none") == "none"
        assert await tx.state.get_versioned("other", default=7) == (7, 0)
        assert await tx.state.set("other", 1) > 0
        assert await tx.state.set("brief", 1, ttl=0.001) > 0
        await tx.state.shared.set("common", 5)
        assert await tx.state.shared.get("common") == 5
        assert await tx.state.get("common") is None
        with pytest.raises(InvalidValue):
            await tx.state.get("")
        with pytest.raises(InvalidValue):
            await tx.state.set("k", object())
    assert await ctx.state.get("k") is None
    assert await ctx.state.get("other") == 1
    assert await ctx.state.shared.get("common") == 5
    assert await ctx.state.get("brief") is None
    async with ctx.transaction() as tx:
        assert await tx.state.get("brief") is None
        assert await tx.state.set("brief", 2) > 0
    assert await ctx.state.get("brief") == 2


async def test_the_cache_hears_of_a_commit_before_its_caller(surroundings: Surroundings) -> None:
    runner, ctx = await surroundings()
    cache = ctx._resources.cache
    assert cache is not None
    await ctx.state.set("k", 0)
    await ctx.state.shared.set("gone", 0)
    for number in range(1, 20):
        assert await ctx.state.get("k") == number - 1
        async with ctx.transaction() as tx:
            await tx.state.set("k", -1)
            await tx.state.set("k", number)
            assert await ctx.state.get("k") == number - 1, "not for others yet"
        assert await ctx.state.get("k") == number
    assert await ctx.state.shared.get("gone") == 0
    async with ctx.transaction() as tx:
        await tx.state.shared.delete("gone")
    assert await ctx.state.shared.get("gone") is None
    with contextlib.suppress(LookupError):
        async with ctx.transaction() as tx:
            await tx.state.set("k", 99)
            raise LookupError
    assert await ctx.state.get("k") == 19
    assert cache.figures.requests["state", "hit"] > 20, "the cache was not read at all"
    assert runner.telemetry.cache is cache.figures


async def counted_up(ctx: AgentContext, key: str, times: int) -> None:
    for _ in range(times):
        async with ctx.transaction() as tx:
            count = await tx.state.shared.get(key, default=0)
            await asyncio.sleep(0)
            await tx.state.shared.set(key, count + 1)


@pytest.mark.parametrize("there", [True, False])
async def test_no_count_is_lost_among_processes(there: bool, hive: Hive, surroundings: Surroundings) -> None:
    processes = [await surroundings(Agent(name), agent=name) for name in ("one", "two")]
    contexts = [ctx for _, ctx in processes]
    keys = [f"k{n}" for n in range(5)]
    if there:
        for key in keys:
            await contexts[0].state.shared.set(key, 0)
    await asyncio.gather(*(counted_up(ctx, key, 5) for ctx in contexts for key in keys for _ in range(3)))
    assert [await contexts[0].state.shared.get(key) for key in keys] == [30] * 5


async def test_a_key_made_outside_meanwhile_is_a_conflict(surroundings: Surroundings) -> None:
    _, ctx = await surroundings()

    async def count(key: str) -> None:
        async with ctx.transaction() as tx:
            number = await tx.state.get(key, default=0)
            await ctx.state.set(key, 10)
            await tx.state.set(key, number + 1)

    with pytest.raises(VersionConflict, match="expected no such key, found version"):
        await count("k")
    assert await ctx.state.get("k") == 10


async def test_a_key_that_is_deleted_and_made_again_loses_nothing(ledger: Ledger, surroundings: Surroundings) -> None:
    """Who waits for a row that is deleted meanwhile looks again, behind the lock of the key."""
    _, ctx = await surroundings()
    await ctx.state.set("k", 1)
    deleted, release = asyncio.Event(), asyncio.Event()

    async def remake() -> None:
        async with ctx.transaction() as tx:
            assert await tx.state.get("k") == 1
            await tx.state.delete("k")
            deleted.set()
            await release.wait()
            await tx.state.set("k", 5)

    async def count() -> None:
        async with ctx.transaction() as tx:
            await tx.state.set("k", await tx.state.get("k", default=0) + 1)

    remaking = asyncio.create_task(remake())
    await deleted.wait()
    counting = [asyncio.create_task(count()) for _ in range(3)]
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
    await eventually(lambda: ledger.connection.fetchval(waiting), lambda count: count == 3, "three that wait")
    release.set()
    await asyncio.gather(remaking, *counting)
    assert await ctx.state.get("k") == 8
