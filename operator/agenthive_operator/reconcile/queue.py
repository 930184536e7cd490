"""The keyed work queue: which object is looked at next, and when.

``Schedule`` is the bookkeeping alone: a plain data structure that is told the time, so that a table of calls tests
it. ``KeyedQueue`` runs it: a fixed number of workers take keys that are due and call one handler.

What is promised: a key is queued once however often it is added; it is handled by one worker at a time; a key added
while it is handled is handled again afterwards; a handler that raises is called again after an exponential delay
with full jitter; a handler may ask to be called again after a time of its own.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
import random
from collections import deque
from collections.abc import Awaitable, Callable, Hashable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from agenthive_operator.log import Sparing

logger = logging.getLogger(__name__)

K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Backoff:
    """Delays of a key that keeps failing: full jitter under an exponentially growing bound.

    ``base`` and ``cap`` are seconds; the delay after failure *n* (from 1) is drawn from
    ``[floor, min(cap, base * 2**(n-1))]``.
    """

    base: float = 0.5
    cap: float = 60.0
    floor: float = 0.05

    def delay(self, failures: int, rng: random.Random) -> float:
        """Seconds to wait after ``failures`` failures in a row."""
        bound = min(self.cap, self.base * 2 ** min(failures - 1, 30))
        return max(self.floor, rng.uniform(0, bound))


@dataclass(slots=True)
class Schedule(Generic[K]):
    """Which keys are due, delayed, in flight or dirty. Every method that needs the time is given it, in seconds."""

    backoff: Backoff = field(default_factory=Backoff)
    rng: random.Random = field(default_factory=random.Random)
    _ready: deque[K] = field(default_factory=deque)
    _ready_since: dict[K, float] = field(default_factory=dict)
    _delayed: list[tuple[float, int, K]] = field(default_factory=list)
    _due: dict[K, float] = field(default_factory=dict)
    _in_flight: dict[K, float] = field(default_factory=dict)
    _dirty: set[K] = field(default_factory=set)
    _failures: dict[K, int] = field(default_factory=dict)
    _held: dict[K, float] = field(default_factory=dict)
    _sequence: int = 0

    def add(self, key: K, now: float) -> None:
        """``key`` wants handling as soon as a worker is free, whatever delay it was under.

        Only a time that the server asked for is waited for all the same.
        """
        if key in self._in_flight:
            self._dirty.add(key)
        elif self._held.get(key, now) > now:
            self._delay(key, self._held[key])
        elif key not in self._ready_since:
            self._due.pop(key, None)
            self._ready.append(key)
            self._ready_since[key] = now

    def add_after(self, key: K, delay: float, now: float) -> None:
        """``key`` wants handling in ``delay`` seconds; the earliest of several wishes wins."""
        if delay <= 0:
            self.add(key, now)
            return
        self._delay(key, max(now + delay, self._held.get(key, now)))

    def _delay(self, key: K, due: float) -> None:
        if key in self._ready_since or self._due.get(key, due + 1) <= due:
            return
        self._due[key] = due
        self._sequence += 1
        heapq.heappush(self._delayed, (due, self._sequence, key))

    def take(self, now: float) -> K | None:
        """The next key to handle, now in flight; None when nothing is due."""
        self._promote(now)
        if not self._ready:
            return None
        key = self._ready.popleft()
        del self._ready_since[key]
        self._held.pop(key, None)
        self._in_flight[key] = now
        return key

    def done(self, key: K, now: float, *, requeue_after: float | None = None) -> None:
        """``key`` was handled well; ``requeue_after`` seconds from now it wants to be handled again."""
        del self._in_flight[key]
        self._failures.pop(key, None)
        if key in self._dirty:
            self._dirty.discard(key)
            self.add(key, now)
        elif requeue_after is not None:
            self.add_after(key, requeue_after, now)

    def failed(self, key: K, now: float, *, retry_after: float | None = None) -> float:
        """Handling ``key`` raised. It comes back after the returned delay, dirty or not: news must not defeat the
        backoff of a key that fails because of what its own handling stirs up. ``retry_after`` is a lower bound that
        the server asked for."""
        del self._in_flight[key]
        self._dirty.discard(key)
        self._failures[key] = failures = self._failures.get(key, 0) + 1
        delay = self.backoff.delay(failures, self.rng)
        if retry_after is not None:
            delay = max(delay, retry_after)
            self._held[key] = now + retry_after
        self.add_after(key, delay, now)
        return delay

    def forget(self, key: K) -> None:
        """``key`` is gone: drop its delay and its count of failures. A key in flight finishes undisturbed."""
        self._due.pop(key, None)
        self._failures.pop(key, None)
        self._held.pop(key, None)

    def next_due(self, now: float) -> float | None:
        """Seconds until something is due: 0 when something is, None when nothing is even delayed."""
        self._promote(now)
        if self._ready:
            return 0.0
        return max(0.0, self._delayed[0][0] - now) if self._delayed else None

    def _promote(self, now: float) -> None:
        while self._delayed:
            due, _, key = self._delayed[0]
            if self._due.get(key) != due:  # superseded by an earlier wish, or forgotten
                heapq.heappop(self._delayed)
            elif due <= now:
                heapq.heappop(self._delayed)
                del self._due[key]
                self.add(key, now)
            else:
                return

    @property
    def depth(self) -> int:
        """Keys that are due and wait for a worker."""
        return len(self._ready)

    @property
    def in_flight(self) -> int:
        """Keys that are being handled."""
        return len(self._in_flight)

    @property
    def is_busy(self) -> bool:
        """Whether a key is due or being handled."""
        return bool(self._ready or self._in_flight)

    def handles(self, key: K) -> bool:
        """Whether ``key`` is being handled."""
        return key in self._in_flight

    def failures(self, key: K) -> int:
        """How often handling ``key`` failed in a row."""
        return self._failures.get(key, 0)

    def oldest_wait(self, now: float) -> float:
        """Seconds the longest waiting due key has waited; 0 when none waits."""
        return now - self._ready_since[self._ready[0]] if self._ready else 0.0

    def oldest_in_flight(self, now: float) -> float:
        """Seconds the longest running handling has run; 0 when none runs."""
        return now - min(self._in_flight.values()) if self._in_flight else 0.0


class RetryLater(Exception):  # noqa: N818 - an instruction rather than an error
    """Raised by a handler that wants the backoff of a failure without a traceback in the log.

    ``after``: lower bound of the delay, seconds.
    """

    def __init__(self, message: str, *, after: float | None = None) -> None:
        super().__init__(message)
        self.after = after


Handler = Callable[[K], Awaitable[float | None]]


def cancelled() -> bool:
    """Whether the current task was asked to end."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


