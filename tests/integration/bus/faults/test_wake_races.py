"""A thousand races of park, push, death and reconnect: no message waits while a live consumer has a free slot.

Two consumers are never disturbed and always have a free slot. The others, in this process and in processes of their
own, die between their wake-up and their look at the queue, lose connections, stop, freeze and come back, one of them
in each race, within milliseconds of the message. How long a message waited is told by the server's clock: from
acceptance (or its not_before) to its claim. Nobody looks at the queue just because time passed: a wake-up that is lost
shows as a message that is not claimed at all.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import pytest
import redis.asyncio
from tests.integration.bus.faults.ledger import Fleet, connected, say, seeded, until

from agenthive.bus import Bus, BusError, Consumer
from agenthive.bus.lanes import Lane
from agenthive.protocol import AgentMessage
from agenthive.settings import Messaging

RACES = 1000
MOST_SECONDS = 0.1
STALL_SECONDS = 0.005
"""A heartbeat later than this was held up by the machine."""
VICTIMS = 3
PODS = ("process-a", "process-b")

KINDS = (
    "none", "dies when woken", "dies when woken", "dies", "dies", "loses its wake-up connection",
    "loses its wake-up connection", "loses its connection", "changes its mind", "leaves", "freezes", "freezes",
)  # fmt: skip
KILLED = "is killed"


@pytest.fixture
def messaging() -> Messaging:
    """A lease that no frozen process of these races outlives: who is robbed is another test's concern."""
    return Messaging(lease_seconds=30, retry_delay_seconds=0, max_retries=100)


def cut(lane: Lane) -> None:
    """As the network does it."""
    if lane._connection is not None:
        lane._connection.abort()


class Heartbeat:
    """Asks the server every few ms and notes when the answer was late: then neither the bus nor anybody ran."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.stalls: list[tuple[float, float]] = []
        """Begin and end, by the server's clock as far as this process knows it (both run on one machine)."""

    async def beat(self) -> None:
        clock = datetime.now
        async with redis.asyncio.Redis.from_url(self._url, protocol=2) as raw:
            while True:
                began = clock(UTC).timestamp()
                await asyncio.sleep(0.002)
                await raw.ping()
                ended = clock(UTC).timestamp()
                if ended - began > STALL_SECONDS:
                    self.stalls.append((began, ended))


def stalled(stalls: Iterable[tuple[float, float]], begin: float, end: float) -> float:
    """Seconds between two moments in which the machine was busy with something else."""
    seconds, seen = 0.0, begin
    for began, ended in sorted(stalls):
        seconds += max(0.0, min(end, ended) - max(seen, began))
        seen = max(seen, ended)
    return seconds


class Member:
    """A consumer in this process with one slot, which it gives free at once."""

    def __init__(self, bus: Bus, pod: str) -> None:
        self.bus, self.pod = bus, pod
        self.consumer: Consumer
        self._claiming: asyncio.Task[None]

    async def start(self) -> None:
        self.consumer = self.bus.consumer("worker", pod=self.pod)
        await self.consumer.start()
        self.ask()

    def ask(self) -> None:
        self._claiming = asyncio.create_task(self._claim())

    async def _claim(self) -> None:
        with contextlib.suppress(BusError):
            while True:
                for delivery in await self.consumer.claim(1):
                    self.consumer.ack(delivery).add_done_callback(lambda done: done.cancelled() or done.exception())

    def parked(self) -> bool:
        return self.consumer._parking.parked

    def change_mind(self) -> None:
        """The claim is cancelled, and another one follows."""
        self._claiming.cancel()
        asyncio.get_running_loop().call_soon(self.ask)

    def die(self, *_: object) -> None:
        """As a SIGKILL does it: no task takes another step, the sockets are closed, nothing is said to anybody."""
        self._claiming.cancel()
        consumer = self.consumer
        for task in (consumer._task, consumer._parking._task):
            if task is not None:
                task.cancel()
        cut(consumer._lane)
        cut(consumer._parking._lane)

    def die_when_woken(self) -> None:
        self.consumer._parking._on_wake = self.die

    async def bury(self) -> None:
        """Wait for what ``die`` ended, so that the next incarnation begins cleanly."""
        consumer = self.consumer
        tasks = [task for task in (self._claiming, consumer._task, consumer._parking._task) if task is not None]
        self.die()
        await asyncio.gather(*tasks, return_exceptions=True)
        await consumer._lease.stop()
        await consumer._parking.aclose()
        await consumer._lane.aclose()

    async def leave(self) -> None:
        await self.consumer.aclose()
        self._claiming.cancel()
        await asyncio.gather(self._claiming, return_exceptions=True)


@dataclass(frozen=True)
class Slow:
    """A message that waited long by the server's clock; why is told once all processes have noted their stalls."""

    what: str
    kind: str
    begin: float
    end: float


