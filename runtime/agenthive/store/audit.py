"""The audit trail of one process: rows that its role can add and read, but neither change nor remove."""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from agenthive.store import codec
from agenthive.store.batch import MAX_BATCH_ITEMS, Batcher
from agenthive.store.chain import TOOL, AuditRow, Event, Head, Verifier, follow, head_of, person, start
from agenthive.store.database import RETRY_SECONDS, Database
from agenthive.store.errors import InvalidValue, StoreError, StorePermissionError, is_row_error
from agenthive.store.partitions import with_partitions
from agenthive.store.statements import AuditSql, filtered

logger = logging.getLogger(__name__)

MAX_DETAILS_BYTES = 8192
#: Rows whose commit was not answered and that are sent again; beyond it no more are taken until PostgreSQL is back.
MAX_UNCONFIRMED = 10_000
AGAIN_SECONDS = 5.0
DEFAULT_RECENT_LIMIT = 100
PAGE_ROWS = 2000
#: A process that has recorded nothing for so long goes on with another chain.
CHAIN_REST = timedelta(days=1)


class AuditTrail:
    """Writes one chain: rows of concurrent callers become one statement and one commit.

    Attributes:
        chain: its name, ``<agent>/<process>/<boot>``.
        written: rows that were committed.
        dropped: notes that were lost.
    """

    def __init__(self, database: Database, schema: str, agent: str, *, actor: str, process: str) -> None:
        """Args:
        agent: whose process this is; TOOL for none.
        actor: who does what is recorded: the pod, or a person as ``user@host``.
        process: the pod or host, for the name of the chain.
        """
        self._database = database
        self._schema = schema
        self._sql = AuditSql(schema)
        self._agent = agent
        self._actor = actor
        self._process = process
        self._begin()
        self._unconfirmed: list[AuditRow] = []
        self._again: asyncio.TimerHandle | None = None
        self._closed = False
        self.written = 0
        self.dropped = 0
        self._batch: Batcher[Event | None, None] = Batcher(
            "audit", self._flush, explain=database.explain, patience=RETRY_SECONDS
        )

    def _begin(self) -> None:
        self.chain = f"{self._agent}/{self._process}/{secrets.token_hex(6)}"
        self._head = start(self.chain)

    async def record(self, action: str, subject: str, details: Mapping[str, Any] | None = None) -> None:
        """Add a row; when this returns, it is committed.

        Args:
            action: what was done, such as ``invoice.approve``.
            subject: to what.
            details: a JSON object, at most 8 KiB as text. It can never be removed: no secrets, no bodies.

        Raises:
            InvalidValue: an argument the trail cannot keep.
            StoreUnavailable: PostgreSQL did not come back within 30 s. The row may be there, or is written as soon as
                PostgreSQL is back, if this process lives until then.
            StorePermissionError: the role may not write to the trail.
        """
        event = _event(action, subject, details)
        await self._batch.submit(event, len(event.details))

    def note(self, action: str, subject: str, details: Mapping[str, Any] | None = None) -> None:
        """As ``record``, without making anyone wait: for the runtime itself.

        Where PostgreSQL does not keep up, or refuses the row, it is lost, counted and logged.
        """
        try:
            event = _event(action, codec.storable(subject)[:256] or "-", details)
        except InvalidValue as error:
            self._drop(1, str(error))
            return
        future = self._batch.offer(event, len(event.details))
        if future is None:
            self._drop(1, "too many wait for PostgreSQL, or the store is closed")
        else:
            future.add_done_callback(self._noted)

    def _noted(self, future: asyncio.Future[None]) -> None:
        error = None if future.cancelled() else future.exception()
        if isinstance(error, InvalidValue | StorePermissionError | _Taken):  # all others are sent again
            self._drop(1, str(error))

    def _drop(self, rows: int, why: str) -> None:
        # Said at 1, 2, 4, 8 … lost rows: an outage is not to flood the log.
        before, self.dropped = self.dropped, self.dropped + rows
        if before.bit_length() != self.dropped.bit_length():
            logger.warning("audit: %d rows lost so far: %s", self.dropped, why)

    async def recent(
        self,
        *,
        agent: str | None = None,
        actor: str | None = None,
        action: str | None = None,
        subject: str | None = None,
        since: datetime | None = None,
        limit: int = DEFAULT_RECENT_LIMIT,
    ) -> list[AuditRow]:
        """What was recorded last, newest first.

        Args:
            agent: only by processes of this agent; TOOL for people and tools.
            actor: only by this pod or person.
            action: only this action.
            subject: only about this.
            since: not before this time.
            limit: most rows, at least 1.

        Raises:
            InvalidValue: an argument makes no sense.
            StoreUnavailable: PostgreSQL did not come back within 30 s.
        """
        if limit < 1:
            raise InvalidValue(f"limit must be at least 1, not {limit}")
        if since is not None:
            codec.check_timestamp(since, "since")
        conditions = {"agent =": agent, "actor =": actor, "action =": action, "subject =": subject, "at >=": since}
        statement, arguments = filtered(self._sql.select, self._sql.newest_first, conditions, limit)
        with self._database.translating():
            rows = await self._database.run(lambda connection: connection.fetch(statement, *arguments))
        return [AuditRow(*row.values()) for row in rows]

    async def heads(self) -> dict[str, Head]:
        """The last row of each chain: what a checkpoint keeps.

        Raises:
            StoreUnavailable: PostgreSQL did not come back within 30 s.
        """
        with self._database.translating():
            rows = await self._database.run(lambda connection: connection.fetch(self._sql.heads))
        return _heads(rows)

    async def verify(self, checkpoint: Mapping[str, Head] | None = None, *, page_rows: int = PAGE_ROWS) -> Verifier:
        """Read the whole trail as it is now, chain by chain, a page at a time; what is wrong is in ``findings``.

        Args:
            checkpoint: where each chain is known to have been.
            page_rows: rows in memory at a time.

        Raises:
            StoreUnavailable: PostgreSQL cannot be reached, or was lost in between.
        """

        async def read(connection: Any) -> Verifier:
            verifier = Verifier(checkpoint)
            # One snapshot, and a lock that keeps retention from removing what is still to be read. The lock first: a
            # snapshot from before the end of a removal would see neither the rows nor their anchor.
            async with connection.transaction(isolation="repeatable_read", readonly=True):
                await connection.execute(self._sql.hold)
                last: tuple[str, int, datetime] = ("", 0, datetime(1970, 1, 1, tzinfo=UTC))
                while page := await connection.fetch(self._sql.page, *last, page_rows):
                    rows = [AuditRow(*row.values()) for row in page]
                    chains = sorted({row.chain for row in rows})
                    verifier.feed(rows, _heads(await connection.fetch(self._sql.anchors, chains)))
                    last = rows[-1][:3]
                unseen = verifier.unseen()
                verifier.finish(_heads(await connection.fetch(self._sql.anchors, unseen)) if unseen else {})
            return verifier

        with self._database.translating():
            return await self._database.run(read, retry=False, own_transaction=True)

    async def aclose(self, timeout: float) -> None:
        """Write what waits; what is not written after ``timeout`` seconds is lost, and that is logged."""
        self._closed = True
        if self._again is not None:
            self._again.cancel()
            self._batch.offer(None)
        await self._batch.aclose(timeout)
        if self._unconfirmed:
            self._drop(len(self._unconfirmed), "the store was closed before PostgreSQL confirmed them")

    async def _flush(self, events: Sequence[Event | None], deadline: float) -> Sequence[StoreError | None]:
        """Give the events their places in the chain and write them.

        What an unanswered commit may have written keeps its place and goes first, in the same words: then it is there
        once, whatever became of the first try.
        """
        await self._confirm(events, deadline)
        if self._head.seq and codec.utc_now() - self._head.at > CHAIN_REST:
            # Retention may remove all rows of a chain that rests, and in the end forgets that there were any.
            self._begin()
        rows = follow(self.chain, self._agent, self._actor, self._head, filter(None, events))
        try:
            await self._insert(rows, deadline)
        except BaseException as error:
            if not _is_refusal(error):
                self._keep(rows)
            elif not isinstance(error, _Taken):
                self._begin()  # a first try may have been taken and its answer lost: no other row gets its number
            raise
        return [None] * len(events)

    async def _confirm(self, events: Sequence[Event | None], deadline: float) -> None:
        while self._unconfirmed:
            rows = self._unconfirmed[:MAX_BATCH_ITEMS]
            try:
                await self._insert(rows, deadline)
            except Exception as error:
                if _is_refusal(error):
                    # Refused now, and perhaps taken then: only another chain is certain to have no fork.
                    self._drop(len(self._unconfirmed), str(error))
                    self._unconfirmed = []
                    self._begin()
                    return
                last = self._unconfirmed[-1]
                room = MAX_UNCONFIRMED - len(self._unconfirmed)
                new = follow(self.chain, self._agent, self._actor, head_of(last), filter(None, events))
                if len(new) > room:
                    self._drop(len(new) - room, "PostgreSQL is away")
                self._keep(new[:room])
                raise
            del self._unconfirmed[: len(rows)]

    def _keep(self, rows: list[AuditRow]) -> None:
        """Send ``rows`` again later: nobody knows whether they are there."""
        self._unconfirmed += rows
        if self._again is None and not self._closed:
            self._again = asyncio.get_running_loop().call_later(AGAIN_SECONDS, self._try_again)

    def _try_again(self) -> None:
        self._again = None
        future = self._batch.offer(None)
        if future is not None:
            future.add_done_callback(lambda done: done.cancelled() or done.exception())

    async def _insert(self, rows: list[AuditRow], deadline: float) -> None:
        if not rows:
            return
        columns = [list(column) for column in zip(*rows, strict=True)]
        ours = {(row.seq, row.hash) for row in rows}

        async def insert(connection: Any) -> None:
            done = await connection.execute(self._sql.insert, *columns)
            if done == f"INSERT 0 {len(rows)}":
                return
            # Some were there: ours, from a try whose answer was lost. Or somebody else's, who forged them.
            there = await connection.fetch(self._sql.hashes, self.chain, rows[0].seq, rows[-1].seq)
            if not ours <= {(row["seq"], row["hash"]) for row in there}:
                raise _Taken(self.chain)

        async def write() -> None:
            await self._database.run(insert, deadline=deadline)

        try:
            await with_partitions(self._database, self._schema, write)
        except _Taken as error:
            logger.error("audit: %s; this process goes on with another chain", error)
            self._begin()
            raise
        self.written += len(rows)
        self._head = head_of(rows[-1])


