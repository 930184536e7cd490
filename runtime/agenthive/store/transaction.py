"""``ctx.transaction()``: a handling's writes, the mark that it was done, and what it sends, in one commit."""

from __future__ import annotations

import asyncio
import logging
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import asyncpg

from agenthive import telemetry
from agenthive.bus.keys import REPLY_MARK
from agenthive.cache_entries import Change, state_name
from agenthive.once import AlreadyHandled, Progress
from agenthive.protocol import AgentMessage, Body, MessageError
from agenthive.store import codec
from agenthive.store.database import Connection, Database, Loan, is_broken
from agenthive.store.errors import StoreError, StoreUnavailable, is_connection_loss
from agenthive.store.fold import Key, Write
from agenthive.store.outbox import DUE_SECONDS, MESSAGE, REPLY, TOPIC, Outbox, OutboxRow
from agenthive.store.state import Found, StateLanes
from agenthive.store.transaction_state import TransactionState

if TYPE_CHECKING:
    from agenthive.bus import Bus
    from agenthive.context import AgentContext
    from agenthive.relay import Relay
    from agenthive.settings import Settings
    from agenthive.store.core import Store
    from agenthive.telemetry import Telemetry

log = logging.getLogger(__name__)

#: A transaction that leaves PostgreSQL without a word for so long is ended by it: its machine may be gone.
IDLE_SECONDS = 60
#: How long the worker waits for an answer whether a redelivered message was handled; entering a transaction asks again.
LOOK_SECONDS = 2.0
#: Connections of the pool that transactions leave to everything else.
SPARED_CONNECTIONS = 2
DAY_SECONDS = 86_400
#: PostgreSQL's calendar ends somewhere: a mark is kept for a thousand years at most.
LONGEST_SECONDS = 365_000 * DAY_SECONDS
SPOILED = (
    "the transaction was rolled back: a statement in it had failed, and the block caught its error. "
    "Let it pass, or put the statement into a savepoint: async with tx.connection.transaction()"
)


class Transactions:
    """What the transactions of one process share."""

    def __init__(
        self, agent: str, settings: Settings, store: Store, bus: Bus, relay: Relay, figures: Telemetry
    ) -> None:
        self.agent = agent
        self.bus = bus
        self.relay = relay
        self.figures = figures
        self.database: Database = store._database
        self.lanes: StateLanes = store._lanes
        self.outbox: Outbox = store.outbox
        self.inbox_seconds = settings.retention.inbox_days * DAY_SECONDS
        self.slots = asyncio.Semaphore(max(1, settings.postgres_pool.max_size - SPARED_CONNECTIONS))

    async def look(self, message: AgentMessage, progress: Progress) -> None:
        """For a message that may have been handled before; returns if it was not, or that cannot be told soon.

        Raises:
            AlreadyHandled: its effects are committed; ``progress`` knows the rest.
        """
        try:
            async with asyncio.timeout(LOOK_SECONDS):
                await self._recall(message, progress)
        except (StoreError, MessageError, TimeoutError) as error:
            log.info("whether message %s was handled before is not known yet: %s", message.message_id, error)
        if progress.again:
            raise AlreadyHandled

    async def meet(self, message: AgentMessage, progress: Progress) -> None:
        """The mark of a message was found on entering a transaction: raise AlreadyHandled.

        Raises:
            StoreUnavailable: its asker waits for the reply, which cannot be read now.
        """
        if message.reply_to is None:
            await self.look(message, progress)  # what it sent may wait to be sent again
            progress.again = progress.committed = True
        else:
            await self._recall(message, progress)
        raise AlreadyHandled

    async def _recall(self, message: AgentMessage, progress: Progress) -> None:
        handled = await self.outbox.handled(message.message_id)
        if handled is None:
            return
        if handled.reply is not None:
            progress.reply_row, document = handled.reply
            progress.reply = AgentMessage.from_json(document)
        self.relay.recover(handled.rows)
        progress.again = progress.committed = True


