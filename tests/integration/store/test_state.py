"""Agent state on a real PostgreSQL."""

from __future__ import annotations

import asyncio
import contextlib
from datetime import timedelta
from typing import Any

import pytest

from agenthive.settings import PostgresPool
from agenthive.store import (
    InvalidValue,
    StateEntry,
    Store,
    StorePermissionError,
    ValueTooLarge,
    VersionConflict,
    Versioned,
)

from .conftest import Connect, as_role, commits

DOCUMENTS: list[Any] = [
    None, True, 0, -1, 2**63, 1.0, 0.1, 1e308, 5e-324, "", "é\U0001f41d", "a\0b", [], {},
    {"b": 1, "a": [1, None, {"x": "y"}]},
]  # fmt: skip


async def expire(store: Store, key: str) -> None:
    """Let ``key`` expire now: what its ttl would do, without waiting for it."""
    changed = await store.pool.execute(
        f"UPDATE {store.schema}.agent_state SET expires_at = now() - interval '1 second' "
        "WHERE key = $1 AND expires_at > now()",
        key,
    )
    assert changed == "UPDATE 1", "had no ttl"


async def test_what_is_set_is_got(store: Store) -> None:
    await asyncio.gather(*(store.state.set(f"k{n}", value) for n, value in enumerate(DOCUMENTS)))
    for n, value in enumerate(DOCUMENTS):
        found = await store.state.get(f"k{n}", default="nothing")
        assert (found, type(found)) == (value, type(value))
    assert list(await store.state.get(f"k{len(DOCUMENTS) - 1}")) == ["b", "a"], "the order of keys is kept"


async def test_a_missing_key(store: Store) -> None:
    assert await store.state.get("k") is None
    assert await store.state.get("k", default={}) == {}
    assert await store.state.get_versioned("k", default=7) == Versioned(7, 0)
    assert await store.state.delete("k") is False
    assert await store.state.list() == []


async def test_versions_grow_and_are_never_used_again(store: Store) -> None:
    first = await store.state.set("k", 1)
    second = await store.state.set("k", 2)
    assert second == first + 1
    assert await store.state.get_versioned("k") == Versioned(2, second)
    assert await store.state.delete("k") is True
    third = await store.state.set("k", 3)
    assert third > second
    with pytest.raises(VersionConflict):
        await store.state.set("k", 4, expect_version=second)


async def test_compare_and_set(store: Store) -> None:
    version = await store.state.set("k", 1, expect_version=0)
    with pytest.raises(VersionConflict, match=f"'k': expected no such key, found version {version}"):
        await store.state.set("k", 2, expect_version=0)
    version = await store.state.set("k", 2, expect_version=version)
    with pytest.raises(VersionConflict) as caught:
        await store.state.set("k", 3, expect_version=version - 1)
    assert (caught.value.key, caught.value.expected, caught.value.current) == ("k", version - 1, version)
    with pytest.raises(VersionConflict):
        await store.state.delete("k", expect_version=version - 1)
    assert await store.state.delete("k", expect_version=version) is True
    with pytest.raises(VersionConflict, match=f"expected version {version}, found no such key"):
        await store.state.set("k", 3, expect_version=version)


async def increment(store: Store, key: str) -> None:
    while True:
        value, version = await store.state.shared.get_versioned(key, default=0)
        with contextlib.suppress(VersionConflict):
            await store.state.shared.set(key, value + 1, expect_version=version)
            return


async def test_no_increment_is_lost_among_coroutines_and_processes(connect: Connect) -> None:
    stores = [await connect(pool=PostgresPool(min_size=1, max_size=3)) for _ in range(3)]
    await asyncio.gather(*(increment(store, f"n{n % 2}") for store in stores for n in range(20)))
    assert [await stores[0].state.shared.get(key) for key in ("n0", "n1")] == [30, 30]


async def test_one_creator_wins(connect: Connect) -> None:
    stores = [await connect() for _ in range(3)]
    tries = [
        store.state.shared.set(f"lock{n}", who, expect_version=0) for n in range(20) for who, store in enumerate(stores)
    ]
    results = await asyncio.gather(*tries, return_exceptions=True)
    for lock in range(20):
        outcomes = results[lock * 3 : lock * 3 + 3]
        winners = [who for who, outcome in enumerate(outcomes) if isinstance(outcome, int)]
        assert len(winners) == 1
        assert sum(isinstance(outcome, VersionConflict) for outcome in outcomes) == 2
        assert await stores[0].state.shared.get(f"lock{lock}") == winners[0]


