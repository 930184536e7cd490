"""Exactly-once handlings: a worker whose handler is one transaction, and what its outbox brings to Redis."""

from __future__ import annotations

import asyncio
import os
import time
import uuid
from typing import Any

import asyncpg

from agenthive.bus import Bus
from agenthive.store import schema_name
from agenthive.store.naming import quote
from benchmarks.ours import HIVE, agent, message, percentiles, result_of
from benchmarks.store_load import AGENT, DOCUMENT, OTHERS, empty, plain_pool

SINK = "sink"
POLL_SECONDS = 0.01
PATIENCE = 60.0


async def transactions(url: str, redis: str, messages: int, sends: int, concurrency: int) -> list[float]:
    """[handlings a second, messages of their outboxes a second] by one worker with a full queue.

    Each handling writes a document, the mark of its message and ``sends`` messages in one transaction. The messages
    count until the recipient's queue has all of them.
    """
    await empty(url)
    os.environ["AGENTHIVE_POSTGRES_URL"] = url
    bus = await Bus.connect(redis, HIVE)
    try:
        await asyncio.gather(*(bus.send(message(sends=sends)) for _ in range(messages)))
        with agent(redis, "transaction", messages, concurrency) as (process, path):
            found = await result_of(process, path)
            deadline = time.monotonic() + PATIENCE
            while sends and (await bus.queue(SINK)).backlog < messages * sends:
                if time.monotonic() > deadline:
                    raise RuntimeError("the outbox did not bring all messages to Redis")
                await asyncio.sleep(POLL_SECONDS)
            arrived = time.monotonic()
    finally:
        await bus.aclose()
    return [(messages - 1) / (found["last"] - found["first"]), messages * sends / (arrived - found["first"])]


async def plain(url: str, transactions: int, concurrency: int) -> list[float]:
    """[transactions a second, p50, p99 (ms)] of the same three rows by hand, one transaction each, through a pool."""
    await empty(url)
    schema = quote(schema_name(OTHERS))
    statements = {
        "inbox": f"INSERT INTO {schema}.inbox (agent, message_id, keep_until) VALUES ($1, $2, now() + interval '30 d')",
        "state": f"INSERT INTO {schema}.agent_state (agent, key, value, version) VALUES ($1, $2, $3::text::json, 1)",
        "outbox": (
            f"INSERT INTO {schema}.outbox (id, agent, kind, recipient, message_id, document, due_at) "
            "VALUES ($1, $2, 'message', 'sink', $3, $4, now())"
        ),
    }
    delays: list[int] = []
    numbers = iter(range(transactions))

    async def work(pool: asyncpg.Pool[Any]) -> None:
        for _ in numbers:
            key, started = str(uuid.uuid4()), time.monotonic_ns()
            async with pool.acquire() as connection, connection.transaction():
                await connection.execute(statements["inbox"], AGENT, key)
                await connection.execute(statements["state"], AGENT, key, DOCUMENT)
                await connection.execute(statements["outbox"], uuid.uuid4(), AGENT, key, DOCUMENT)
            delays.append(time.monotonic_ns() - started)

    async with plain_pool(url, 10) as pool:
        began = time.monotonic()
        await asyncio.gather(*(work(pool) for _ in range(concurrency)))
        return [transactions / (time.monotonic() - began), *percentiles(delays)]