class Outgoing(NamedTuple):
    """What a transaction is to send."""

    kind: str
    recipient: str
    message: AgentMessage


class Transaction:
    """One transaction, as ``async with ctx.transaction() as tx``. Made by ``ctx.transaction()``.

    What the block writes, the mark that its message was handled, and what it sends are committed together when it ends;
    an exception rolls all of it back and is raised. See docs/transactions.md.

    Attributes:
        connection: the asyncpg connection, inside the transaction; JSON columns come as Python values. A savepoint is
            ``async with tx.connection.transaction()``.
        state: this agent's documents, read and written in the transaction.
    """

    connection: Connection
    state: TransactionState

    def __init__(
        self, shared: Transactions, ctx: AgentContext, message: AgentMessage | None, progress: Progress | None
    ) -> None:
        self._shared = shared
        self._ctx = ctx
        self._message = message
        self._progress = progress
        self._used = False
        self._open = False
        self._loan: Loan
        self._block: Any
        self._outgoing: list[Outgoing] = []
        self._reply: AgentMessage | None = None
        #: Owner and key of the documents it wrote.
        self._written: dict[Key, None] = {}

    # SQL

    async def execute(self, query: str, *args: Any, timeout: float | None = None) -> str:
        """``asyncpg.Connection.execute`` in the transaction; a query names the schema of each table."""
        self._check()
        return str(await self.connection.execute(query, *args, timeout=timeout))

    async def fetch(self, query: str, *args: Any, timeout: float | None = None) -> list[asyncpg.Record]:
        """``asyncpg.Connection.fetch`` in the transaction."""
        self._check()
        rows: list[asyncpg.Record] = await self.connection.fetch(query, *args, timeout=timeout)
        return rows

    async def fetchrow(self, query: str, *args: Any, timeout: float | None = None) -> asyncpg.Record | None:
        """``asyncpg.Connection.fetchrow`` in the transaction."""
        self._check()
        row: asyncpg.Record | None = await self.connection.fetchrow(query, *args, timeout=timeout)
        return row

    async def fetchval(self, query: str, *args: Any, column: int = 0, timeout: float | None = None) -> Any:
        """``asyncpg.Connection.fetchval`` in the transaction."""
        self._check()
        return await self.connection.fetchval(query, *args, column=column, timeout=timeout)

    # State, for ``tx.state``

    async def read(self, key: Key) -> Found | None:
        """Text and version of a state document, locked."""
        self._check()
        with self._shared.database.translating():
            return await self._shared.lanes.read_within(self.connection, key)

    async def write(self, write: Write) -> int:
        """Do ``write``: the new version, or 1 or 0 for a deletion."""
        self._check()
        with self._shared.database.translating():
            result = await self._shared.lanes.write_within(self.connection, write)
        self._written[write.key] = None
        return result

    # Messages

    def send(self, to: str, message_type: str, body: Body | None = None, **options: Any) -> str:
        """Send a message if the transaction commits; returns its id.

        It is checked now, written with the commit, and goes to Redis soon after. Sent by one process to one agent,
        messages go in the order of the commits.

        Args:
            to: name of the receiving agent.
            message_type: which of its handlers is meant.
            body: as in ``ctx.send``.
            options: as in ``ctx.send``: ``priority``, ``ttl``, ``delay``, ``message_id`` and the rest.

        Raises:
            ValueError: a message cannot be like this (pydantic.ValidationError among them).
            RuntimeError: the transaction is not open.
        """
        self._check()
        message = self._shared.bus.checked(self._ctx.message_to(to, message_type, body, **options))
        self._outgoing.append(Outgoing(MESSAGE, to, message))
        return message.message_id

    def publish(
        self, topic: str, message_type: str, body: Body | None = None, *, ttl: float | None = None, **options: Any
    ) -> str:
        """Publish a message to ``topic`` if the transaction commits; returns its id. Else as ``send``."""
        self._check()
        retention = self._ctx.settings.messaging.topics.retention_seconds
        message = self._ctx.message_to(
            f"#{topic}", message_type, body, ttl=retention if ttl is None else ttl, **options
        )
        self._outgoing.append(Outgoing(TOPIC, topic, self._shared.bus.checked(message, topic)))
        return message.message_id

    def reply(self, result: Any) -> None:
        """Answer the message with ``result`` if the transaction commits; what the handler returns is dropped then.

        The reply is kept with the commit until it is on its way, so no crash loses it. If nobody asked, nothing
        happens; of several the last one counts.

        Raises:
            pydantic.ValidationError: the result is no JSON, or too large.
            RuntimeError: the transaction is not open, or not that of a handling.
        """
        self._check()
        if self._message is None:
            raise RuntimeError("tx.reply(…) answers the message being handled; a hook has none")
        reply, address = self._message.reply(result), self._message.reply_to
        self._reply = reply if address is not None and address.startswith(REPLY_MARK) else None

    def _check(self) -> None:
        if not self._open:
            raise RuntimeError("the transaction is not open: use it inside its `async with ctx.transaction() as tx:`")

    # Begin

    async def __aenter__(self) -> Self:
        if self._used:
            raise RuntimeError("a transaction is entered once: ask ctx.transaction() for another one")
        self._used = True
        shared, progress = self._shared, self._progress
        if progress is not None:
            _allow(progress)
            progress.open = True
        try:
            await shared.slots.acquire()
            try:
                marked = await self._begin()
                if not marked:
                    await self._roll_back()
                    assert self._message is not None
                    assert progress is not None
                    self._count(telemetry.ALREADY_HANDLED)
                    await shared.meet(self._message, progress)
            except BaseException:
                shared.slots.release()
                raise
        except BaseException:
            if progress is not None:
                progress.open = False
            raise
        self._open = True
        self.state = TransactionState(self, shared.agent, set())
        return self

    async def _begin(self) -> bool:
        """Open the transaction and leave the mark; False if it is there already."""
        shared, message = self._shared, self._message

        async def attempt() -> bool:
            loan = shared.database.lend(reset=True)  # the block may SET what it likes
            self.connection = await loan.__aenter__()
            self._loan, self._block = loan, self.connection.transaction(isolation="read_committed")
            try:
                if message is not None:
                    keep = min(shared.inbox_seconds + message.ttl, LONGEST_SECONDS)
                    mark = shared.outbox.sql.mark(shared.agent, message.message_id, keep, IDLE_SECONDS)
                    self.connection.begin_with(mark)
                await self._block.start()
                return message is None or self.connection.last_status == "INSERT 0 1"
            except BaseException as error:
                await loan.__aexit__(type(error), error, None)
                raise

        with shared.database.translating():
            return await shared.database.repeat(attempt)

    # End

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open = False
        try:
            if error is None:
                await self._commit()
            else:
                await self._roll_back(error)
                self._count(telemetry.ROLLED_BACK)
        finally:
            self._shared.slots.release()
            if self._progress is not None:
                self._progress.open = False

    async def _roll_back(self, error: BaseException | None = None) -> None:
        """Undo everything and give the connection back; one with an unknown state is cut, which undoes as well."""
        try:
            if error is None or not is_broken(error):
                await self._block.rollback()
        except BaseException as lost:  # the connection goes back whatever happens, or the pool has one less for good
            await self._loan.__aexit__(type(lost), lost, lost.__traceback__)
            if not isinstance(lost, Exception):
                raise
        else:
            await self._loan.__aexit__(type(error), error, None)

    async def _commit(self) -> None:
        shared = self._shared
        try:
            items = await self._write_outbox()
        except BaseException as error:
            await self._roll_back(error)
            self._count(telemetry.ROLLED_BACK)
            raise
        committed = False
        try:
            cancelled = await self._say_commit()
            committed = True
            self._loan.is_clean()
            sent = self._committed(items)
            try:
                await self._tell_cache()  # first: who gets a message reads what was written with it
            finally:
                self._shared.relay.hand_over(sent)
        except BaseException as error:
            if not committed:
                self._loan.cut()
            await self._loan.__aexit__(type(error), error, None)
            if committed:
                raise
            await self._tell_cache()  # it may have been committed all the same
            self._count(telemetry.IN_DOUBT if is_broken(error) else telemetry.ROLLED_BACK)
            if is_connection_loss(error):
                raise StoreUnavailable(
                    f"PostgreSQL at {shared.database.address.where}: the connection was lost while a transaction was "
                    "being committed, and whether it was committed cannot be told. Its message is not handled twice "
                    "for that: the redelivery finds what was committed"
                ) from error
            if isinstance(error, asyncpg.InFailedSQLTransactionError):
                raise StoreError(SPOILED) from error
            raise
        await self._loan.__aexit__(None, None, None)
        if cancelled is not None:
            raise cancelled

    async def _tell_cache(self) -> None:
        """What was written is not to be read from the cache by whoever hears of the commit."""
        if self._written:
            await self._shared.lanes.changed([Change(state_name(*key)) for key in self._written])

    def _count(self, result: str) -> None:
        self._shared.figures.transactions[result] += 1

    async def _write_outbox(self) -> list[tuple[OutboxRow, AgentMessage]]:
        """The last statement of the transaction: what it sends."""
        shared = self._shared
        with shared.database.translating():
            inside = self.connection.is_in_transaction()
        if not inside:
            raise RuntimeError("the transaction was ended inside its block: leave COMMIT and ROLLBACK to the end of it")
        outgoing = list(self._outgoing)
        if outgoing:
            await shared.relay.room((kind, recipient) for kind, recipient, _ in outgoing)
        if self._reply is not None:
            assert self._message is not None
            outgoing.append(Outgoing(REPLY, self._message.reply_to or "", self._reply))
        if not outgoing:
            return []
        cause = None if self._message is None else self._message.message_id
        ids = sorted(codec.new_id() for _ in outgoing)
        documents = [message.to_json().decode() for *_, message in outgoing]
        now = codec.utc_now()
        try:
            await self.connection.execute(
                shared.outbox.sql.insert,
                shared.agent, cause, ids, [kind for kind, *_ in outgoing],
                [message.message_id for *_, message in outgoing], [recipient for _, recipient, _ in outgoing],
                documents, DUE_SECONDS,
            )  # fmt: skip
        except asyncpg.InFailedSQLTransactionError as error:
            raise StoreError(SPOILED) from error
        except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            raise shared.database.explain(error) from error
        return [
            (OutboxRow(row, cause, kind, message.message_id, recipient, len(document.encode()), now), message)
            for row, document, (kind, recipient, message) in zip(ids, documents, outgoing, strict=True)
        ]

    async def _say_commit(self) -> asyncio.CancelledError | None:
        """COMMIT. Who is cancelled meanwhile hears of it once the outcome is known: the error, still to be raised."""
        self.connection.commit_and_reset()
        commit = asyncio.ensure_future(self._block.commit())
        try:
            await asyncio.shield(commit)
        except asyncio.CancelledError as error:
            await asyncio.wait({commit})  # bounded by the time limit of a statement
            if commit.cancelled() or commit.exception() is not None:
                raise
            return error
        finally:
            commit.cancel()
        return None

    def _committed(self, items: list[tuple[OutboxRow, AgentMessage]]) -> list[tuple[OutboxRow, AgentMessage]]:
        """Note the commit; returns what the relay is to send."""
        self._count(telemetry.COMMITTED)
        if self._reply is not None:
            *items, (row, _) = items
        if self._progress is not None:
            self._progress.committed = True
            self._progress.reply = self._reply
            self._progress.reply_row = row.id if self._reply is not None else None
        return items


def _allow(progress: Progress) -> None:
    if progress.open:
        raise RuntimeError("a transaction of this handling is open: transactions do not nest, pass `tx` on instead")
    if progress.committed:
        raise RuntimeError(
            "this handling has committed its transaction and has only one: put all that has to happen once into it"
        )
