"""Where an idle consumer waits: parked on its agent's wake list, with a connection of its own."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from agenthive.bus.errors import BusUnavailable
from agenthive.bus.lanes import Lane
from agenthive.bus.wire import ConnectionLost, ReplyError

log = logging.getLogger(__name__)

FALLBACK_SECONDS = 2.0
"""A parked consumer looks at the queue this often, whatever woke it or not: a wake-up may die with who took it."""


class Parking:
    """Waits in Redis for a wake-up, or for a time, and then calls ``on_wake``."""

    def __init__(self, lane: Lane, wake_key: str, on_wake: Callable[[], None]) -> None:
        self._lane = lane
        self._key = wake_key
        self._on_wake = on_wake
        self._task: asyncio.Task[None] | None = None

    @property
    def parked(self) -> bool:
        """Whether a wait is under way."""
        return self._task is not None

    def park(self, seconds: float | None) -> None:
        """Begin to wait, at most ``seconds`` (None: until the fallback)."""
        assert self._task is None
        wait = FALLBACK_SECONDS if seconds is None else min(seconds, FALLBACK_SECONDS)
        self._task = asyncio.get_running_loop().create_task(self._wait(wait), name="agenthive-parking")

    async def _wait(self, seconds: float) -> None:
        try:
            command = ("BLPOP", self._key, f"{seconds:.3f}")
            (answer,) = await self._lane.execute([command], seconds + self._lane.endpoint.socket_timeout)
            if isinstance(answer, ReplyError):
                log.warning("cannot wait for a wake-up: %s", answer)
                await self._lane.pause()
        except (ConnectionLost, BusUnavailable) as error:
            log.debug("wake-up connection: %s", error)
            await self._lane.pause()
        finally:
            self._task = None
        self._on_wake()

    async def aclose(self) -> None:
        """Stop waiting."""
        if self._task is not None:
            task = self._task
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        await self._lane.aclose()
