"""The operator's care of a hive's schema in a real PostgreSQL: migrated at once, kept up daily."""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest

from agenthive.settings import HiveScope
from agenthive.store import Store, schema_name
from agenthive_operator.backends.postgres import Access, HiveSchema
from agenthive_operator.backends.upkeep import DAY_SECONDS, FIRST_SECONDS

SCOPE = HiveScope(instance="i1", namespace="team", hive="kept")
SCHEMA = schema_name(SCOPE)


class Clock:
    """A clock that is set by hand."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


async def test_partitions_and_expired_documents_are_cared_for_daily(postgres_url: str) -> None:
    clock = Clock()
    schema = HiveSchema(clock=clock)
    assert (await schema.check(Access(postgres_url), SCOPE)).schema.applied
    last_day = (datetime.now(UTC) + timedelta(days=14)).strftime("agent_metrics_p%Y%m%d")
    connection = await asyncpg.connect(postgres_url)
    try:

        async def damage() -> None:
            await connection.execute(f"DROP TABLE {SCHEMA}.{last_day}")
            async with await Store.connect(postgres_url, SCOPE, agent="greeter") as store:
                await store.state.set("old", 1, ttl=60)
            await connection.execute(f"UPDATE {SCHEMA}.agent_state SET expires_at = now() - interval '1 second'")

        async def healed() -> tuple[bool, bool]:
            there = await connection.fetchval("SELECT to_regclass($1) IS NOT NULL", f"{SCHEMA}.{last_day}")
            return there, await connection.fetchval(f"SELECT count(*) = 0 FROM {SCHEMA}.agent_state")

        for seconds in (FIRST_SECONDS, DAY_SECONDS):
            await damage()
            await schema.check(Access(postgres_url), SCOPE)
            assert await healed() == (False, False), "not due yet"
            clock.now += seconds
            assert (await schema.check(Access(postgres_url), SCOPE)).schema.ok
            assert await healed() == (True, True)
    finally:
        await connection.close()


async def test_housekeeping_that_fails_is_logged_and_does_not_make_the_schema_unready(
    postgres_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    schema = HiveSchema(clock=clock)
    await schema.check(Access(postgres_url), SCOPE)
    connection = await asyncpg.connect(postgres_url)
    try:
        await connection.execute(f"DROP TABLE {SCHEMA}.agent_state")
    finally:
        await connection.close()
    clock.now += FIRST_SECONDS
    with caplog.at_level(logging.WARNING):
        assert (await schema.check(Access(postgres_url), SCOPE)).schema.ok
    assert f"housekeeping of {SCHEMA}" in caplog.text
    assert "agent_state" in caplog.text
