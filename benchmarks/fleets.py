"""Many consumers: pods that mostly idle, a fleet of agents on one server, and a queue that grows."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from agenthive.bus import Bus, Consumer, ConsumerStopped
from benchmarks.cell import command
from benchmarks.others import BATCH, FUNCTION, GROUP, STREAM, acknowledge
from benchmarks.ours import BODY, HIVE, fill, message, pace, percentiles

PROCESSES = 4
SLOTS = 10
PATIENCE = 30.0


class Counted:
    """What the consumers of one process were given."""

    def __init__(self) -> None:
        self.count = 0
        self.last = 0
        self.delays: list[int] = []

    def note(self, sent: int) -> None:
        """One message; ``sent`` is 0 for those that only count."""
        self.count += 1
        self.last = time.monotonic_ns()
        if sent:
            self.delays.append(self.last - sent)


async def _serve(working: list[asyncio.Task[None]], counted: Counted) -> dict[str, Any]:
    """Say that the consumers of this process wait, report what they were given each time a line comes in."""
    print("ready", flush=True)
    while await asyncio.to_thread(sys.stdin.readline):
        for task in working:
            if task.done():
                task.result()  # one that failed says why
        print(json.dumps({"count": counted.count, "last": counted.last}), flush=True)
    return {"delays": counted.delays}


async def members(url: str, agents: list[str], each: int) -> dict[str, Any]:
    """``each`` consumers of each of ``agents``, in one process, through the public API."""
    bus = await Bus.connect(url, HIVE)
    counted = Counted()
    consumers = [bus.consumer(agent, pod=f"pod-{os.getpid()}-{n}") for agent in agents for n in range(each)]
    for consumer in consumers:
        await consumer.start()
    return await _serve([asyncio.create_task(_consume(consumer, counted)) for consumer in consumers], counted)


async def _consume(consumer: Consumer, counted: Counted) -> None:
    while True:
        try:
            deliveries = await consumer.claim(SLOTS)
        except ConsumerStopped:
            return
        for delivery in deliveries:
            counted.note(delivery.message.body.get("sent", 0))
            consumer.ack(delivery)


async def readers(url: str, each: int) -> dict[str, Any]:
    """``each`` readers blocked on one stream with redis-py, without any semantics."""
    import redis.asyncio as redis

    counted = Counted()

    async def read(name: str) -> None:
        async with redis.Redis.from_url(url, socket_timeout=None) as client:
            while True:
                answer: Any = await client.xreadgroup(GROUP, name, {STREAM: ">"}, count=BATCH, block=30_000)
                for _, entries in answer or ():
                    for _, fields in entries:
                        counted.note(int(fields.get(b"sent", 0)))
                    await acknowledge(client, [entry for entry, _ in entries])

    working = [asyncio.create_task(read(f"{os.getpid()}-{number}")) for number in range(each)]
    await asyncio.sleep(0.5)  # until they are blocked
    return await _serve(working, counted)


class Team:
    """The processes of consumers."""

    def __init__(self, processes: list[asyncio.subprocess.Process]) -> None:
        self.processes = processes

    async def handled(self, messages: int) -> int:
        """When the last of so many messages was handled (ns), once they all were."""
        deadline = time.monotonic() + PATIENCE
        while True:
            found = [json.loads(await self._ask(process)) for process in self.processes]
            if (count := sum(each["count"] for each in found)) >= messages:
                return int(max(each["last"] for each in found))
            if time.monotonic() > deadline:
                raise RuntimeError(f"{count} of {messages} messages were handled in {PATIENCE:.0f} s")
            await asyncio.sleep(0.1)

    async def _ask(self, process: asyncio.subprocess.Process) -> bytes:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"\n")
        return await process.stdout.readline()

    async def delays(self) -> list[int]:
        """End the processes; the delays of all messages that were timed."""
        delays: list[int] = []
        for process in self.processes:
            assert process.stdin is not None
            process.stdin.close()
            output, _ = await process.communicate()
            delays += json.loads(output.splitlines()[-1])["delays"]
        return delays


@asynccontextmanager
async def team(cell: str, parts: list[dict[str, Any]]) -> AsyncIterator[Team]:
    """One process per part, each of which has said that it is ready."""
    processes: list[asyncio.subprocess.Process] = []
    pipe = asyncio.subprocess.PIPE
    try:
        for part in parts:
            process = await asyncio.create_subprocess_exec(*command(cell, **part), stdin=pipe, stdout=pipe)
            processes.append(process)
        for process in processes:
            assert process.stdout is not None
            if await process.stdout.readline() != b"ready\n":
                raise RuntimeError(f"a process of {cell} did not start")
        yield Team(processes)
    finally:
        for process in processes:
            if process.returncode is None:
                process.kill()
                await process.wait()


async def idle_pods(url: str, consumers: int, messages: int, rate: int, timed: int) -> list[float]:
    """[messages a second, p50, p99 (ms) at ``rate``] with one sender and many mostly idle consumers of one agent."""
    part = {"url": url, "agents": ["bench"], "each": consumers // PROCESSES}
    bus = await Bus.connect(url, HIVE)
    async with team("fleets:members", [part] * PROCESSES) as group:
        started = time.monotonic_ns()
        await fill(bus, messages)
        total = messages / ((await group.handled(messages) - started) / 1e9)
        await pace(lambda: bus.send(message(sent=time.monotonic_ns())), rate, timed)
        await group.handled(messages + timed)
        delays = await group.delays()
    await bus.aclose()
    return [total, *percentiles(delays)]


async def raw_idle_pods(url: str, consumers: int, messages: int, rate: int, timed: int) -> list[float]:
    """The same with readers blocked on one stream; the sender adds 100 at a time in one call, then single ones."""
    import redis.asyncio as redis

    pool = redis.BlockingConnectionPool.from_url(url, max_connections=50)  # the plain one refuses the 101st send
    async with redis.Redis.from_pool(pool) as client:
        await client.xgroup_create(STREAM, GROUP, id="0", mkstream=True)
        await client.function_load(FUNCTION, replace=True)
        parts = [{"url": url, "each": consumers // PROCESSES}] * PROCESSES
        async with team("fleets:readers", parts) as group:
            bodies = [BODY["text"]] * BATCH
            started = time.monotonic_ns()
            for _ in range(messages // BATCH):
                await client.fcall("raw_send", 1, STREAM, *bodies)  # type: ignore[misc]
            total = messages / ((await group.handled(messages) - started) / 1e9)

            async def send() -> None:
                await client.xadd(STREAM, {"body": BODY["text"], "sent": time.monotonic_ns()})

            await pace(send, rate, timed)
            await group.handled(messages + timed)
            return [total, *percentiles(await group.delays())]


async def fleet(url: str, agents: int, consumers: int, messages: int, rate: int, timed: int) -> list[float]:
    """[messages a second, p50, p99 (ms) at ``rate``] of many agents with some consumers each, and one sender."""
    names = [f"bench-{number}" for number in range(agents)]
    parts = [{"url": url, "agents": names[first::PROCESSES], "each": consumers} for first in range(PROCESSES)]
    bus = await Bus.connect(url, HIVE)
    async with team("fleets:members", parts) as group:
        started = time.monotonic_ns()
        await fill(bus, messages, agents=agents)
        total = messages / ((await group.handled(messages) - started) / 1e9)
        following = iter(range(timed))
        await pace(lambda: bus.send(message(names[next(following) % agents], sent=time.monotonic_ns())), rate, timed)
        await group.handled(messages + timed)
        delays = await group.delays()
    await bus.aclose()
    return [total, *percentiles(delays)]


async def growth(url: str, sizes: list[int], messages: int, parts: int, limit: float) -> dict[str, list[Any]]:
    """Microseconds per message claimed and acknowledged with so many waiting behind (for each size, ``parts`` times
    ``messages``), and bytes of Redis per waiting message.

    The queue is filled with the call that ``Bus.send`` makes, in batches of 150 with one document: making a million
    messages one by one would take longer than all the rest.
    """
    import redis.asyncio as redis

    bus = await Bus.connect(url, HIVE)
    consumer = bus.consumer("bench", pod="bench-0")
    await consumer.start()
    costs: list[list[float]] = []
    memory: list[float] = []
    sent = handled = 0
    async with redis.Redis.from_url(url) as client:

        async def used() -> int:
            return int((await client.info("memory"))["used_memory"])

        empty = await used()
        ends = time.monotonic() + limit
        for size in sizes:
            wanted = handled + size + parts * messages
            sent = await _preload(client, sent, wanted, ends)
            if sent < wanted:
                break  # what is there is measured, no figure is made up
            memory.append((await used() - empty) / (sent - handled))
            costs.append([await _handle(consumer, messages) for _ in range(parts)])
            handled += parts * messages
    return {"costs": costs, "memory": memory}


async def _handle(consumer: Consumer, messages: int) -> float:
    """Claim and acknowledge so many messages; microseconds for each."""
    acknowledged: list[asyncio.Future[None]] = []
    started = time.monotonic()
    while (left := messages - len(acknowledged)) > 0:
        acknowledged += [consumer.ack(delivery) for delivery in await consumer.claim(min(BATCH, left))]
    await asyncio.gather(*acknowledged)
    return (time.monotonic() - started) / messages * 1e6


async def _preload(client: Any, sent: int, wanted: int, ends: float) -> int:
    from agenthive.bus.keys import AgentKeys
    from agenthive.bus.library import library
    from agenthive.bus.policy import lane_of

    template = message()
    document = template.to_json()
    lane, gate = lane_of(template.priority), AgentKeys.of(HIVE, "bench").gate
    old = template.message_id.encode()
    while sent < wanted and time.monotonic() < ends:
        arguments: list[Any] = ["0", 100_000_000]
        for number in range(sent, min(sent + 150, wanted)):
            new = f"{number:0{len(old)}d}".encode()
            arguments += (lane, new, document.replace(old, new), 3_600_000, "")
        count = (len(arguments) - 2) // 5
        answer = await client.execute_command(*library().call("send", gate, *arguments))
        if answer != b"1" * count:
            raise RuntimeError(f"the queue did not take all of a batch: {answer!r}")
        sent += count
    return sent
