"""Ordering keys while consumers fail, hand back and are killed: order of first attempts, no overlap, nothing stuck."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
from collections import defaultdict

import redis.asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.conftest import UNMEASURED

from agenthive.bus import Bus
from agenthive.settings import HiveScope, Messaging

KEYS = 7
MESSAGES = 700
CHILD = """
import asyncio, random, sys
import redis.asyncio
from agenthive.bus import Bus
from agenthive.settings import HiveScope, Messaging

async def main():
    url, namespace, pod, ledger = sys.argv[1:5]
    bus = await Bus.connect(
        url, HiveScope(namespace=namespace, hive="demo"),
        messaging=Messaging(lease_seconds=300, retry_delay_seconds=0.002, max_retries=1000),
    )
    book = redis.asyncio.Redis.from_url(url, protocol=2)
    consumer = bus.consumer("worker", pod=pod)
    await consumer.start()

    async def handle(delivery):
        key, n = delivery.message.delivery_options.ordering_key, delivery.message.body["n"]
        await book.rpush(ledger, f"begin {key} {n} {delivery.attempt}")
        await asyncio.sleep(random.random() * 0.004)
        await book.rpush(ledger, f"end {key} {n} {delivery.attempt}")
        dice = random.random()
        if dice < 0.1:
            await consumer.fail(delivery, "dice")
        elif dice < 0.2:
            await consumer.release([delivery])
        else:
            await consumer.ack(delivery)

    running = set()
    while True:
        for delivery in await consumer.claim(8):
            task = asyncio.create_task(handle(delivery))
            running.add(task)
            task.add_done_callback(running.discard)
        while len(running) > 8:
            await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)

