"""Changing tables that agents use at the same moment: whoever waits for a lock makes everybody else queue behind it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

from agenthive.store.database import backoff
from agenthive.store.errors import is_collision, is_lock_timeout

logger = logging.getLogger(__name__)

T = TypeVar("T")

#: How long a change waits for a lock, and thus how long it may hold up reads and writes that come after it.
LOCK_SECONDS = 1.0
#: How long a change is tried again before it gives up.
PATIENCE_SECONDS = 600.0


@contextlib.asynccontextmanager
async def plain_names(connection: Any) -> AsyncIterator[None]:
    """A transaction in which a function or operator without a schema is PostgreSQL's own.

    Where anybody may create objects in ``public``, one that fits a call better would run as whoever calls, who may be
    an administrator. Not for the session: a PgBouncer that pools transactions would hand that to the next client.
    """
    async with connection.transaction():
        await connection.execute("SET LOCAL search_path = pg_catalog")
        yield


async def change_tables(
    connection: Any, work: Callable[[], Awaitable[T]], *, what: str, patience: float = PATIENCE_SECONDS
) -> T:
    """Call ``work`` in a transaction of plain names that never waits longer than ``LOCK_SECONDS`` for a lock.

    One that does not get its locks is rolled back, which lets through what queued behind it, and tried again, as is
    one that lost a deadlock.

    Args:
        connection: not inside a transaction.
        work: the statements; may be called several times, each in a transaction of its own.
        what: names the change in the log.
        patience: seconds after which the last error is raised.
    """
    loop = asyncio.get_running_loop()
    give_up = loop.time() + patience
    for delay in backoff(first=0.1, most=2.0):
        try:
            async with plain_names(connection):
                await connection.execute(f"SET LOCAL lock_timeout = {int(LOCK_SECONDS * 1000)}")
                return await work()
        except Exception as error:
            if not (is_lock_timeout(error) or is_collision(error)) or loop.time() + delay > give_up:
                raise
            logger.info("%s waits for a lock, and lets others through meanwhile: %s", what, error)
        await asyncio.sleep(delay)
    raise AssertionError("backoff() is endless")  # pragma: no cover