class _Taken(StoreError):  # noqa: N818 - as in errors.py
    def __init__(self, chain: str) -> None:
        super().__init__(f"rows of audit chain {chain} were written by somebody else: run `agenthive audit verify`")


def _is_refusal(error: BaseException) -> bool:
    """True if it is certain that nothing was written."""
    return isinstance(error, _Taken) or is_row_error(error)


def _event(action: str, subject: str, details: Mapping[str, Any] | None) -> Event:
    return Event(
        codec.utc_now(),
        codec.check_key(action, "action"),
        codec.check_key(subject, "subject"),
        codec.encode(dict(details or {}), limit=MAX_DETAILS_BYTES, what="details"),
    )


def _heads(rows: Sequence[Any]) -> dict[str, Head]:
    return {row["chain"]: Head(row["seq"], row["at"], row["hash"]) for row in rows}


def dump_checkpoint(schema: str, heads: Mapping[str, Head]) -> dict[str, Any]:
    """A checkpoint as a JSON document: to be kept where who owns the database cannot write."""
    return {
        "schema": schema,
        "made_at": codec.utc_now().isoformat(),
        "chains": {
            chain: {"seq": head.seq, "hash": head.hash.hex(), "at": head.at.isoformat()}
            for chain, head in heads.items()
        },
    }


def load_checkpoint(text: str, schema: str) -> dict[str, Head]:
    """What ``dump_checkpoint`` made of the hive's schema.

    Raises:
        InvalidValue: it is no checkpoint, or one of another schema.
    """
    try:
        document = json.loads(text)
        made_of = document["schema"]
        heads = {
            chain: Head(int(one["seq"]), datetime.fromisoformat(one["at"]), bytes.fromhex(one["hash"]))
            for chain, one in document["chains"].items()
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidValue(f"this is no checkpoint of `agenthive audit checkpoint`: {error!r}") from error
    if made_of != schema:
        raise InvalidValue(f"the checkpoint is of schema {made_of}, and this hive's is {schema}")
    return heads


__all__ = ["TOOL", "AuditTrail", "dump_checkpoint", "load_checkpoint", "person"]
