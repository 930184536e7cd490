"""The lease of a consumer, renewed from a thread of its own, and the recovery of what dead consumers left."""

from __future__ import annotations

import asyncio
import logging
import threading
from typing import Any

from agenthive.bus.endpoint import Endpoint
from agenthive.bus.errors import BusUnavailable
from agenthive.bus.lanes import Lane, lane_apart
from agenthive.bus.library import library
from agenthive.bus.wire import Command, ConnectionLost, ReplyError

log = logging.getLogger(__name__)

RENEWALS_PER_LEASE = 3
HELD = 1
"""Answer of the function ``renew``: the lease was held all the time."""


class LeaseKeeper:
    """Renews one consumer's lease; a busy event loop or a CPU-bound handler of the process does not delay it.

    It also looks for consumers whose lease ran out and returns their messages to the queue, but only once its own
    renewals have gone through for half a lease: after an outage of Redis every lease looks expired, and those
    who are about to renew theirs must not be robbed.
    """

    def __init__(self, endpoint: Endpoint, gate: str, consumer: str, lease_seconds: float) -> None:
        self._lane_endpoint = endpoint
        self._gate = gate
        self._consumer = consumer
        self._seconds = lease_seconds
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping: asyncio.Event | None = None
        self._started = threading.Event()
        self.reclaimed = 0
        """Messages of dead consumers this process returned to the queue."""

    def start(self) -> None:
        """Start the thread. The consumer must be registered."""
        self._thread = threading.Thread(target=self._main, name=f"lease-{self._consumer}", daemon=True)
        self._thread.start()
        self._started.wait()

    async def stop(self) -> None:
        """End the thread; the lease is left as it is."""
        if self._thread is None:
            return
        assert self._loop is not None
        assert self._stopping is not None
        self._loop.call_soon_threadsafe(self._stopping.set)
        await asyncio.to_thread(self._thread.join)
        self._thread = None

    def _main(self) -> None:
        asyncio.run(self._keep())

    async def _keep(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stopping = asyncio.Event()
        self._started.set()
        lane = lane_apart(self._lane_endpoint, self._gate)
        healthy_since = self._loop.time()
        pause = self._seconds / RENEWALS_PER_LEASE
        try:
            while not await self._stopped_within(pause):
                try:
                    held = await self._ask(lane, self._renewal())
                    now = self._loop.time()
                    if held != HELD:
                        log.warning("the lease of %s had run out%s", self._consumer, "" if held else "; it was robbed")
                        healthy_since = now
                    if now - healthy_since >= self._seconds / 2:
                        await self._reclaim(lane)
                    pause = self._seconds / RENEWALS_PER_LEASE
                except (ConnectionLost, BusUnavailable, ReplyError) as error:
                    log.warning("cannot renew the lease of %s: %s", self._consumer, error)
                    pause = min(0.5, self._seconds / RENEWALS_PER_LEASE / 4)
                    healthy_since = self._loop.time() + pause
                except Exception:
                    # The edge of the thread: without it the lease runs out, and everything is handled twice.
                    log.exception("renewing the lease of %s failed; going on", self._consumer)
                    pause = min(0.5, self._seconds / RENEWALS_PER_LEASE / 4)
                    healthy_since = self._loop.time() + pause
        finally:
            await lane.aclose()

    async def _stopped_within(self, seconds: float) -> bool:
        assert self._stopping is not None
        try:
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        except TimeoutError:
            return False
        return True

    def _renewal(self) -> Command:
        return library().call("renew", self._gate, self._consumer, int(self._seconds * 1000))

    def rename(self, consumer: str) -> None:
        """The consumer was robbed and goes on under a new name."""
        self._consumer = consumer

    async def _reclaim(self, lane: Lane) -> None:
        more = True
        while more:
            count, again = await self._ask(lane, library().call("reclaim", self._gate, self._consumer, ""))
            more = again == b"1"
            if count:
                self.reclaimed += count
                log.warning("returned %d messages of consumers that died to the queue", count)

    async def _ask(self, lane: Lane, command: Command) -> Any:
        (answer,) = await lane.execute([command])
        if isinstance(answer, ReplyError):
            raise answer
        return answer
