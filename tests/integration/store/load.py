"""Writers for the fault tests, which remember what returned and what raised."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import Callable

import pytest

from agenthive.store import Store, StoreError, StoreUnavailable

PATIENCE = 30.0


async def until(reached: Callable[[], object], what: str) -> None:
    """Poll ``reached``, for 30 s at most."""
    deadline = time.monotonic() + PATIENCE
    while not reached():
        assert time.monotonic() < deadline, f"not within {PATIENCE:.0f} s: {what}"
        await asyncio.sleep(0.005)


class Writers:
    """Coroutines that write without pause, and remember what returned and what raised."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.returned: dict[str, int] = {}
        self.raised: dict[str, StoreError] = {}
        self.metrics: set[int] = set()
        self.lost_metrics: dict[int, StoreError] = {}
        self.chains: dict[str, int] = {}
        self.tasks: list[asyncio.Task[None]] = []
        self.halt = False

    async def sets(self, who: int) -> None:
        for n in itertools.count():
            if self.halt:
                return
            key = f"set/{who}/{n}"
            try:
                self.returned[key] = await self.store.state.set(key, n)
            except StoreError as error:
                self.raised[key] = error

    async def records(self, who: int) -> None:
        for n in itertools.count(who * 1_000_000):
            if self.halt:
                return
            try:
                await self.store.metrics.record("librarian", "m", n)
                self.metrics.add(n)
            except StoreError as error:
                self.lost_metrics[n] = error

    async def counts(self, who: int) -> None:
        """Increments by compare-and-set: a value can only have come from the one before it."""
        key, value, version = f"count/{who}", 0, 0
        while not self.halt:
            try:
                version = await self.store.state.set(key, value + 1, expect_version=version)
                value += 1
            except StoreUnavailable:  # committed or not: look
                found, version = await self._look(key)
                assert found in (value, value + 1)
                value = found
            self.chains[key] = value

    async def _look(self, key: str) -> tuple[int, int]:
        while True:
            with contextlib.suppress(StoreUnavailable):
                return await self.store.state.get_versioned(key, default=0)

    def start(self, *, sets: int = 20, records: int = 10, counts: int = 10) -> None:
        """So many of each."""
        kinds = ((self.sets, sets), (self.records, records), (self.counts, counts))
        self.tasks = [asyncio.create_task(kind(who)) for kind, number in kinds for who in range(number)]

    async def stop(self) -> None:
        """Let each finish what it does; raises what one of them did not expect."""
        self.halt = True
        await asyncio.gather(*self.tasks)

    async def goes_on(self, writes: int = 2000) -> None:
        """Wait until so many more have returned."""
        goal = self.done + writes
        await until(lambda: self.done > goal or any(task.done() for task in self.tasks), f"{writes} writes")

    async def verify(self) -> None:
        """What returned is there, what raised is there once or not at all, and nothing else is."""
        found = {entry.key: entry for entry in await self.store.state.list("set/", limit=1_000_000)}
        assert self.returned.items() <= {key: entry.version for key, entry in found.items()}.items()
        assert found.keys() <= self.returned.keys() | self.raised.keys()
        assert all(entry.value == int(key.rpartition("/")[2]) for key, entry in found.items())
        assert {entry.key: entry.value for entry in await self.store.state.list("count/")} == self.chains
        values = [int(metric.value) for metric in await self.store.metrics.query(limit=1_000_000)]
        assert len(values) == len(set(values)), "a batch that was repeated is there once"
        assert self.metrics <= set(values) <= self.metrics | self.lost_metrics.keys()

    @property
    def done(self) -> int:
        """Writes that have returned."""
        return len(self.returned) + len(self.metrics) + sum(self.chains.values())


def impatient(store: Store, monkeypatch: pytest.MonkeyPatch, seconds: float = 0.2) -> None:
    """Let the calls of ``store`` give up after so long."""
    monkeypatch.setattr("agenthive.store.database.RETRY_SECONDS", seconds)
    for batch in (store._lanes._reads, store._lanes._writes, store.metrics._batch):
        monkeypatch.setattr(batch, "_patience", seconds)


def lent(store: Store) -> int:
    """Connections of the pool that somebody holds."""
    return store.pool.get_size() - store.pool.get_idle_size()


async def all_given_back(store: Store) -> None:
    """Wait until nobody holds a connection, and nothing of this store runs or waits in PostgreSQL."""
    await until(lambda: lent(store) == 0, "all connections given back")
