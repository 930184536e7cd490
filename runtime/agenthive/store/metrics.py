"""``agent_metrics``: figures over time, partitioned by day."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any, NamedTuple

import asyncpg

from agenthive.store import codec
from agenthive.store.batch import Batcher
from agenthive.store.database import RETRY_SECONDS, Database
from agenthive.store.errors import InvalidValue, StoreError
from agenthive.store.partitions import METRICS, is_missing_partition, maintain_partitions, with_partitions
from agenthive.store.statements import MetricsSql
from agenthive.store.windows import check_window, newest, windows, within

MAX_METADATA_BYTES = 65_536
DEFAULT_QUERY_LIMIT = 1000
#: Most steps of one series.
MAX_BUCKETS = 10_000


@dataclass(frozen=True, slots=True)
class Metric:
    """One row of ``agent_metrics``."""

    agent_name: str
    metric_type: str
    value: float
    timestamp: datetime
    metadata: dict[str, Any]
    id: uuid.UUID


@dataclass(frozen=True, slots=True)
class Bucket:
    """The figures of one step of a series.

    Attributes:
        start: when the step begins.
        count: how many figures it has, at least 1.
        minimum, average, maximum, total: of them.
        last: the latest of them.
        percentile: the one that was asked for, interpolated; None if none was.
    """

    start: datetime
    count: int
    minimum: float
    average: float
    maximum: float
    total: float
    last: float
    percentile: float | None


@dataclass(frozen=True, slots=True)
class MetricType:
    """A type of figure that an agent records: how many there are in the time looked at, and when the latest was."""

    agent_name: str
    metric_type: str
    count: int
    latest: datetime


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
            until: before this time; None: the end of tomorrow (UTC), beyond which only figures of the future are.
            limit: most rows, at least 1.

        Raises:
            InvalidValue: an argument makes no sense.
            StoreUnavailable: as ``record``.
        """
        rows = await newest(
            self._database,
            self._sql.select,
            self._sql.newest_first,
            "timestamp",
            {"agent_name =": agent, "metric_type =": metric_type},
            since=since,
            until=until,
            limit=limit,
        )
        return [Metric(**dict(row)) for row in rows]

    async def series(
        self,
        metric_type: str,
        *,
        agent: str | None = None,
        since: datetime,
        until: datetime | None = None,
        step: timedelta,
        percentile: float | None = None,
    ) -> list[Bucket]:
        """Figures over time, put together by PostgreSQL; oldest first, steps without any left out.

        Args:
            metric_type: of which type.
            agent: only of this agent; None: of all agents together.
            since: not before this time.
            until: before this time; now by default.
            step: length of a step, at least 1 ms; steps begin at multiples of it, the first may begin before ``since``.
            percentile: one more figure of each step, from 0 to 1: 0.5 is the median.

        Raises:
            InvalidValue: an argument makes no sense, there are more than 10,000 steps, or a sum is beyond the range of
                a double.
            StoreUnavailable: as ``record``.
        """
        until = codec.utc_now() if until is None else until
        check_window(since, until, 1)
        if step < timedelta(milliseconds=1):
            raise InvalidValue(f"step must be at least 1 ms, not {step}")
        if (until - since) / step > MAX_BUCKETS:
            raise InvalidValue(f"{until - since} in steps of {step} is more than {MAX_BUCKETS} steps: make them longer")
        if percentile is not None and not 0 <= percentile <= 1:
            raise InvalidValue(f"percentile must be from 0 to 1, not {percentile}")
        if until <= since:
            return []
        statement = self._sql.series(_days(since, until), agent=agent is not None)
        arguments = [since, until, metric_type, step, percentile] + ([] if agent is None else [agent])
        return [Bucket(**row) for row in await self._fetch(statement, arguments)]

    async def types(
        self,
        *,
        agent: str | None = None,
        since: datetime,
        until: datetime | None = None,
        limit: int = DEFAULT_QUERY_LIMIT,
    ) -> list[MetricType]:
        """Which types of figures were recorded, by agent.

        Args:
            agent: only by this agent.
            since: not before this time.
            until: before this time; now by default.
            limit: most rows, at least 1.

        Raises:
            InvalidValue: an argument makes no sense.
            StoreUnavailable: as ``record``.
        """
        until = codec.utc_now() if until is None else until
        check_window(since, until, limit)
        if until <= since:
            return []
        statement = self._sql.types(_days(since, until), agent=agent is not None)
        arguments = [since, until, limit] + ([] if agent is None else [agent])
        return [MetricType(**row) for row in await self._fetch(statement, arguments)]

    async def _fetch(self, statement: str, arguments: Sequence[Any]) -> list[Any]:
        with self._database.translating():
            return await self._database.run(lambda connection: connection.fetch(statement, *arguments))

    async def maintain(self, *, today: date | None = None) -> list[str]:
        """Make the partitions that are missing up to 14 days ahead, of metrics, message log and audit trail.

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


def _days(since: datetime, until: datetime) -> str:
    """The days of a series as constants."""
    ranges = list(windows(until.date(), since, until))
    return within("timestamp", ranges[-1][0], ranges[0][1])


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

    async def series(
        self,
        metric_type: str,
        *,
        since: datetime,
        until: datetime | None = None,
        step: timedelta,
        percentile: float | None = None,
    ) -> list[Bucket]:
        """This agent's figures over time; arguments and errors as in ``MetricsStore.series``."""
        return await self._store.series(
            metric_type, agent=self._agent, since=since, until=until, step=step, percentile=percentile
        )