class KeyedQueue(Generic[K]):
    """Runs ``handle(key)`` for keys that are due, on ``workers`` tasks.

    ``handle`` returns None, or the seconds after which it wants to see the key again without any event. One handling
    may take ``timeout`` seconds; beyond that it is cancelled and counts as failed, so that no key can hold a worker
    for ever. ``clock`` is a monotonic clock in seconds. ``about(key)`` is entered around each handling, and ``ended``
    is told a key, how long its handling took (seconds) and what it raised.
    """

    def __init__(
        self,
        handle: Handler[K],
        *,
        name: str = "reconcile",
        workers: int = 8,
        timeout: float = 120.0,
        backoff: Backoff | None = None,
        clock: Callable[[], float] | None = None,
        rng: random.Random | None = None,
        about: Callable[[K], AbstractContextManager[None]] = lambda key: nullcontext(),
        ended: Callable[[K, float, BaseException | None], None] = lambda key, seconds, error: None,
    ) -> None:
        self._handle = handle
        self._about = about
        self._ended = ended
        self._name = name
        self._workers = workers
        self._timeout = timeout
        self._clock = clock or (lambda: asyncio.get_running_loop().time())
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._sparing = Sparing()
        self.schedule: Schedule[K] = Schedule(backoff=backoff or Backoff(), rng=rng or random.Random())  # noqa: S311 - jitter

    def add(self, key: K) -> None:
        """Handle ``key`` as soon as possible."""
        self.schedule.add(key, self._clock())
        self._idle.clear()
        self._wake.set()

    def add_after(self, key: K, delay: float) -> None:
        """Handle ``key`` in ``delay`` seconds, or earlier if something else wants it earlier."""
        self.schedule.add_after(key, delay, self._clock())
        self._wake.set()

    def forget(self, key: K) -> None:
        """Drop what is remembered about a key that is gone."""
        self.schedule.forget(key)

    async def run(self) -> None:
        """Run the workers until cancelled."""
        async with asyncio.TaskGroup() as group:
            for number in range(self._workers):
                group.create_task(self._work(), name=f"{self._name}-{number}")

    async def drained(self) -> None:
        """Wait until nothing is due and nothing is in flight; delayed keys do not count."""
        await self._idle.wait()

    async def _work(self) -> None:
        while True:
            key = self.schedule.take(self._clock())
            if key is None:
                if not self.schedule.in_flight:
                    self._idle.set()
                await self._sleep_until_due()
                continue
            await self._handle_one(key)
            if cancelled():
                return  # the handler lost the cancellation on its way; the workers are to end all the same
            await asyncio.sleep(0)  # a handler that waits for nothing must not keep the loop from everybody else

    async def _sleep_until_due(self) -> None:
        self._wake.clear()
        delay = self.schedule.next_due(self._clock())
        if delay == 0:
            return
        try:
            async with asyncio.timeout(delay):
                await self._wake.wait()
        except TimeoutError:
            return  # something delayed is due now

    async def _handle_one(self, key: K) -> None:
        with self._about(key):
            await self._handle_and_note(key)

    async def _handle_and_note(self, key: K) -> None:
        began = self._clock()
        raised: Exception | None = None
        try:
            async with asyncio.timeout(self._timeout):
                again = await self._handle(key)
        except RetryLater as later:
            raised = later
            delay = self.schedule.failed(key, self._clock(), retry_after=later.after)
            self._sparing.log(
                logger, logging.INFO, self._name, "%s %s: %s; again in %.1f s", self._name, key, later, delay
            )
        except asyncio.CancelledError:
            raise
        except Exception as error:
            # The edge of the loop: whatever one object does to us must not stop the others.
            raised = error
            delay = self.schedule.failed(key, self._clock())
            failures = self.schedule.failures(key)
            logger.exception("%s %s failed (%d in a row); again in %.1f s", self._name, key, failures, delay)
        else:
            self.schedule.done(key, self._clock(), requeue_after=again)
            if again is None:
                return  # nothing to wait for that the others do not know
        finally:
            self._ended(key, self._clock() - began, raised)
        self._wake.set()