@dataclass
class Race:
    """The company of all races, and what came of them."""

    bus: Bus
    fleet: Fleet
    chance: random.Random
    beat: Heartbeat
    victims: list[Member]
    waits: dict[str, float] = field(default_factory=dict)
    slow: list[Slow] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)

    async def run(self, number: int) -> None:
        """One message and one disturbance, in random order a few ms apart."""
        kind = KILLED if number % 100 == 50 else self.chance.choice(KINDS)
        self.kinds[kind] += 1
        due = (
            datetime.now(UTC) + timedelta(milliseconds=self.chance.uniform(5, 15))
            if self.chance.random() < 0.2
            else None
        )
        message = AgentMessage(
            from_agent="tester", to_agent="worker", message_type="count", message_id=f"message-{number}",
            body={"n": number}, delivery_options={} if due is None else {"not_before": due},
        )  # fmt: skip
        victim = self.chance.choice(self.victims)
        disturbing = asyncio.create_task(self._disturb(kind, victim, self.chance.uniform(0, 0.004)))
        await asyncio.sleep(self.chance.uniform(0, 0.004))
        await self.bus.send(message)
        await self._claimed(message, due, kind)
        await disturbing
        await self._mend(kind, victim)

    async def _disturb(self, kind: str, victim: Member, delay: float) -> None:
        if kind == "dies when woken":
            victim.die_when_woken()
            return
        await asyncio.sleep(delay)
        if kind == "dies":
            victim.die()
        elif kind == "loses its wake-up connection":
            cut(victim.consumer._parking._lane)
        elif kind == "loses its connection":
            cut(victim.consumer._lane)
        elif kind == "changes its mind":
            victim.change_mind()
        elif kind == "leaves":
            await victim.leave()
        elif kind == "freezes":
            self.fleet.freeze(PODS[0])
        elif kind == KILLED:
            self.fleet.kill(PODS[1])

    async def _mend(self, kind: str, victim: Member) -> None:
        if kind in {"dies", "dies when woken"}:
            await victim.bury()
            await victim.start()
        elif kind == "leaves":
            await victim.start()
        elif kind == "freezes":
            self.fleet.thaw(PODS[0])
        elif kind == KILLED:
            self.fleet.start(PODS[1])  # and joins when it is ready, a few dozen races later

    async def _claimed(self, message: AgentMessage, due: datetime | None, kind: str) -> None:
        async def claim() -> tuple[datetime, datetime] | None:
            status = await self.bus.status("worker", message.message_id)
            if status.claimed_at is None or status.accepted_at is None:
                return None
            return due or status.accepted_at, status.claimed_at

        begin, end = (moment.timestamp() for moment in await until(claim, f"{message.message_id} claimed ({kind})"))
        await asyncio.sleep(0)
        wait = end - begin - stalled(self.beat.stalls, begin, end)
        self.waits[message.message_id] = wait
        if wait > MOST_SECONDS:
            self.slow.append(Slow(f"{message.message_id} ({kind}{', delayed' if due else ''})", kind, begin, end))

    def late(self) -> list[str]:
        """Messages that waited though nobody was held up by the machine: who was to look may be in another process."""
        found = []
        for slow in self.slow:
            processes = [pod for pod in PODS if not (slow.kind == "freezes" and pod == PODS[0])]  # that is no excuse
            stalls = self.beat.stalls + [stall for pod in processes for stall in self.fleet.stalls(pod)]
            wait = slow.end - slow.begin - stalled(stalls, slow.begin, slow.end)
            if wait > MOST_SECONDS:
                found.append(f"{slow.what} waited {wait * 1000:.0f} ms")
        return found


@pytest.mark.usefixtures("no_fallback")
async def test_no_message_waits_while_a_slot_is_free(redis_url, scope, messaging, fleet, record_property) -> None:
    chance = seeded("wake races")
    processes = fleet(redis_url, concurrency=1, beating=True)
    for pod in PODS:
        processes.start(pod)
    async with connected(redis_url, scope, messaging) as bus, contextlib.AsyncExitStack() as stack:
        beat = Heartbeat(redis_url)
        beating = asyncio.create_task(beat.beat())
        stack.callback(beating.cancel)
        members = [Member(bus, f"steady-{n}") for n in range(2)] + [Member(bus, f"victim-{n}") for n in range(VICTIMS)]
        for member in members:
            await member.start()
            stack.push_async_callback(member.leave)
        await until(lambda: all("serving" in processes.log(pod) for pod in PODS), "the processes serve")
        race = Race(bus, processes, chance, beat, members[2:])
        for number in range(RACES):
            await race.run(number)
    waits = sorted(race.waits.values())
    text = (
        f"{RACES} races ({', '.join(f'{count} {kind}' for kind, count in sorted(race.kinds.items()))}): "
        f"half of the messages waited under {waits[RACES // 2] * 1000:.1f} ms, all but 1 % under "
        f"{waits[RACES * 99 // 100] * 1000:.0f} ms, the longest {waits[-1] * 1000:.0f} ms"
    )
    say(f"wake-ups: {text}")
    record_property("faults: wake-ups", text)
    assert not (late := race.late()), late
