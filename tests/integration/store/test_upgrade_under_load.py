"""Expand, then contract: pods of the first release work on while the schema is upgraded, and on what comes of it."""

from __future__ import annotations

import asyncio
from datetime import date
from typing import Any

import asyncpg
import pytest

from agenthive.settings import HiveScope, PostgresPool
from agenthive.store import Store, StoreUnavailable, migrate, schema_name, schema_status, upgrade
from agenthive.store.migrate import Migration
from agenthive.store.partitions import maintain_partitions
from agenthive.store.roles import drop_roles, ensure_roles, role_names

from .previous.pod import Pods
from .test_faults import until

PATIENCE = 30.0


async def first_release(url: str, schema: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The schema as the first release left it."""
    with monkeypatch.context() as patch:
        patch.setattr(migrate, "migrations", lambda: known()[:1])
        assert len(await upgrade(url, schema)) == 1


def known() -> tuple[Migration, ...]:
    """This code's migrations, whatever is patched."""
    return KNOWN


KNOWN = migrate.migrations()


async def test_old_pods_work_through_every_upgrade(
    postgres_url: str, scope: HiveScope, monkeypatch: pytest.MonkeyPatch
) -> None:
    schema = schema_name(scope)
    await first_release(postgres_url, schema, monkeypatch)
    admin = await asyncpg.connect(postgres_url)
    async with Pods(postgres_url, schema) as pods:
        await pods.rounds(3)
        assert await upgrade(postgres_url, schema) == list(KNOWN[1:])
        await pods.rounds(3)
        # What an operator does next, while they still run: roles, partitions of other days, new pods.
        await ensure_roles(admin, schema)
        await pods.rounds(3)
        assert await maintain_partitions(admin, schema, today=date(2031, 1, 1))
        async with await Store.connect(postgres_url, scope, agent="old-0", pool=PostgresPool(max_size=2)) as new:
            assert isinstance(await new.state.get("count"), int), "new code reads what old code wrote"
            await new.state.set("set/0", "new", expect_version=None)
        await pods.rounds(3)
    await drop_roles(admin, schema)
    await admin.close()


async def test_a_migration_that_waits_for_a_lock_holds_nobody_up_for_long(
    postgres_url: str, scope: HiveScope, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Somebody reads a table in a long transaction; a migration wants the table; everybody else wants to write it."""
    caplog.set_level("INFO", "agenthive.store.locks")
    monkeypatch.setattr("agenthive.store.locks.LOCK_SECONDS", 0.2)
    schema = schema_name(scope)
    await upgrade(postgres_url, schema)
    extra = Migration(len(KNOWN) + 1, "note", "ALTER TABLE agent_state ADD COLUMN note text", "ddd")
    monkeypatch.setattr(migrate, "migrations", lambda: (*KNOWN, extra))
    reader = await asyncpg.connect(postgres_url)
    async with Pods(postgres_url, schema) as pods:
        await pods.rounds(1)
        reading = reader.transaction()
        await reading.start()
        await reader.fetch(f"SELECT FROM {schema}.agent_state LIMIT 1")
        upgrading = asyncio.create_task(upgrade(postgres_url, schema))
        await until(lambda: caplog.text.count("waits for a lock, and lets others through") >= 2, "two tries")
        await pods.rounds(2)
        assert not upgrading.done()
        assert (await schema_status(postgres_url, schema)).current == len(KNOWN)
        await reading.commit()
        assert await upgrading == [extra]
        await pods.rounds(2)
    await reader.close()


async def test_a_lock_that_is_never_granted_is_an_error_in_the_end(
    postgres_url: str, scope: HiveScope, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agenthive.store.locks.LOCK_SECONDS", 0.05)
    monkeypatch.setattr(migrate, "UPGRADE_SECONDS", 0.3)
    schema = schema_name(scope)
    with monkeypatch.context() as patch:
        patch.setattr(migrate, "UPGRADE_SECONDS", 60.0)
        await upgrade(postgres_url, schema)
    extra = Migration(len(KNOWN) + 1, "note", "ALTER TABLE agent_state ADD COLUMN note text", "ddd")
    monkeypatch.setattr(migrate, "migrations", lambda: (*KNOWN, extra))
    reader = await asyncpg.connect(postgres_url)
    async with reader.transaction():
        await reader.fetch(f"SELECT FROM {schema}.agent_state LIMIT 1")
        with pytest.raises(StoreUnavailable, match="gave up: canceling statement due to lock timeout"):
            await upgrade(postgres_url, schema)
    await reader.close()


@pytest.mark.parametrize("roles", [False, True])
async def test_a_server_that_dies_in_the_middle_of_a_migration_has_nothing_half_applied(
    own_postgres: Any, scope: HiveScope, monkeypatch: pytest.MonkeyPatch, roles: bool
) -> None:
    monkeypatch.setattr("agenthive.store.locks.LOCK_SECONDS", 60.0)
    schema, url = schema_name(scope), own_postgres.url()
    await first_release(url, schema, monkeypatch)
    if roles:
        admin = await asyncpg.connect(url)
        await ensure_roles(admin, schema)
        await admin.close()
    # Stops half-way, where a test can see it: it waits for a lock that the test holds.
    sql = (
        "CREATE TABLE half (id int); ALTER TABLE agent_state ADD COLUMN note text; "
        "SELECT pg_advisory_xact_lock(4711); CREATE TABLE other_half (id int)"
    )
    extra = Migration(len(KNOWN) + 1, "halves", sql, "ddd")
    monkeypatch.setattr(migrate, "migrations", lambda: (*KNOWN, extra))
    holder = await asyncpg.connect(url)
    await holder.execute("SELECT pg_advisory_lock(4711)")
    upgrading = asyncio.create_task(upgrade(url, schema))
    async with asyncio.timeout(PATIENCE):
        waiting = "SELECT count(*) FROM pg_locks WHERE objid = 4711 AND NOT granted"
        while not await holder.fetchval(waiting):  # noqa: ASYNC110 - polled: it is the server that knows
            await asyncio.sleep(0.01)
    own_postgres.kill()
    with pytest.raises(StoreUnavailable):
        await upgrading
    await asyncio.to_thread(own_postgres.start)
    assert (await schema_status(url, schema)).current == len(KNOWN)
    admin = await asyncpg.connect(url)
    assert await admin.fetchval("SELECT to_regclass($1)", f"{schema}.half") is None
    columns = "SELECT count(*) FROM pg_attribute WHERE attrelid = $1::regclass AND attname = 'note'"
    assert await admin.fetchval(columns, f"{schema}.agent_state") == 0
    assert await upgrade(url, schema) == [extra]
    assert await admin.fetchval(columns, f"{schema}.agent_state") == 1
    owner = await admin.fetchval("SELECT tableowner FROM pg_tables WHERE tablename = 'other_half'")
    assert owner == (role_names(schema).owner if roles else "postgres")
    await admin.close()
