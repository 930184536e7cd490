"""What a handler gets besides its message: the bus, the store, a log, and where it is."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Coroutine, Iterable
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeVar, overload

from agenthive.once import Progress
from agenthive.protocol import AgentMessage, Body, DeliveryOptions, MessagePriority

if TYPE_CHECKING:
    from agenthive.bus import Bus
    from agenthive.cache import Cache
    from agenthive.settings import Settings
    from agenthive.store import AgentMetrics, AuditTrail, StateStore, Store
    from agenthive.store.transaction import Transaction, Transactions

T = TypeVar("T")

#: How long ``ctx.ask`` waits for a reply unless told otherwise, seconds.
ASK_SECONDS = 30.0

#: The message being handled here, for the log; tasks and threads a handler starts inherit it.
current: ContextVar[Context | None] = ContextVar("agenthive_current", default=None)


class StoreNotConfigured(RuntimeError):  # noqa: N818 - names the state, as StoreUnavailable does
    """The agent asked for the store and runs without one."""


@dataclass(frozen=True, slots=True)
class Resources:
    """What all contexts of one process share."""

    agent: str
    settings: Settings
    bus: Bus
    store: Store | None
    log: logging.Logger
    loop: asyncio.AbstractEventLoop
    transactions: Transactions | None = None
    cache: Cache | None = None


#: What the agent that runs here shares: in its hooks, its handlers, and all that they start.
surroundings: ContextVar[Resources | None] = ContextVar("agenthive_surroundings", default=None)


class AgentContext:
    """The surroundings of an agent's process; start and stop hooks get this one."""

    __slots__ = ("_resources",)

    def __init__(self, resources: Resources) -> None:
        self._resources = resources

    @property
    def agent(self) -> str:
        """The name this agent receives messages under."""
        return self._resources.agent

    @property
    def settings(self) -> Settings:
        """The environment of this process."""
        return self._resources.settings

    @property
    def log(self) -> logging.Logger:
        """A logger; each line carries the agent, and inside a handler the message's id and type."""
        return self._resources.log

    @property
    def bus(self) -> Bus:
        """The bus: for what ``send`` and ``ask`` do not cover."""
        return self._resources.bus

    @property
    def store(self) -> Store:
        """The store; ``ctx.store.pool`` is an asyncpg pool for SQL of your own.

        Raises:
            StoreNotConfigured: this process has no PostgreSQL.
        """
        store = self._resources.store
        if store is None:
            raise StoreNotConfigured(
                f"agent {self._resources.agent} runs without a store: set AGENTHIVE_POSTGRES_URL "
                "(in a hive the operator does)"
            )
        return store

    @property
    def state(self) -> StateStore:
        """This agent's versioned JSON documents.

        Raises:
            StoreNotConfigured: this process has no PostgreSQL.
        """
        return self.store.state

    @property
    def metrics(self) -> AgentMetrics:
        """This agent's figures in ``agent_metrics``.

        Raises:
            StoreNotConfigured: this process has no PostgreSQL.
        """
        return self.store.metrics.for_agent(self._resources.agent)

    @property
    def audit(self) -> AuditTrail:
        """The audit trail, for what has to be provable: ``await ctx.audit.record("invoice.approve", number)``.

        Raises:
            StoreNotConfigured: this process has no PostgreSQL.
        """
        return self.store.audit

    def transaction(self) -> Transaction:
        """A transaction in PostgreSQL: ``async with ctx.transaction() as tx``.

        What the block writes through ``tx`` and the messages it sends through it are committed together when it ends,
        in a handling with the mark that the message was handled: its redelivery runs nothing again. An exception in the
        block rolls all of it back. A handling commits one transaction; after one that was rolled back it may open
        another. See docs/transactions.md.

        Raises:
            StoreNotConfigured: this process has no PostgreSQL.
            RuntimeError: on entering: one is open, or was committed, in this handling.
            agenthive.store.StoreUnavailable: on entering, PostgreSQL did not come back within 30 s. At the end: the
                connection was lost, and whether it was committed cannot be told; the redelivery finds out.
            agenthive.bus.QueueFull: at the end: too many messages to one recipient wait to be sent; rolled back.
        """
        return self._transaction(None, None)

    def _transaction(self, message: AgentMessage | None, progress: Progress | None) -> Transaction:
        from agenthive.store.transaction import Transaction  # noqa: PLC0415 - loaded where there is a store

        transactions = self._resources.transactions
        if transactions is None:
            _ = self.store  # says what is missing
            raise StoreNotConfigured("this context has a store, but is not that of an agent's process")
        return Transaction(transactions, self, message, progress)

    async def send(
        self,
        to: str,
        message_type: str,
        body: Body | None = None,
        *,
        priority: MessagePriority | int = MessagePriority.MEDIUM,
        ttl: float | None = None,
        delay: float | None = None,
        message_id: str | None = None,
        **options: Any,
    ) -> str:
        """Put a message into ``to``'s queue and return its id once Redis has it.

        Args:
            to: name of the receiving agent; it need not run yet.
            message_type: which of its handlers is meant.
            body: a JSON object of at most 1 MiB, or a pydantic model or dataclass that becomes one. Enums, dates and
                UUIDs in it become their values and texts.
            priority: LOW 1, MEDIUM 2 (default), HIGH 3, CRITICAL 4.
            ttl: seconds until the message expires unhandled; None takes the hive's ``messaging.ttlSeconds``.
            delay: seconds before it may be handled; its ttl counts from then.
            message_id: an id of your own; None makes one.
            options: fields of ``DeliveryOptions``, such as ``max_retries=0``.

        Raises:
            pydantic.ValidationError: a field is empty, unknown, too large or no JSON.
            agenthive.bus.QueueFull: the queue stayed full until the sender's deadline.
            agenthive.bus.BusUnavailable: Redis does not answer; whether it has the message is unknown.
        """
        message = self.message_to(
            to, message_type, body, priority=priority, ttl=ttl, delay=delay, message_id=message_id, **options
        )
        return await self._resources.bus.send(message)

    async def publish(
        self,
        topic: str,
        message_type: str,
        body: Body | None = None,
        *,
        priority: MessagePriority | int = MessagePriority.MEDIUM,
        ttl: float | None = None,
        delay: float | None = None,
        message_id: str | None = None,
        **options: Any,
    ) -> str:
        """Put a message into ``topic`` and return its id once Redis has it; nobody has to listen.

        Each agent whose ``spec.topics`` name the topic gets a copy, which one of its processes handles like any other
        message; its ``to_agent`` is the topic's name behind a ``#``. What a handler returns for it is dropped.

        Args:
            topic: its name, without ``#``; the rules are those of an agent's name.
            ttl: seconds, from now on, until copies expire unhandled; None takes ``messaging.topics.retentionSeconds``.
            message_type: as in ``send``, as are the others.

        Raises:
            ValueError: a topic cannot have this name.
            pydantic.ValidationError: a field is empty, unknown, too large or no JSON.
            agenthive.bus.BusUnavailable: Redis does not answer; whether it has the message is unknown.
        """
        resources = self._resources
        retention = resources.settings.messaging.topics.retention_seconds
        message = self.message_to(
            f"#{topic}",
            message_type,
            body,
            priority=priority,
            ttl=retention if ttl is None else ttl,
            delay=delay,
            message_id=message_id,
            **options,
        )
        return await resources.bus.publish(topic, message)

    @overload
    async def ask(
        self,
        to: str,
        message_type: str,
        body: Body | None = None,
        *,
        timeout: float = ASK_SECONDS,
        priority: MessagePriority | int = MessagePriority.MEDIUM,
        into: type[T],
        **options: Any,
    ) -> T: ...
    @overload
    async def ask(
        self,
        to: str,
        message_type: str,
        body: Body | None = None,
        *,
        timeout: float = ASK_SECONDS,
        priority: MessagePriority | int = MessagePriority.MEDIUM,
        into: Any = None,
        **options: Any,
    ) -> Any: ...
    async def ask(
        self,
        to: str,
        message_type: str,
        body: Body | None = None,
        *,
        timeout: float = ASK_SECONDS,
        priority: MessagePriority | int = MessagePriority.MEDIUM,
        into: Any = None,
        **options: Any,
    ) -> Any:
        """Send a message and return what its handler returned.

        Args:
            timeout: seconds to wait; the message expires with it.
            into: a pydantic model, or any type pydantic can read: what the result is to become. None: plain JSON data.
            to: as in ``send``, as are the others.

        Raises:
            agenthive.bus.RequestTimeout: no reply in time; says what became of the message.
            agenthive.bus.RequestFailed: the message was given up, or its result does not fit ``into``; carries the
                error.
            TypeError: ``into`` is nothing that pydantic can read.
            Exception: as in ``send``.
        """
        reply = await self.request(to, message_type, body, timeout=timeout, priority=priority, **options)
        result = reply.body.get("result")
        if into is None:
            return result
        from agenthive.bodies import read  # noqa: PLC0415 - of use to few
        from agenthive.bus import RequestFailed  # noqa: PLC0415 - loaded by now

        try:
            return read(result, into, f"the reply of {to} to {message_type}")
        except ValueError as error:
            raise RequestFailed(str(error)) from error

    async def request(
        self,
        to: str,
        message_type: str,
        body: Body | None = None,
        *,
        timeout: float = ASK_SECONDS,
        priority: MessagePriority | int = MessagePriority.MEDIUM,
        **options: Any,
    ) -> AgentMessage:
        """As ``ask``, but return the whole reply message."""
        message = self.message_to(to, message_type, body, priority=priority, ttl=timeout, **options)
        return await self._resources.bus.request(message, timeout)

    async def gather(
        self,
        to: str,
        message_type: str,
        bodies: Iterable[Body],
        *,
        timeout: float = ASK_SECONDS,
        limit: int | None = None,
        return_exceptions: bool = False,
        **options: Any,
    ) -> list[Any]:
        """``ask`` once for each of ``bodies``, all at the same time; results in the same order.

        Args:
            timeout: seconds each one may take, from when it is sent.
            limit: most requests under way at a time; None means all of them.
            return_exceptions: put an error in its place in the list; otherwise the first one is raised and the
                others are no longer waited for. Their messages expire with their timeout.
            options: as in ``ask``.

        Raises:
            ValueError: ``limit`` is less than 1.
            Exception: as in ``ask``.
        """
        if limit is not None and limit < 1:
            raise ValueError(f"gather(limit={limit!r}): at least one request must be allowed, or None for no limit")
        turns = contextlib.nullcontext() if limit is None else asyncio.Semaphore(limit)

        async def ask(body: Body) -> Any:
            async with turns:
                return await self.ask(to, message_type, body, timeout=timeout, **options)

        asking = [asyncio.ensure_future(ask(body)) for body in bodies]
        try:
            return await asyncio.gather(*asking, return_exceptions=return_exceptions)
        finally:
            for task in asking:
                task.cancel()
            await asyncio.gather(*asking, return_exceptions=True)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """For a ``def`` handler, which cannot await: ``ctx.run(ctx.send(…))`` runs it on the event loop and waits.

        Raises:
            RuntimeError: called on the event loop itself, where ``await`` is the way.
        """
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return asyncio.run_coroutine_threadsafe(work, self._resources.loop).result()
        work.close()
        raise RuntimeError("ctx.run(…) is for `def` handlers; in an `async def` write `await` instead")

    def message_to(
        self,
        to: str,
        message_type: str,
        body: Body | None = None,
        *,
        priority: MessagePriority | int = MessagePriority.MEDIUM,
        ttl: float | None = None,
        delay: float | None = None,
        message_id: str | None = None,
        **options: Any,
    ) -> AgentMessage:
        """The message that ``send`` with the same arguments sends; a handler's carries correlation and trace."""
        resources = self._resources
        fields: dict[str, Any] = {
            "from_agent": resources.agent,
            "to_agent": to,
            "message_type": message_type,
            "body": {} if body is None else body,
            "priority": priority,
            "ttl": resources.settings.messaging.ttl_seconds if ttl is None else ttl,
            **self._origin(),
        }
        if message_id is not None:
            fields["message_id"] = message_id
        if delay:
            options["not_before"] = datetime.now(UTC) + timedelta(seconds=delay)
        if options:
            fields["delivery_options"] = DeliveryOptions(**options)
        return AgentMessage(**fields)

    def _origin(self) -> dict[str, Any]:
        """What ties a message to the one it was sent because of: nothing, outside a handler."""
        return {}


class Context(AgentContext):
    """What one handling gets: its message and everything in ``AgentContext``."""

    __slots__ = ("attempt", "message", "progress")

    def __init__(self, resources: Resources, message: AgentMessage, attempt: int) -> None:
        self._resources = resources
        #: The message being handled.
        self.message = message
        #: 1 for the first handling of this message, one more for each that failed or crashed before.
        self.attempt = attempt
        #: Of its transaction, once it has asked for one.
        self.progress: Progress | None = None

    def transaction(self) -> Transaction:
        """See ``AgentContext.transaction``."""
        if self.progress is None:
            self.progress = Progress()
        return self._transaction(self.message, self.progress)

    def __repr__(self) -> str:
        message = self.message
        return f"Context({message.to_agent}, {message.message_type} {message.message_id}, attempt {self.attempt})"

    def _origin(self) -> dict[str, Any]:
        cause = self.message
        return {"correlation_id": cause.correlation_id or cause.message_id, "traceparent": cause.traceparent}
