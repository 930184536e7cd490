"""Connections on loan from the pool, and those kept at hand between two loans."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import time
from typing import TYPE_CHECKING, Any

import asyncpg

logger = logging.getLogger(__name__)

#: A connection that was idle for longer is asked whether it is still there, and for so long: a firewall may have
#: forgotten it without a word, and a first statement would find out after 30 s.
IDLE_SECONDS = 10.0
PROBE_SECONDS = 2.0
#: How long a connection that a lane returned is kept at hand for the next one before the pool has it back: borrowing it
#: there and returning it costs as much of this process's time as a small batch.
WARM_SECONDS = 0.05
#: How long a statement that was given up may take to be cancelled and rolled back, before its connection is cut.
CANCEL_SECONDS = 2.0

if TYPE_CHECKING:
    _Base = asyncpg.Connection[asyncpg.Record]
else:
    _Base = asyncpg.Connection  # generic in its stubs only


class PooledConnection(_Base):
    """A connection that skips the session reset after a loan to the store's own lanes, which leave nothing behind."""

    _clean = False
    _used = 0.0
    _before = _behind = ""
    #: What the server answered to the last statement that asked for no rows.
    last_status = ""

    async def execute(self, query: str, *args: Any, timeout: float | None = None) -> str:
        if not args and (self._before or self._behind):
            query = f"{self._before};{query};{self._behind}"
            self._before = self._behind = ""
        self.last_status = status = await super().execute(query, *args, timeout=timeout)
        return status

    def begin_with(self, statements: str) -> None:
        """Have ``statements`` follow the BEGIN that is next in the same message."""
        self._behind = statements

    def commit_and_reset(self) -> None:
        """Have the COMMIT that is next fail if a statement of the transaction has, and clear the session behind it.

        PostgreSQL answers the COMMIT of a failed transaction with ROLLBACK, which asyncpg passes over; any other
        statement before it is an error.
        """
        self._before, self._behind = "SELECT 1", super().get_reset_query()

    def leaves_clean(self, clean: bool) -> None:
        """Say whether this loan leaves the session as it found it."""
        self._clean = clean
        self._before = self._behind = ""

    def abandon(self) -> None:
        """Cut the connection, if it is not cut already."""
        if not self.is_closed():
            self.terminate()

    def is_lost(self) -> bool:
        """Whether it was cut."""
        return self.is_closed()

    def touch(self) -> None:
        """Count its idle time from now."""
        self._used = time.monotonic()

    def idle_seconds(self) -> float:
        """Since it was opened or came back to the pool."""
        return time.monotonic() - self._used

    def get_reset_query(self) -> str:
        self.touch()  # the pool asks for this whenever a connection comes back
        return "" if self._clean else super().get_reset_query()


async def probe(connection: Any) -> None:
    """Before a loan: a connection that was idle for long has to answer, or the loan fails as after any other loss."""
    idle = connection.idle_seconds()
    if idle < IDLE_SECONDS:
        return
    abandon = connection.abandon
    try:
        await connection.execute("SELECT 1", timeout=PROBE_SECONDS)
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        abandon()
        raise ConnectionResetError(f"a connection that had been idle for {idle:.0f} s did not answer") from error


class Lent:
    """A connection that the pool has lent.

    Attributes:
        connection: asyncpg's proxy of it.
        abandon: cuts it, if it is not cut already.
        is_lost: whether it was cut.
    """

    __slots__ = ("_leaves_clean", "_pool", "abandon", "connection", "is_lost")

    def __init__(self, pool: asyncpg.Pool[asyncpg.Record], connection: Any) -> None:
        self._pool = pool
        self.connection = connection
        # Methods of the connection itself: its proxy lets go of it when it is lost.
        self._leaves_clean = connection.leaves_clean
        self.abandon = connection.abandon
        self.is_lost = connection.is_lost

    async def give_back(self, *, clean: bool, timeout: float | None = None) -> None:
        """To the pool. A session that is not ``clean`` is reset, which costs a round trip, and takes no longer than
        ``timeout`` seconds: else the connection is cut."""
        self._leaves_clean(clean)
        try:
            await self._pool.release(self.connection, timeout=timeout)
        except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
            # The pool has thrown the connection away. What the work itself did, or raised, is what counts.
            logger.debug("a connection was lost when it was returned", exc_info=True)
        finally:
            self._leaves_clean(False)


class Spare:
    """Connections that nobody uses and the pool does not have back yet.

    Those with a clean session are had by the next loan without asking the pool, for a moment each. Those whose
    statement was given up are cancelled in PostgreSQL first, for which nobody waits: merely cut, the statement would
    keep its locks, wait for those of others, and be committed long after its caller was told that it failed.
    """

    def __init__(self) -> None:
        self._clean: list[Lent] = []
        self._cooling: asyncio.Task[None] | None = None
        self._cancelling: set[asyncio.Task[None]] = set()
        self._closed = False

    def take(self) -> Lent | None:
        """A clean one that is still open."""
        while self._clean:
            lent = self._clean.pop()
            if not lent.is_lost():  # if it is, the pool knows
                return lent
        return None

    async def keep(self, lent: Lent) -> None:
        """Have a clean one at hand until the pool gets it back."""
        if self._closed:
            await lent.give_back(clean=True)
            return
        self._clean.append(lent)
        if self._cooling is None:
            self._cooling = asyncio.get_running_loop().create_task(self._cool(), context=contextvars.Context())

    def cancel(self, lent: Lent) -> None:
        """Have asyncpg's cancellation of what runs on it finished, then give it back."""
        returning = asyncio.get_running_loop().create_task(
            lent.give_back(clean=False, timeout=CANCEL_SECONDS), context=contextvars.Context()
        )
        self._cancelling.add(returning)
        returning.add_done_callback(self._cancelling.discard)

    async def _cool(self) -> None:
        # Those in use at this moment come around at another one: under load a loan in hundreds pays the pool's price.
        while self._clean:
            await asyncio.sleep(WARM_SECONDS)
            await self._give_back()
        self._cooling = None

    async def _give_back(self) -> None:
        while self._clean:
            await self._clean.pop().give_back(clean=True)

    async def aclose(self) -> None:
        """Give all of them back, now and from now on."""
        self._closed = True
        await self._give_back()
        if self._cooling is not None:
            self._cooling.cancel()
            await asyncio.wait({self._cooling})
        if self._cancelling:
            await asyncio.wait(self._cancelling)
