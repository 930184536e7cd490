"""``python -m benchmarks.soak [--seconds 300]``: steady mixed load under churn; whatever it leaves behind is an error.

In cycles: load (priorities, delays, retries, dead letters, requests, duplicates) while consumers are killed and
stopped, then drain. Drained, each key of the agent must be back in its empty state, and neither Redis nor the
processes that live through all cycles may need more memory than after the first ones.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import random
import secrets
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import psutil
import redis.asyncio as redis

from agenthive.bus import Bus, LetterFilter, RequestFailed, RequestTimeout
from agenthive.protocol import AgentMessage, MessagePriority
from agenthive.settings import HiveScope
from benchmarks.member import AGENT, MESSAGING
from benchmarks.server import valkey

MEMBERS = 3
CYCLE_SECONDS = 10.0
RATE = 200
CHURN_SECONDS = 0.7
DRAIN_SECONDS = 30.0
REQUEST_SECONDS = 1.0
MIB = 1024 * 1024
ACTS = ("ok",) * 10 + ("retry", "fail", "reject", "slow", "ask", "delay", "twice", "same key")
#: What an agent's keys may hold when nothing is left to do; a key that is not here must not exist.
BOUNDS = {"q:1": 0, "q:2": 0, "q:3": 0, "q:4": 0, "consumers": MEMBERS, "wake": 2, "dead": 0, "counts": 2}
#: Redis allocates in steps; more than this on top of the first cycle is growth, bytes.
REDIS_SLACK = 16 * 1024
#: An allocator's noise, MiB; a leak of one object per message is above it after a minute.
PROCESS_SLACK = 6.0


@dataclass
class Cycle:
    """What one cycle did, and what it left behind."""

    sent: int = 0
    asked: int = 0
    unanswered: int = 0
    killed: int = 0
    stopped: int = 0
    letters: int = 0
    drained: float = 0.0
    keys: int = 0
    resident: dict[str, float] = field(default_factory=dict)
    doomed: set[str] = field(default_factory=set)

    def __str__(self) -> str:
        resident = ", ".join(f"{name} {value:.1f} MiB" for name, value in self.resident.items())
        return (
            f"{self.sent} sent, {self.asked} asked ({self.unanswered} unanswered), {self.letters} dead letters, "
            f"{self.killed} consumers killed, {self.stopped} stopped, drained in {self.drained:.1f} s; "
            f"keys {self.keys} B, {resident}"
        )


class Soak:
    """One soak of one server."""

    def __init__(self, url: str, say: Callable[[str], None]) -> None:
        self.url = url
        self.say = say
        self.hive = f"soak-{secrets.token_hex(4)}"
        self.scope = HiveScope(hive=self.hive)
        self.prefix = self.scope.key_prefix(AGENT)
        self.members: list[asyncio.subprocess.Process] = []
        self.names = itertools.count()
        self.cycles: list[Cycle] = []
        self.turn = 0
        #: Kinds of keys met under load, without numbers and ids: what the emptiness afterwards says something about.
        self.met: set[str] = set()

    async def run(self, seconds: float, cycle_seconds: float = CYCLE_SECONDS) -> list[Cycle]:
        """Soak for about so long, two cycles at least. Raises AssertionError for anything that grows or stays."""
        ends = time.monotonic() + seconds
        self.bus = await Bus.connect(self.url, self.scope, messaging=MESSAGING)
        self.redis = redis.Redis.from_url(self.url, protocol=2)
        try:
            self.members = list(await asyncio.gather(*(self._start() for _ in range(MEMBERS))))
            while len(self.cycles) < 2 or time.monotonic() < ends:
                cycle = await self._cycle(cycle_seconds)
                self.cycles.append(cycle)
                self.say(f"cycle {len(self.cycles)}: {cycle}")
            self._assert_flat()
        finally:
            for member in self.members:
                if member.returncode is None:
                    member.kill()
                    await member.wait()
            await self.bus.aclose()
            await self.redis.aclose()
        return self.cycles

    # --- load

    async def _cycle(self, seconds: float) -> Cycle:
        cycle = Cycle()
        ends = time.monotonic() + seconds
        churn = asyncio.gather(self._churn(cycle, ends), self._look(ends))
        tasks: set[asyncio.Task[Any]] = set()
        started = time.monotonic()
        for number in itertools.count():
            due = started + number / RATE
            if due > ends:
                break
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            tasks.add(asyncio.create_task(self._one(random.choice(ACTS), cycle)))
            for task in [task for task in tasks if task.done()]:
                tasks.discard(task)
                task.result()
        await asyncio.gather(churn, *tasks)
        began = time.monotonic()
        await self._drained(cycle)
        cycle.drained = time.monotonic() - began
        cycle.keys = await self._memory()
        anchor = self.members[0]
        cycle.resident = {
            name: psutil.Process(pid).memory_info().rss / MIB
            for name, pid in (("sender", os.getpid()), ("consumer", anchor.pid))
        }
        return cycle

    async def _one(self, act: str, cycle: Cycle) -> None:
        options: dict[str, Any] = {}
        if act == "delay":
            options["not_before"] = datetime.now(UTC) + timedelta(seconds=random.random() / 2)
        if act == "same key":
            options["deduplication_key"] = f"key-{random.randrange(20)}"
        message = AgentMessage(
            from_agent="load", to_agent=AGENT, message_type="t", body={"act": act, "text": "x" * 189},
            priority=random.choice(list(MessagePriority)), delivery_options=options,
        )  # fmt: skip
        if act == "ask":
            cycle.asked += 1
            try:
                await self.bus.request(message, REQUEST_SECONDS)
            except (RequestTimeout, RequestFailed):  # who had it was killed
                cycle.unanswered += 1
            return
        cycle.sent += 1
        if act in {"fail", "reject"}:
            cycle.doomed.add(message.message_id)
        await self.bus.send(message)
        if act == "twice":
            await self.bus.send(message)

    # --- churn

    async def _start(self) -> asyncio.subprocess.Process:
        member = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "benchmarks.member", self.url, self.hive, f"pod-{next(self.names)}",
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        assert member.stdout is not None
        assert await member.stdout.readline() == b"ready\n", "a consumer process did not start"
        return member

    async def _churn(self, cycle: Cycle, ends: float) -> None:
        """Kill or stop all but the first member by turns, and start another in its place."""
        while time.monotonic() + CHURN_SECONDS < ends:
            await asyncio.sleep(CHURN_SECONDS)
            place = random.randrange(1, MEMBERS)
            member = self.members[place]
            self.turn += 1
            if self.turn % 2:
                member.kill()
                await member.wait()
                cycle.killed += 1
            else:
                member.terminate()
                assert await member.wait() == 0, "a consumer that was told to stop failed"
                cycle.stopped += 1
            self.members[place] = await self._start()
        assert self.members[0].returncode is None, "the consumer that nobody stopped has ended"

    async def _look(self, ends: float) -> None:
        while time.monotonic() < ends:
            async for key in self.redis.scan_iter(f"{self.prefix}*", count=1000):
                self.met.add(key.decode().removeprefix(self.prefix).partition(":")[0])
            await asyncio.sleep(0.05)

    # --- what is left

    async def _drained(self, cycle: Cycle) -> None:
        """Wait until nothing is left of the load but dead letters, purge them, and wait for the keys' empty state."""
        stats = await self._until(self._rest, "messages are left")
        assert not stats
        dead: set[str] = set()
        after: str | None = None
        while True:
            page = await self.bus.dead_letters(AGENT, limit=500, after=after)
            dead |= {letter.message.message_id for letter in page if letter.message is not None}
            if (after := page.next) is None:
                break
        assert cycle.doomed <= dead, f"{len(cycle.doomed - dead)} failed messages are not in the dead letters"
        cycle.letters = len(dead)
        await self.bus.purge(AGENT, LetterFilter())
        await self._until(self._leftovers, "keys are not empty again")

    async def _until(self, rest: Callable[[], Any], problem: str) -> Any:
        deadline = time.monotonic() + DRAIN_SECONDS
        while found := await rest():
            assert time.monotonic() < deadline, f"{DRAIN_SECONDS:.0f} s after the load {problem}: {found}"
            await asyncio.sleep(0.05)
        return found

    async def _rest(self) -> dict[str, int]:
        stats = await self.bus.queue(AGENT)
        figures = {"backlog": stats.backlog, "in flight": stats.in_flight, "delayed": stats.delayed}
        return {name: value for name, value in figures.items() if value}

    async def _leftovers(self) -> dict[str, Any]:
        """Keys that are not in their empty state. Those that expire by themselves are waited for like the others."""
        found: dict[str, Any] = {}
        live = {name.decode() for name in await self.redis.zrange(self.prefix + "consumers", 0, -1)}
        async for key in self.redis.scan_iter(f"{self.prefix}*", count=1000):
            name = key.decode().removeprefix(self.prefix)
            kind = (await self.redis.type(key)).decode()
            if kind == "none":
                continue  # it has just expired
            if (size := await self._size(key, kind)) > BOUNDS.get(name, -1):
                found[name] = size
            if kind == "stream" and name.startswith("q:"):
                for group in await self.redis.xinfo_groups(key):
                    if group["pending"]:
                        found[f"{name} pending"] = group["pending"]
                consumers = await self.redis.xinfo_consumers(key, "agents")
                strangers = {entry["name"].decode() for entry in consumers} - live - {"nobody"}
                if strangers:
                    found[f"{name} consumers"] = strangers
        if len(live) > MEMBERS:
            found["consumers"] = live
        return found

    async def _size(self, key: bytes, kind: str) -> int:
        sizes = {"stream": self.redis.xlen, "hash": self.redis.hlen, "list": self.redis.llen,
                 "zset": self.redis.zcard, "set": self.redis.scard, "string": self.redis.strlen}  # fmt: skip
        return int(await sizes[kind](key))

    async def _memory(self) -> int:
        """Bytes of all keys of the hive."""
        keys = [key async for key in self.redis.scan_iter(f"{self.scope.hive_prefix.rstrip('}:')}*", count=1000)]
        return sum([await self.redis.memory_usage(key, samples=0) or 0 for key in keys])

    def _assert_flat(self) -> None:
        """Nothing at the end of the last cycles is larger than after the first ones."""
        part = max(1, len(self.cycles) // 3)
        first, last = self.cycles[:part], self.cycles[-part:]
        before, after = (statistics.median(cycle.keys for cycle in some) for some in (first, last))
        assert after <= before + REDIS_SLACK, f"the keys grew from {before:.0f} to {after:.0f} bytes"
        for name in first[0].resident:
            before, after = (statistics.median(cycle.resident[name] for cycle in some) for some in (first, last))
            assert after <= before + PROCESS_SLACK, f"the {name} grew from {before:.1f} to {after:.1f} MiB"


def main() -> None:
    """Soak a server of its own."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description="Steady mixed load under churn.")
    parser.add_argument("--seconds", type=float, default=300.0, help="how long; default: %(default)s")
    seconds = parser.parse_args().seconds
    with valkey() as url:
        cycles = asyncio.run(Soak(url, lambda text: print(text, flush=True)).run(seconds))
    total = sum(cycle.sent + cycle.asked for cycle in cycles)
    print(f"flat: {total} messages in {len(cycles)} cycles, {sum(cycle.killed for cycle in cycles)} consumers killed")


if __name__ == "__main__":
    main()
