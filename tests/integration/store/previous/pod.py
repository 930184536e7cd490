"""A pod of the first release: the operations of its store, by its own statements."""

from __future__ import annotations

import asyncio
import itertools
import time
import uuid
from datetime import UTC, datetime
from typing import Any

import asyncpg

from .version_1 import MessagesSql, MetricsSql, StateSql, filtered


class Pod:
    """Works without pause on what it alone writes, and checks what it reads; any error ends it."""

    def __init__(self, pool: asyncpg.Pool[Any], schema: str, agent: str) -> None:
        self.pool, self.agent = pool, agent
        self.state, self.metrics, self.messages = StateSql(schema), MetricsSql(schema), MessagesSql(schema)
        self.rounds = 0
        self.longest = 0.0
        self.halt = False

    async def work(self) -> None:
        """Round after round of every operation, until ``halt``."""
        for n in itertools.count():
            if self.halt:
                return
            for operation in (self.sets, self.compares_and_sets, self.deletes, self.lists, self.records, self.logs):
                started = time.monotonic()
                await operation(n)
                self.longest = max(self.longest, time.monotonic() - started)
            self.rounds += 1

    async def read(self, key: str) -> str | None:
        found = await self.pool.fetch(self.state.read, self.agent, [key])
        return str(found[0]["value"]) if found else None

    async def sets(self, n: int) -> None:
        key = f"set/{n % 10}"
        await self.pool.fetch(self.state.upsert, [self.agent], [key], [f'"{n}"'], [None])
        assert await self.read(key) == f'"{n}"'

    async def compares_and_sets(self, n: int) -> None:
        async with self.pool.acquire() as connection, connection.transaction():
            keys = ([self.agent], ["count"])
            rows = await connection.fetch(self.state.lock, *keys)
            old = rows[0]["version"]
            assert (old is None) == (n == 0), "a version is never lost"
            columns = (*keys, [str(n)], [None])
            if old is None:
                assert len(await connection.fetch(self.state.insert, *columns, [rows[0]["birth"]])) == 1
            else:
                await connection.execute(self.state.update, *columns, [old + 1])
        assert await self.read("count") == str(n)

    async def deletes(self, n: int) -> None:
        await self.pool.fetch(self.state.upsert, [self.agent], ["gone"], [str(n)], [3600.0])
        assert await self.pool.execute(self.state.delete, [self.agent], ["gone"]) == "DELETE 1"
        assert await self.read("gone") is None
        await self.pool.fetchval(self.state.purge, 100)

    async def lists(self, n: int) -> None:
        rows = await self.pool.fetch(self.state.page_of_prefix, self.agent, "set/", "", 100, "set0")
        assert len(rows) == min(n + 1, 10)
        assert len(await self.pool.fetch(self.state.page, self.agent, "", "", 100)) == len(rows) + 1

    async def records(self, n: int) -> None:
        now = datetime.now(UTC)
        await self.pool.execute(self.metrics.insert, [uuid.uuid4()], [self.agent], ["m"], [float(n)], [now], ["{}"])
        query, arguments = filtered(self.metrics.select, self.metrics.newest_first, {"agent_name =": self.agent}, 1)
        assert (await self.pool.fetchrow(query, *arguments))["value"] == n

    async def logs(self, n: int) -> None:
        now = datetime.now(UTC)
        row = (uuid.uuid4(), self.agent, f"m{n}", "x", self.agent, "t", "failed", 1, "why", now, now, "{}")
        await self.pool.execute(self.messages.insert, *([value] for value in row))
        query, arguments = filtered(self.messages.select, self.messages.newest_first, {"message_id =": f"m{n}"}, 10)
        found = await self.pool.fetch(query, *arguments)
        assert [row["agent"] for row in found].count(self.agent) == 1


class Pods:
    """Several of them at work, as a context manager: leaving it stops them, and raises what ended one."""

    def __init__(self, url: str, schema: str, count: int = 3) -> None:
        self._url, self._schema, self._count = url, schema, count
        self.pods: list[Pod] = []
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Pods:
        self._pool = await asyncpg.create_pool(self._url, min_size=self._count, max_size=self._count)
        self.pods = [Pod(self._pool, self._schema, f"old-{n}") for n in range(self._count)]
        self._tasks = [asyncio.create_task(pod.work()) for pod in self.pods]
        return self

    async def rounds(self, more: int) -> None:
        """Until each pod has done so many more rounds."""
        goals = [pod.rounds + more for pod in self.pods]
        while any(pod.rounds < goal for pod, goal in zip(self.pods, goals, strict=True)):
            for task in self._tasks:
                if task.done():
                    task.result()
            await asyncio.sleep(0.005)

    async def __aexit__(self, *_: object) -> None:
        for pod in self.pods:
            pod.halt = True
        try:
            await asyncio.gather(*self._tasks)
        finally:
            await self._pool.close()
