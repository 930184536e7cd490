"""Agent state through the cache: what is asked of PostgreSQL, and what is not."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import redis.asyncio

from agenthive.cache import Cache
from agenthive.cache_entries import MAX_ENTRY_BYTES, Change, state_name
from agenthive.settings import HiveScope
from agenthive.store import InvalidValue, Store, StoreUnavailable, VersionConflict
from agenthive.store.fold import change

from .conftest import Join, Member


def count(member: Member) -> dict[str, int]:
    return {result: number for (_, result), number in member.cache.figures.requests.items()}


async def test_what_was_read_once_is_not_asked_again(join: Join) -> None:
    one, other = await join(), await join()
    await one.store.state.set("k", {"a": [1, "ä"]})
    for member in (one, other, one):
        assert await member.store.state.get("k") == {"a": [1, "ä"]}
        assert await member.store.state.get("none", 7) == 7
    assert (one.loads, other.loads) == (2, 0)
    assert count(one) == {"miss": 2, "hit": 1, "negative_hit": 1}
    assert count(other) == {"hit": 1, "negative_hit": 1}
    assert other.cache.figures.hit_ratio == 1
    assert one.cache.figures.hit_ratio == 0.5


async def test_a_write_replaces_what_is_there_and_adds_nothing(join: Join) -> None:
    one, other = await join(), await join()
    await one.store.state.set("cold", 0)
    version = await one.store.state.set("k", 0)
    assert await one.store.state.get("k") == 0
    writes = [one.store.state.set, other.store.state.set]
    for n in range(1, 10):
        await writes[n % 2]("k", n)
        assert await one.store.state.get("k") == await other.store.state.get("k") == n
    await other.store.state.set("k", 10, expect_version=version + 9)
    await asyncio.gather(*(one.store.state.set("k", 100) for _ in range(3)))
    assert await other.store.state.get("k") == 100
    assert (one.loads, other.loads) == (1, 0), "it stayed in Redis all the time"
    assert await one.store.state.get("cold") == 0
    assert one.loads == 2, "what nobody reads is not put there"


async def test_a_deletion_and_a_new_beginning(join: Join) -> None:
    one, other = await join(), await join()
    await one.store.state.set("k", 1)
    assert await other.store.state.get("k") == 1
    assert await one.store.state.delete("k")
    assert await other.store.state.get("k") is None
    await one.store.state.set("k", 2)
    assert await other.store.state.get("k") == 2
    assert count(other) == {"miss": 3}


async def test_owners_are_apart_and_others_see_who_writes_for_them(join: Join) -> None:
    librarian, poet = await join("librarian"), await join("poet")
    await librarian.store.state.set("k", "librarian's")
    await librarian.store.state.shared.set("k", "shared")
    assert await poet.store.state.get("k") is None
    assert await librarian.store.state.get("k") == "librarian's"
    for member in (librarian, poet):
        assert await member.store.state.shared.get("k") == "shared"
    await librarian.store.state.for_agent("poet").set("k", "a gift")
    assert await poet.store.state.get("k") == "a gift"
    before = librarian.loads, count(librarian)
    assert await librarian.store.state.for_agent("poet").get("k") == "a gift"
    assert (librarian.loads, count(librarian)) == before, "it went past the cache"


async def test_who_wants_a_version_gets_the_newest(join: Join) -> None:
    member = await join()
    version = await member.store.state.set("k", 1)
    assert await member.store.state.get("k") == 1
    # As by one who cannot reach Redis.
    await member.store.pool.execute(f"UPDATE {member.store.schema}.agent_state SET value = '2', version = version + 1")
    assert await member.store.state.get("k") == 1
    assert await member.store.state.get_versioned("k") == (2, version + 1)


async def test_what_expires_is_gone_in_time(join: Join, raw: redis.asyncio.Redis, scope: HiveScope) -> None:
    member = await join()
    key = f"{scope.hive_prefix}c:{state_name('librarian', 'k')}"
    await member.store.state.set("k", 1, ttl=10)
    assert await member.store.state.get("k") == 1
    await member.settled()
    assert 0 < await raw.pttl(key) <= 10_000
    await member.store.state.set("k", 2, ttl=10)
    assert await raw.exists(key) == 0, "the entry would end with the first"
    assert await member.store.state.get("k") == 2


async def test_large_documents_are_read_past_the_cache(join: Join, raw: redis.asyncio.Redis, scope: HiveScope) -> None:
    member = await join()
    large, small = "x" * MAX_ENTRY_BYTES, "y" * (MAX_ENTRY_BYTES - 2)
    await member.store.state.set("k", small)
    assert await member.store.state.get("k") == small
    await member.store.state.set("k", large)
    for _ in range(3):
        assert await member.store.state.get("k") == large
        await member.settled()
    assert count(member) == {"miss": 2, "bypass": 2}
    assert await raw.strlen(f"{scope.hive_prefix}c:{state_name('librarian', 'k')}") < 30
    await member.store.state.set("k", small)
    assert await member.store.state.get("k") == small


async def test_a_document_that_grows_beyond_the_bound_is_forgotten(join: Join) -> None:
    member = await join(max_bytes=2000)
    await member.store.state.set("k", "x")
    assert await member.store.state.get("k") == "x"
    await member.store.state.set("k", "x" * 3000)
    for _ in range(2):
        assert await member.store.state.get("k") == "x" * 3000
    assert member.cache.figures.refused == {"max_bytes": 1}
    assert count(member) == {"miss": 2, "bypass": 1}, "after a refusal nothing is offered for a while"


async def test_an_error_of_a_read_reaches_all_who_wait_for_it(join: Join) -> None:
    member = await join()

    async def fail() -> None:
        raise StoreUnavailable("gone")

    member.slow_down(fail)
    found = await asyncio.gather(*(member.store.state.get("k") for _ in range(5)), return_exceptions=True)
    assert [str(error) for error in found] == ["gone"] * 5
    await member.settled()
    assert not member.cache._flights
    with pytest.raises(InvalidValue):
        await member.store.state.get("")


async def test_a_write_whose_outcome_nobody_knows_is_forgotten(join: Join, monkeypatch: pytest.MonkeyPatch) -> None:
    member = await join()
    await member.store.state.set("k", 1)
    assert await member.store.state.get("k") == 1
    lanes = member.store._lanes
    for name in ("_write_plain", "_write_folded"):
        write = getattr(lanes, name)

        async def commit_and_lose(*arguments: Any, write: Any = write) -> None:
            await write(*arguments)
            raise StoreUnavailable("the answer was lost")

        monkeypatch.setattr(lanes, name, commit_and_lose)
    with pytest.raises(StoreUnavailable):
        await member.store.state.set("k", 2)
    assert await member.store.state.get("k") == 2
    with pytest.raises(StoreUnavailable):
        await member.store.state.delete("k")
    assert await member.store.state.get("k") is None


async def test_a_refused_write_changes_nothing(join: Join) -> None:
    member = await join()
    version = await member.store.state.set("k", 1)
    assert await member.store.state.get("k") == 1
    with pytest.raises(VersionConflict):
        await member.store.state.set("k", 2, expect_version=version + 1)
    assert await member.store.state.get("k") == 1
    assert member.loads == 1


async def test_a_transaction_of_ones_own_tells_what_it_changed(join: Join) -> None:
    one, other = await join(), await join()
    versions = [await one.store.state.set(key, 1) for key in ("a", "b")]
    assert [await other.store.state.get(key) for key in ("a", "b")] == [1, 1]
    await one.store.pool.execute(
        f"UPDATE {one.store.schema}.agent_state SET value = '2', version = version + 1 WHERE agent = 'librarian'"
    )
    changes = [change(("librarian", "a"), versions[0] + 1, "2", None, before=versions[0])]
    changes += [Change(state_name("librarian", "b"))]
    telling = asyncio.create_task(one.store._lanes.changed([*changes, changes[-1]]))
    await asyncio.sleep(0)
    telling.cancel()  # the handler that committed is cancelled right then
    await asyncio.gather(telling, return_exceptions=True)
    await one.settled()
    assert [await other.store.state.get(key) for key in ("a", "b")] == [2, 2]
    assert other.loads == 3, "a was replaced, b forgotten"
    await one.store._lanes.changed([])


async def test_a_reader_that_is_cancelled_leaves_the_read_to_the_others(join: Join) -> None:
    member = await join()
    await member.store.state.set("k", 1)
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def wait() -> None:
        begun.set()
        await go_on.wait()

    member.slow_down(wait)
    first, second = (asyncio.create_task(member.store.state.get("k")) for _ in range(2))
    await begun.wait()
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    go_on.set()
    assert await second == 1
    assert member.loads == 1


async def test_without_a_cache_nothing_changes(join: Join, postgres: Any, scope: HiveScope) -> None:
    await join()
    async with await Store.connect(postgres.url(), scope, agent="librarian") as store:
        await store.state.set("k", 1)
        assert await store.state.get("k") == 1
        await store._lanes.changed([Change("s:librarian:k")])


async def test_a_cache_that_was_never_used_opens_nothing(redis_url: str, scope: HiveScope) -> None:
    cache = Cache(redis_url, scope)
    assert cache.available
    assert cache.figures.hit_ratio == 0
    await cache.aclose()
    with pytest.raises(ValueError, match="the Redis URL starts with http://"):
        Cache("http://x", scope)
