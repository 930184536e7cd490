"""What is measured of the store in one process: ours and the others by turns, so that a noisy second hits both."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import statistics
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import asyncpg

from agenthive.store import Store, schema_name
from agenthive.store.naming import quote
from agenthive.store.partitions import METRICS, bounds, existing_partitions
from benchmarks import store_plain as plain
from benchmarks.ours import BODY, HIVE
from benchmarks.store_load import (
    AGENT,
    DOCUMENT,
    Call,
    closed_loop,
    empty,
    open_loop,
    opened,
    plain_pool,
)

WRITERS = 100
POOLS = (10, 20, 50)
KEYS = 10_000
COPY_ROWS = 1000
TURNS = 2
Figures = dict[str, list[float]]


Timed = Callable[[], Awaitable[list[float]]]


def distinct(call: Call) -> Call:
    """The numbers go on from one turn to the next, so that each key is new."""
    numbers = itertools.count()
    return lambda who, _: call(who, next(numbers))


def sets(store: Store) -> Call:
    """``state.set`` of a key that is new."""
    return lambda who, number: store.state.set(f"{who}/{number}", BODY)


def records(store: Store) -> Call:
    """``metrics.record``."""
    return lambda who, number: store.metrics.record(AGENT, "latency_ms", number, {"n": who})


async def turns(kinds: dict[str, Timed], rounds: int = TURNS) -> list[Figures]:
    """Measure each of ``kinds`` by turns, so that a noisy second hits all of them."""
    return [{name: await timed() for name, timed in kinds.items()} for _ in range(rounds)]


async def writes(url: str, kind: str, span: float) -> list[Figures]:
    """Writers in one process; ``kind`` is ``sets`` or ``records``."""
    await empty(url)
    async with contextlib.AsyncExitStack() as stack:
        store = await stack.enter_async_context(opened(url))
        connection = await stack.enter_async_context(plain_pool(url, 1))
        pools = {size: await stack.enter_async_context(plain_pool(url, size)) for size in POOLS}
        if kind == "sets":
            ours, single, unnest, copy = distinct(sets(store)), plain.single_sets, plain.unnest_sets, plain.copy_sets
        else:
            ours, single = records(store), plain.single_records
            unnest, copy = plain.unnest_records, plain.copy_records
        return await turns(
            {
                "ours": partial(closed_loop, ours, WRITERS, span),
                **{
                    f"pool of {size}": partial(closed_loop, single(pool), WRITERS, span) for size, pool in pools.items()
                },
                f"unnest of {WRITERS}": partial(closed_loop, unnest(connection, WRITERS), 1, span, WRITERS),
                f"COPY of {COPY_ROWS:,}": partial(closed_loop, copy(connection, COPY_ROWS), 1, span, COPY_ROWS),
            }
        )


async def ingest(url: str, recorders: int, span: float) -> list[Figures]:
    """Figures recorded by as many callers as fit one batch, and as fast as one connection can."""
    await empty(url)
    async with opened(url) as store, plain_pool(url, 1) as connection:
        unnest, copy = plain.unnest_records(connection, COPY_ROWS), plain.copy_records(connection, COPY_ROWS)
        return await turns(
            {
                "ours": partial(closed_loop, records(store), recorders, span),
                f"unnest of {COPY_ROWS:,}": partial(closed_loop, unnest, 1, span, COPY_ROWS),
                f"COPY of {COPY_ROWS:,}": partial(closed_loop, copy, 1, span, COPY_ROWS),
            }
        )


async def steady(url: str, rate: int, span: float) -> list[Figures]:
    """Writes at a steady rate."""
    await empty(url)
    async with opened(url) as store, plain_pool(url, 10) as pool:
        return await turns(
            {
                "ours": partial(open_loop, distinct(sets(store)), rate, span),
                "pool of 10": partial(open_loop, plain.single_sets(pool), rate, span),
            }
        )


async def reads(url: str, span: float) -> list[Figures]:
    """100 tasks read documents by key, without a cache."""
    await empty(url)
    keys = [f"key/{number}" for number in range(KEYS)]
    for table in (f"{quote(schema_name(HIVE))}.agent_state", plain.STATE):
        await fill(url, table, keys)
    async with opened(url) as store, plain_pool(url, 10) as ten, plain_pool(url, 50) as fifty:

        def read(who: int, number: int) -> Any:
            return store.state.get(keys[(who * 7919 + number * 104_729) % KEYS])

        return await turns(
            {
                "ours": partial(closed_loop, read, WRITERS, span),
                "pool of 10": partial(closed_loop, plain.single_reads(ten, keys), WRITERS, span),
                "pool of 50": partial(closed_loop, plain.single_reads(fifty, keys), WRITERS, span),
            }
        )


async def fill(url: str, table: str, keys: list[str]) -> None:
    """Put a document under each of ``keys``."""
    connection = await asyncpg.connect(url, command_timeout=120)
    try:
        await connection.execute(
            f"INSERT INTO {table} (agent, key, value, version) "
            "SELECT $1, k, $2::text::json, 1 FROM unnest($3::text[]) k",
            AGENT,
            DOCUMENT,
            keys,
        )
        await connection.execute(f"ANALYZE {table}")
    finally:
        await connection.close()


async def growth(url: str, sizes: list[int], span: float, parts: int) -> list[dict[str, list[float]]]:
    """Microseconds of a read and of a write of a random key by 100 tasks, for each number of rows in the table."""
    await empty(url)
    found: list[dict[str, list[float]]] = []
    there = 0
    for size in sizes:
        await fill(url, f"{quote(schema_name(HIVE))}.agent_state", [f"key/{number}" for number in range(there, size)])
        there = size
        connection = await asyncpg.connect(url, command_timeout=120)
        await connection.execute("CHECKPOINT")  # what filling left to be written is not the cost of what is measured
        await connection.close()
        costs: dict[str, list[float]] = {"read": [], "write": []}
        async with opened(url) as store:
            key = partial(_random_key, random.Random(1), size)
            calls: dict[str, Call] = {
                "read": lambda *_, store=store, key=key: store.state.get(key()),
                "write": lambda *_, store=store, key=key: store.state.set(key(), BODY),
            }
            for _ in range(parts):
                for name, call in calls.items():
                    costs[name].append(1e6 / (await closed_loop(call, WRITERS, span))[0])
        found.append(costs)
    return found


def _random_key(chance: random.Random, size: int) -> str:
    return f"key/{chance.randrange(size)}"


async def partitions(url: str, counts: list[int], each: int, span: float) -> list[list[float]]:
    """Milliseconds of a query of an agent's last hour, for each number of daily partitions, each with so many rows."""
    await empty(url)
    table = f"{quote(schema_name(HIVE))}.agent_metrics"
    today = datetime.now(UTC).date()
    connection = await asyncpg.connect(url, command_timeout=120)
    found: list[list[float]] = []
    try:
        for name in await existing_partitions(connection, schema_name(HIVE), METRICS):
            await connection.execute(f"DROP TABLE {quote(schema_name(HIVE))}.{name}")
        there = 0
        for count in counts:
            for day in (today - timedelta(days=age) for age in range(there, count)):
                start, end = bounds(METRICS, day)
                await connection.execute(
                    f"CREATE TABLE {quote(schema_name(HIVE))}.{METRICS.partition(day)} "
                    f"PARTITION OF {table} FOR VALUES FROM ('{start}') TO ('{end}')"
                )
                await connection.execute(
                    f"INSERT INTO {table} (agent_name, metric_type, value, timestamp) "
                    "SELECT 'agent-' || n % 20, 'latency_ms', n, $1::timestamptz + n * interval '86399 s' / $2 "
                    "FROM generate_series(0, $2::int) n",
                    datetime.combine(day, datetime.min.time(), UTC),
                    each,
                )
            there = count
            await connection.execute(f"ANALYZE {table}")
            found.append(await _query_times(url, datetime.combine(today, datetime.min.time(), UTC), span))
    finally:
        await connection.close()
    return found


async def _query_times(url: str, since: datetime, span: float) -> list[float]:
    # Not opened(): an upgrade would make the partitions that are missing.
    async with await Store.connect(url, HIVE, agent=AGENT) as store:
        times: list[float] = []
        until = since + timedelta(hours=1)
        ends = time.monotonic() + span
        while time.monotonic() < ends or len(times) < 50:
            started = time.perf_counter()
            await store.metrics.query(agent="agent-7", metric_type="latency_ms", since=since, until=until, limit=100)
            times.append((time.perf_counter() - started) * 1000)
            await asyncio.sleep(0)
        times = times[10:]
        quarter = len(times) // 4
        return [statistics.median(times[first * quarter : (first + 1) * quarter]) for first in range(4)]
