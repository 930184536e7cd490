"""The message log: what became of messages, written in batches behind the back of those who handle them."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, NamedTuple, cast, get_args

from agenthive.store import codec
from agenthive.store.database import Database, backoff
from agenthive.store.errors import InvalidValue, StoreUnavailable, is_row_error
from agenthive.store.partitions import with_partitions
from agenthive.store.statements import MessagesSql
from agenthive.store.windows import newest

logger = logging.getLogger(__name__)

Policy = Literal["failures", "all"]
#: Statuses the policy ``failures`` keeps.
FAILURES = frozenset({"failed", "expired"})
MAX_QUEUED = 10_000
MAX_BATCH = 1000
MAX_ERROR_CHARACTERS = 8192
DEFAULT_RECENT_LIMIT = 100


@dataclass(frozen=True, slots=True)
class LoggedMessage:
    """One row of the log."""

    agent: str
    message_id: str
    from_agent: str
    to_agent: str
    message_type: str
    status: str
    attempts: int
    error: str | None
    created_at: datetime
    logged_at: datetime
    body: Any


class _Row(NamedTuple):
    id: uuid.UUID
    agent: str
    message_id: str
    from_agent: str
    to_agent: str
    message_type: str
    status: str
    attempts: int
    error: str | None
    created_at: datetime
    logged_at: datetime
    body: str | None


class MessageLog:
    """Records outcomes of messages without making anyone wait; bounded, so that an outage costs rows and not memory."""

    def __init__(
        self, database: Database, schema: str, agent: str, *, policy: Policy, max_queued: int = MAX_QUEUED
    ) -> None:
        self._database = database
        self._schema = schema
        self._agent = agent
        self.policy = policy
        self._max_queued = max_queued
        self._rows: deque[_Row] = deque()
        self._flying = 0
        self._dropped = 0
        self._task: asyncio.Task[None] | None = None
        self._closed = False
        self._sql = MessagesSql(schema)

    @property
    def dropped(self) -> int:
        """Rows that were lost because PostgreSQL did not keep up or refused them."""
        return self._dropped

    @property
    def queued(self) -> int:
        """Rows that are not written yet."""
        return len(self._rows) + self._flying

    def wants(self, status: str) -> bool:
        """True if the policy keeps this status: for callers who would have to work for a record's arguments."""
        return self.policy == "all" or status in FAILURES

    def record(
        self,
        message_id: str,
        *,
        from_agent: str,
        to_agent: str,
        message_type: str,
        status: str,
        attempts: int,
        created_at: datetime,
        error: str | None = None,
        body: Mapping[str, Any] | None = None,
        agent: str | None = None,
    ) -> bool:
        """Note what became of a message; returns at once, the row is written soon.

        Args:
            message_id: of the message.
            from_agent: its sender.
            to_agent: its recipient.
            message_type: its type.
            status: ``sent``, ``retried``, ``delivered``, ``failed`` or ``expired``.
            attempts: how often it was tried.
            created_at: the message's timestamp, with time zone.
            error: why it failed; kept up to 8192 characters.
            body: kept only if given.
            agent: who notes it; the store's own agent by default.

        Returns:
            True if the row was queued, False if the policy does not ask for it or the log is closed.

        Raises:
            InvalidValue: an argument the log cannot keep.
        """
        if self._closed or not self.wants(status):
            return False
        row = _Row(
            id=codec.new_id(),
            agent=codec.storable(agent or self._agent),
            message_id=codec.storable(message_id),
            from_agent=codec.storable(from_agent),
            to_agent=codec.storable(to_agent),
            message_type=codec.storable(message_type),
            status=status,
            attempts=attempts,
            error=None if error is None else codec.storable(error[:MAX_ERROR_CHARACTERS]),
            created_at=codec.check_timestamp(created_at, "created_at"),
            logged_at=codec.utc_now(),
            body=None if body is None else codec.encode(dict(body), what="body"),
        )
        self._rows.append(row)
        if len(self._rows) + self._flying > self._max_queued:
            self._rows.popleft()  # the oldest: what just happened is what people look for
            self._drop(1, f"more than {self._max_queued} rows wait for PostgreSQL")
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run())
        return True

    async def recent(
        self,
        *,
        agent: str | None = None,
        message_id: str | None = None,
        status: str | None = None,
        since: datetime | None = None,
        limit: int = DEFAULT_RECENT_LIMIT,
    ) -> list[LoggedMessage]:
        """What was logged last, newest first.

        Args:
            agent: only what this agent noted.
            message_id: only this message.
            status: only this status.
            since: not before this time.
            limit: most rows, at least 1.

        Raises:
            InvalidValue: an argument makes no sense.
            StoreUnavailable: PostgreSQL did not come back within 30 s.
        """
        rows = await newest(
            self._database,
            self._sql.select,
            self._sql.newest_first,
            "logged_at",
            {"agent =": agent, "message_id =": message_id, "status =": status},
            since=since,
            until=None,
            limit=limit,
            walk=message_id is None,  # of one message there are a few rows: one look finds them, or that there are none
        )
        return [LoggedMessage(**dict(row)) for row in rows]

    async def flush(self) -> None:
        """Wait until everything recorded so far and meanwhile is written, or dropped."""
        while self._task is not None:
            await asyncio.wait({self._task})

    async def aclose(self, timeout: float) -> None:
        """Take no more rows, write what waits; what is not written after ``timeout`` seconds is dropped, and logged."""
        self._closed = True
        if self._task is not None:
            task = self._task
            await asyncio.wait({task}, timeout=timeout)
            task.cancel()
            await asyncio.wait({task})
        if self._rows:
            self._drop(len(self._rows), "the store was closed before PostgreSQL took them")
            self._rows.clear()

    async def _run(self) -> None:
        rows: list[_Row] = []
        try:
            while self._rows:
                rows = [self._rows.popleft() for _ in range(min(MAX_BATCH, len(self._rows)))]
                self._flying = len(rows)
                await self._write(rows)
                rows, self._flying = [], 0
        except asyncio.CancelledError:
            self._rows.extendleft(reversed(rows))
            raise
        finally:
            self._flying = 0
            self._task = None

    async def _write(self, rows: list[_Row]) -> None:
        """Write ``rows``, however long the server is away; a row it refuses is dropped alone."""
        columns = [list(column) for column in zip(*rows, strict=True)]

        async def insert() -> None:
            await self._database.run(lambda connection: connection.execute(self._sql.insert, *columns))

        for delay in backoff(first=1.0, most=30.0):
            try:
                await with_partitions(self._database, self._schema, insert)
            except StoreUnavailable as error:
                logger.warning("message log: %d rows wait: %s", len(self._rows) + len(rows), error)
                await asyncio.sleep(delay)
                continue
            except Exception as error:  # the log must neither die nor harm its agent
                if len(rows) > 1 and is_row_error(error):
                    middle = len(rows) // 2
                    await self._write(rows[:middle])
                    await self._write(rows[middle:])
                else:
                    self._drop(len(rows), str(self._database.explain(error)))
            return

    def _drop(self, rows: int, why: str) -> None:
        # Said at 1, 2, 4, 8 … lost rows: an outage is not to flood the log.
        before, self._dropped = self._dropped, self._dropped + rows
        if before.bit_length() != self._dropped.bit_length():
            logger.warning("message log: %d rows lost so far: %s", self._dropped, why)


def checked_policy(policy: str) -> Policy:
    """``policy`` itself, if it is one.

    Raises:
        InvalidValue: it is not.
    """
    if policy in get_args(Policy):
        return cast(Policy, policy)
    raise InvalidValue(f"message log policy must be 'failures' or 'all', not {policy!r}")
