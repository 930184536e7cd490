"""State read through the cache: how fast, and how often the cache has it while some of it is written."""

from __future__ import annotations

import asyncio
import itertools
import random
from functools import partial
from typing import Any

from agenthive.cache import Cache
from agenthive.settings import PostgresPool
from agenthive.store import Store, schema_name, upgrade
from agenthive.store.naming import quote
from benchmarks import store_plain as plain
from benchmarks.ours import BODY, HIVE
from benchmarks.store_cells import KEYS, WRITERS, Figures, fill, turns
from benchmarks.store_load import AGENT, closed_loop, empty, plain_pool

WRITTEN = 0.05
#: Exponent of the distribution: the commonest key is read twice as often as the second, three times as the third.
ZIPF = 1.0


def zipf(count: int) -> list[int]:
    """So many keys, drawn from Zipf's distribution."""
    weights = list(itertools.accumulate(1 / (rank**ZIPF) for rank in range(1, KEYS + 1)))
    return random.Random(1).choices(range(KEYS), cum_weights=weights, k=count)


async def cached(url: str, redis: str, span: float, calls: int) -> dict[str, Any]:
    """{turns: reads of a full cache and of PostgreSQL by turns, ratio: percent of a Zipf load's reads that it has}."""
    await empty(url)
    keys = [f"key/{number}" for number in range(KEYS)]
    for table in (f"{quote(schema_name(HIVE))}.agent_state", plain.STATE):
        await fill(url, table, keys)
    await upgrade(url, schema_name(HIVE))
    cache = Cache(redis, HIVE)
    async with (
        await Store.connect(url, HIVE, agent=AGENT, pool=PostgresPool(), cache=cache) as store,
        plain_pool(url, 10) as pool,
    ):
        ratio = await _hit_ratio(store, cache, keys, calls)

        def read(who: int, number: int) -> Any:
            return store.state.get(keys[(who * 7919 + number * 104_729) % KEYS])

        found: list[Figures] = await turns(
            {
                "ours": partial(closed_loop, read, WRITERS, span),
                "pool of 10": partial(closed_loop, plain.single_reads(pool, keys), WRITERS, span),
            }
        )
    await cache.aclose()
    return {"turns": found, "ratio": ratio}


async def _hit_ratio(store: Store, cache: Cache, keys: list[str], calls: int) -> float:
    """Percent of the reads of 100 tasks that read by Zipf's law and write one call in twenty; all keys were read
    once before: a cache in use, not one that is filled for the first time."""
    await asyncio.gather(*(store.state.get(key) for key in keys))
    cache.figures.requests.clear()
    chance, places = random.Random(2), iter(zipf(calls))

    async def work() -> None:
        for place in places:
            if chance.random() < WRITTEN:
                await store.state.set(keys[place], BODY)
            else:
                await store.state.get(keys[place])

    await asyncio.gather(*(work() for _ in range(WRITERS)))
    return cache.figures.hit_ratio * 100
