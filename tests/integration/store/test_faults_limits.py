"""PostgreSQL has no connection left, or ends statements that take too long: what callers see, and what stays behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import asyncpg
import pytest
from tests.integration.store.load import PATIENCE, all_given_back, impatient

from agenthive.settings import HiveScope, PostgresPool
from agenthive.store import Store, StoreUnavailable, schema_name, upgrade

CONNECTIONS = 12


@pytest.fixture
async def crowded(own_postgres: Any, scope: HiveScope) -> str:
    """URL of a PostgreSQL with few connections."""
    await upgrade(own_postgres.url(), schema_name(scope))
    own_postgres.stop()
    own_postgres.extra = ("-c", f"max_connections={CONNECTIONS}", "-c", "superuser_reserved_connections=0")
    await asyncio.to_thread(own_postgres.start)
    return str(own_postgres.url())


async def take_the_rest(url: str, stack: AsyncExitStack) -> int:
    """Connect until the server refuses; how often it did not."""
    for number in range(CONNECTIONS + 1):
        try:
            connection = await asyncpg.connect(url)
        except asyncpg.TooManyConnectionsError:
            return number
        stack.push_async_callback(connection.close)
    raise AssertionError("the server has more connections than it was told")


async def test_a_store_that_finds_no_connection_says_so_and_waits_if_asked(crowded: str, scope: HiveScope) -> None:
    async with AsyncExitStack() as others:
        await take_the_rest(crowded, others)
        with pytest.raises(
            StoreUnavailable, match=r"no connection left.*spec\.postgres\.pool\.maxSize.*max_connections"
        ):
            await Store.connect(crowded, scope, agent="x")
        opening = asyncio.create_task(Store.connect(crowded, scope, agent="x", wait_seconds=30))
    async with await opening as store:
        await store.state.set("k", 1)


async def test_a_store_goes_on_with_the_connections_it_has(
    crowded: str, scope: HiveScope, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = PostgresPool(min_size=1, max_size=4)
    async with AsyncExitStack() as others, await Store.connect(crowded, scope, agent="x", pool=pool) as store:
        await take_the_rest(crowded, others)
        # Three lanes want a connection each, there is one: they take turns, nobody is told.
        calls = [store.state.set(f"k{n}", n) for n in range(50)]
        calls += [store.state.get(f"k{n}") for n in range(50)]
        calls += [store.metrics.record("x", "m", n) for n in range(50)]
        await asyncio.gather(*calls)
        async with store._database.lend():  # and now there is none at all
            impatient(store, monkeypatch)
            results = await asyncio.gather(
                store.state.set("late", 1), store.metrics.record("x", "m", 1), return_exceptions=True
            )
            assert [type(result) for result in results] == [StoreUnavailable] * 2
            assert all("no connection left" in str(result) for result in results)
        impatient(store, monkeypatch, 30)
        await others.aclose()
        await asyncio.gather(store.state.set("late", 2), store.metrics.record("x", "m", 2), store.state.list())
        assert await store.state.get("late") == 2


@asynccontextmanager
async def locked(url: str, schema: str, key: str) -> AsyncIterator[None]:
    """Another session holds the row of ``key``."""
    connection = await asyncpg.connect(url)
    try:
        async with connection.transaction():
            await connection.fetch(f'SELECT 1 FROM "{schema}".agent_state WHERE key = $1 FOR UPDATE', key)
            yield
    finally:
        await connection.close()


async def at_work(url: str, most: int) -> None:
    """Wait until no more than so many sessions of the database run something, or hold a transaction open."""
    connection = await asyncpg.connect(url)
    query = (
        "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND state <> 'idle' "
        "AND pid <> pg_backend_pid() AND datname = current_database()"
    )
    async with asyncio.timeout(PATIENCE):
        while await connection.fetchval(query) > most:  # noqa: ASYNC110 - polled: it happens in PostgreSQL
            await asyncio.sleep(0.05)
    await connection.close()


@pytest.mark.parametrize(
    ("setting", "said"), [("statement_timeout", "statement timeout"), ("lock_timeout", "lock timeout")]
)
async def test_a_statement_that_the_server_ends(postgres_url: str, scope: HiveScope, setting: str, said: str) -> None:
    schema = schema_name(scope)
    await upgrade(postgres_url, schema)
    admin = await asyncpg.connect(postgres_url)
    await admin.execute(f"ALTER DATABASE {postgres_url.rpartition('/')[2]} SET {setting} = '300ms'")
    await admin.close()
    async with await Store.connect(postgres_url, scope, agent="x") as store:
        version = await store.state.set("held", 0)
        async with locked(postgres_url, schema, "held"):
            for write in (store.state.set("held", 1), store.state.set("held", 1, expect_version=version)):
                with pytest.raises(StoreUnavailable, match=rf"gave up: .*{said}.*{setting}"):
                    await write
            await store.state.set("free", 1)
            assert await store.state.get("held") == 0, "reading waits for nobody"
        assert await store.state.set("held", 2, expect_version=version) > version
        await all_given_back(store)
        await at_work(postgres_url, most=0)


async def test_a_lock_that_is_held_for_longer_than_a_statement_may_take(
    postgres_url: str, scope: HiveScope, monkeypatch: pytest.MonkeyPatch
) -> None:
    schema = schema_name(scope)
    await upgrade(postgres_url, schema)
    monkeypatch.setattr("agenthive.store.database.STATEMENT_SECONDS", 0.3)
    async with await Store.connect(postgres_url, scope, agent="x") as store:
        await store.state.set("held", 0)
        impatient(store, monkeypatch, 1.0)
        async with locked(postgres_url, schema, "held"):
            for _ in range(3):
                with pytest.raises(StoreUnavailable, match="did not answer in time"):
                    await store.state.set("held", 1)
            await all_given_back(store)
            # What was given up waits for the lock no more: it would be written long after its caller was told.
            await at_work(postgres_url, most=1)  # the holder of the lock
            await store.state.set("free", 1)
        await at_work(postgres_url, most=0)
        assert await store.state.get("held") == 0
        await store.state.set("held", 2)
