"""Numbered messages, worker processes that note what they handle, and the account of it in the end."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import random
import secrets
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import redis.asyncio
from tests.conftest import UNMEASURED

from agenthive.bus import Bus, BusUnavailable, QueueFull
from agenthive.protocol import AgentMessage, MessagePriority
from agenthive.settings import CircuitBreaker, HiveScope, Messaging, RedisPool

HERE = Path(__file__).parent
PATIENCE = 60.0
"""Seconds after which a test gives up waiting; what it measures is never this."""
SEED = "AGENTHIVE_TEST_SEED"


def say(text: str) -> None:
    """Into the test's output: `pytest -s` shows it, and a failure does."""
    print(f"FAULTS {text}")  # noqa: T201


def seeded(name: str) -> random.Random:
    """A source of chance for one test. Its seed is printed; AGENTHIVE_TEST_SEED sets it."""
    seed = os.environ.get(SEED) or secrets.token_hex(4)
    say(f"{name}: {SEED}={seed}")
    return random.Random(f"{seed} {name}")


@dataclass(frozen=True)
class Row:
    """One line of the ledger."""

    event: str
    number: int
    attempt: int
    process: int
    time: float
    """Seconds of the machine's monotonic clock, the same in all processes."""


@dataclass
class Fleet:
    """Worker processes of one hive, and the ledger they write."""

    folder: Path
    url: str
    scope: HiveScope
    messaging: Messaging
    concurrency: int = 10
    beating: bool = False
    """Whether each process notes when the machine gave it no turn."""
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    frozen: set[str] = field(default_factory=set)

    @property
    def path(self) -> Path:
        return self.folder / "ledger"

    def start(self, pod: str, url: str | None = None) -> None:
        """Start the pod's process, as a kubelet starts its container again."""
        environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith("AGENTHIVE_")},
            **UNMEASURED,
            "AGENTHIVE_POD": pod,
            "AGENTHIVE_BIND": "127.0.0.1",
            "AGENTHIVE_HTTP_PORT": "0",
            "AGENTHIVE_TERMINATION_LOG": str(self.folder / f"{pod}.termination"),
            "AGENTHIVE_REDIS_URL": url or self.url,
            "AGENTHIVE_NAMESPACE": self.scope.namespace,
            "AGENTHIVE_HIVE": self.scope.hive,
            "AGENTHIVE_MESSAGING": self.messaging.to_env(),
            "AGENTHIVE_CONCURRENCY": str(self.concurrency),
            "AGENTHIVE_DRAIN_SECONDS": "5",
            "LEDGER": str(self.path),
            **({"LEDGER_STALLS": str(self._stalls_of(pod))} if self.beating else {}),
        }
        with (self.folder / f"{pod}.log").open("ab") as log:
            self.processes[pod] = subprocess.Popen(
                [sys.executable, "-m", "agenthive.cli", "run", "ledger_agent:agent"],
                cwd=HERE, env=environment, stdout=log, stderr=log,
            )  # fmt: skip

    def _stalls_of(self, pod: str) -> Path:
        return self.folder / f"{pod}.stalls"

    def stalls(self, pod: str) -> list[tuple[float, float]]:
        """When the pod's process, if it is ``beating``, had no turn: begin and end, by the machine's clock."""
        path = self._stalls_of(pod)
        lines = path.read_text().splitlines() if path.exists() else []
        return [(float(began), float(ended)) for began, ended in map(str.split, lines)]

    def kill(self, pod: str) -> None:
        """SIGKILL: no goodbye."""
        process = self.processes[pod]
        process.kill()
        process.wait()
        self.frozen.discard(pod)

    def freeze(self, pod: str) -> None:
        """SIGSTOP, as a node that swaps or a paused virtual machine."""
        self.processes[pod].send_signal(signal.SIGSTOP)
        self.frozen.add(pod)

    def thaw(self, pod: str) -> None:
        """SIGCONT."""
        self.processes[pod].send_signal(signal.SIGCONT)
        self.frozen.discard(pod)

    def log(self, pod: str) -> str:
        return (self.folder / f"{pod}.log").read_text()

    def rows(self) -> list[Row]:
        """What the ledger says. A process killed in the middle of its write leaves no half line: it is one call."""
        if not self.path.exists():
            return []
        fields = (line.split() for line in self.path.read_text().splitlines())
        return [Row(event, int(n), int(attempt), int(pid), int(ns) / 1e9) for event, n, attempt, pid, ns in fields]

    def handled(self) -> set[int]:
        """Numbers whose handler came to its end at least once."""
        return {row.number for row in self.rows() if row.event == "end"}

    def serving(self) -> list[str]:
        """Pods whose present process has handled something."""
        known = {row.process for row in self.rows()}
        return [pod for pod, process in self.processes.items() if process.pid in known and pod not in self.frozen]

    def robberies(self) -> int:
        """How often a live worker was told that its lease was lost: what it held may be handled twice."""
        words = ("it was robbed", "it lost its lease", "the lease was lost")
        return sum(self.log(pod).count(word) for pod in self.processes for word in words)

    def assert_alive(self) -> None:
        """No worker may end by itself, whatever is done to its Redis."""
        for pod, process in self.processes.items():
            assert process.poll() is None, f"{pod} ended with {process.returncode}:\n{self.log(pod)[-4000:]}"

    def close(self) -> None:
        for process in self.processes.values():
            if process.poll() is None:
                process.kill()
            process.wait()


