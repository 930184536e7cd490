"""A hive's schema and stores on the session's PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import pytest

from agenthive.settings import HiveScope
from agenthive.store import Store, schema_name, upgrade

Connect = Callable[..., Awaitable[Store]]


@pytest.fixture
def scope(unique: str) -> HiveScope:
    """A hive of the test's own."""
    return HiveScope(namespace="team-a", hive=unique)


@pytest.fixture
def hive_url(postgres: Any) -> str:
    """The session's database: a schema of one's own isolates as well as a database, and is made faster."""
    return str(postgres.url())


@pytest.fixture
async def connect(hive_url: str, scope: HiveScope) -> AsyncIterator[Connect]:
    """Opens stores of one upgraded hive, as its processes would; closed afterwards."""
    await upgrade(hive_url, schema_name(scope))
    stores: list[Store] = []

    async def open_store(agent: str = "librarian", url: str = hive_url, **options: Any) -> Store:
        stores.append(await Store.connect(url, scope, agent=agent, **options))
        return stores[-1]

    yield open_store
    for store in stores:
        await store.aclose()


@pytest.fixture
async def store(connect: Connect) -> Store:
    """One store of agent ``librarian``."""
    return await connect()


async def commits(store: Store, table: str) -> int:
    """In how many commits the rows of a table were written. The server's counter of transactions has others', too."""
    found = await store.pool.fetchval(f'SELECT count(DISTINCT xmin::text) FROM "{store.schema}".{table}')
    return int(found)


async def eventually(good: Callable[[], bool], what: str) -> None:
    """Until ``good`` is true of this process."""
    deadline = asyncio.get_running_loop().time() + 20
    while True:
        if good():
            return
        assert asyncio.get_running_loop().time() < deadline, f"no {what} within 20 s"
        await asyncio.sleep(0.005)


def as_role(url: str, user: str, password: str) -> str:
    """``url`` with another login."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=f"{user}:{password}@{parts.hostname}:{parts.port}"))