async def test_concurrent_writers_of_the_same_keys_all_get_through(connect: Connect) -> None:
    stores = [await connect() for _ in range(3)]

    async def write(store: Store, n: int) -> None:
        for step in range(10):
            if n % 5:
                await store.state.shared.set(f"k{(n * 7 + step) % 10}", n)
            else:
                await store.state.shared.delete(f"k{(n + step) % 10}")

    await asyncio.gather(*(write(store, n) for store in stores for n in range(20)))
    await asyncio.gather(*(stores[0].state.shared.set(f"k{n}", "last") for n in range(10)))
    assert [entry.value for entry in await stores[1].state.shared.list()] == ["last"] * 10


async def test_writes_of_many_callers_share_a_commit(store: Store) -> None:
    versions = await asyncio.gather(*(store.state.set(f"k{n}", n) for n in range(500)))
    assert await commits(store, "agent_state") <= 2
    assert len(versions) == 500
    entries = await store.state.list(limit=1000)
    assert {(entry.value, entry.version) for entry in entries} == set(enumerate(versions))


async def test_values_for_one_key_in_one_batch_are_folded_in_order(store: Store) -> None:
    versions = await asyncio.gather(*(store.state.set("k", n) for n in range(50)))
    # Each commit leaves a version of the row behind it, on the one page that the table has.
    place = await store.pool.fetchval(f'SELECT ctid::text FROM "{store.schema}".agent_state')
    assert place in {"(0,1)", "(0,2)"}
    assert versions == list(range(versions[0], versions[0] + 50))
    assert await store.state.get_versioned("k") == Versioned(49, versions[-1])


async def test_reads_of_many_callers_share_a_query_and_no_value(store: Store) -> None:
    await store.state.set("a", {"n": []})
    await store.state.shared.set("a", "shared")
    one, two, missing, shared = await asyncio.gather(
        store.state.get("a"), store.state.get("a"), store.state.get("b"), store.state.shared.get("a")
    )
    one["n"].append(1)
    assert (two, missing, shared) == ({"n": []}, None, "shared")


async def test_a_caller_reads_what_it_wrote(store: Store) -> None:
    async def check(n: int) -> None:
        for value in range(20):
            await store.state.set(f"k{n}", value)
            assert await store.state.get(f"k{n}") == value

    await asyncio.gather(*(check(n) for n in range(20)))


async def test_agents_have_state_of_their_own(connect: Connect) -> None:
    one, two = await connect("one"), await connect("two")
    await one.state.set("k", 1)
    await two.state.set("k", 2)
    await one.state.shared.set("k", 3)
    assert await one.state.get("k") == 1
    assert await two.state.get("k") == 2
    assert await two.state.shared.get("k") == 3
    assert await two.state.for_agent("one").get("k") == 1
    assert [entry.value for entry in await two.state.list()] == [2]
    with pytest.raises(InvalidValue, match="agent must be a non-empty string"):
        one.state.for_agent("")


async def test_ttl(store: Store) -> None:
    await store.state.set("k", 1, ttl=60)
    await store.state.set("other", 1, ttl=timedelta(hours=1))
    left = await store.pool.fetch(
        f"SELECT extract(epoch FROM expires_at - now()) FROM {store.schema}.agent_state ORDER BY key"
    )
    assert [round(float(row[0]) / 10) * 10 for row in left] == [60, 3600]
    version = (await store.state.get_versioned("k")).version
    await expire(store, "k")
    assert await store.state.get("k", "gone") == "gone"
    assert await store.state.get_versioned("k") == Versioned(None, 0)
    assert [entry.key for entry in await store.state.list()] == ["other"]
    assert await store.state.delete("k") is False
    with pytest.raises(VersionConflict):
        await store.state.set("k", 2, expect_version=version)
    assert await store.state.set("k", 2, expect_version=0) > version
    assert await store.state.get("k") == 2


async def test_a_set_without_ttl_keeps_for_ever(store: Store) -> None:
    await store.state.set("k", 1, ttl=60)
    await store.state.set("k", 2)
    assert await store.pool.fetchval(f"SELECT expires_at FROM {store.schema}.agent_state") is None


async def test_maintenance_deletes_what_expired(store: Store) -> None:
    for key in ("a", "b"):
        await store.state.set(key, 1, ttl=60)
    await expire(store, "a")
    await store.maintain()
    rows = await store.pool.fetch(f"SELECT key FROM {store.schema}.agent_state")
    assert [row["key"] for row in rows] == ["b"]


