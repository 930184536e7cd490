"""``Store``: what an agent process keeps in PostgreSQL."""

from __future__ import annotations

import asyncio
import logging
from datetime import date
from types import TracebackType
from typing import TYPE_CHECKING, Self

import asyncpg

from agenthive.settings import HiveScope, PostgresPool, Retention
from agenthive.store.audit import AuditTrail
from agenthive.store.codec import check_key
from agenthive.store.database import Database
from agenthive.store.errors import StoreUnavailable
from agenthive.store.messages import MessageLog, checked_policy
from agenthive.store.metrics import MetricsStore
from agenthive.store.migrate import applied_versions, require_current
from agenthive.store.naming import schema_name
from agenthive.store.outbox import Outbox
from agenthive.store.partitions import apply_retention
from agenthive.store.state import StateLanes, StateStore

if TYPE_CHECKING:
    from agenthive.cache import Cache

logger = logging.getLogger(__name__)

CLOSE_SECONDS = 10.0
PING_SECONDS = 2.0


class Store:
    """The hive's schema, seen by one agent process.

    Attributes:
        schema: name of the PostgreSQL schema, unquoted.
        state: documents of this agent; ``state.shared`` and ``state.for_agent()`` lead to the others.
        metrics: the hive's ``agent_metrics``.
        messages: the log of what became of messages.
        audit: what this process has done, for those who have to prove it.
        outbox: what transactions have committed and is not at an end; see ``ctx.transaction()``.
        pool: the asyncpg pool, for SQL of one's own; JSON columns come as Python values. ``search_path`` is not set:
            name the schema.
    """

    def __init__(
        self,
        database: Database,
        schema: str,
        agent: str,
        *,
        message_log: str = "failures",
        process: str = "",
        cache: Cache | None = None,
    ) -> None:
        self._database = database
        self._lanes = StateLanes(database, schema, cache)
        self.schema = schema
        self.state = StateStore(self._lanes, check_key(agent, "agent"), cached=True)
        self.metrics = MetricsStore(database, schema)
        self.messages = MessageLog(database, schema, agent, policy=checked_policy(message_log))
        self.audit = AuditTrail(database, schema, agent, actor=process, process=process)
        self.outbox = Outbox(database, schema, agent)

    @classmethod
    async def connect(
        cls,
        url: str,
        scope: HiveScope,
        *,
        agent: str,
        pool: PostgresPool = PostgresPool(),  # noqa: B008 - immutable
        application_name: str = "agenthive",
        message_log: str = "failures",
        process: str = "",
        cache: Cache | None = None,
        wait_seconds: float = 0.0,
    ) -> Self:
        """Open the pool and check that the hive's schema is the one this code needs.

        Args:
            url: ``postgresql://user:password@host:port/database?…`` with libpq's parameters; ``connect_timeout`` in
                seconds, ``statement_cache_size=0`` behind a PgBouncer before 1.21 that pools transactions.
            scope: the hive.
            agent: whose ``state`` this is.
            pool: sizes of the pool.
            application_name: what ``pg_stat_activity`` shows.
            message_log: ``failures`` or ``all``.
            process: the pod, as the audit trail names it; ``application_name`` by default.
            cache: what ``state.get`` goes through, and every write is told to; closed by its owner, after the store.
            wait_seconds: how long to keep trying while PostgreSQL cannot be reached.

        Raises:
            StoreUnavailable: PostgreSQL cannot be reached, or has no such database.
            StoreAuthError: it refused user or password.
            SchemaMissing: the hive's schema is not there or too old; the text says how to upgrade it.
            SchemaTooNew: this code is too old for the schema.
            InvalidValue: an argument makes no sense.
        """
        checked_policy(message_log)
        schema = schema_name(scope)
        database = await Database.connect(url, pool=pool, application_name=application_name, wait_seconds=wait_seconds)
        try:
            with database.translating():
                applied = await database.run(lambda connection: applied_versions(connection, schema), retry=False)
            require_current(max(applied, default=0), schema, database.address.where)
            return cls(
                database, schema, agent, message_log=message_log, process=process or application_name, cache=cache
            )
        except BaseException:
            await database.aclose()
            raise

    @property
    def pool(self) -> asyncpg.Pool[asyncpg.Record]:
        """The asyncpg pool."""
        return self._database.pool

    async def ping(self, timeout: float = PING_SECONDS) -> None:
        """Ask the server for an answer, once: for a readiness probe.

        Raises:
            StoreUnavailable: none came within ``timeout`` seconds.
        """
        try:
            async with asyncio.timeout(timeout):
                with self._database.translating():
                    await self._database.run(lambda connection: connection.execute("SELECT 1"), retry=False)
        except TimeoutError as error:
            raise StoreUnavailable(
                f"PostgreSQL at {self._database.address.where} did not answer within {timeout:g} s"
            ) from error

    async def maintain(
        self,
        *,
        retention: Retention = Retention(),  # noqa: B008 - immutable
        today: date | None = None,
    ) -> list[str]:
        """Housekeeping, to be called daily: partitions ahead, expired documents, marks of messages that were
        handled long ago, what is past its retention.

        Args:
            retention: how long what is kept.
            today: UTC day to count from; the server's by default.

        Returns:
            Names of the partitions it made; ``retain`` says which ones it dropped.

        Raises:
            StorePermissionError: the role does not own the tables.
            StoreUnavailable: PostgreSQL did not come back within 30 s.
        """
        made = await self.metrics.maintain(today=today)
        while await self._lanes.purge_expired():
            pass
        while await self.outbox.forget():
            pass
        await self.retain(retention, today=today)
        return made

    async def retain(self, retention: Retention, *, today: date | None = None) -> list[str]:
        """The part of ``maintain`` that drops partitions past their retention. Returns their names, raises as it."""
        with self._database.translating():
            dropped = await self._database.run(
                lambda connection: apply_retention(connection, self.schema, retention, today=today),
                own_transaction=True,
            )
        if dropped:
            logger.info("%s: dropped %s", self.schema, ", ".join(dropped))
        return dropped

    async def aclose(self, timeout: float = CLOSE_SECONDS) -> None:
        """Write what waits, then close the pool; what is not written after ``timeout`` seconds fails or is dropped."""
        parts = (self._lanes, self.metrics, self.messages, self.audit, self.outbox)
        await asyncio.gather(*(part.aclose(timeout) for part in parts))
        await self._database.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()
