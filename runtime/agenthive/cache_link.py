"""How the cache reaches Redis: with little patience, apart from the bus, and remembering what it could not tell."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final

from agenthive.bus.connections import Connections
from agenthive.bus.endpoint import Endpoint
from agenthive.bus.errors import BusUnavailable
from agenthive.bus.wire import Command, ConnectionLost, ReplyError
from agenthive.cache_entries import STATE_SECONDS
from agenthive.outage import Outage
from agenthive.settings import CircuitBreaker, RedisPool

if TYPE_CHECKING:
    from agenthive.bus.lanes import Lane

#: How long Redis may take to answer before readers go to PostgreSQL, seconds.
PATIENCE_SECONDS: Final = 0.2
#: What an answer gets on top that is there, but not read yet because the event loop was busy, seconds.
GRACE_SECONDS: Final = 0.1
#: How often a Redis that is away is tried again, seconds.
RETRY_SECONDS: Final = 1.0
#: Most names that are remembered as to be forgotten once Redis is back.
MAX_OWED: Final = 10_000
_FORGET_AT_A_TIME: Final = 1000
READING, WRITING = "read", "write"

#: Neither the breaker of the bus nor one of its own: ``_recover`` is what tries again.
_POOL = RedisPool(circuit_breaker=CircuitBreaker(failure_threshold=1000))


class Link:
    """Two lanes, and what is to be done when Redis does not answer.

    Attributes:
        away: Redis did not answer, or owes this process an answer: nobody is to ask, or to trust it.
    """

    def __init__(
        self,
        url: str,
        key: str,
        *,
        client_name: str,
        errors: Counter[str],
        forget: Callable[[Sequence[str]], Command],
    ) -> None:
        """Args:
        url: a Redis, in any form the bus takes.
        key: whose master is meant, in a Cluster.
        client_name: what CLIENT LIST shows.
        errors: where failures are counted, by operation.
        forget: the command that removes what is under names; also, of none, the one that tells that Redis is back.

        Raises:
            ValueError: the URL is none.
        """
        endpoint = Endpoint.parse(url, client_name=client_name, connect_timeout=1.0, socket_timeout=1.0)
        self.away = False
        self._connections = Connections(endpoint, _POOL)
        self._key = key
        self._forget = forget
        self._lanes: dict[str, Lane] = {}
        self._outage = Outage("the Redis of the cache", errors, asyncio.Event())
        self._recovery: asyncio.Task[None] | None = None
        self._owed: dict[str, None] = {}
        self._mistrusted_until: float | None = None
        self._closed = False

    @property
    def trusted(self) -> bool:
        """Whether what Redis has is worth asking for."""
        if self._mistrusted_until is not None and asyncio.get_running_loop().time() >= self._mistrusted_until:
            self._mistrusted_until = None
        return not self.away and self._mistrusted_until is None

    async def exchange(self, operation: str, commands: Sequence[Command]) -> list[Any] | None:
        """The answers; None if there are none, or one that says that Redis cannot be used.

        Args:
            operation: READING or WRITING, each with a lane of its own that one task uses at a time.
            commands: what may be said twice without harm.
        """
        if self.away:
            return None
        lane = self._lanes.get(operation)
        if lane is None:
            lane = self._lanes[operation] = self._connections.lane(self._key)
        try:
            answers = await _within_patience(lane, commands)
        except (ConnectionLost, BusUnavailable) as error:
            self._failed(operation, error)
            return None
        for answer in answers:
            # A full Redis takes no entries; it still tells and forgets.
            if isinstance(answer, ReplyError) and answer.code != "OOM":
                self._failed(operation, answer)
                return None
        return answers

    def owe(self, names: Iterable[str]) -> None:
        """Remember that what is under ``names`` is to be forgotten; until that is done Redis is away."""
        self._owed.update(dict.fromkeys(names))
        if len(self._owed) > MAX_OWED:
            # Too many to remember: when this is over nothing of state is left from before it.
            self._owed.clear()
            self._mistrusted_until = asyncio.get_running_loop().time() + STATE_SECONDS
        self._go_away()

    def _failed(self, operation: str, error: Exception) -> None:
        self._outage.failed(operation, error)
        self._go_away()

    def _go_away(self) -> None:
        self.away = True
        if self._recovery is None and not self._closed:
            self._recovery = asyncio.get_running_loop().create_task(self._recover(), name="cache-recovery")

    async def _recover(self) -> None:
        """Try again until Redis answers and has forgotten all that is owed."""
        lane = self._connections.lane(self._key)
        try:
            while self.away:
                await asyncio.sleep(RETRY_SECONDS * random.uniform(0.5, 1.0))  # noqa: S311 - spreads processes
                try:
                    await self._pay(lane)
                except (ConnectionLost, BusUnavailable) as error:
                    self._outage.failed("recover", error)
                else:
                    self.away, self._recovery = False, None
                    self._outage.over()
        finally:
            await lane.aclose()

    async def _pay(self, lane: Lane) -> None:
        """Have Redis forget what is owed, and see that it does what the cache needs."""
        while True:
            names = list(self._owed)[:_FORGET_AT_A_TIME]
            for name in names:  # now, for one that is written again meanwhile is owed again
                del self._owed[name]
            try:
                (answer,) = await _within_patience(lane, [self._forget(names)])
                if isinstance(answer, ReplyError):
                    raise BusUnavailable(str(answer))
            except BaseException:
                self._owed.update(dict.fromkeys(names))
                raise
            if not self._owed:
                return

    async def aclose(self) -> None:
        """Pay what is owed, if Redis answers, and close the connections."""
        self._closed = True
        if self._recovery is not None:
            self._recovery.cancel()
            await asyncio.gather(self._recovery, return_exceptions=True)
        if self._owed:
            lane = self._lanes.setdefault(WRITING, self._connections.lane(self._key))
            with contextlib.suppress(ConnectionLost, BusUnavailable):
                await self._pay(lane)
        for lane in self._lanes.values():
            await lane.aclose()
        await self._connections.aclose()


async def _within_patience(lane: Lane, commands: Sequence[Command]) -> list[Any]:
    """The answers. Raises ConnectionLost, also when they take too long, or BusUnavailable."""
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(None) as limit:
            # In two steps: a loop that was busy finds the time over before it has looked at what came meanwhile.
            timer = loop.call_later(PATIENCE_SECONDS, lambda: limit.reschedule(loop.time() + GRACE_SECONDS))
            try:
                return await _twice(lane, commands)
            finally:
                timer.cancel()
    except TimeoutError as error:
        raise ConnectionLost(f"no answer within {PATIENCE_SECONDS:g} s") from error


async def _twice(lane: Lane, commands: Sequence[Command]) -> list[Any]:
    """Answers; asked a second time if the connection is lost, for a server that was restarted closed those it had."""
    try:
        return await lane.execute(commands)
    except ConnectionLost:
        return await lane.execute(commands)