@dataclass
class Sending:
    """Sends numbered messages, each until it is accepted or its sender gives up, and notes what was accepted when."""

    bus: Bus
    accepted: dict[int, float] = field(default_factory=dict)
    errors: Counter[str] = field(default_factory=Counter)
    resends: int = 0

    async def send(
        self, numbers: Iterable[int], *, pace: float = 0.0, persist: bool = True, kind: str = "count",
        body: Callable[[int], dict[str, Any]] = lambda number: {}, **fields: Any,
    ) -> None:  # fmt: skip
        """One message after the other, ``pace`` seconds apart; after an error the same message again."""
        for number in numbers:
            message = AgentMessage(
                from_agent="tester", to_agent="worker", message_type=kind, body={"n": number, **body(number)},
                **{"message_id": f"message-{number}", "priority": MessagePriority(number % 4 + 1), **fields},
            )  # fmt: skip
            while number not in self.accepted:
                try:
                    await self.bus.send(message)
                    self.accepted[number] = time.monotonic()
                except (BusUnavailable, QueueFull) as error:
                    self.errors[str(error)] += 1
                    if not persist:
                        break
                    self.resends += 1
                    await asyncio.sleep(0.05)
            if pace:
                await asyncio.sleep(pace)

    def start(self, count: int, senders: int, **options: Any) -> asyncio.Task[Any]:
        """``count`` messages from so many callers at a time."""
        tasks = [self.send(range(start, count, senders), **options) for start in range(senders)]
        return asyncio.ensure_future(asyncio.gather(*tasks))


@dataclass
class Account:
    """What the matrix shows about one fault."""

    fault: str
    messages: int
    faults: int
    lost: int
    twice: int
    """Messages handled more than once."""
    details: str = ""

    def report(self, record: Callable[[str, object], None]) -> None:
        text = (
            f"{self.messages} messages, {self.faults} faults: {self.lost} lost, {self.twice} handled more than once"
            f"{'; ' if self.details else ''}{self.details}"
        )
        say(f"{self.fault}: {text}")
        record(f"faults: {self.fault}", text)


async def until(condition: Callable[[], Any], what: str, seen: object = "") -> Any:
    """Poll a condition, plain or async, and return its value; fail after PATIENCE and show what was ``seen`` last."""
    deadline = time.monotonic() + PATIENCE
    while True:
        value = condition()
        if asyncio.iscoroutine(value):
            value = await value
        if value:
            return value
        assert time.monotonic() < deadline, f"not within {PATIENCE:.0f} s: {what} {seen}"
        await asyncio.sleep(0.05)


