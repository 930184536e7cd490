"""Opening a store and upgrading a schema on a real PostgreSQL: what works, and what people read when it does not."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import time
from pathlib import Path

import asyncpg
import pytest

from agenthive.settings import HiveScope, PostgresPool
from agenthive.store import (
    InvalidValue,
    MigrationError,
    SchemaMissing,
    SchemaTooNew,
    Store,
    StoreAuthError,
    StoreClosed,
    StorePermissionError,
    StoreUnavailable,
    migrate,
    schema_name,
    schema_status,
    upgrade,
)
from agenthive.store.migrate import Migration

from .conftest import Connect, as_role

TABLES = {"agent_state", "agent_metrics", "message_log", "schema_migrations"}


async def test_upgrade_once_and_again(postgres_url: str, scope: HiveScope) -> None:
    schema = schema_name(scope)
    before = await schema_status(postgres_url, schema)
    assert (before.current, [m.version for m in before.pending]) == (0, [m.version for m in migrate.migrations()])
    latest = len(migrate.migrations())
    assert [migration.version for migration in await upgrade(postgres_url, schema)] == list(range(1, latest + 1))
    assert await upgrade(postgres_url, schema) == []
    after = await schema_status(postgres_url, schema)
    assert (after.current, after.latest, after.pending, after.too_new) == (latest, latest, (), False)
    connection = await asyncpg.connect(postgres_url)
    names = {
        row[0]
        for row in await connection.fetch("SELECT relname FROM pg_class WHERE relnamespace = $1::regnamespace", schema)
    }
    await connection.close()
    assert names >= TABLES | {"idx_agent_metrics_timestamp", "idx_agent_metrics_agent"}


async def test_two_hives_in_one_database_do_not_see_each_other(postgres_url: str) -> None:
    scopes = [HiveScope(namespace="a", hive="b-c"), HiveScope(namespace="a-b", hive="c")]
    for number, scope in enumerate(scopes):
        await upgrade(postgres_url, schema_name(scope))
        async with await Store.connect(postgres_url, scope, agent="x") as store:
            await store.state.set("k", number)
    for number, scope in enumerate(scopes):
        async with await Store.connect(postgres_url, scope, agent="x") as store:
            assert await store.state.get("k") == number


async def test_upgraders_at_once_apply_each_migration_once(postgres_url: str, scope: HiveScope) -> None:
    applied = await asyncio.gather(*(upgrade(postgres_url, schema_name(scope)) for _ in range(6)))
    assert sorted(m.version for one in applied for m in one) == [m.version for m in migrate.migrations()]


async def test_upgrading_processes_at_once(postgres_url: str, scope: HiveScope) -> None:
    program = (
        "import asyncio, sys; from agenthive.store import upgrade; "
        "print(len(asyncio.run(upgrade(sys.argv[1], sys.argv[2]))))"
    )
    arguments = (sys.executable, "-c", program, postgres_url, schema_name(scope))
    processes = [await asyncio.create_subprocess_exec(*arguments, stdout=subprocess.PIPE) for _ in range(2)]
    outputs = [await process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert sum(int(out) for out, _ in outputs) == len(migrate.migrations())


async def test_an_empty_schema_made_by_an_administrator_is_used(
    postgres_url: str, scope: HiveScope, unique: str
) -> None:
    admin = await asyncpg.connect(postgres_url)
    await admin.execute(f"CREATE ROLE {unique} LOGIN PASSWORD 'pw'")
    try:
        url = as_role(postgres_url, unique, "pw")
        with pytest.raises(StorePermissionError, match="permission denied for database"):
            await upgrade(url, schema_name(scope))
        await admin.execute(f"CREATE SCHEMA {schema_name(scope)} AUTHORIZATION {unique}")
        assert len(await upgrade(url, schema_name(scope))) == len(migrate.migrations())
    finally:
        await admin.execute(f"DROP OWNED BY {unique} CASCADE")
        await admin.execute(f"DROP ROLE {unique}")
        await admin.close()


async def test_a_missing_schema_says_what_to_run(postgres_url: str, scope: HiveScope) -> None:
    with pytest.raises(SchemaMissing) as caught:
        await Store.connect(postgres_url, scope, agent="x")
    assert f"has no schema {schema_name(scope)} for this hive: run `agenthive db upgrade`" in str(caught.value)


async def test_a_newer_schema_is_refused(postgres_url: str, scope: HiveScope) -> None:
    schema = schema_name(scope)
    await upgrade(postgres_url, schema)
    connection = await asyncpg.connect(postgres_url)
    await connection.execute(f"INSERT INTO {schema}.schema_migrations (version, name, checksum) VALUES (99, 'x', 'x')")
    await connection.close()
    for call in (Store.connect(postgres_url, scope, agent="x"), upgrade(postgres_url, schema)):
        with pytest.raises(SchemaTooNew, match=r"is at version 99 and this code knows only \d+: upgrade agenthive-k8s"):
            await call
    status = await schema_status(postgres_url, schema)
    assert (status.current, status.too_new, status.pending) == (99, True, ())


async def test_an_edited_migration_is_refused(postgres_url: str, scope: HiveScope) -> None:
    schema = schema_name(scope)
    await upgrade(postgres_url, schema)
    connection = await asyncpg.connect(postgres_url)
    await connection.execute(f"UPDATE {schema}.schema_migrations SET checksum = 'other'")
    await connection.close()
    for call in (upgrade(postgres_url, schema), schema_status(postgres_url, schema)):
        with pytest.raises(MigrationError, match="with another content than this code has"):
            await call


async def test_a_failing_migration_leaves_no_trace_of_its_own(
    postgres_url: str, scope: HiveScope, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = migrate.migrations()
    broken = Migration(len(known) + 1, "broken", "CREATE TABLE half (id int); SELECT 1 / 0", "ccc")
    with monkeypatch.context() as patch:
        patch.setattr(migrate, "migrations", lambda: (*known, broken))
        with pytest.raises(MigrationError, match=r"broken of schema .* failed and left no trace: division by zero"):
            await upgrade(postgres_url, schema_name(scope))
    status = await schema_status(postgres_url, schema_name(scope))
    assert status.current == len(known)
    connection = await asyncpg.connect(postgres_url)
    assert await connection.fetchval("SELECT to_regclass($1)", f"{schema_name(scope)}.half") is None
    await connection.close()


async def test_a_later_migration_is_applied_alone_and_older_code_is_told(
    hive_url: str, connect: Connect, scope: HiveScope, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = migrate.migrations()
    running = await connect()
    extra = Migration(len(known) + 1, "extra", "ALTER TABLE agent_state ADD COLUMN note text", "ddd")
    with monkeypatch.context() as patch:
        patch.setattr(migrate, "migrations", lambda: (*known, extra))
        versions = rf"is at version {len(known)} and this code needs {len(known) + 1}: run `agenthive db upgrade`"
        with pytest.raises(SchemaMissing, match=versions):
            await Store.connect(hive_url, scope, agent="x")
        assert await upgrade(hive_url, schema_name(scope)) == [extra]
        assert await connect() is not None
    await running.state.set("k", 1)  # the process that was there before goes on


@pytest.mark.parametrize("min_size", [0, 1])
async def test_a_wrong_password(hive_url: str, scope: HiveScope, min_size: int) -> None:
    url = as_role(hive_url, "postgres", "wr0ng")
    for call in (
        Store.connect(url, scope, agent="x", pool=PostgresPool(min_size=min_size), wait_seconds=60),
        upgrade(url, "ah_x"),
        schema_status(url, "ah_x"),
    ):
        with pytest.raises(StoreAuthError, match=r"refused the login: .*Check user and password") as caught:
            await call
        assert "wr0ng" not in str(caught.value)


async def test_nothing_listens(scope: HiveScope) -> None:
    url = "postgresql://u:secret@127.0.0.1:1/app"
    started = time.monotonic()
    for call in (Store.connect(url, scope, agent="x"), upgrade(url, "ah_x")):
        with pytest.raises(StoreUnavailable, match=r"127.0.0.1:1/app cannot be reached: .* is it running") as caught:
            await call
        assert "secret" not in str(caught.value)
    assert time.monotonic() - started < 5


async def test_a_host_that_does_not_exist(scope: HiveScope) -> None:
    with pytest.raises(StoreUnavailable, match=r"demo-postgres.invalid:5432/app cannot be reached"):
        await Store.connect("postgresql://u:p@demo-postgres.invalid/app", scope, agent="x")


async def test_a_server_that_does_not_answer(scope: HiveScope) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"postgresql://u:p@127.0.0.1:{silent.getsockname()[1]}/app?connect_timeout=0.2&sslmode=disable"
        with pytest.raises(StoreUnavailable, match=r"did not answer within 0.2 s"):
            await Store.connect(url, scope, agent="x")


async def test_a_database_that_does_not_exist(hive_url: str, scope: HiveScope) -> None:
    with pytest.raises(StoreUnavailable, match=r'database "nowhere" does not exist. Create the database'):
        await Store.connect(hive_url.rpartition("/")[0] + "/nowhere", scope, agent="x")


async def test_tls_that_the_server_does_not_offer(hive_url: str, scope: HiveScope) -> None:
    with pytest.raises(StoreUnavailable, match="rejected SSL upgrade"):
        await Store.connect(f"{hive_url}?sslmode=require", scope, agent="x")


async def test_arguments_that_make_no_sense(hive_url: str, scope: HiveScope, tmp_path: Path) -> None:
    with pytest.raises(InvalidValue, match="message log policy"):
        await Store.connect(hive_url, scope, agent="x", message_log="some")
    with pytest.raises(InvalidValue, match="postgresql://"):
        await Store.connect("redis://db", scope, agent="x")
    with pytest.raises(InvalidValue, match="cannot be used"):
        await Store.connect(f"{hive_url}?sslmode=sometimes", scope, agent="x")


async def test_the_pool_is_as_large_as_said_and_named(connect: Connect) -> None:
    store = await connect(pool=PostgresPool(min_size=2, max_size=3), application_name="agenthive/librarian")
    assert (store.pool.get_size(), store.pool.get_max_size()) == (2, 3)
    assert await store.pool.fetchval("SHOW application_name") == "agenthive/librarian"
    await store.ping()


async def test_an_exhausted_pool_is_a_clear_error(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agenthive.store.database.ACQUIRE_SECONDS", 0.1)
    store = await connect(pool=PostgresPool(min_size=1, max_size=1))
    async with store.pool.acquire():
        with pytest.raises(StoreUnavailable, match=r"none of the 1 connections .* became free within 0.1 s"):
            await store.ping()
    await store.ping()


async def test_a_closed_store_refuses(connect: Connect) -> None:
    store = await connect()
    pending = [asyncio.create_task(store.state.set(f"k{n}", n)) for n in range(50)]
    await asyncio.sleep(0)
    await store.aclose()
    assert len(await asyncio.gather(*pending)) == 50, "what was asked before closing is done"
    for call in (store.state.get("k"), store.state.set("k", 1), store.ping(), store.metrics.record("a", "b", 1)):
        with pytest.raises(StoreClosed):
            await call
    assert len(await (await connect()).state.list()) == 50
