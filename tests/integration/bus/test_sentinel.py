"""The bus behind sentinels: the master that fails over, and what ``durability: replicated`` makes of it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator

import pytest
import redis
from tests.conftest import ValkeyServer
from tests.integration.bus.servers import SentinelSetUp, ask, poll, running_sentinels

from agenthive.bus import Bus, BusUnavailable, Consumer
from agenthive.bus.errors import NotReplicated
from agenthive.settings import HiveScope, Messaging


@pytest.fixture
def sentinels() -> Iterator[SentinelSetUp]:
    """With one sentinel, which is there much sooner than three that have to find each other."""
    with running_sentinels() as setup:
        yield setup


@pytest.fixture
def three_sentinels() -> Iterator[SentinelSetUp]:
    with running_sentinels(sentinels=3) as setup:
        yield setup


class Ledger:
    """Numbered messages: which ``send`` returned for, and when; which were handled, and how often."""

    def __init__(self, bus: Bus, make) -> None:
        self.accepted: dict[int, float] = {}
        self.handled: Counter[int] = Counter()
        self.refused = 0
        self.stopped = False
        self._bus = bus
        self._make = make

    async def send(self, start: int, step: int) -> None:
        n = start
        while not self.stopped:
            try:
                await self._bus.send(self._make(n, message_id=f"message-{n}"))
            except BusUnavailable:
                self.refused += 1  # it may have been accepted: the same id again
                await asyncio.sleep(0.05)
                continue
            self.accepted[n] = time.monotonic()
            n += step

    async def handle(self, consumer: Consumer) -> None:
        while True:
            for delivery in await consumer.claim(20):
                self.handled[delivery.message.body["n"]] += 1
                consumer.ack(delivery).add_done_callback(lambda done: done.exception())

    @property
    def lost(self) -> list[int]:
        return sorted(self.accepted.keys() - self.handled.keys())


@contextlib.asynccontextmanager
async def under_load(
    setup: SentinelSetUp, scope: HiveScope, make, until, **messaging
) -> AsyncIterator[tuple[Bus, Ledger]]:
    """Ten senders and two consumers; at the end the queue is drained."""
    bus = await Bus.connect(setup.url, scope, messaging=Messaging(lease_seconds=3, **messaging))
    ledger = Ledger(bus, make)
    consumers = [bus.consumer("worker", pod=f"pod-{n}") for n in range(2)]
    for consumer in consumers:
        await consumer.start()
    handlers = [asyncio.create_task(ledger.handle(consumer)) for consumer in consumers]
    senders = [asyncio.create_task(ledger.send(n, 10)) for n in range(10)]
    try:
        yield bus, ledger
        ledger.stopped = True
        await asyncio.gather(*senders)

        async def drained() -> bool:
            stats = await bus.queue("worker")
            return stats.backlog + stats.in_flight + stats.delayed == 0

        await until(drained, 20)
    finally:
        for task in (*handlers, *senders):
            task.cancel()
        await asyncio.gather(*handlers, *senders, return_exceptions=True)
        for consumer in consumers:
            await consumer.aclose()
        await bus.aclose()


def fail_over(setup: SentinelSetUp) -> None:
    """Kill the master, wait for the new one, and bring the old one back as its replica."""
    old = setup.master()
    old.kill()
    poll(lambda: setup.master() is not old, "the sentinels name a new master", 20)
    new = setup.master()
    poll(lambda: ask(new, "ROLE")[0] == b"master", "it is one")
    old.start()
    ask(old, "REPLICAOF", "127.0.0.1", new.port)
    poll(lambda: ask(old, "INFO", "replication").get("master_link_status") == "up", "the old one follows")


async def test_nothing_confirmed_is_lost_at_a_failover_when_replicated(
    three_sentinels, scope, make, until, record_property
) -> None:
    async with under_load(three_sentinels, scope, make, until, durability="replicated") as (_, ledger):
        await until(lambda: len(ledger.accepted) > 500)
        await asyncio.to_thread(fail_over, three_sentinels)
        before = len(ledger.accepted)
        await until(lambda: len(ledger.accepted) > before + 500, 30)
    repeated = sum(count - 1 for count in ledger.handled.values())
    record_property("duplicates", repeated)
    assert ledger.lost == []
    assert repeated <= 200, "only what was in hand or not yet replicated is handled again"


async def test_only_the_unreplicated_tail_is_lost(three_sentinels, scope, make, until, record_property) -> None:
    async with under_load(three_sentinels, scope, make, until) as (_, ledger):
        await until(lambda: len(ledger.accepted) > 500)
        killed = time.monotonic()
        await asyncio.to_thread(fail_over, three_sentinels)
        before = len(ledger.accepted)
        await until(lambda: len(ledger.accepted) > before + 500, 30)
    record_property("lost", len(ledger.lost))
    assert all(killed - 1 < ledger.accepted[n] for n in ledger.lost)
    assert len(ledger.lost) < 500


async def test_a_planned_failover_loses_nothing_and_nobody_stays_behind(sentinels, scope, make, until) -> None:
    old = sentinels.master()
    async with under_load(sentinels, scope, make, until, durability="replicated") as (bus, ledger):
        await until(lambda: len(ledger.accepted) > 200)
        await until(sentinels.fail_over, 30)
        # The old one lives on as a master of its own for a while, and would serve whoever stays.
        await until(lambda: not names_on(old))
        assert ask(old, "ROLE")[0] == b"master"
        ask(old, "REPLICAOF", "127.0.0.1", sentinels.master().port)
        before = len(ledger.accepted)
        await until(lambda: len(ledger.accepted) > before + 200, 30)
        assert bus.available
    assert ledger.lost == []


def names_on(server: ValkeyServer) -> set[str]:
    """The names of the bus's connections to a server."""
    with redis.Redis.from_url(server.url, protocol=2) as client:
        return {entry["name"] for entry in client.client_list() if entry["name"].startswith("agenthive")}


