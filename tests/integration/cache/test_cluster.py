"""The cache on a Redis Cluster: a hive's entries share a slot, which moves."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator

import pytest
from tests.integration.bus.servers import RedisCluster, running_cluster

from agenthive import cache_link
from agenthive.bus.cluster import slot_of
from agenthive.settings import HiveScope

from .conftest import Join, until


@pytest.fixture(scope="module")
def cluster() -> Iterator[RedisCluster]:
    with running_cluster() as cluster:
        yield cluster


async def test_reads_and_writes_on_a_cluster(join: Join, cluster: RedisCluster) -> None:
    one, other = await join(url=cluster.url), await join(url=cluster.url)
    for n in range(20):
        await one.store.state.set(f"k{n % 5}", n)
        assert await other.store.state.get(f"k{n % 5}") == n
        assert await one.store.state.get(f"k{n % 5}") == n
    assert other.loads + one.loads == 5
    assert one.cache.available
    assert other.cache.available


async def test_the_slot_moves_meanwhile(
    join: Join, cluster: RedisCluster, scope: HiveScope, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_link, "RETRY_SECONDS", 0.05)
    member, prefix = await join(url=cluster.url), scope.hive_prefix
    await asyncio.gather(*(member.store.state.set(f"k{n}", 0) for n in range(50)))
    await asyncio.gather(*(member.store.state.get(f"k{n}") for n in range(50)))
    owner = cluster.owner(prefix)
    target = next(node for node in cluster.masters if node is not owner)
    moving = asyncio.create_task(asyncio.to_thread(cluster.migrate, slot_of(prefix), target))
    writes = 0
    while not moving.done() or writes < 100:
        writes += 1
        key = f"k{random.randrange(50)}"
        await member.store.state.set(key, writes)
        assert await member.store.state.get(key) == writes
    assert await moving > 0
    await until(lambda: member.cache.available, "recovery")
    before = member.loads
    for _ in range(3):
        assert await member.store.state.get("k0") is not None
    assert member.loads <= before + 1
