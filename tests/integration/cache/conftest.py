"""Stores with a cache: each pair is what one process of a hive has."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import redis.asyncio
from tests.conftest import PostgresServer

from agenthive import cache_link
from agenthive.cache import Cache
from agenthive.settings import HiveScope, PostgresPool
from agenthive.store import Store, schema_name, upgrade

PATIENCE = 20.0
Join = Callable[..., Awaitable["Member"]]


async def until(reached: Callable[[], Any], what: str) -> None:
    """Poll until ``reached``, plain or async."""
    deadline = time.monotonic() + PATIENCE
    while True:
        seen = reached()
        if await seen if inspect.isawaitable(seen) else seen:
            return
        assert time.monotonic() < deadline, f"not within {PATIENCE:.0f} s: {what}"
        await asyncio.sleep(0.002)


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

    async def settled(self) -> None:
        """Until each fill and change has been told."""
        await until(lambda: not self.cache._tasks, "every fill")

    def slow_down(self, pause: Callable[[], Awaitable[Any]]) -> None:
        """Wait for ``pause`` between what PostgreSQL told and what the cache learns."""
        flush = self._batcher._flush

        async def slow(keys: Any, deadline: float) -> Any:
            found = await flush(keys, deadline)
            await pause()
            return found

        self._batcher._flush = slow

    def slow_down_writes(self, pause: Callable[[], Awaitable[Any]]) -> None:
        """Wait for ``pause`` between a commit and what the cache is told of it."""
        changed = self.cache.changed

        async def slow(changes: Any) -> None:
            await pause()
            await changed(changes)

        self.cache.changed = slow  # type: ignore[method-assign]


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow this machine is, a Redis that is there is there."""
    monkeypatch.setattr(cache_link, "PATIENCE_SECONDS", 20.0)


@pytest.fixture
def impatient(patient: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it is outside of tests, for those of a Redis that does not answer."""
    monkeypatch.setattr(cache_link, "PATIENCE_SECONDS", 0.2)


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
