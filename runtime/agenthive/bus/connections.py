"""How the bus reaches Redis: lanes, each a connection of its own for one task, and a bounded pool for the rest."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from agenthive.bus.breaker import Breaker
from agenthive.bus.errors import BusUnavailable
from agenthive.bus.library import MISSING, library
from agenthive.bus.policy import reconnect_delay
from agenthive.bus.wire import Command, Connection, ConnectionLost, Endpoint, ReplyError, open_connection
from agenthive.settings import RedisPool

log = logging.getLogger(__name__)

OLDEST_REDIS = (7, 0)
RESERVED_CONNECTIONS = 8
"""Of the process's connections, those kept for lanes: sender, replies, consumer, wake list, lease."""
_PASSING = frozenset({"LOADING", "MASTERDOWN", "READONLY", "CLUSTERDOWN", "TRYAGAIN", "BUSY", "UNBLOCKED"})
"""Errors of a server that is starting, failing over or busy: asking again later, perhaps elsewhere, helps."""


async def run(
    connection: Connection, commands: Sequence[Command], timeout: float, meanwhile: Callable[[], None] | None = None
) -> list[Any]:
    """Execute ``commands``; load the function library and repeat those that missed it.

    Raises ConnectionLost for a server that cannot serve now; other errors are answers (ReplyError).
    """
    answers = await connection.execute(commands, timeout, meanwhile)
    missing = [n for n, answer in enumerate(answers) if isinstance(answer, ReplyError) and MISSING in str(answer)]
    if missing:
        try:
            await library().load(connection, timeout)
        except ReplyError as error:
            raise BusUnavailable(f"Redis does not take the bus's functions: {error}") from error
        again = await connection.execute([commands[n] for n in missing], timeout)
        for n, answer in zip(missing, again, strict=True):
            answers[n] = answer
    for answer in answers:
        if isinstance(answer, ReplyError) and answer.code in _PASSING:
            connection.abort()
            raise ConnectionLost(str(answer))
    return answers


class Lane:
    """A connection that one task owns, opened when first needed and again after it was lost."""

    def __init__(self, endpoint: Endpoint, breaker: Breaker) -> None:
        self.endpoint = endpoint
        self._breaker = breaker
        self._connection: Connection | None = None
        self._failures = 0

    async def connection(self) -> Connection:
        """The open connection. Raises ConnectionLost or BusUnavailable."""
        if self._connection is None or not self._connection.usable:
            self._connection = None
            self._connection = await open_connection(self.endpoint)
        return self._connection

    async def execute(
        self,
        commands: Sequence[Command],
        timeout: float | None = None,
        meanwhile: Callable[[], None] | None = None,
    ) -> list[Any]:
        """One exchange, told to the breaker. ``timeout`` (seconds) defaults to the pool's socket timeout.

        ``meanwhile`` is called while Redis works; not if the commands could not be sent.

        Raises ConnectionLost or BusUnavailable; what was asked may have been done all the same.
        """
        try:
            connection = await self.connection()
            limit = self.endpoint.socket_timeout if timeout is None else timeout
            answers = await run(connection, commands, limit, meanwhile)
        except (ConnectionLost, BusUnavailable) as error:
            self.failed(error)
            raise
        self.succeeded()
        return answers

    def failed(self, error: Exception) -> None:
        """Count a failure, here and in the breaker."""
        self._failures += 1
        self._breaker.failure(str(error), self._failures)

    def succeeded(self) -> None:
        """Redis answered."""
        self._failures = 0
        self._breaker.success()

    async def pause(self) -> None:
        """Wait before the next try: longer with each failure in a row."""
        await asyncio.sleep(reconnect_delay(max(1, self._failures), random.random))

    def interrupt(self) -> None:
        """End the connection under the task that waits on it, which gets ConnectionLost."""
        if self._connection is not None:
            self._connection.abort()

    async def aclose(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            await self._connection.aclose()
            self._connection = None


class Connections:
    """The process's access to one Redis."""

    def __init__(self, endpoint: Endpoint, policy: RedisPool) -> None:
        self.endpoint = endpoint
        self.breaker = Breaker(policy.circuit_breaker)
        self._idle: deque[Connection] = deque()
        self._slots = asyncio.Semaphore(max(1, policy.max_connections - RESERVED_CONNECTIONS))
        self._tasks: set[asyncio.Task[list[Any]]] = set()
        self._closed = False

    def lane(self) -> Lane:
        """A lane of its own for one task."""
        return Lane(self.endpoint, self.breaker)

    def check(self) -> None:
        """Raises BusUnavailable while the circuit is open."""
        if self._closed:
            raise BusUnavailable("the bus is closed")
        if not self.breaker.allow():
            raise BusUnavailable(f"Redis at {self.endpoint} is down: {self.breaker.reason}")

    async def execute(self, commands: Sequence[Command]) -> list[Any]:
        """Run ``commands`` on a connection of the pool; who comes first is served first.

        A cancelled caller stops waiting, the exchange itself is finished by its own task.
        Raises BusUnavailable: Redis is down, or refuses a command.
        """
        self.check()
        task = asyncio.create_task(self._exchange(commands))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return await asyncio.shield(task)

    async def _exchange(self, commands: Sequence[Command]) -> list[Any]:
        try:
            async with self._borrow() as connection:
                answers = await run(connection, commands, self.endpoint.socket_timeout)
        except ConnectionLost as error:
            self.breaker.failure(str(error))
            raise BusUnavailable(f"Redis at {self.endpoint} cannot be reached: {error}") from error
        self.breaker.success()
        for answer in answers:
            if isinstance(answer, ReplyError):
                raise BusUnavailable(f"Redis at {self.endpoint} refused a command: {answer}") from answer
        return answers

    @contextlib.asynccontextmanager
    async def _borrow(self) -> AsyncIterator[Connection]:
        async with self._slots:
            connection: Connection | None = None
            while self._idle and connection is None:
                candidate = self._idle.pop()
                connection = candidate if candidate.usable else None
            if connection is None:
                connection = await open_connection(self.endpoint)
            try:
                yield connection
            finally:
                if connection.usable and not self._closed:
                    self._idle.append(connection)
                else:
                    await connection.aclose()

    async def prepare(self) -> None:
        """Check that the server is there and new enough, and load the functions. Raises BusUnavailable."""
        try:
            async with self._borrow() as connection:
                await self._check_version(connection)
                try:
                    await library().load(connection, self.endpoint.socket_timeout)
                except ReplyError as error:
                    raise BusUnavailable(
                        f"Redis at {self.endpoint} does not take the bus's functions: {error}; the user of the URL "
                        "needs the commands FUNCTION and FCALL"
                    ) from error
        except ConnectionLost as error:
            raise BusUnavailable(f"Redis at {self.endpoint} cannot be reached: {error}") from error

    async def _check_version(self, connection: Connection) -> None:
        (info,) = await connection.execute([("INFO", "server")], self.endpoint.socket_timeout)
        if isinstance(info, ReplyError):  # not allowed to ask: the functions will tell
            log.debug("cannot read the version of Redis: %s", info)
            return
        fields = dict(line.split(":", 1) for line in info.decode().splitlines() if ":" in line)
        version = fields.get("redis_version", "")
        numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
        if numbers and numbers < OLDEST_REDIS:
            raise BusUnavailable(
                f"Redis at {self.endpoint} is version {version}; the bus needs Redis 7.0 or Valkey 7.2 or newer"
            )

    async def aclose(self) -> None:
        """Finish what runs and close every connection of the pool."""
        self._closed = True
        if self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)
        while self._idle:
            await self._idle.pop().aclose()
