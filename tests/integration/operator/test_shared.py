"""Hives on one PostgreSQL: its connections are lent, and a new schema has what the first days need."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest

from agenthive.settings import HiveScope
from agenthive.store import schema_name
from agenthive.store.database import Address
from agenthive.store.naming import quote
from agenthive_operator.backends import shared
from agenthive_operator.backends.logins import Login, with_login
from agenthive_operator.backends.postgres import Access, HiveSchema
from agenthive_operator.backends.reports import StoreReport
from agenthive_operator.backends.shared import Sessions, SharedLooks
from agenthive_operator.backends.upkeep import FIRST_SECONDS

CLIENT = "agenthive-shared"


async def test_a_connection_is_lent_again_until_it_was_broken_or_idle(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared, "IDLE_SECONDS", 0.05)
    sessions, address = Sessions(), Address.parse(postgres_url)

    async def server_process() -> int:
        async with sessions.lend(address, CLIENT) as connection:
            return int(await connection.fetchval("SELECT pg_backend_pid()"))

    first = await server_process()
    assert await server_process() == first
    async with sessions.lend(address, CLIENT) as held:
        assert await server_process() != await held.fetchval("SELECT pg_backend_pid()")
    with pytest.raises(asyncpg.DivisionByZeroError):
        async with sessions.lend(address, CLIENT) as connection:
            await connection.execute("SELECT 1 / 0")
    assert connection.is_closed()
    async with sessions.lend(address, CLIENT) as connection:
        pass
    async with asyncio.timeout(10):
        while not connection.is_closed():  # noqa: ASYNC110 - polls what no event tells, under a deadline
            await asyncio.sleep(0.01)
    await sessions.aclose()


async def test_more_than_a_few_are_not_kept_and_none_after_the_end(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared, "IDLE_EACH", 1)
    sessions, address = Sessions(), Address.parse(postgres_url)
    async with sessions.lend(address, CLIENT) as first, sessions.lend(address, CLIENT) as second:
        pass
    await sessions.aclose()
    assert first.is_closed()
    assert second.is_closed()


async def test_hives_on_one_server_log_in_once_and_ask_for_their_own_schemas(postgres_url: str, unique: str) -> None:
    root = await asyncpg.connect(postgres_url)
    own, lacking = (HiveScope(namespace="shared", hive=f"{unique}-{name}") for name in ("own", "none"))
    access = Access(with_login(postgres_url, Login(unique, "plain")))
    sessions, looks = Sessions(), SharedLooks[StoreReport](lambda report: report.ok, clock=lambda: 0.0)
    await root.execute(f"CREATE ROLE {quote(unique)} LOGIN PASSWORD 'plain'")
    try:
        await root.execute(f"CREATE SCHEMA {quote(schema_name(own))} AUTHORIZATION {quote(unique)}")
        found = await HiveSchema(sessions=sessions, looks=looks).check(access, own)
        assert found.store.ok, found.store.message
        await root.execute(f"ALTER ROLE {quote(unique)} PASSWORD 'changed'")  # who logged in again would be refused
        found = await HiveSchema(sessions=sessions, looks=looks).check(access, lacking)
        assert found.store.reason == "PrivilegesMissing"
    finally:
        await sessions.aclose()
        await root.execute(f"DROP OWNED BY {quote(unique)} CASCADE")
        await root.execute(f"DROP ROLE {quote(unique)}")
        await root.close()


async def test_a_new_schema_has_partitions_until_tomorrow_and_the_rest_with_its_housekeeping(postgres_url: str) -> None:
    now, sessions = [0.0], Sessions()
    scope = HiveScope(namespace="shared", hive="quick")
    schema = HiveSchema(clock=lambda: now[0], days_at_once=1, sessions=sessions)
    report = await schema.check(Access(postgres_url), scope)
    assert report.schema.ok, report.schema.message

    async def days() -> set[str]:
        async with sessions.lend(Address.parse(postgres_url), CLIENT) as connection:
            rows = await connection.fetch(
                "SELECT relname FROM pg_class WHERE relnamespace = $1::regnamespace AND relname ~ '^agent_metrics_p' "
                "AND relkind = 'r'",
                schema_name(scope),
            )
        return {row["relname"].removeprefix("agent_metrics_p") for row in rows}

    today = datetime.now(UTC)
    assert f"{today + timedelta(days=1):%Y%m%d}" in await days()
    assert len(await days()) == 3
    now[0] += FIRST_SECONDS
    assert (await schema.check(Access(postgres_url), scope)).schema.ok
    assert f"{today + timedelta(days=14):%Y%m%d}" in await days()
    await sessions.aclose()
