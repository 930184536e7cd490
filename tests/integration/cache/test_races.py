"""No reader sees what is older than the newest write that had returned before the read began."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import time
from collections import defaultdict
from typing import Any

import pytest
import redis.asyncio
from tests.conftest import ValkeyServer

from agenthive.settings import HiveScope
from agenthive.store import VersionConflict

from .conftest import Join, Member

KEYS = [f"k{n}" for n in range(4)]
READS, WRITES, DELETIONS, EVICTIONS = 4000, 400, 20, 20
"""How many there are at least of each in a race."""


class History:
    """What was written and read, and what must not have been.

    A place is where a write stands among those of its key: the version of a set, half a step further its deletion.
    """

    def __init__(self) -> None:
        self.place_of: dict[int, float] = {}
        self.returned: dict[str, float] = defaultdict(float)
        """By key the last place of a write that has returned."""
        self.deletions: dict[str, list[tuple[float, float]]] = defaultdict(list)
        """By key when each was begun, and its place."""
        self.reads: list[tuple[str, float, float, int | None]] = []
        """Key, what had returned when it began, when it ended, what it saw."""
        self.evictions = 0
        self._numbers = itertools.count(1)

    @property
    def over(self) -> bool:
        """Whether enough has happened."""
        return (
            len(self.reads) >= READS
            and len(self.place_of) >= WRITES
            and sum(map(len, self.deletions.values())) >= DELETIONS
            and self.evictions >= EVICTIONS
        )

    async def set(self, member: Member, key: str, **options: Any) -> int:
        number = next(self._numbers)
        version = await member.store.state.shared.set(key, number, **options)
        self.place_of[number] = version
        self.returned[key] = max(self.returned[key], version)
        return version

    async def delete(self, member: Member, key: str, version: int) -> None:
        begun = time.monotonic()
        await member.store.state.shared.delete(key, expect_version=version)
        self.deletions[key].append((begun, version + 0.5))
        self.returned[key] = max(self.returned[key], version + 0.5)

    async def read(self, member: Member, key: str) -> None:
        floor = self.returned[key]
        seen = await member.store.state.shared.get(key)
        self.reads.append((key, floor, time.monotonic(), seen))

    def stale(self) -> list[tuple[str, float, float, int | None]]:
        return [entry for entry in self.reads if not self._fresh(*entry)]

    def _fresh(self, key: str, floor: float, ended: float, seen: int | None) -> bool:
        if seen is not None:
            return self.place_of[seen] >= floor
        return not floor or any(begun <= ended and place >= floor for begun, place in self.deletions[key])


async def write(history: History, member: Member) -> None:
    while not history.over:
        key = random.choice(KEYS)
        how = random.random()
        with contextlib.suppress(VersionConflict):
            if how < 0.5:
                await history.set(member, key)
            elif how < 0.6:
                await history.set(member, key, ttl=60)
            else:
                _, version = await member.store.state.shared.get_versioned(key)
                if how < 0.8 or not version:
                    await history.set(member, key, expect_version=version)
                else:
                    await history.delete(member, key, version)
        await asyncio.sleep(random.choice([0, 0, 0.001, 0.01, 0.05]))


async def read(history: History, member: Member) -> None:
    while not history.over:
        await asyncio.gather(*(history.read(member, random.choice(KEYS)) for _ in range(random.choice([1, 1, 5]))))
        await asyncio.sleep(random.choice([0, 0, 0.001]))


async def pause() -> None:
    await asyncio.sleep(random.choice([0, 0, 0, 0.001, 0.01, 0.05]))


async def evict(history: History, client: redis.asyncio.Redis, scope: HiveScope) -> None:
    """Entries, markers and the account vanish one by one, now and then everything is gone."""
    while not history.over:
        keys = await client.keys(f"{scope.hive_prefix}c*")
        if keys and random.random() < 0.7:
            history.evictions += await client.delete(random.choice(keys))
        else:
            await client.flushall()
        await asyncio.sleep(0.02)


@pytest.mark.parametrize("bound", [None, 10_000_000, 2000])
async def test_no_read_is_older_than_a_write_that_had_returned(
    join: Join, own_valkey: ValkeyServer, scope: HiveScope, bound: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agenthive.cache_link.PATIENCE_SECONDS", 30.0)  # Redis is there, however slow this machine is
    members = [await join(url=own_valkey.url, max_bytes=bound) for _ in range(3)]
    for member in members:
        member.slow_down(pause)
    history = History()
    async with redis.asyncio.Redis.from_url(own_valkey.url, protocol=2) as client:
        tasks = [write(history, member) for member in members for _ in range(3)]
        tasks += [read(history, member) for member in members for _ in range(5)]
        await asyncio.gather(*tasks, evict(history, client, scope))
    assert history.stale() == []
    figures = [member.cache.figures for member in members]
    assert all(each.hit_ratio > 0.1 for each in figures), [each.requests for each in figures]
    assert not any(each.errors for each in figures), "Redis was there all the time"
