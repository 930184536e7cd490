"""Stores with a cache: each pair is what one process of a hive has."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import redis.asyncio
from tests.conftest import PostgresServer

from agenthive.cache import Cache
from agenthive.settings import HiveScope, PostgresPool
from agenthive.store import Store, schema_name, upgrade

Join = Callable[..., Awaitable["Member"]]


class Member:
    """One process of the hive, as far as state is concerned."""

    def __init__(self, store: Store, cache: Cache) -> None:
        self.store = store
        self.cache = cache
        self.loads = 0
        """Documents asked of PostgreSQL on behalf of the cache."""
        self._batcher = store._lanes._loads
        self._flush = self._batcher._flush
        self._batcher._flush = self._counted

    async def _counted(self, keys: Any, deadline: float) -> Any:
        self.loads += len(keys)
        return await self._flush(keys, deadline)

    def slow_down(self, pause: Callable[[], Awaitable[Any]]) -> None:
        """Wait for ``pause`` between what PostgreSQL told and what the cache learns."""
        flush = self._batcher._flush

        async def slow(keys: Any, deadline: float) -> Any:
            found = await flush(keys, deadline)
            await pause()
            return found

        self._batcher._flush = slow


@pytest.fixture
def scope(unique: str) -> HiveScope:
    """A hive of the test's own."""
    return HiveScope(namespace="team-c", hive=unique)


@pytest.fixture
async def join(postgres: PostgresServer, redis_url: str, scope: HiveScope) -> AsyncIterator[Join]:
    """Opens members of the hive; closed afterwards in the order of a process."""
    await upgrade(postgres.url(), schema_name(scope))
    members: list[Member] = []

    async def one(agent: str = "librarian", url: str = redis_url, **options: Any) -> Member:
        cache = Cache(url, scope, **{"max_bytes": 10_000_000, **options})
        pool = PostgresPool(min_size=1, max_size=4)
        store = await Store.connect(postgres.url(), scope, agent=agent, cache=cache, pool=pool)
        members.append(Member(store, cache))
        return members[-1]

    yield one
    for member in members:
        await member.store.aclose()
        await member.cache.aclose()


@pytest.fixture
async def raw(redis_url: str) -> AsyncIterator[redis.asyncio.Redis]:
    """A client beside the cache, on the same Valkey."""
    async with redis.asyncio.Redis.from_url(redis_url, protocol=2) as client:
        yield client
