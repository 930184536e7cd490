"""The tables of transactions, as one agent sees them: marks of what was handled, rows of what is to be sent."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Sequence
from datetime import datetime
from typing import NamedTuple

from agenthive.store.batch import Batcher
from agenthive.store.database import RETRY_SECONDS, Database
from agenthive.store.statements import TransactionSql

#: How long the process that committed a row has to bring its message to an end before others look after it, seconds.
DUE_SECONDS = 60.0
#: Longest time between two looks of the sweep at one row, seconds.
MOST_DUE_SECONDS = 600.0

MESSAGE, TOPIC, REPLY = "message", "topic", "reply"


class OutboxRow(NamedTuple):
    """A row of the outbox, without its document.

    Attributes:
        id: of the row; rows of one time are in the order in which their messages were sent.
        cause: id of the message whose handling sent it; None outside of a handling.
        kind: ``message``, ``topic`` or ``reply``.
        message_id: of the message in it.
        recipient: an agent or a topic; of a reply whoever asked.
        size: bytes of the document.
        created_at: when it was written.
    """

    id: uuid.UUID
    cause: str | None
    kind: str
    message_id: str
    recipient: str
    size: int
    created_at: datetime


class HandledMessage(NamedTuple):
    """What is known of a message whose effects are committed.

    Attributes:
        rows: what it sent and has no final status yet.
        reply: row and document of the reply, if it is still there.
    """

    rows: list[OutboxRow]
    reply: tuple[uuid.UUID, str] | None


class Outbox:
    """Inbox and outbox of one agent; one per store."""

    def __init__(self, database: Database, schema: str, agent: str) -> None:
        self._database = database
        self._agent = agent
        self.sql = TransactionSql(schema)
        self._lookups: Batcher[str, HandledMessage | None] = Batcher(
            "inbox lookups", self._flush_lookups, explain=database.explain, patience=RETRY_SECONDS
        )

    async def handled(self, message_id: str) -> HandledMessage | None:
        """What is known of a message if its effects are committed, else None; lookups of a time are one query.

        Raises:
            StoreUnavailable: PostgreSQL did not come back within 30 s.
        """
        return await self._lookups.submit(message_id)

    async def take(self, limit: int, within: float = 0.0) -> list[OutboxRow]:
        """Rows that are due, or will be ``within`` seconds, in the order they were written; nobody else gets them soon.

        They are due again in a minute, and each time in twice as long, at most 10 minutes.

        Raises:
            StoreUnavailable: as ``handled``.
        """
        arguments = (self._agent, limit, DUE_SECONDS, MOST_DUE_SECONDS, within)
        return await self._rows(self.sql.take, *arguments)

    async def _rows(self, statement: str, *arguments: object) -> list[OutboxRow]:
        with self._database.translating():
            rows = await self._database.run(lambda connection: connection.fetch(statement, *arguments))
        return sorted((OutboxRow(*row) for row in rows), key=lambda row: (row.created_at, row.id))

    async def documents(self, ids: Collection[uuid.UUID]) -> dict[uuid.UUID, str]:
        """The documents of ``ids``, as far as their rows are still there.

        Raises:
            StoreUnavailable: as ``handled``.
        """
        with self._database.translating():
            rows = await self._database.run(
                lambda connection: connection.fetch(self.sql.documents, self._agent, list(ids))
            )
        return dict(rows)

    async def delete(self, ids: Collection[uuid.UUID]) -> None:
        """Delete rows; those that are gone already are passed over.

        Raises:
            StoreUnavailable: as ``handled``.
        """
        ordered = sorted(ids)  # processes lock rows in one order: no deadlocks
        with self._database.translating():
            await self._database.run(lambda connection: connection.execute(self.sql.delete, self._agent, ordered))

    async def forget(self, limit: int = 10_000) -> int:
        """Delete up to ``limit`` marks of all agents that have been kept long enough; how many that were.

        Raises:
            StoreUnavailable: as ``handled``.
        """
        with self._database.translating():
            return int(await self._database.run(lambda connection: connection.fetchval(self.sql.forget, limit)))

    async def aclose(self, timeout: float) -> None:
        """End what waits."""
        await self._lookups.aclose(timeout)

    async def _flush_lookups(self, message_ids: Sequence[str], deadline: float) -> list[HandledMessage | None]:
        wanted = list(set(message_ids))
        rows = await self._database.run(
            lambda connection: connection.fetch(self.sql.handled, self._agent, wanted), deadline=deadline
        )
        found: dict[str, HandledMessage] = {}
        for mark, *fields, document in rows:
            handled = found.setdefault(mark, HandledMessage([], None))
            if fields[0] is None:
                continue  # nothing of it is in the outbox
            row = OutboxRow(*fields)
            if row.kind == REPLY:
                found[mark] = handled._replace(reply=(row.id, document))
            else:
                handled.rows.append(row)
        return [found.get(message_id) for message_id in message_ids]