async def test_a_message_without_a_replica_is_an_error_that_says_what_to_do(sentinels, scope, make, until) -> None:
    master = sentinels.master()
    replica = next(server for server in sentinels.servers if server is not master)
    bus = await Bus.connect(sentinels.url, scope, messaging=Messaging(durability="replicated"))
    try:
        before = ask(master, "INFO", "commandstats").get("cmdstat_wait", {"calls": 0})["calls"]
        await asyncio.gather(*(bus.send(make(n)) for n in range(300)))
        calls = ask(master, "INFO", "commandstats")["cmdstat_wait"]["calls"] - before
        assert 1 <= calls <= 5, "one WAIT for each batch"
        replica.kill()
        message = make(1, message_id="again")
        with pytest.raises(NotReplicated, match=r"no replica confirmed .*send it again.* see that the master"):
            await bus.send(message)
        assert bus.available, "Redis is there all the same"
        assert (await bus.find("worker", "again")) is not None, "it may have been accepted, and was"
        with pytest.raises(NotReplicated):
            await bus.send(message)  # known, but still in one place only
        with pytest.raises(NotReplicated):
            await bus.fire("schedule", await bus.clock("worker") - 1000, make(2))
        replica.start()
        ask(replica, "REPLICAOF", "127.0.0.1", master.port)
        await until(lambda: ask(replica, "INFO", "replication")["master_link_status"] == "up", 20)
        await bus.send(message)
        assert (await bus.queue("worker")).backlog == 302
    finally:
        await bus.aclose()


async def test_wrong_names_and_passwords_of_sentinels(sentinels, valkey) -> None:
    scope = HiveScope()
    with pytest.raises(BusUnavailable, match="no sentinel knows the master; write its name"):
        await Bus.connect(sentinels.url.replace(sentinels.SERVICE, "nobody"), scope)
    with pytest.raises(BusUnavailable, match="refuses the user name or password") as caught:
        await Bus.connect(sentinels.url.replace("sentinel_password=", "sentinel_password=x"), scope)
    assert sentinels.sentinel_password not in str(caught.value)
    no_sentinel = f"redis+sentinel://:x@127.0.0.1:{valkey.port}/bus?sentinel_password={valkey.password}"
    with pytest.raises(BusUnavailable, match="is no sentinel but a Redis"):
        await Bus.connect(no_sentinel, scope)
    for process in sentinels.sentinels:
        process.kill()
        process.wait()
    with pytest.raises(BusUnavailable, match="cannot be reached: no sentinel tells the master"):
        await Bus.connect(sentinels.url, scope)
