"""Task queues that others use, each with the fastest settings its documentation offers.

What all have in common: hiredis (coredis brings a parser of its own), uvloop, worker and sender in processes of their
own as ours are, no result kept where that can be switched off, logging at ERROR, the same number of handlers at a time.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from benchmarks.ours import BODY

Note = Callable[[int], None]
"""Called by the handler with the time (ns) its message was sent at."""
TEXT = BODY["text"]


class Peer(Protocol):
    """One queue of others; ``module`` is what has to be installed."""

    module: str

    def __init__(self, url: str, note: Note) -> None: ...

    async def open(self) -> None:
        """Connect."""

    async def send(self, sent: int) -> None:
        """One message, awaited."""

    async def work(self, concurrency: int) -> None:
        """Handle messages until cancelled."""


class Taskiq:
    """taskiq with its stream broker, the one that acknowledges."""

    module = "taskiq_redis"

    def __init__(self, url: str, note: Note) -> None:
        from taskiq.serializers import ORJSONSerializer
        from taskiq_redis import RedisStreamBroker

        logging.getLogger("taskiq").setLevel(logging.ERROR)
        # Batches of 100 are its default; orjson is the fastest of its serializers.
        self.broker = RedisStreamBroker(url).with_serializer(ORJSONSerializer())
        self.broker.is_worker_process = True

        @self.broker.task("noop")
        async def noop(text: str, sent: int) -> None:
            note(sent)

        self.task = noop

    async def open(self) -> None:
        """Makes the consumer group, too."""
        await self.broker.startup()

    async def send(self, sent: int) -> None:
        """One task."""
        await self.task.kiq(TEXT, sent)

    async def work(self, concurrency: int) -> None:
        """Parameters are not validated (``--no-parse``), one more batch is fetched ahead (``--max-prefetch``)."""
        import asyncio

        from taskiq.receiver import Receiver

        receiver = Receiver(
            self.broker,
            max_async_tasks=concurrency,
            max_prefetch=concurrency,
            validate_params=False,
            run_startup=False,
        )
        # Never set: taskiq cancels the read that is under way, and now and then that never ends.
        await receiver.listen(asyncio.Event())


class Saq:
    """saq with its Redis queue."""

    module = "saq"

    def __init__(self, url: str, note: Note) -> None:
        from saq import Queue

        logging.getLogger("saq").setLevel(logging.ERROR)
        self.queue: Any = Queue.from_url(url)
        self.note = note

    async def open(self) -> None:
        """Connect."""
        await self.queue.connect()

    async def send(self, sent: int) -> None:
        """One job without a time limit (saves a ``wait_for``) and without a result to keep."""
        await self.queue.enqueue("noop", timeout=0, ttl=-1, text=TEXT, sent=sent)

    async def work(self, concurrency: int) -> None:
        """Its worker takes a job at a time in as many coroutines as it may run handlers."""
        from saq import Worker

        async def noop(_ctx: Any, *, text: str, sent: int) -> None:
            self.note(sent)

        worker: Any = Worker(self.queue, functions=[("noop", noop)], concurrency=concurrency)
        await worker.start()


class Arq:
    """arq; 0.25 is its newest version whose requirements admit the redis-py that the others run on."""

    module = "arq"

    def __init__(self, url: str, note: Note) -> None:
        from arq.connections import RedisSettings

        logging.getLogger("arq").setLevel(logging.ERROR)
        self.settings = RedisSettings.from_dsn(url)
        self.note = note
        self.pool: Any = None

    async def open(self) -> None:
        """Connect."""
        from arq import create_pool

        self.pool = await create_pool(self.settings)

    async def send(self, sent: int) -> None:
        """One job."""
        await self.pool.enqueue_job("noop", TEXT, sent)

    async def work(self, concurrency: int) -> None:
        """It polls, by default each 0.5 s, which would bound it to ``concurrency`` jobs in that time: here 10 ms."""
        from arq.worker import Worker, func

        async def noop(_ctx: Any, text: str, sent: int) -> None:
            self.note(sent)

        worker = Worker(
            [func(noop, name="noop", keep_result=0)],
            redis_settings=self.settings,
            max_jobs=concurrency,
            poll_delay=0.01,
            keep_result=0,
            handle_signals=False,
        )
        await worker.async_run()


class Streaq:
    """streaq, on coredis."""

    module = "streaq"

    def __init__(self, url: str, note: Note) -> None:
        from streaq import Worker

        logging.getLogger("streaq").setLevel(logging.ERROR)
        self.url, self.note = url, note
        self.worker: Any = Worker(redis_url=url, handle_signals=False)
        self.task = self._task(self.worker)

    def _task(self, worker: Any) -> Any:
        note = self.note

        @worker.task(name="noop", ttl=0, silent=True)  # no result kept, nothing logged per task
        async def noop(text: str, sent: int) -> None:
            note(sent)

        return noop

    async def open(self) -> None:
        """Connect."""
        await self.worker.__aenter__()

    async def send(self, sent: int) -> None:
        """One task."""
        await self.task.enqueue(TEXT, sent)

    async def work(self, concurrency: int) -> None:
        """A worker that fetches as many ahead as it may run."""
        from streaq import Worker

        worker: Any = Worker(redis_url=self.url, concurrency=concurrency, prefetch=concurrency, handle_signals=False)
        self._task(worker)
        await worker.run_async()


PEERS: dict[str, type[Peer]] = {"taskiq": Taskiq, "saq": Saq, "arq": Arq, "streaq": Streaq}


def installed() -> Iterator[str]:
    """Those that are installed (dependency group ``bench``)."""
    for name, peer in PEERS.items():
        if importlib.util.find_spec(peer.module) is not None:
            yield name