async def test_list_by_prefix_in_pages(store: Store) -> None:
    keys = ["module", "module/a", "module/b", "module/é", "module/\U0010ffff", "module0", "Z", "_"]
    await asyncio.gather(*(store.state.set(key, key.upper()) for key in keys))
    assert [entry.key for entry in await store.state.list()] == sorted(keys)
    assert [entry.key for entry in await store.state.list("module/")] == sorted(
        k for k in keys if k.startswith("module/")
    )
    page = await store.state.list("module/", limit=2)
    assert [entry.key for entry in page] == ["module/a", "module/b"]
    assert isinstance(page[0], StateEntry)
    rest = await store.state.list("module/", after=page[-1].key)
    assert [entry.key for entry in rest] == ["module/é", "module/\U0010ffff"]
    assert await store.state.list("module/\U0010ffff\U0010ffff") == []
    with pytest.raises(InvalidValue, match="limit"):
        await store.state.list(limit=0)
    with pytest.raises(InvalidValue, match="prefix"):
        await store.state.list("a\0")


async def test_the_size_limit(store: Store) -> None:
    await store.state.set("k", "x" * (1024 * 1024 - 2))
    with pytest.raises(ValueTooLarge, match="state key 'k' takes 1048577 bytes"):
        await store.state.set("k", "x" * (1024 * 1024 - 1))
    assert len(await store.state.get("k")) == 1024 * 1024 - 2
    big = await asyncio.gather(*(store.state.set(f"big{n}", "x" * 1_000_000) for n in range(20)))
    assert len(big) == 20, "batches are cut by bytes"


async def test_keys_that_cannot_be_kept(store: Store) -> None:
    state = store.state
    for key in ("", "a\0b", "x" * 1025):
        for call in (state.get(key), state.get_versioned(key), state.set(key, 1), state.delete(key)):
            with pytest.raises(InvalidValue):
                await call


async def test_a_row_the_server_refuses_fails_its_caller_alone(store: Store) -> None:
    await store.pool.execute(
        f"ALTER TABLE {store.schema}.agent_state ADD CONSTRAINT no_seven CHECK (value::text <> '7')"
    )
    results = await asyncio.gather(*(store.state.set(f"k{n}", n) for n in range(20)), return_exceptions=True)
    assert isinstance(results[7], InvalidValue)
    assert "no_seven" in str(results[7])
    assert [n for n, result in enumerate(results) if isinstance(result, int)] == [n for n in range(20) if n != 7]
    assert sorted(entry.value for entry in await store.state.list()) == [n for n in range(20) if n != 7]
    # The same where the batch needs a transaction.
    results = await asyncio.gather(
        *(store.state.set(f"c{n}", n, expect_version=0) for n in range(20)), return_exceptions=True
    )
    assert [n for n, result in enumerate(results) if not isinstance(result, int)] == [7]


async def test_works_without_named_statements_as_behind_pgbouncer(connect: Connect, hive_url: str) -> None:
    store = await connect(url=f"{hive_url}?statement_cache_size=0")
    version = await store.state.set("k", 1)
    assert await store.state.set("k", 2, expect_version=version) == version + 1
    assert await store.state.get("k") == 2
    await store.metrics.record("librarian", "m", 1)
    assert await store.maintain() == []


async def test_a_session_is_clean_after_use_by_hand_and_json_comes_as_values(store: Store) -> None:
    async with store.pool.acquire() as connection:
        await connection.execute("SET work_mem = '77MB'")
        assert await connection.fetchval("SELECT $1::jsonb", {"a": [1]}) == {"a": [1]}
    for _ in range(5):
        await store.state.set("k", 1)
        assert await store.pool.fetchval("SHOW work_mem") != "77MB"


async def test_missing_rights_are_named(store: Store, connect: Connect, hive_url: str, unique: str) -> None:
    await store.state.set("k", 1)
    await store.pool.execute(f"CREATE ROLE {unique} LOGIN PASSWORD 'reader'")
    try:
        await store.pool.execute(f"GRANT USAGE ON SCHEMA {store.schema} TO {unique}")
        await store.pool.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA {store.schema} TO {unique}")
        reader = await connect(url=as_role(hive_url, unique, "reader"))
        assert await reader.state.get("k") == 1
        with pytest.raises(StorePermissionError, match="permission denied for table agent_state"):
            await reader.state.set("k", 2)
        with pytest.raises(StorePermissionError, match="permission denied for table agent_state"):
            await reader.state.set("k", 2, expect_version=0)
        await reader.aclose()
    finally:
        await store.pool.execute(f"DROP OWNED BY {unique}")
        await store.pool.execute(f"DROP ROLE {unique}")
