"""The same work by others: raw redis-py loops without any semantics, and the task queues of ``peers``."""

from __future__ import annotations

import asyncio
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.cell import begin, end
from benchmarks.ours import BODY, pace, percentiles
from benchmarks.peers import PEERS

STREAM, GROUP = "raw", "raw"
BATCH = 100
PATIENCE = 30.0
FUNCTION = """#!lua name=raw
redis.register_function('raw_send', function(keys, argv)
  for i = 1, #argv do redis.call('XADD', keys[1], '*', 'body', argv[i]) end
  return #argv
end)"""


async def raw_throughput(url: str, messages: int) -> float:
    """redis-py: XREADGROUP by 100, XACK and XDEL in one pipeline. No lease, no retry, no status: the floor."""
    import redis.asyncio as redis

    async with redis.Redis.from_url(url) as client:
        await client.xgroup_create(STREAM, GROUP, id="0", mkstream=True)
        await _fill_by_pipeline(client, messages)
        handled = 0
        started = time.monotonic()
        while handled < messages:
            answer: Any = await client.xreadgroup(GROUP, "me", {STREAM: ">"}, count=BATCH)
            ((_, entries),) = answer
            await acknowledge(client, [entry for entry, _ in entries])
            handled += len(entries)
        return messages / (time.monotonic() - started)


async def acknowledge(client: Any, entries: list[Any]) -> None:
    """XACK and XDEL in one pipeline."""
    async with client.pipeline(transaction=False) as pipeline:
        pipeline.xack(STREAM, GROUP, *entries)
        pipeline.xdel(STREAM, *entries)
        await pipeline.execute()


async def raw_pipeline_sends(url: str, messages: int) -> float:
    """redis-py: pipelines of 100 XADDs, one after the other."""
    import redis.asyncio as redis

    async with redis.Redis.from_url(url) as client:
        await client.ping()
        started = time.monotonic()
        await _fill_by_pipeline(client, messages)
        return messages / (time.monotonic() - started)


async def raw_call_sends(url: str, messages: int) -> float:
    """redis-py: calls of a server function that adds 100 bodies, one after the other. Ids, JSON, TTL: none."""
    import redis.asyncio as redis

    async with redis.Redis.from_url(url) as client:
        await client.function_load(FUNCTION, replace=True)
        bodies = [BODY["text"]] * BATCH
        started = time.monotonic()
        for _ in range(messages // BATCH):
            await client.fcall("raw_send", 1, STREAM, *bodies)  # type: ignore[misc]
        return messages / (time.monotonic() - started)


async def _fill_by_pipeline(client: Any, messages: int) -> None:
    for _ in range(messages // BATCH):
        async with client.pipeline(transaction=False) as pipeline:
            for _ in range(BATCH):
                pipeline.xadd(STREAM, {"body": BODY["text"]})
            await pipeline.execute()


# --- task queues


class Handled:
    """What a worker's handlers have noted."""

    def __init__(self, expected: int = 0, ready: str = "") -> None:
        self.expected = expected
        self.ready = ready
        self.first = self.last = 0
        self.delays: list[int] = []
        self.all = asyncio.Event()

    def __call__(self, sent: int) -> None:
        """One message was handled."""
        self.last = time.monotonic_ns()
        if not self.delays:
            self.first = self.last
            if self.ready:
                Path(self.ready).touch()
        self.delays.append(self.last - sent)
        if len(self.delays) == self.expected:
            self.all.set()


async def work(url: str, peer: str, concurrency: int, messages: int, ready: str = "") -> dict[str, Any]:
    """A worker that ends after so many messages; ``ready`` is a file it makes at the first one."""
    handled = Handled(messages, ready)
    queue = PEERS[peer](url, handled)
    await queue.open()
    working = asyncio.ensure_future(queue.work(concurrency))
    waiting = asyncio.ensure_future(handled.all.wait())
    await asyncio.wait({working, waiting}, return_when=asyncio.FIRST_COMPLETED, timeout=PATIENCE)
    if working.done():
        working.result()
    if not waiting.done():
        raise RuntimeError(f"{peer} handled {len(handled.delays)} of {messages} messages in {PATIENCE:.0f} s")
    seconds = (handled.last - handled.first) / 1e9
    return {"rate": (messages - 1) / seconds, "delays": handled.delays}


async def _open(url: str, peer: str) -> Any:
    queue = PEERS[peer](url, Handled())
    await queue.open()
    return queue


async def _fill(queue: Any, messages: int, senders: int = 100) -> float:
    async def some() -> None:
        for _ in range(messages // senders):
            await queue.send(0)

    started = time.monotonic()
    await asyncio.gather(*(some() for _ in range(senders)))
    return messages / (time.monotonic() - started)


async def throughput(url: str, peer: str, messages: int, concurrency: int) -> float:
    """Messages one worker handles a second, from a full queue."""
    await _fill(await _open(url, peer), messages)
    worker = begin("others:work", url=url, peer=peer, concurrency=concurrency, messages=messages)
    found = await asyncio.to_thread(end, worker, f"the worker of {peer}")
    return float(found["rate"])


async def sends(url: str, peer: str, messages: int) -> float:
    """Awaited sends a second from 100 senders, once their connections are open."""
    queue = await _open(url, peer)
    await _fill(queue, 100)
    return await _fill(queue, messages)


async def latency(url: str, peer: str, rate: int, messages: int, concurrency: int) -> list[float]:
    """Milliseconds from send to handler at a steady rate: [p50, p99], and the rate the sender reached."""
    queue = await _open(url, peer)
    expected = messages + rate + 1
    with tempfile.TemporaryDirectory(prefix="agenthive-bench-") as folder:
        ready = Path(folder) / "ready"
        worker = begin("others:work", url=url, peer=peer, concurrency=concurrency, messages=expected, ready=str(ready))
        await queue.send(time.monotonic_ns())
        deadline = time.monotonic() + PATIENCE
        while not ready.exists():
            if worker.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the worker of {peer} did not handle its first message")
            await asyncio.sleep(0.01)
        reached = await pace(lambda: queue.send(time.monotonic_ns()), rate, messages + rate)
        found = await asyncio.to_thread(end, worker, f"the worker of {peer}")
    return [*percentiles(found["delays"][rate + 1 :]), reached]  # the first second warms up
