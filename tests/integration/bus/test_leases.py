"""Who holds a message: processes that die, freeze, return and are robbed."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys

import pytest

from agenthive.bus import LeaseLost
from agenthive.bus.lease import LeaseKeeper

CHILD = """
import asyncio, sys, time
from agenthive.bus import Bus
from agenthive.settings import HiveScope, Messaging

async def main():
    url, namespace, pod, lease = sys.argv[1:5]
    scope = HiveScope(namespace=namespace, hive="demo")
    bus = await Bus.connect(url, scope, messaging=Messaging(lease_seconds=int(lease)))
    consumer = bus.consumer("worker", pod=pod)
    await consumer.start()
    deliveries = await consumer.claim(10)
    print(len(deliveries), flush=True)
    if len(sys.argv) > 5:
        time.sleep(float(sys.argv[5]))  # a handler that never gives the event loop a turn
        await consumer.ack(deliveries[0])
        print("acknowledged", flush=True)
        await consumer.aclose()
        await bus.aclose()
    else:
        await asyncio.sleep(60)

asyncio.run(main())
"""


class Child:
    """A consumer in a process of its own, which has claimed when it is ready."""

    def __init__(self, url: str, scope, pod: str, lease: int, *more: str) -> None:
        arguments = [sys.executable, "-c", CHILD, url, scope.namespace, pod, str(lease), *more]
        self.process = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)

    async def line(self) -> str:
        return (await asyncio.to_thread(self.process.stdout.readline)).strip()

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.process.stdout.close()


@pytest.fixture
def child(redis_url, scope):
    started = []

    def child(pod: str, lease: int, *more: str) -> Child:
        started.append(Child(redis_url, scope, pod, lease, *more))
        return started[-1]

    yield child
    for one in started:
        one.end()


async def test_the_next_incarnation_of_a_killed_pod_has_its_messages_at_once(bus, consume, make, child) -> None:
    await bus.send(make(1))
    victim = child("pod-a", 300)
    assert await victim.line() == "1"
    victim.process.kill()
    victim.process.wait()
    async with asyncio.timeout(15):  # half a lease
        successor = await consume(pod="pod-a")
        (delivery,) = await successor.claim(10)
    assert delivery.attempt == 2, "a crash counts"
    await successor.ack(delivery)


async def test_others_get_a_killed_pods_messages_when_its_lease_ends(connect, consume, make, child) -> None:
    bus = await connect(lease_seconds=2)
    await bus.send(make(1))
    victim = child("pod-a", 2)
    assert await victim.line() == "1"
    survivor = await consume(pod="pod-b", on=bus)
    victim.process.kill()
    victim.process.wait()
    async with asyncio.timeout(8):
        (delivery,) = await survivor.claim(10)
    assert delivery.attempt == 2
    await survivor.ack(delivery)


async def test_a_handler_that_blocks_the_loop_keeps_its_lease(connect, consume, make, child) -> None:
    bus = await connect(lease_seconds=2)
    await bus.send(make(1))
    busy = child("pod-a", 2, "4.5")
    assert await busy.line() == "1"
    watcher = await consume(pod="pod-b", on=bus)
    waiting = asyncio.create_task(watcher.claim(10))
    assert await busy.line() == "acknowledged"
    assert not waiting.done()
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)


async def test_a_frozen_process_loses_its_lease_and_what_it_says_is_refused(connect, consume, make, child) -> None:
    bus = await connect(lease_seconds=2)
    message = make(1)
    await bus.send(message)
    frozen = child("pod-a", 2, "0.5")
    assert await frozen.line() == "1"
    frozen.process.send_signal(signal.SIGSTOP)
    survivor = await consume(pod="pod-b", on=bus)
    async with asyncio.timeout(10):
        (delivery,) = await survivor.claim(10)
    assert delivery.attempt == 2
    os.kill(frozen.process.pid, signal.SIGCONT)
    assert await frozen.line() == "", "its late acknowledgement was refused, so it never got to print"
    assert await asyncio.to_thread(frozen.process.wait) != 0
    assert (await bus.queue("worker")).in_flight == 1, "still the survivor's"
    await survivor.ack(delivery)
    assert (await bus.status("worker", message.message_id)).attempts == 2


async def test_a_robbed_owner_is_refused_whatever_it_says(bus, consume, make, connect) -> None:
    robbed = await consume(pod="pod-a")
    for n in range(4):
        await bus.send(make(n))
    held = await robbed.claim(4)
    thief = await consume(pod="pod-a", on=await connect())  # a successor of the same pod takes all at once
    with pytest.raises(LeaseLost):  # nobody has claimed it again yet
        await robbed.ack(held[0])
    taken = await thief.claim(4)
    assert [d.attempt for d in taken] == [2, 2, 2, 2]
    for result in (robbed.ack(held[1]), robbed.fail(held[2], "x"), robbed.reject(held[3], "x")):
        with pytest.raises(LeaseLost):
            await result
    await robbed.release(held)
    assert (await bus.queue("worker")).in_flight == 4
    for delivery in taken:
        await thief.ack(delivery)
    assert await bus.dead_letters("worker") == []


async def test_a_message_whose_handler_kills_its_process_ends_in_the_dead_letters(connect, consume, make) -> None:
    bus = await connect(max_retries=2)
    message = make(1)
    await bus.send(message)
    for attempt in (1, 2, 3):
        consumer = bus.consumer("worker", pod="pod-a")
        await consumer.start()
        (delivery,) = await consumer.claim(1)
        assert delivery.attempt == attempt
        await consumer._lease.stop()  # dies: nothing is given back
        consumer._task.cancel()
        await asyncio.gather(consumer._task, return_exceptions=True)
        await consumer._lane.aclose()
        await consumer._parking.aclose()
    last = await consume(pod="pod-a", on=bus)
    await bus.send(make(2))
    (delivery,) = await last.claim(5)
    assert delivery.message.body == {"n": 2}, "the poison message blocks nothing"
    (letter,) = await bus.dead_letters("worker")
    assert (letter.reason, letter.message, letter.attempts) == ("crashed", message, 3)
    assert "attempt 3 of 3" in letter.error


async def test_a_consumer_whose_lease_ran_out_takes_it_again(bus, consume, make, scope, raw) -> None:
    consumer = await consume()
    name = consumer.name
    await raw.zadd(f"{scope.key_prefix('worker')}consumers", {name: 1})
    await bus.send(make(1))
    async with asyncio.timeout(5):
        (delivery,) = await consumer.claim(1)
    await consumer.ack(delivery)
    assert consumer.name == name, "nobody had taken anything"
    assert await raw.zscore(f"{scope.key_prefix('worker')}consumers", name) > 1


async def test_a_lease_is_kept_whatever_happens_to_one_renewal(
    connect, consume, scope, raw, until, monkeypatch, caplog
) -> None:
    renewal, calls = LeaseKeeper._renewal, []

    def flaky(keeper: LeaseKeeper):
        calls.append(keeper)
        if len(calls) == 1:
            raise RuntimeError("a defect")
        return renewal(keeper)

    monkeypatch.setattr(LeaseKeeper, "_renewal", flaky)
    await consume(on=await connect(lease_seconds=2))
    await until(lambda: len(calls) > 2)
    assert "renewing the lease of" in caplog.text
    assert await raw.zcard(f"{scope.key_prefix('worker')}consumers") == 1


async def test_a_robbed_consumer_goes_on_under_a_new_name(bus, consume, make) -> None:
    robbed = await consume(pod="pod-a")
    name = robbed.name
    await bus.send(make(1))
    (held,) = await robbed.claim(1)
    thief = await consume(pod="pod-a")
    (taken,) = await thief.claim(1)
    with pytest.raises(LeaseLost):
        await robbed.ack(held)
    await bus.send(make(2))
    async with asyncio.timeout(5):
        (delivery,) = await robbed.claim(1)
    assert robbed.name != name
    assert delivery.message.body == {"n": 2}
    await robbed.ack(delivery)
    await thief.ack(taken)
    stats = await bus.queue("worker")
    assert (stats.backlog, stats.in_flight) == (0, 0)


async def test_many_orphans_are_returned_in_several_calls(bus, consume, make, scope, raw, claim_all) -> None:
    dead = await consume(pod="dead")
    await asyncio.gather(*(bus.send(make(n)) for n in range(1300)))
    assert len(await claim_all(dead, 1300)) == 1300
    survivor = await consume(pod="alive")
    await raw.zadd(f"{scope.key_prefix('worker')}consumers", {dead.name: 1})
    keeper = LeaseKeeper(survivor._connections.endpoint, survivor._keys.gate, survivor.name, 30)
    lane = survivor._connections.lane(survivor._keys.gate)
    await keeper._reclaim(lane)
    await lane.aclose()
    assert keeper.reclaimed == 1300
    stats = await bus.queue("worker")
    assert (stats.backlog, stats.in_flight) == (1300, 0)
    got = await claim_all(survivor, 1300)
    assert sorted(d.message.body["n"] for d in got) == list(range(1300))


async def test_messages_whose_process_died_twice_are_handed_out_one_at_a_time(
    bus, consume, make, claim_all, until
) -> None:
    for n in range(3):
        await bus.send(make(n))
    for _ in range(2):
        dying = await consume()
        assert len(await claim_all(dying, 3)) == 3
        await dying.aclose()  # with all it holds
    stats = await bus.queue("worker")
    assert (stats.backlog, stats.in_flight) == (3, 0)
    for n in range(3, 6):
        await bus.send(make(n))
    first, second = await consume(), await consume()
    deliveries = await claim_all(first, 4)
    assert [delivery.attempt for delivery in deliveries] == [3, 1, 1, 1], "others are not held up"
    others = asyncio.create_task(first.claim(4))
    (suspect,) = await second.claim(4)
    assert suspect.attempt == 3
    assert (await bus.queue("worker")).backlog == 1
    await first.ack(deliveries[0])
    async with asyncio.timeout(10):
        (last,) = await others
    assert last.attempt == 3
    assert {delivery.message.body["n"] for delivery in (deliveries[0], suspect, last)} == {0, 1, 2}
    assert (await bus.queue("worker")).backlog == 0
    await second.fail(suspect, "an error clears the suspicion", retry_after=0)
    (again,) = await second.claim(1)
    assert again.attempt == 4
    await second.ack(again)


async def test_every_idle_consumer_is_woken_for_a_suspect_of_its_own(
    bus, consume, make, claim_all, until, no_fallback
) -> None:
    dying = [await consume(), await consume()]
    for n in range(4):
        await bus.send(make(n))
    await claim_all(dying[0], 4)
    await dying[0].aclose()
    await claim_all(dying[1], 4)
    idle = [await consume() for _ in range(4)]
    claims = [asyncio.create_task(consumer.claim(5)) for consumer in idle]
    await until(lambda: all(consumer._parking.parked for consumer in idle))
    await dying[1].aclose()
    async with asyncio.timeout(10):
        got = await asyncio.gather(*claims)
    assert sorted(delivery.message.body["n"] for (delivery,) in got) == [0, 1, 2, 3]


async def test_a_suspect_can_be_cancelled(bus, consume, make, claim_all) -> None:
    message_id = await bus.send(make())
    for _ in range(2):
        dying = await consume()
        await claim_all(dying, 1)
        await dying.aclose()
    assert (await bus.status("worker", message_id)).detail == "waiting"
    assert await bus.cancel("worker", message_id) == "cancelled"
    assert (await bus.queue("worker")).backlog == 0
