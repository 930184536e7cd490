"""Watching messages: one task of a process looks at all that are watched, often at first and then less and less."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

from agenthive.bus.errors import BusError, BusUnavailable
from agenthive.bus.model import MessageStatus

log = logging.getLogger(__name__)

FIRST_LOOK_SECONDS = 0.02
LONGEST_LOOK_SECONDS = 0.5
Statuses = Callable[[Mapping[str, list[str]]], Awaitable[dict[str, dict[str, MessageStatus | None]]]]


class _Watch:
    """One message that somebody watches. It keeps the newest status only, however slow its reader is."""

    def __init__(self, agent: str, message_id: str, now: float) -> None:
        self.agent = agent
        self.message_id = message_id
        self.due = now
        """Loop time of the next look."""
        self.delay = FIRST_LOOK_SECONDS
        self.last: MessageStatus | None = None
        self.news = asyncio.Event()
        self.error: Exception | None = None

    def saw(self, status: MessageStatus, now: float) -> None:
        """Take note of a look at the message."""
        if self.last is None or _state(status) != _state(self.last):
            self.delay = FIRST_LOOK_SECONDS
            self.last = status
            self.news.set()
        else:
            self.delay = min(self.delay * 1.5, LONGEST_LOOK_SECONDS)
        self.due = _on_grid(now + self.delay, self.delay)

    def fail(self, error: Exception) -> None:
        """There is nothing more to see."""
        self.error = error
        self.news.set()

    async def next(self) -> MessageStatus:
        """The next status. Raises what the watch ended with."""
        await self.news.wait()
        if self.error is not None:
            raise self.error
        self.news.clear()
        assert self.last is not None
        return self.last


def _state(status: MessageStatus) -> tuple[object, ...]:
    """What makes a change. The times of one claim are measured anew at each look and may differ by a millisecond."""
    return status.status, status.detail, status.attempts, status.due_at, status.finished_at


def _on_grid(when: float, delay: float) -> float:
    """A little later than ``when``, at a time that watches of a like delay share: one call looks at them all."""
    grid = delay / 4
    return math.ceil(when / grid) * grid


class Watches:
    """Every watch of a process.

    Args:
        statuses: looks at messages by agent, in one round trip.
        unknown: the text of the error for a message of an agent that Redis does not know.
    """

    def __init__(self, statuses: Statuses, unknown: Callable[[str, str], str]) -> None:
        self._statuses = statuses
        self._unknown = unknown
        self._watches: set[_Watch] = set()
        self._added = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._down = False

    async def watch(self, agent: str, message_id: str, timeout: float | None) -> AsyncIterator[MessageStatus]:
        """See ``Bus.watch``."""
        loop = asyncio.get_running_loop()
        deadline = None if timeout is None else loop.time() + timeout
        watch = _Watch(agent, message_id, loop.time())
        self._watches.add(watch)
        self._added.set()
        if self._task is None:
            self._task = loop.create_task(self._run(), name="agenthive-watch")
        try:
            while True:
                try:
                    async with asyncio.timeout_at(deadline):
                        status = await watch.next()
                except TimeoutError:
                    at = f"it is {_described(watch.last)}" if watch.last else "Redis has not answered"
                    raise TimeoutError(
                        f"message {message_id} to {agent} is not final after {timeout:g} s: {at}"
                    ) from None
                yield status
                if status.final:
                    return
        finally:
            self._watches.discard(watch)

    async def _run(self) -> None:
        """Look as long as there are watches; ends when there is none."""
        loop = asyncio.get_running_loop()
        while self._watches:
            self._added.clear()
            first = min(watch.due for watch in self._watches)
            if first > loop.time():
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout_at(first):
                        await self._added.wait()
                continue
            now = loop.time()
            await self._look([watch for watch in self._watches if watch.due <= now])
        self._task = None

    async def _look(self, watches: list[_Watch]) -> None:
        wanted: dict[str, list[str]] = {}
        for watch in watches:
            wanted.setdefault(watch.agent, []).append(watch.message_id)
        now = asyncio.get_running_loop().time()
        try:
            found = await self._statuses(wanted)
        except BusError as error:
            self._missed(watches, error)
            return
        except Exception as error:
            log.exception("watching messages failed")
            self._missed(watches, BusUnavailable(f"the status could not be read: {error!r}"))
            return
        self._down = False
        for watch in watches:
            status = found[watch.agent][watch.message_id]
            if status is None:
                watch.fail(LookupError(self._unknown(watch.agent, watch.message_id)))
                self._watches.discard(watch)
            else:
                watch.saw(status, now)
                if status.final:
                    self._watches.discard(watch)

    def _missed(self, watches: list[_Watch], error: Exception) -> None:
        """Who has seen something waits for Redis; who has not is told."""
        if not self._down:
            log.warning("watching messages: %s", error)
            self._down = True
        later = asyncio.get_running_loop().time() + LONGEST_LOOK_SECONDS
        for watch in watches:
            watch.due = later
            if watch.last is None:
                watch.fail(error)
                self._watches.discard(watch)

    async def aclose(self) -> None:
        """Stop looking; whoever watches gets BusUnavailable."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        for watch in self._watches:
            watch.fail(BusUnavailable("the bus was closed"))
        self._watches.clear()


def _described(status: MessageStatus) -> str:
    return f"{status.detail or status.status} after {status.attempts} attempts"
