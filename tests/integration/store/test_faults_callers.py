"""Callers that write what PostgreSQL refuses, that are cancelled at any moment, that are still there at the end."""

from __future__ import annotations

import asyncio
import random
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from tests.integration.bus.faults.ledger import seeded
from tests.integration.store.conftest import Connect
from tests.integration.store.load import all_given_back, until

from agenthive.store import InvalidValue, Store, StoreClosed, StoreError, VersionConflict
from agenthive.store.batch import MAX_QUEUED


@pytest.mark.timeout(120)
async def test_bad_rows_fail_their_callers_alone_under_load(store: Store) -> None:
    """A trigger of the user's refuses some documents; some figures are of a day that has no partition."""
    await store.pool.execute(
        f"""
        CREATE FUNCTION "{store.schema}".refuse() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            IF new.value->>'poison' IS NOT NULL THEN RAISE EXCEPTION 'poisoned: %', new.key; END IF;
            RETURN new;
        END $$;
        CREATE TRIGGER refuse BEFORE INSERT OR UPDATE ON "{store.schema}".agent_state
            FOR EACH ROW EXECUTE FUNCTION "{store.schema}".refuse();
        """
    )
    chance = seeded("bad rows")
    past = datetime.now(UTC) - timedelta(days=400)
    good: dict[str, int] = {}
    bad: list[str] = []

    async def write(who: int) -> None:
        for number in range(20):
            key, poisoned = f"{who}/{number}", chance.random() < 0.03
            document = {"poison": 1} if poisoned else {"n": number}
            expected = 0 if number % 5 == 4 else None
            if poisoned:
                bad.append(key)
                with pytest.raises(InvalidValue, match=f"poisoned: {key}$"):  # its own error, not another row's
                    await store.state.set(key, document, expect_version=expected)
            else:
                good[key] = await store.state.set(key, document, expect_version=expected)

    async def record(who: int) -> None:
        for number in range(10):
            if chance.random() < 0.03:
                with pytest.raises(InvalidValue, match="no partition"):
                    await store.metrics.record("librarian", "bad", number, timestamp=past)
            else:
                await store.metrics.record("librarian", "good", number, {"who": who})

    await asyncio.gather(*(write(who) for who in range(100)), *(record(who) for who in range(100)))
    assert bad
    found = {entry.key: entry.version for entry in await store.state.list(limit=10_000)}
    assert found == good
    figures = await store.metrics.query(limit=10_000)
    assert {figure.metric_type for figure in figures} == {"good"}
    assert len({(figure.metadata["who"], figure.value) for figure in figures}) == len(figures)
    await all_given_back(store)


class Storm:
    """Calls of all kinds, most of them cancelled at some moment or other."""

    def __init__(self, store: Store, chance: random.Random) -> None:
        self.store = store
        self.chance = chance
        self.ended: dict[str, int] = {"returned": 0, "cancelled": 0, "conflict": 0}

    async def call(self, number: int) -> None:
        state, key = self.store.state, f"k{self.chance.randrange(50)}"
        kind = number % 8
        try:
            match kind:
                case 0 | 1:
                    await state.set(f"own/{number}", number)
                case 2:
                    await state.set(key, number, expect_version=self.chance.randrange(2))
                case 3:
                    await state.delete(key)
                case 4:
                    await state.get(key)
                case 5:
                    await self.store.metrics.record("librarian", "m", number)
                case 6:
                    await state.list(limit=5)
                case 7:
                    await self.store.ping()
            self.ended["returned"] += 1
        except VersionConflict:
            self.ended["conflict"] += 1
        except asyncio.CancelledError:
            self.ended["cancelled"] += 1
            raise

    async def stage(self, task: asyncio.Task[None]) -> None:
        """Cancel it now, some turns of the loop later, some milliseconds later, or never."""
        match self.chance.randrange(4):
            case 0:
                for _ in range(self.chance.randrange(8)):
                    await asyncio.sleep(0)
            case 1 | 2:
                await asyncio.sleep(self.chance.expovariate(300))
            case 3:
                return
        task.cancel()

    async def rage(self, calls: int) -> list[Any]:
        tasks = [asyncio.create_task(self.call(number)) for number in range(calls)]
        await asyncio.gather(*(self.stage(task) for task in tasks))
        async with asyncio.timeout(60):  # nobody hangs
            return await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.timeout(180)
async def test_cancelled_callers_leave_nothing_behind(store: Store) -> None:
    storm = Storm(store, seeded("cancelled callers"))
    for _ in range(10):
        results = await storm.rage(600)
        assert {type(result) for result in results} <= {type(None), asyncio.CancelledError}
        own = {number: result for number, result in enumerate(results) if number % 8 in {0, 1}}
        found = {entry.value for entry in await store.state.list("own/", limit=10_000)}
        assert {number for number, result in own.items() if result is None} <= found
        assert found <= own.keys()
        for key in found:
            await store.state.delete(f"own/{key}")
    assert min(storm.ended.values()) > 0
    assert storm.ended["cancelled"] > 500
    await all_given_back(store)
    for batch in (store._lanes._reads, store._lanes._writes, store.metrics._batch):
        assert batch.queued == 0
    busy = await store.pool.fetch(
        "SELECT query FROM pg_stat_activity WHERE application_name = 'agenthive' AND state <> 'idle' "
        "AND pid <> pg_backend_pid() AND strpos(query, $1) > 0",
        store.schema,
    )
    assert not busy
    # And it works: each connection of the pool, several times.
    await asyncio.gather(*(store.pool.execute("SELECT 1") for _ in range(30)))
    await store.state.set("after", 1)


@pytest.mark.timeout(120)
async def test_closing_writes_what_waits(connect: Connect) -> None:
    store = await connect()
    returned: dict[str, int] = {}
    refused: list[str] = []

    async def write(key: str) -> None:
        try:
            returned[key] = await store.state.set(key, 1)
        except StoreClosed:
            refused.append(key)

    async def record(number: int) -> None:
        await store.metrics.record("librarian", "m", number)

    tasks = [asyncio.create_task(write(f"k{number}")) for number in range(MAX_QUEUED + 2500)]
    figures = [asyncio.create_task(record(number)) for number in range(3000)]
    await until(lambda: store._lanes._writes.queued, "writes that wait")
    assert store._lanes._writes.queued >= MAX_QUEUED - 1000
    await store.aclose(timeout=60)
    await asyncio.gather(*tasks, *figures)
    assert len(returned) >= MAX_QUEUED, "all that had a place in the queue"
    with pytest.raises(StoreError):
        await store.state.set("late", 1)
    other = await connect()
    found = {entry.key: entry.version for entry in await other.state.list(limit=100_000)}
    assert found == returned, "what was refused is not there"
    assert len(returned) + len(refused) == MAX_QUEUED + 2500
    assert len(await other.metrics.query(limit=10_000)) == 3000


@pytest.mark.timeout(120)
async def test_a_full_queue_delays_its_callers_and_recovers(store: Store) -> None:
    writes = 2 * MAX_QUEUED
    queued: list[int] = []

    async def write(number: int) -> None:
        await store.state.set(f"k{number}", number)
        queued.append(store._lanes._writes.queued)

    await asyncio.gather(*(write(number) for number in range(writes)))
    assert len(queued) == writes
    assert max(queued) <= MAX_QUEUED
    assert await store.state.set("after", 1)
