"""No reader sees what is older than the newest write that had returned before the read began."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import random
from bisect import bisect_right
from typing import Any, NamedTuple

import pytest
import redis.asyncio
from tests.conftest import ValkeyServer

from agenthive import cache_link
from agenthive.settings import HiveScope
from agenthive.store import VersionConflict

from .conftest import Join, Member, until

KEYS = [f"k{n}" for n in range(4)]
READS, WRITES, DELETIONS, EVICTIONS = 4000, 400, 20, 20
"""How many there are at least of each in a race."""


class Write(NamedTuple):
    """One that returned; times are ticks."""

    key: str
    number: int | None
    """What was written; None: it was deleted."""
    version: int
    """Of a deletion: what it deleted."""
    begun: int
    returned: int


class Read(NamedTuple):
    """What one saw, and when."""

    key: str
    seen: int | None
    begun: int
    ended: int


class History:
    """What was written and read, and what must not have been read."""

    def __init__(self, members: list[Member]) -> None:
        self.members = members
        self.writes: list[Write] = []
        self.deletions = 0
        self.reads: list[Read] = []
        self.evictions = 0
        self._ticks = itertools.count(1)
        self._numbers = itertools.count(1)

    @property
    def over(self) -> bool:
        """Whether enough has happened."""
        return (
            len(self.reads) >= READS
            and len(self.writes) >= WRITES
            and self.deletions >= DELETIONS
            and self.evictions >= EVICTIONS
        )

    async def set(self, member: Member, key: str, **options: Any) -> None:
        number, begun = next(self._numbers), next(self._ticks)
        version = await member.store.state.shared.set(key, number, **options)
        self.writes.append(Write(key, number, version, begun, next(self._ticks)))

    async def delete(self, member: Member, key: str, version: int) -> None:
        begun = next(self._ticks)
        await member.store.state.shared.delete(key, expect_version=version)
        self.writes.append(Write(key, None, version, begun, next(self._ticks)))
        self.deletions += 1

    async def read(self, member: Member, key: str) -> None:
        # Who has not reached Redis yet has still to tell what it wrote: that is bounded by time, not forbidden.
        told, begun = all(each.cache.available for each in self.members), next(self._ticks)
        seen = await member.store.state.shared.get(key)
        if told:
            self.reads.append(Read(key, seen, begun, next(self._ticks)))

    def stale(self) -> list[Read]:
        """The reads that saw what is older than a write that had returned when they began."""
        return [read for key in KEYS for read in self._stale_of(key)]

    def _stale_of(self, key: str) -> list[Read]:
        writes = [write for write in self.writes if write.key == key]
        life_of = lives(writes)
        places = {write: (life_of[write.version], write.version + (write.number is None) / 2) for write in writes}
        place_of = {write.number: place for write, place in places.items()}
        deletions = [(write.begun, places[write]) for write in writes if write.number is None]

        def is_stale(read: Read) -> bool:
            floor = max((place for write, place in places.items() if write.returned < read.begun), default=(0, 0))
            if read.seen is not None:
                return place_of[read.seen] < floor
            return floor > (0, 0) and not any(begun < read.ended and place >= floor for begun, place in deletions)

        return [read for read in self.reads if read.key == key and is_stale(read)]


def lives(writes: list[Write]) -> dict[int, int]:
    """By version which life of the key it belongs to, counted from 1.

    Versions of one life follow one another. Two lives may begin the other way round (a life's first version is the time
    at which its write began, which may then have waited for others), but not end so: a deletion by compare-and-set
    begins when its life has begun, and so when the life before was over.
    """
    versions = sorted({write.version for write in writes})
    starts = [version for version in versions if version - 1 not in set(versions)]
    life_starts = {version: starts[bisect_right(starts, version) - 1] for version in versions}
    ends = {life_starts[write.version]: write.begun for write in writes if write.number is None}
    order = sorted(starts, key=lambda start: ends.get(start, math.inf))
    assert len(starts) - len(ends) in (0, 1), "each life but the last was ended"
    return {version: order.index(life_starts[version]) + 1 for version in versions}


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
    join: Join, own_valkey: ValkeyServer, scope: HiveScope, bound: int | None
) -> None:
    members = [await join(url=own_valkey.url, max_bytes=bound) for _ in range(3)]
    for member in members:
        member.slow_down(pause)
        member.slow_down_writes(pause)
    history = History(members)
    async with redis.asyncio.Redis.from_url(own_valkey.url, protocol=2) as client:
        tasks = [write(history, member) for member in members for _ in range(3)]
        tasks += [read(history, member) for member in members for _ in range(5)]
        await asyncio.gather(*tasks, evict(history, client, scope))
    assert history.stale() == []
    figures = [member.cache.figures for member in members]
    assert all(each.hit_ratio > 0.1 for each in figures), [each.requests for each in figures]
    assert not any(each.errors for each in figures), "Redis was there all the time"


async def test_no_read_is_older_after_redis_was_away(
    join: Join, own_valkey: ValkeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_link, "RETRY_SECONDS", 0.05)
    members = [await join(url=own_valkey.url) for _ in range(3)]
    history = History(members)
    for member in members:
        member.slow_down(pause)
        member.slow_down_writes(pause)

    async def restart() -> None:
        while not history.over:
            reads = len(history.reads)
            await until(lambda reads=reads: history.over or len(history.reads) > reads + READS // 8, "reads")
            own_valkey.kill()
            history.evictions += EVICTIONS // 4
            await asyncio.to_thread(own_valkey.start)

    tasks = [write(history, member) for member in members for _ in range(3)]
    tasks += [read(history, member) for member in members for _ in range(5)]
    await asyncio.gather(*tasks, restart())
    assert history.stale() == []
    assert any(member.cache.figures.errors for member in members)
    assert all(member.cache.figures.hit_ratio > 0.05 for member in members)
