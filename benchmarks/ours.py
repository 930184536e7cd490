"""Our own figures: each cell runs in a process of its own, as does the agent it measures."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from agenthive.bus import Bus
from agenthive.protocol import AgentMessage
from agenthive.settings import HiveScope

HIVE = HiveScope(hive="bench")
#: 200 bytes of body, as in DESIGN's table.
BODY = {"text": "x" * 189}
PATIENCE = 60.0
MIB = 1024 * 1024


def message(agent: str = "bench", **body: Any) -> AgentMessage:
    """One message to the agent under measurement."""
    return AgentMessage(from_agent="load", to_agent=agent, message_type="noop", body={**BODY, **body})


@contextmanager
def agent(url: str, attribute: str, messages: int, concurrency: int) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """``agenthive run`` in a process of its own: (process, where its result appears)."""
    with tempfile.TemporaryDirectory(prefix="agenthive-bench-") as folder:
        result = Path(folder) / "result"
        environment = {
            **os.environ,
            "AGENTHIVE_REDIS_URL": url,
            "AGENTHIVE_HIVE": HIVE.hive,
            "AGENTHIVE_POD": "bench-0",
            "AGENTHIVE_CONCURRENCY": str(concurrency),
            "AGENTHIVE_BIND": "127.0.0.1",
            "AGENTHIVE_HTTP_PORT": "0",
            "AGENTHIVE_LOG_LEVEL": "WARNING",
            "BENCH_RESULT": str(result),
            "BENCH_MESSAGES": str(messages),
        }
        program = Path(sys.executable).with_name("agenthive")
        process = subprocess.Popen([str(program), "run", f"benchmarks.agents:{attribute}"], env=environment)
        try:
            yield process, result
        finally:
            process.send_signal(signal.SIGTERM)
            if process.wait(timeout=20) != 0:
                raise RuntimeError(f"the agent under measurement exited with {process.returncode}")


async def result_of(process: subprocess.Popen[bytes], path: Path) -> dict[str, Any]:
    """What the agent measured, once it is there."""
    deadline = time.monotonic() + PATIENCE
    while not path.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError("the agent under measurement did not handle all messages")
        await asyncio.sleep(0.02)
    document: dict[str, Any] = json.loads(path.read_text())
    return document


async def fill(bus: Bus, messages: int, senders: int = 100, agents: int = 0) -> float:
    """Send ``messages`` from ``senders`` coroutines, each awaiting its own; messages a second.

    To the agent under measurement, or by turns to ``agents`` many.
    """

    async def send(first: int) -> None:
        for number in range(first, messages, senders):
            await bus.send(message(f"bench-{number % agents}" if agents else "bench"))

    started = time.monotonic()
    await asyncio.gather(*(send(first) for first in range(senders)))
    return messages / (time.monotonic() - started)


async def throughput(url: str, messages: int, concurrency: int) -> float:
    """Messages one worker process handles a second, from a full queue."""
    bus = await Bus.connect(url, HIVE)
    try:
        await fill(bus, messages)
    finally:
        await bus.aclose()
    with agent(url, "noop", messages, concurrency) as (process, path):
        found = await result_of(process, path)
    return (messages - 1) / float(found["last"] - found["first"])


async def sends(url: str, messages: int) -> float:
    """Awaited sends a second from 100 senders in one process."""
    bus = await Bus.connect(url, HIVE)
    try:
        await fill(bus, 1000)  # connections and caches
        return await fill(bus, messages)
    finally:
        await bus.aclose()


async def latency(url: str, rate: int, messages: int, concurrency: int) -> list[float]:
    """Milliseconds from send to handler at a steady rate: [p50, p99], and the rate the sender reached."""
    bus = await Bus.connect(url, HIVE)
    try:
        with agent(url, "latency", messages + rate, concurrency) as (process, path):
            await bus.send(message(sent=time.monotonic_ns()))
            while (await bus.queue("bench")).backlog:
                await asyncio.sleep(0.01)
            reached = await pace(lambda: bus.send(message(sent=time.monotonic_ns())), rate, messages + rate - 1)
            found = await result_of(process, path)
    finally:
        await bus.aclose()
    return [*percentiles(found["delays"][rate:]), reached]  # the first second warms up


async def pace(send: Callable[[], Coroutine[Any, Any, Any]], rate: int, messages: int) -> float:
    """Call ``send`` ``rate`` times a second, whether or not the ones before have returned; the rate that came of it."""
    started = time.monotonic()
    running: set[asyncio.Task[Any]] = set()

    def ended(task: asyncio.Task[Any]) -> None:
        if task.exception() is None:  # one that failed stays, and is raised below
            running.discard(task)

    for number in range(messages):
        wait = started + number / rate - time.monotonic()
        if wait > 0:
            await asyncio.sleep(wait)
        task = asyncio.ensure_future(send())
        running.add(task)
        task.add_done_callback(ended)
    await asyncio.gather(*running)
    return messages / (time.monotonic() - started)


def percentiles(delays: list[int]) -> list[float]:
    """[p50, p99] of nanoseconds, in milliseconds."""
    ordered = sorted(delays)
    return [ordered[len(ordered) // 2] / 1e6, ordered[len(ordered) * 99 // 100] / 1e6]


async def start(url: str) -> list[float]:
    """[seconds from starting an agent to its first message handled, MiB resident when idle after it]."""
    bus = await Bus.connect(url, HIVE)
    try:
        await bus.send(message())
    finally:
        await bus.aclose()
    started = time.monotonic()
    with agent(url, "noop", 1, 10) as (process, path):
        found = await result_of(process, path)
        await asyncio.sleep(0.5)  # idle means that nothing has happened for a while
        resident = psutil.Process(process.pid).memory_info().rss / MIB
    return [found["first"] - started, resident]
