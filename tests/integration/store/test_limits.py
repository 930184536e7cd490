"""Servers that have no connection left, statements that take too long, and who is who in pg_stat_activity."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from itertools import pairwise
from typing import Any

import asyncpg
import pytest

from agenthive.settings import HiveScope, PostgresPool
from agenthive.store import Store, StoreUnavailable, application_name, schema_name

from .conftest import Connect, as_role
from .test_faults import until

LIMIT = 3


@pytest.fixture
async def admin(hive_url: str) -> AsyncIterator[Any]:
    connection = await asyncpg.connect(hive_url)
    yield connection
    await connection.close()


@pytest.fixture
async def limited(connect: Connect, admin: Any, hive_url: str, scope: HiveScope, unique: str) -> AsyncIterator[str]:
    """URL of a login that may open three connections."""
    schema = schema_name(scope)
    await admin.execute(f"CREATE ROLE {unique} LOGIN CONNECTION LIMIT {LIMIT} PASSWORD 'pw'")
    await admin.execute(f"GRANT USAGE ON SCHEMA {schema} TO {unique}")
    await admin.execute(f"GRANT ALL ON ALL TABLES IN SCHEMA {schema} TO {unique}")
    yield as_role(hive_url, unique, "pw")
    await admin.execute(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE usename = $1", unique
    )  # only what a failed test left
    await admin.execute(f"DROP OWNED BY {unique}")
    await admin.execute(f"DROP ROLE {unique}")


async def test_no_connection_left_is_said_and_waited_out(limited: str, scope: HiveScope) -> None:
    others = [await asyncpg.connect(limited) for _ in range(LIMIT)]
    with pytest.raises(StoreUnavailable, match=r"no connection left: too many connections for role .*maxSize"):
        await Store.connect(limited, scope, agent="x")
    opening = asyncio.create_task(Store.connect(limited, scope, agent="x", wait_seconds=30))
    await asyncio.sleep(0)
    await others.pop().close()
    async with await opening as store:
        await store.state.set("k", 1)
    for other in others:
        await other.close()


async def test_a_store_whose_connections_were_taken_goes_on_when_there_is_one(
    limited: str, scope: HiveScope, admin: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with await Store.connect(limited, scope, agent="x", pool=PostgresPool(min_size=0, max_size=3)) as store:
        await store.state.set("k", 0)
        pid = await store.pool.fetchval("SELECT pg_backend_pid()")
        await admin.execute("SELECT pg_terminate_backend($1, 5000)", pid)
        others = [await asyncpg.connect(limited) for _ in range(LIMIT)]
        tries: list[float] = []
        acquire = type(store.pool).acquire

        def counted(pool: Any, **options: Any) -> Any:
            tries.append(asyncio.get_running_loop().time())
            return acquire(pool, **options)

        monkeypatch.setattr(type(store.pool), "acquire", counted)
        writing = asyncio.create_task(store.state.set("k", 1))
        await until(lambda: len(tries) >= 4, "four tries")
        assert not writing.done()
        gaps = [after - before for before, after in pairwise(tries)]
        assert gaps[2] > 0.09, "delays double from 50 ms on, with jitter down to half"
        for other in others:
            await other.close()
        await writing
        assert await store.state.get("k") == 1


async def test_a_statement_timeout_of_the_server(limited: str, scope: HiveScope, admin: Any, unique: str) -> None:
    await admin.execute(f"ALTER ROLE {unique} SET statement_timeout = '100ms'")
    async with await Store.connect(limited, scope, agent="x") as store:
        await store.state.set("k", 1)
        async with admin.transaction():
            await admin.execute(f"LOCK TABLE {store.schema}.agent_state")
            for call in (store.state.get("k"), store.state.set("k", 2), store.state.list()):
                with pytest.raises(StoreUnavailable, match="gave up: canceling statement due to statement timeout"):
                    await call
        assert await store.state.get("k") == 1, "what raised is not there, and the store goes on"
        await store.state.set("k", 2)


async def test_a_lock_timeout_of_the_server(limited: str, scope: HiveScope, admin: Any, unique: str) -> None:
    await admin.execute(f"ALTER ROLE {unique} SET lock_timeout = '100ms'")
    async with await Store.connect(limited, scope, agent="x") as store:
        async with admin.transaction():
            await admin.execute(f"LOCK TABLE {store.schema}.agent_state")
            with pytest.raises(StoreUnavailable, match="gave up: canceling statement due to lock timeout"):
                await store.state.get("k")
        await store.state.set("k", 2)


async def test_our_own_statement_timeout_leaves_nothing_running(connect: Connect, admin: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting of the server is needed for it, which a PgBouncer would have to let through."""
    monkeypatch.setattr("agenthive.store.database.STATEMENT_SECONDS", 0.2)
    store = await connect(application_name="impatient")
    await store.state.set("k", 1)
    store._lanes._reads._patience = store._lanes._writes._patience = 0.0
    async with admin.transaction():
        await admin.execute(f"LOCK TABLE {store.schema}.agent_state")
        for call in (store.state.get("k"), store.state.set("k", 2)):
            with pytest.raises(StoreUnavailable, match="did not answer in time"):
                await call
    assert await store.state.get("k") == 1


async def test_who_is_who(connect: Connect, admin: Any, scope: HiveScope) -> None:
    name = application_name(scope.hive, "librarian", "librarian-5d9f8c7b6-x2x4z")
    await connect(application_name=name)
    assert await admin.fetchval("SELECT count(*) FROM pg_stat_activity WHERE application_name = $1", name) == 1
