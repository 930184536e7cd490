"""How the store is loaded and timed, ours and others alike."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import asyncpg

from agenthive.settings import HiveScope, PostgresPool
from agenthive.store import Store, schema_name, upgrade
from agenthive.store.naming import quote
from benchmarks.ours import BODY, HIVE, percentiles

AGENT = "bench"
DOCUMENT = json.dumps(BODY)
#: A hive of the same schema for the others: same tables, same constraints, same indexes.
OTHERS = HiveScope(hive="others")
WARM_SECONDS = 0.15
#: What one call does: who calls, and which call of theirs it is.
Call = Callable[[int, int], Awaitable[Any]]


async def closed_loop(call: Call, callers: int, seconds: float, each: int = 1) -> list[float]:
    """``callers`` tasks that call without pause: [things a second, p50, p99 (ms)].

    Args:
        call: one call.
        callers: how many at a time.
        seconds: how long, after a short time for warming up.
        each: things that one call does.
    """
    delays: list[int] = []
    begins = time.monotonic_ns() + int(WARM_SECONDS * 1e9)
    ends = begins + int(seconds * 1e9)

    async def caller(who: int) -> None:
        number = 0
        while (started := time.monotonic_ns()) < ends:
            await call(who, number)
            number += 1
            if started >= begins:
                delays.append(time.monotonic_ns() - started)

    await asyncio.gather(*(caller(who) for who in range(callers)))
    took = (time.monotonic_ns() - begins) / 1e9
    return [len(delays) * each / took, *percentiles(delays)]


async def open_loop(call: Call, rate: int, seconds: float) -> list[float]:
    """``rate`` calls a second, whether or not the ones before have returned: [calls a second, p50, p99 (ms)].

    A delay counts from when its call was due, so that a stall is not hidden by calls that were not made meanwhile.
    """
    delays: list[int] = []
    running: set[asyncio.Task[None]] = set()
    started = time.monotonic_ns()

    async def timed(number: int, due: int) -> None:
        await call(0, number)
        delays.append(time.monotonic_ns() - due)

    warm = rate // 4
    for number in range(int(rate * seconds) + warm):
        due = started + number * 1_000_000_000 // rate
        wait = (due - time.monotonic_ns()) / 1e9
        if wait > 0:
            await asyncio.sleep(wait)
        running.add(asyncio.ensure_future(timed(number, due)))
    await asyncio.gather(*running)
    took = (time.monotonic_ns() - started) / 1e9
    return [len(running) / took, *percentiles(delays[warm:])]


@asynccontextmanager
async def opened(url: str, *, max_size: int = PostgresPool().max_size) -> AsyncIterator[Store]:
    """A store of ours, empty."""
    await upgrade(url, schema_name(HIVE))
    async with await Store.connect(url, HIVE, agent=AGENT, pool=PostgresPool(max_size=max_size)) as store:
        yield store


@asynccontextmanager
async def plain_pool(url: str, size: int) -> AsyncIterator[asyncpg.Pool[asyncpg.Record]]:
    """A pool as people open it, all its connections there."""
    async with asyncpg.create_pool(url, min_size=size, max_size=size) as pool:
        yield pool


async def empty(url: str) -> None:
    """Forget all rows, of ours and of the others'."""
    connection = await asyncpg.connect(url)
    try:
        for scope in (HIVE, OTHERS):
            schema = schema_name(scope)
            await upgrade(url, schema)
            for table in ("agent_state", "agent_metrics", "inbox", "outbox"):
                await connection.execute(f"TRUNCATE {quote(schema)}.{table}")
    finally:
        await connection.close()