asyncio.run(main())
"""


def check(ledger: list[str]) -> None:
    """First attempts in order; one of a key at a time, but for attempts that a kill cut off."""
    first: dict[str, list[int]] = defaultdict(list)
    running: dict[str, tuple[str, str]] = {}
    for line in ledger:
        what, key, n, _ = line.split()
        if what == "begin":
            if int(n) not in first[key]:
                first[key].append(int(n))
            if key in running:
                assert running[key][0] == n, f"{line} began although {running[key]} was not finished"
            running[key] = (n, line)
        else:
            assert running.pop(key)[0] == n
    for key, numbers in first.items():
        assert numbers == sorted(numbers), key


async def test_killed_holders_leave_no_key_stuck_and_every_key_in_order(redis_url, scope, connect, make, until) -> None:
    bus = await connect(lease_seconds=300)
    ledger = f"ledger:{scope.namespace}"
    await asyncio.gather(
        *(
            bus.send(make(n, priority=1 + n % 4, delivery_options={"ordering_key": f"k{n % KEYS}"}))
            for n in range(MESSAGES)
        )
    )

    def child(number: int) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", CHILD, redis_url, scope.namespace, f"pod-{number}", ledger]
        return subprocess.Popen(command, env={**os.environ, **UNMEASURED})

    children = {number: child(number) for number in range(3)}
    dice = random.Random(7)
    try:
        async with redis.asyncio.Redis.from_url(redis_url, protocol=2, decode_responses=True) as book:

            async def finished() -> bool:
                figures = await bus.queue("worker")
                return figures.backlog + figures.in_flight + figures.delayed == 0

            for _ in range(6):
                seen = await book.llen(ledger)
                await until(lambda seen=seen: _more(book, ledger, seen + 60, finished), 30)
                victim = dice.randrange(3)
                children[victim].kill()
                children[victim].wait()
                children[victim] = child(victim)  # the next incarnation frees what it held at once
            await until(finished, 60)
            lines = await book.lrange(ledger, 0, -1)
            await book.delete(ledger)
    finally:
        for one in children.values():
            one.kill()
            one.wait()
    check(lines)
    assert {(line.split()[1], int(line.split()[2])) for line in lines} == {(f"k{n % KEYS}", n) for n in range(MESSAGES)}
    figures = await bus.queue("worker")
    assert (figures.blocked, figures.halted, figures.bytes, figures.dead_letters) == (0, 0, 0, 0)


async def _more(book, ledger: str, count: int, finished) -> bool:
    return await book.llen(ledger) >= count or await finished()


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("send"), st.integers(0, 2), st.booleans()),
        st.tuples(st.sampled_from(["ack", "fail", "reject", "release", "rob"]), st.integers(0, 2), st.integers(0, 9)),
        st.tuples(st.just("claim"), st.integers(0, 2), st.integers(1, 4)),
        st.tuples(st.sampled_from(["cancel", "resume", "redrive", "purge"]), st.integers(0, 2), st.integers(0, 9)),
    ),
    min_size=10,
    max_size=60,
)


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(steps=STEPS)
async def test_any_order_of_events_keeps_the_order_of_keys(redis_url, steps, make) -> None:
    scope = HiveScope(namespace=f"o{random.SystemRandom().randrange(10**12)}", hive="demo")
    bus = await Bus.connect(redis_url, scope, messaging=Messaging(retry_delay_seconds=0, max_retries=2))
    model = _Model(bus, make)
    try:
        await model.start()
        for step in steps:
            await model.do(*step)
        await model.finish()
    finally:
        await model.aclose()
        await bus.aclose()


class _Model:
    """What must hold: of a key one is out, and always the earliest that is neither finished nor given up."""

    def __init__(self, bus: Bus, make) -> None:
        self.bus, self.make = bus, make
        self.lines: dict[str, list[str]] = {f"k{n}": [] for n in range(3)}
        self.halting: dict[str, str] = {}
        self.halt: dict[str, bool] = {}
        self.key_of: dict[str, str] = {}
        self.out: dict[str, tuple] = {}
        self.dead: list[str] = []
        self.robbed: set[str] = set()
        self.pods = 0

    async def start(self) -> None:
        self.consumers = [await self._consumer() for _ in range(3)]

    async def _consumer(self):
        self.pods += 1
        consumer = self.bus.consumer("worker", pod=f"pod-{self.pods}")
        await consumer.start()
        return consumer

    async def aclose(self) -> None:
        for consumer in self.consumers:
            await consumer.aclose()

    async def do(self, what: str, key_number: int, detail) -> None:
        key = f"k{key_number}"
        if what == "send":
            message = self.make(0, delivery_options={"ordering_key": key, "on_fail": "halt" if detail else "continue"})
            await self.bus.send(message)
            self.lines[key].append(message.message_id)
            self.key_of[message.message_id], self.halt[message.message_id] = key, detail
        elif what == "claim":
            await self._claim(key_number, detail)
        elif what == "cancel":
            line = self.lines[key]
            if line:
                message_id = line[detail % len(line)]
                result = await self.bus.cancel("worker", message_id)
                assert (result == "cancelled") == (message_id not in self.out)
                if result == "cancelled":
                    line.remove(message_id)
        elif what == "resume":
            assert await self.bus.resume("worker", key) == (key in self.halting)
            self.halting.pop(key, None)
        elif what in {"redrive", "purge"}:
            await self._letter(what, detail)
        elif self.out:
            await self._end(what, sorted(self.out)[detail % len(self.out)])

    async def _letter(self, what: str, detail: int) -> None:
        if not self.dead:
            return
        message_id = self.dead.pop(detail % len(self.dead))
        key = self.key_of[message_id]
        report = await getattr(self.bus, what)("worker", [message_id])
        assert report.done == 1
        halted = self.halting.get(key) == message_id
        if halted:
            del self.halting[key]
        if what == "redrive":
            self.lines[key].insert(0 if halted else len(self.lines[key]), message_id)

    async def _claim(self, number: int, slots: int) -> None:
        ready = {line[0] for key, line in self.lines.items() if line and key not in self.halting} - set(self.out)
        figures = await self.bus.queue("worker")
        assert figures.halted == len(self.halting)
        assert figures.in_flight == len(self.out)
        assert figures.backlog + figures.delayed == sum(map(len, self.lines.values())) - len(self.out)
        if not ready:
            return
        async with asyncio.timeout(10):
            deliveries = await self.consumers[number].claim(slots)
        for delivery in deliveries:
            assert delivery.message.message_id in ready
            self.out[delivery.message.message_id] = (number, delivery)

    async def _end(self, what: str, message_id: str) -> None:
        number, delivery = self.out[message_id]
        lost = [one for one, (holder, _) in self.out.items() if holder == number]
        if what == "rob" and any(one in self.robbed or self.out[one][1].attempt == 3 for one in lost):
            return  # twice would make suspects of them, and more than the last attempt would give them up
        del self.out[message_id]
        consumer, key = self.consumers[number], self.key_of[message_id]
        if what == "rob":
            await consumer.aclose()  # gives up all it holds
            self.consumers[number] = await self._consumer()
            self.robbed.update(lost)
            self.out = {one: held for one, held in self.out.items() if one not in lost}
            return
        if what == "release":
            await consumer.release([delivery])
            return
        given_up = what == "reject" or (what == "fail" and delivery.attempt == 3)
        if what == "ack":
            await consumer.ack(delivery)
        elif what == "reject":
            await consumer.reject(delivery, "no")
        else:
            await consumer.fail(delivery, "no")
        if what == "ack" or given_up:
            assert self.lines[key].pop(0) == message_id
        if given_up:
            self.dead.append(message_id)
            if self.halt[message_id]:
                self.halting[key] = message_id

    async def finish(self) -> None:
        for key in list(self.halting):
            await self.do("resume", int(key[1:]), 0)
        while any(self.lines.values()):
            for message_id in list(self.out):
                await self._end("ack", message_id)
            await self._claim(0, 10)
        figures = await self.bus.queue("worker")
        assert (figures.backlog, figures.blocked, figures.in_flight, figures.bytes) == (0, 0, 0, 0)