@contextlib.asynccontextmanager
async def connected(url: str, scope: HiveScope, messaging: Messaging, *, failures: int = 20) -> AsyncIterator[Bus]:
    """A bus that reports an outage after so many ``failures`` to reach Redis and tries again soon."""
    breaker = CircuitBreaker(failure_threshold=failures, reset_seconds=0.2)
    bus = await Bus.connect(url, scope, messaging=messaging, pool=RedisPool(circuit_breaker=breaker))
    try:
        yield bus
    finally:
        await bus.aclose()


async def all_serve(fleet: Fleet, sending: Sending, first: int) -> None:
    """Send messages, numbered from ``first`` on, until each process has handled one, however late it starts."""
    numbers = itertools.count(first)

    async def serving() -> bool:
        await sending.send([next(numbers)])
        return len(fleet.serving()) == len(fleet.processes)

    await until(serving, "all processes serve")


async def drained(bus: Bus, fleet: Fleet, numbers: Iterable[int] = ()) -> None:
    """Until nothing waits, is in flight or delayed, and all ``numbers`` were handled to the end."""
    wanted = set(numbers)
    seen: list[object] = []

    async def done() -> bool:
        try:
            stats = await bus.queue("worker")
        except BusUnavailable as error:
            seen[:] = [error]
            return False
        missing = wanted - fleet.handled()
        seen[:] = [f"{len(missing)} not handled, such as {sorted(missing)[:5]}; {stats}"]
        return not missing and stats.backlog + stats.in_flight + stats.delayed == 0

    await until(done, "all is handled", seen)


async def settle(bus: Bus, fleet: Fleet, sending: Sending, fault: str, faults: int) -> Account:
    """Wait for the end and check what holds in every fault: nothing lost, each delivered, one holder at a time."""
    await drained(bus, fleet, sending.accepted)
    rows = fleet.rows()
    begun = Counter((row.number, row.attempt) for row in rows if row.event == "begin")
    both = [place for place, count in begun.items() if count > 1]
    assert not both, f"two processes held one attempt (number, attempt): {both[:10]}"
    handlings = Counter(number for number, _ in begun)
    assert set(handlings) >= set(sending.accepted)
    states = await finals(fleet)
    undelivered = {n: states.get(f"message-{n}") for n in sending.accepted if not delivered(states, n)}
    assert not undelivered, f"accepted, but no word of delivery: {dict(list(undelivered.items())[:10])}"
    assert await bus.dead_letters("worker") == []
    await assert_clean(fleet)
    twice = sum(count > 1 for count in handlings.values())
    return Account(fault, len(sending.accepted), faults, 0, twice)


def delivered(states: dict[str, str], number: int) -> bool:
    return states.get(f"message-{number}", "").startswith("d ")


async def finals(fleet: Fleet) -> dict[str, str]:
    """Every final status that Redis keeps of the fleet's agent."""
    prefix = fleet.scope.key_prefix("worker")
    found: dict[str, str] = {}
    async with redis.asyncio.Redis.from_url(fleet.url, protocol=2, decode_responses=True) as raw:
        async for key in raw.scan_iter(f"{_escaped(prefix)}st:*"):
            found.update(await raw.hgetall(key))
    return found


async def assert_clean(fleet: Fleet) -> None:
    """Behind a drained queue nothing is left that would grow."""
    prefix = fleet.scope.key_prefix("worker")
    async with redis.asyncio.Redis.from_url(fleet.url, protocol=2, decode_responses=True) as raw:
        left = {key: await raw.hgetall(prefix + key) for key in ("ids", "tries", "held")}
        assert not any(left.values()), f"left behind: {left}"
        assert await raw.zcard(prefix + "delayed") == 0
        for lane in range(1, 5):
            assert await raw.xlen(f"{prefix}q:{lane}") == 0
            assert await raw.llen(f"{prefix}b:{lane}") == 0
            if await raw.exists(f"{prefix}q:{lane}"):
                assert (await raw.xpending(f"{prefix}q:{lane}", "agents"))["pending"] == 0


def _escaped(text: str) -> str:
    """``text`` as a pattern that matches itself."""
    return "".join(f"\\{letter}" if letter in "*?[]{}\\^" else letter for letter in text)
