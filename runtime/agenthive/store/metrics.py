"""``agent_metrics``: figures over time, partitioned by day."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any, NamedTuple

import asyncpg

from agenthive.store import codec
from agenthive.store.batch import Batcher
from agenthive.store.database import RETRY_SECONDS, Database
from agenthive.store.errors import InvalidValue, StoreError
from agenthive.store.partitions import METRICS, is_missing_partition, maintain_partitions, with_partitions
from agenthive.store.statements import MetricsSql, filtered

MAX_METADATA_BYTES = 65_536
DEFAULT_QUERY_LIMIT = 1000


@dataclass(frozen=True, slots=True)
class Metric:
    """One row of ``agent_metrics``."""

    agent_name: str
    metric_type: str
    value: float
    timestamp: datetime
    metadata: dict[str, Any]
    id: uuid.UUID


class _Record(NamedTuple):
    id: uuid.UUID
    agent_name: str
    metric_type: str
    value: float
    timestamp: datetime
    metadata: str


class MetricsStore:
    """Records and queries metrics; rows of concurrent callers become one statement and one commit."""

    def __init__(self, database: Database, schema: str) -> None:
        self._database = database
        self._schema = schema
        self._sql = MetricsSql(schema)
        self._batch: Batcher[_Record, None] = Batcher(
            "metrics", self._flush, explain=database.explain, patience=RETRY_SECONDS
        )

    def for_agent(self, agent: str) -> AgentMetrics:
        """The figures of ``agent``: what its handlers see as ``ctx.metrics``."""
        return AgentMetrics(self, agent)

    async def record(
        self,
        agent: str,
        metric_type: str,
        value: float,
        metadata: Mapping[str, Any] | None = None,
        timestamp: datetime | None = None,
    ) -> None:
        """Keep one figure; when this returns, it is committed.

        Args:
            agent: whose.
            metric_type: what is measured, unit included: ``latency_ms``.
            value: any finite number.
            metadata: a JSON object, at most 64 KiB as text.
            timestamp: when, with time zone; now by default. From yesterday to 14 days ahead (the days with a
                partition; more if older partitions are still there).

        Raises:
            InvalidValue: an argument the store cannot keep, or a timestamp of a day without a partition.
            StoreUnavailable: PostgreSQL did not come back within 30 s.
        """
        document = codec.encode(dict(metadata or {}), limit=MAX_METADATA_BYTES, what="metadata")
        moment = codec.utc_now() if timestamp is None else codec.check_timestamp(timestamp)
        record = _Record(
            codec.new_id(),
            codec.check_key(agent, "agent"),
            codec.check_key(metric_type, "metric_type"),
            codec.check_finite(value, f"metric {metric_type!r}"),
            moment,
            document,
        )
        await self._batch.submit(record, len(document))

    async def query(
        self,
        *,
        agent: str | None = None,
        metric_type: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        limit: int = DEFAULT_QUERY_LIMIT,
    ) -> list[Metric]:
        """The latest figures, newest first.

        Args:
            agent: only of this agent.
            metric_type: only of this type.
            since: not before this time.
            until: before this time.
            limit: most rows, at least 1.

        Raises:
            InvalidValue: an argument makes no sense.
            StoreUnavailable: as ``record``.
        """
        if limit < 1:
            raise InvalidValue(f"limit must be at least 1, not {limit}")
        for name, moment in (("since", since), ("until", until)):
            if moment is not None:
                codec.check_timestamp(moment, name)
        conditions = {"agent_name =": agent, "metric_type =": metric_type, "timestamp >=": since, "timestamp <": until}
        statement, arguments = filtered(self._sql.select, self._sql.newest_first, conditions, limit)
        with self._database.translating():
            rows = await self._database.run(lambda connection: connection.fetch(statement, *arguments))
        return [Metric(**dict(row)) for row in rows]

    async def maintain(self, *, today: date | None = None) -> list[str]:
        """Make the partitions that are missing up to 14 days ahead, of metrics and message log.

        To be called at least once in 14 days by a role that owns the tables. A write that finds no partition for
        today tries it too.

        Args:
            today: UTC day to count from; the server's by default.

        Returns:
            Names of the partitions this call made.

        Raises:
            StorePermissionError: the role does not own the tables.
            StoreUnavailable: as ``record``.
        """
        with self._database.translating():
            return await self._database.run(
                lambda connection: maintain_partitions(connection, self._schema, today=today),
                own_transaction=True,
            )

    async def aclose(self, timeout: float) -> None:
        """Flush what waits."""
        await self._batch.aclose(timeout)

    async def _flush(self, records: Sequence[_Record], deadline: float) -> Sequence[StoreError | None]:
        columns = [list(column) for column in zip(*records, strict=True)]

        async def insert() -> None:
            await self._database.run(
                lambda connection: connection.execute(self._sql.insert, *columns), deadline=deadline
            )

        try:
            await with_partitions(self._database, self._schema, insert)
        except asyncpg.PostgresError as error:
            if is_missing_partition(error) and len(records) == 1:  # of more, the batch is halved until it is alone
                raise InvalidValue(
                    f"no partition of {METRICS.name} for {records[0].timestamp.isoformat()}: timestamps go from "
                    "yesterday to 14 days ahead"
                ) from error
            raise
        return [None] * len(records)


class AgentMetrics:
    """The metrics of one agent."""

    __slots__ = ("_agent", "_store")

    def __init__(self, store: MetricsStore, agent: str) -> None:
        self._store = store
        self._agent = agent

    async def record(
        self,
        metric_type: str,
        value: float,
        metadata: Mapping[str, Any] | None = None,
        timestamp: datetime | None = None,
    ) -> None:
        """Keep one figure of this agent; arguments and errors as in ``MetricsStore.record``."""
        await self._store.record(self._agent, metric_type, value, metadata, timestamp)

    async def query(
        self,
        metric_type: str | None = None,
        *,
        since: datetime | None = None,
        until: datetime | None = None,
        limit: int = DEFAULT_QUERY_LIMIT,
    ) -> list[Metric]:
        """This agent's latest figures, newest first; arguments and errors as in ``MetricsStore.query``."""
        return await self._store.query(
            agent=self._agent, metric_type=metric_type, since=since, until=until, limit=limit
        )
