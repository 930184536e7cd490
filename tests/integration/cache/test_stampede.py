"""Many readers of one cold key, in several processes: PostgreSQL is asked a few times."""

from __future__ import annotations

import asyncio

import redis.asyncio

from agenthive.cache_entries import state_name
from agenthive.settings import HiveScope

from .conftest import Join, until


async def test_a_thousand_readers_of_one_cold_key(join: Join) -> None:
    members = [await join() for _ in range(4)]
    await members[0].store.state.set("k", "value")
    for member in members:
        member.slow_down(lambda: asyncio.sleep(0.01))
    found = await asyncio.gather(*(member.store.state.get("k") for member in members for _ in range(250)))
    assert found == ["value"] * 1000
    assert sum(member.loads for member in members) <= 8
    assert all(await asyncio.gather(*(member.store.state.get("k") for member in members)))
    assert sum(member.loads for member in members) <= 8


async def test_who_holds_a_lease_and_dies_holds_up_nobody(
    join: Join, raw: redis.asyncio.Redis, scope: HiveScope
) -> None:
    member = await join()
    await member.store.state.set("k", "value")
    key = f"{scope.hive_prefix}c:{state_name('librarian', 'k')}"
    await raw.set(key, "Ldead-1", px=5000)
    found = await asyncio.gather(*(member.store.state.get("k") for _ in range(100)))
    assert found == ["value"] * 100
    assert member.loads <= 2
    assert await raw.get(key) == b"Ldead-1", "only who has the lease fills"
    await member.store.state.set("k", "newer")
    assert await raw.exists(key) == 0, "whoever holds a lease must not fill what is old"
    assert await member.store.state.get("k") == "newer"


async def test_who_waits_gets_what_the_other_process_filled(
    join: Join, raw: redis.asyncio.Redis, scope: HiveScope
) -> None:
    member = await join()
    key = f"{scope.hive_prefix}c:{state_name('librarian', 'k')}"
    for entry, expected in ((b'V7 0 "filled"', "filled"), (b"N0 0 ", "none")):
        await raw.set(key, "Lother-1", px=5000)
        member.cache.figures.requests.clear()
        reading = asyncio.create_task(member.store.state.get("k", "none"))
        await until(lambda: member.cache._flights, "the reader waits")
        await raw.set(key, entry, px=5000)
        assert await reading == expected
    assert member.loads <= 2
