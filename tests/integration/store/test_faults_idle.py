"""Connections that are lost while nobody uses them: the next call replaces them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest
from tests.integration.bus.faults.ledger import say
from tests.integration.store.conftest import Connect
from tests.integration.store.load import all_given_back, until

from agenthive.settings import PostgresPool
from agenthive.store import Store, loans

POOL = 5


class Firewall:
    """A TCP proxy that can forget its connections: what comes on them is swallowed, and nobody is told."""

    def __init__(self, port: int) -> None:
        self._server_port = port
        self._server: asyncio.Server | None = None
        self._pipes: list[asyncio.Task[None]] = []
        self._writers: list[asyncio.StreamWriter] = []
        self._forgotten: set[int] = set()
        self.accepted = 0
        self.swallowed = 0

    @property
    def port(self) -> int:
        assert self._server is not None
        return int(self._server.sockets[0].getsockname()[1])

    def forget(self) -> None:
        """All connections there are."""
        self._forgotten |= set(range(1, self.accepted + 1))

    async def _accept(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        self.accepted += 1
        number = self.accepted
        server, to_server = await asyncio.open_connection("127.0.0.1", self._server_port)
        self._writers += [to_client, to_server]
        self._pipes += [
            asyncio.create_task(self._carry(number, client, to_server)),
            asyncio.create_task(self._carry(number, server, to_client)),
        ]

    async def _carry(self, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            if number in self._forgotten:
                self.swallowed += 1
            else:
                writer.write(data)
        if number not in self._forgotten:
            writer.close()

    @classmethod
    @asynccontextmanager
    async def before(cls, port: int) -> AsyncIterator[Firewall]:
        """Stand before the server on ``port``."""
        wall = cls(port)
        wall._server = await asyncio.start_server(wall._accept, "127.0.0.1", 0)
        try:
            yield wall
        finally:
            wall._server.close()
            for pipe in wall._pipes:
                pipe.cancel()
            await asyncio.gather(*wall._pipes, return_exceptions=True)
            for writer in wall._writers:
                writer.transport.abort()


def through(url: str, port: int) -> str:
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=f"{parts.username}:{parts.password}@127.0.0.1:{port}"))


async def use_all(store: Store) -> None:
    """Have the pool open all its connections, and get them back."""
    async with asyncio.TaskGroup() as group:
        for _ in range(POOL):
            group.create_task(store.pool.execute("SELECT pg_sleep(0.1)"))
    await all_given_back(store)


@pytest.fixture
def idle_at_once(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Connections count as idle for long right after their use."""
    monkeypatch.setattr(loans, "IDLE_SECONDS", 0.0)
    monkeypatch.setattr(loans, "WARM_SECONDS", 0.0)
    return


async def test_idle_connections_that_the_server_ended(connect: Connect, hive_url: str, unique: str) -> None:
    store = await connect(application_name=unique, pool=PostgresPool(max_size=POOL))
    admin = await asyncpg.connect(hive_url)
    for _ in range(3):
        await use_all(store)
        ended = await admin.fetchval(
            "SELECT count(pg_terminate_backend(pid, 5000)) FROM pg_stat_activity WHERE application_name = $1", unique
        )
        assert ended == POOL
        started = time.monotonic()
        await asyncio.gather(store.state.set("k", 1), store.state.get("k"), store.metrics.record("a", "m", 1))
        say(f"{POOL} idle connections ended by the server: replaced in {time.monotonic() - started:.3f} s")
        assert time.monotonic() - started < 10
        await store.ping()
    await admin.close()


@pytest.mark.timeout(90)
@pytest.mark.usefixtures("idle_at_once")
async def test_idle_connections_that_a_firewall_forgot(connect: Connect, postgres: Any, hive_url: str) -> None:
    async with Firewall.before(postgres.port) as wall:
        store = await connect(url=through(hive_url, wall.port), pool=PostgresPool(max_size=POOL))
        await use_all(store)
        wall.forget()
        started = time.monotonic()
        await asyncio.gather(store.state.set("k", 1), store.state.get("k"), store.metrics.record("a", "m", 1))
        took = time.monotonic() - started
        say(f"{POOL} idle connections forgotten by a firewall: replaced in {took:.1f} s")
        assert wall.swallowed > 0
        assert took < 20, "less than the time a statement may take"
        assert await store.state.get("k") == 1
        await use_all(store)
        await until(lambda: store.pool.get_size() <= POOL, "no more connections than the pool may have")
        wall.forget()  # and closing waits for none that is forgotten
        started = time.monotonic()
        await store.aclose()
        assert time.monotonic() - started < 20


async def test_a_busy_connection_is_not_asked(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    store = await connect()
    asked: list[str] = []
    execute = loans.PooledConnection.execute

    async def noted(self: Any, query: str, *args: Any, timeout: float | None = None) -> str:
        asked.append(query)
        return await execute(self, query, *args, timeout=timeout)

    monkeypatch.setattr(loans.PooledConnection, "execute", noted)
    await store.state.set("k", 1)
    await use_all(store)
    assert "SELECT 1" not in asked
    monkeypatch.setattr(loans, "IDLE_SECONDS", 0.0)
    await store.state.set("k", 2)
    await all_given_back(store)
    await store.state.set("k", 3)
    assert "SELECT 1" in asked
