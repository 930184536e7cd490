"""The store behind a PgBouncer that pools transactions: its own integration tests, once more, through it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import pytest

from agenthive.settings import HiveScope, PostgresPool
from agenthive.store import Store, StorePermissionError, migrate, schema_name, schema_status, upgrade
from agenthive.store.database import Address, connect_once
from agenthive.store.roles import drop_agent, drop_roles, ensure_agent, ensure_roles, known_agents

from . import pgbouncer, test_messages, test_metrics, test_state
from .conftest import Connect
from .roles_ground import PASSWORD

pytestmark = pytest.mark.skipif(
    pgbouncer.PROGRAM is None, reason="no pgbouncer is installed here: apt-get install pgbouncer"
)

#: Has parameters of its own for the URL, or restarts what is not its own.
NOT_HERE = {"test_works_without_named_statements_as_behind_pgbouncer"}
globals().update(
    {
        name: test
        for module in (test_state, test_metrics, test_messages)
        for name, test in vars(module).items()
        if name.startswith("test_") and name not in NOT_HERE
    }
)

#: What PgBouncer is told, what the store is told.
MODES: dict[str, tuple[dict[str, str], str]] = {"unprepared": ({}, "?statement_cache_size=0")}
if pgbouncer.PROGRAM is not None and pgbouncer.version() >= pgbouncer.PREPARES:
    MODES["prepared"] = ({"max_prepared_statements": "100"}, "")


@pytest.fixture(scope="module", params=MODES)
def bouncer(request: pytest.FixtureRequest, postgres: Any) -> Iterator[str]:
    """Its URL, with what the store has to be told."""
    options, parameters = MODES[request.param]
    with pgbouncer.running_pgbouncer(postgres, **options) as url:
        yield url + parameters


@pytest.fixture
def hive_url(bouncer: str) -> str:
    """Everything goes through PgBouncer, the migrations as well."""
    return bouncer


@pytest.mark.skipif("prepared" in MODES, reason="prepared statements are tried")
def test_prepared_statements() -> None:
    pytest.skip(f"PgBouncer {'.'.join(map(str, pgbouncer.version()))} knows none; 1.21 and newer do")


async def test_upgraders_at_once_apply_each_migration_once(bouncer: str, scope: HiveScope) -> None:
    schema = schema_name(scope)
    applied = await asyncio.gather(*(upgrade(bouncer, schema) for _ in range(6)))
    assert sorted(m.version for one in applied for m in one) == [m.version for m in migrate.migrations()]
    statuses = await asyncio.gather(*(schema_status(bouncer, schema) for _ in range(10)))
    assert {status.pending for status in statuses} == {()}


async def test_roles_are_made_and_agents_log_in(bouncer: str, scope: HiveScope) -> None:
    schema = schema_name(scope)
    await upgrade(bouncer, schema)
    admin = await connect_once(Address.parse(bouncer), "test")
    try:
        await asyncio.gather(*(_ensure(bouncer, schema) for _ in range(20)))
        role = await ensure_agent(admin, schema, "librarian", PASSWORD)
        assert await known_agents(admin, schema) == {role: "librarian"}
        parts = urlsplit(bouncer)
        url = urlunsplit(parts._replace(netloc=f"{role}:{PASSWORD}@{parts.hostname}:{parts.port}"))
        stores = [await Store.connect(url, scope, agent="librarian") for _ in range(2)]
        await asyncio.gather(*(store.state.set(f"k{n}", n) for store in stores for n in range(50)))
        with pytest.raises(StorePermissionError):
            await stores[0].state.for_agent("other").set("k", 1)
        assert len(await stores[1].state.list()) == 50
        for store in stores:
            await store.aclose()
        # As long as PgBouncer holds sessions of the login, they are ended with it.
        assert await drop_agent(admin, schema, "librarian") == [role]
    finally:
        await drop_roles(admin, schema)
        await admin.execute(f"DROP SCHEMA {schema} CASCADE")
        await admin.close()


async def _ensure(url: str, schema: str) -> None:
    connection = await connect_once(Address.parse(url), "test")
    await ensure_roles(connection, schema)
    await connection.close()


async def test_more_clients_than_servers_wait_their_turn(connect: Connect) -> None:
    # All at once, so that sessions find the servers in each other's hands from the first exchange on.
    size = PostgresPool(min_size=4, max_size=4)
    stores = await asyncio.gather(*(connect(agent=f"agent-{n}", pool=size, application_name=f"p{n}") for n in range(5)))

    async def work(store: Store, n: int) -> None:
        version = await store.state.set(f"k{n}", 0)
        for value in range(1, 10):
            version = await store.state.set(f"k{n}", value, expect_version=version)
        assert await store.state.get(f"k{n}") == 9

    await asyncio.gather(*(work(store, n) for store in stores for n in range(10)))
    servers = await stores[0].pool.fetchval(
        "SELECT count(*) FROM pg_stat_activity WHERE usename = current_user AND datname = 'postgres' "
        "AND application_name ~ '^p[0-9]$'"
    )
    assert servers <= pgbouncer.POOL_SIZE
