"""What hives on one server share: looks at it that are under way, and connections to it that are open.

A hundred hives on one PostgreSQL would otherwise log in three hundred times to learn one version: each login is a
process of the server's and some milliseconds of hashing on both sides.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable
from typing import Any, Final, Generic, TypeVar

from agenthive.store.database import Address, close_once, connect_once

R = TypeVar("R")

FRESH_SECONDS: Final = 1.0
IDLE_SECONDS: Final = 5.0
IDLE_EACH: Final = 8


class SharedLooks(Generic[R]):
    """One look at a time for those who ask about the same thing.

    Who asks while a look is under way is given what that one finds. What was ``good`` is told for ``FRESH_SECONDS``
    without another look; what was not is looked at again by the next who asks. ``clock`` is monotonic, in seconds.
    """

    def __init__(self, good: Callable[[R], bool], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._good = good
        self._clock = clock
        self._looks: dict[Hashable, asyncio.Task[R]] = {}
        self._found: dict[Hashable, tuple[float, R]] = {}

    async def look(self, at: Hashable, check: Callable[[], Awaitable[R]]) -> R:
        """What ``check`` finds ``at`` something, now or a moment ago. Raises what it raises."""
        now = self._clock()
        known = self._found.get(at)
        if known is not None and now - known[0] < FRESH_SECONDS:
            return known[1]
        look = self._looks.get(at)
        if look is None:
            look = self._looks[at] = asyncio.ensure_future(self._check(at, check))
        # One who is cancelled does not end the look of the others.
        return await asyncio.shield(look)

    async def _check(self, at: Hashable, check: Callable[[], Awaitable[R]]) -> R:
        try:
            found = await check()
            now = self._clock()
            self._found = {key: entry for key, entry in self._found.items() if now - entry[0] < FRESH_SECONDS}
            if self._good(found):
                self._found[at] = now, found
            return found
        finally:
            del self._looks[at]


class Sessions:
    """Connections to PostgreSQL that are lent to one after the other, and closed once nobody has wanted them a while.

    Whoever borrows one leaves nothing in its session: transactions, ``SET LOCAL``, no lock that outlives them.
    """

    def __init__(self) -> None:
        self._idle: dict[Address, list[tuple[Any, asyncio.TimerHandle]]] = {}
        self._closing: set[asyncio.Task[None]] = set()

    @contextlib.asynccontextmanager
    async def lend(self, address: Address, application_name: str) -> AsyncIterator[Any]:
        """A connection for the length of an ``async with``. Raises as ``connect_once``."""
        connection = self._take(address) or await connect_once(address, application_name)
        try:
            yield connection
        except BaseException:
            # Whatever it was, it may be in the middle of something.
            await close_once(connection)
            raise
        self._keep(address, connection)

    def _take(self, address: Address) -> Any | None:
        idle = self._idle.get(address, [])
        while idle:
            connection, timer = idle.pop()
            timer.cancel()
            if not connection.is_closed():
                return connection
        return None

    def _keep(self, address: Address, connection: Any) -> None:
        idle = self._idle.setdefault(address, [])
        timer = asyncio.get_running_loop().call_later(IDLE_SECONDS, self._expire, address, connection)
        idle.append((connection, timer))
        if len(idle) > IDLE_EACH:
            self._expire(address, idle[0][0])

    def _expire(self, address: Address, connection: Any) -> None:
        kept = []
        for entry, timer in self._idle.pop(address, []):
            if entry is connection:
                timer.cancel()
                task = asyncio.get_running_loop().create_task(close_once(entry))
                self._closing.add(task)
                task.add_done_callback(self._closing.discard)
            else:
                kept.append((entry, timer))
        if kept:
            self._idle[address] = kept

    async def aclose(self) -> None:
        """Close what is open and not lent."""
        for address, idle in list(self._idle.items()):
            for connection, _ in list(idle):
                self._expire(address, connection)
        await asyncio.gather(*self._closing)
