"""The embedded servers work and survive a SIGKILL with what was written."""

from __future__ import annotations

import asyncpg
import redis.asyncio as redis


async def test_postgres_keeps_rows_over_a_sigkill(own_postgres) -> None:
    connection = await asyncpg.connect(own_postgres.url())
    await connection.execute("CREATE TABLE kept (n int)")
    await connection.execute("INSERT INTO kept VALUES (42)")
    own_postgres.kill()
    connection.terminate()
    own_postgres.start()
    connection = await asyncpg.connect(own_postgres.url())
    assert await connection.fetchval("SELECT n FROM kept") == 42
    await connection.close()


async def test_valkey_asks_for_a_password(valkey) -> None:
    async with redis.from_url(valkey.url) as client:
        assert await client.ping()
        assert (await client.config_get("maxmemory-policy"))["maxmemory-policy"] == "noeviction"
