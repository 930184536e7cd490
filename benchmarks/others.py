"""The same work by others: a raw redis-py loop without any semantics, and task queues."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

from benchmarks.ours import BODY, pace, percentiles

STREAM, GROUP = "raw", "raw"
BATCH = 100


async def raw_throughput(url: str, messages: int) -> float:
    """redis-py: XREADGROUP by 100, XACK and XDEL in one pipeline. No lease, no retry, no status: the floor."""
    import redis.asyncio as redis

    async with redis.Redis.from_url(url) as client:
        await client.xgroup_create(STREAM, GROUP, id="0", mkstream=True)
        await _raw_fill(client, messages)
        handled = 0
        started = time.monotonic()
        while handled < messages:
            answer: Any = await client.xreadgroup(GROUP, "me", {STREAM: ">"}, count=BATCH)
            ((_, entries),) = answer
            ids = [entry for entry, _ in entries]
            async with client.pipeline(transaction=False) as pipeline:
                pipeline.xack(STREAM, GROUP, *ids)
                pipeline.xdel(STREAM, *ids)
                await pipeline.execute()
            handled += len(ids)
        return messages / (time.monotonic() - started)


async def raw_sends(url: str, messages: int) -> float:
    """redis-py: pipelines of 100 XADDs, one after the other."""
    import redis.asyncio as redis

    async with redis.Redis.from_url(url) as client:
        started = time.monotonic()
        await _raw_fill(client, messages)
        return messages / (time.monotonic() - started)


async def _raw_fill(client: Any, messages: int) -> None:
    for _ in range(messages // BATCH):
        async with client.pipeline(transaction=False) as pipeline:
            for _ in range(BATCH):
                pipeline.xadd(STREAM, {"body": BODY["text"]})
            await pipeline.execute()


async def _gather(send: Any, messages: int, senders: int = 100) -> float:
    async def some() -> None:
        for _ in range(messages // senders):
            await send()

    started = time.monotonic()
    await asyncio.gather(*(some() for _ in range(senders)))
    return messages / (time.monotonic() - started)


class Taskiq:
    """taskiq with its stream broker, the one that acknowledges."""

    def __init__(self, url: str, expected: int) -> None:
        from taskiq_redis import RedisStreamBroker

        logging.getLogger("taskiq").setLevel(logging.ERROR)
        self.broker = RedisStreamBroker(url, xread_block=100)
        self.broker.is_worker_process = True
        self.times: list[float] = []
        self.delays: list[int] = []
        self.done = asyncio.Event()

        @self.broker.task("noop")
        async def noop(text: str, sent: int) -> None:
            self.times.append(time.monotonic())
            self.delays.append(time.monotonic_ns() - sent)
            if len(self.times) == expected:
                self.done.set()

        self.task = noop

    async def send(self) -> None:
        """One task."""
        await self.task.kiq(BODY["text"], time.monotonic_ns())

    async def work(self, concurrency: int) -> None:
        """Handle tasks until all expected ones were."""
        from taskiq.receiver import Receiver

        finish = asyncio.Event()
        receiver = Receiver(self.broker, max_async_tasks=concurrency, run_startup=False)
        listening = asyncio.create_task(receiver.listen(finish))
        await asyncio.wait_for(self.done.wait(), 60)
        finish.set()
        await asyncio.wait_for(listening, 20)


async def taskiq_throughput(url: str, messages: int, concurrency: int) -> float:
    """Tasks one taskiq worker handles a second, from a full queue."""
    peer = Taskiq(url, messages)
    await peer.broker.startup()
    await _gather(peer.send, messages)
    await peer.work(concurrency)
    await peer.broker.shutdown()
    return (messages - 1) / (peer.times[-1] - peer.times[0])


async def taskiq_sends(url: str, messages: int) -> float:
    """Awaited sends a second from 100 senders."""
    peer = Taskiq(url, 0)
    await peer.broker.startup()
    rate = await _gather(peer.send, messages)
    await peer.broker.shutdown()
    return rate


async def taskiq_latency(url: str, rate: int, messages: int) -> list[float]:
    """Milliseconds from send to handler at a steady rate: [p50, p99]. Sender and worker share one process."""
    peer = Taskiq(url, messages + rate)
    await peer.broker.startup()
    working = asyncio.create_task(peer.work(10))
    await pace(peer.send, rate, messages + rate)
    await working
    await peer.broker.shutdown()
    return percentiles(peer.delays[rate:])


async def saq_throughput(url: str, messages: int, concurrency: int) -> float:
    """Jobs one saq worker handles a second, from a full queue."""
    from saq import Queue, Worker

    logging.getLogger("saq").setLevel(logging.ERROR)
    times: list[float] = []
    done = asyncio.Event()

    async def noop(_ctx: Any, *, text: str) -> None:
        times.append(time.monotonic())
        if len(times) == messages:
            done.set()

    queue = Queue.from_url(url)
    await queue.connect()
    await _gather(lambda: queue.enqueue("noop", text=BODY["text"]), messages)
    worker: Any = Worker(queue, functions=[("noop", noop)], concurrency=concurrency)
    working = asyncio.create_task(worker.start())
    await asyncio.wait_for(done.wait(), 60)
    await worker.stop()
    await asyncio.gather(working, return_exceptions=True)
    return (messages - 1) / (times[-1] - times[0])


async def saq_sends(url: str, messages: int) -> float:
    """Awaited sends a second from 100 senders."""
    from saq import Queue

    queue = Queue.from_url(url)
    await queue.connect()
    rate = await _gather(lambda: queue.enqueue("noop", text=BODY["text"]), messages)
    await queue.disconnect()
    return rate
