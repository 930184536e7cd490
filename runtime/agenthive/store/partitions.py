"""Partitions by day or month: which there should be (pure), making those that are missing, dropping those that are old.

An old partition goes by a plain DROP TABLE that waits for its lock for a tenth of a second at most, and is tried again
later: whoever comes to the table meanwhile waits no longer than that behind it. DETACH … CONCURRENTLY would wait less,
but not inside a transaction, and the anchors of the audit trail have to be committed together with the removal; what
dies in the middle of it leaves a partition that is half detached, for a person to finish.
"""
# ruff: noqa: S608 - the only text put into a statement is a quoted identifier or a constant; values are parameters

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from datetime import date, timedelta
from itertools import islice
from typing import Any, Literal

import asyncpg

from agenthive.settings import Retention
from agenthive.store.database import Database, backoff
from agenthive.store.errors import sqlstate
from agenthive.store.naming import lock_key, quote
from agenthive.store.roles import become_owner

logger = logging.getLogger(__name__)

#: Days made ahead, at least: how long the store keeps working if nobody calls maintenance.
DAYS_AHEAD = 14
#: Days made behind today: rows of just before midnight, and of clocks that are behind.
DAYS_BEHIND = 1
#: How long a DROP waits for its lock, and others behind it, milliseconds; and how often it is tried.
LOCK_MILLISECONDS = 100
DROP_TRIES = 12
#: Lost to somebody who uses the table (lock_timeout, deadlock); gone already.
_BUSY, _GONE = frozenset({"55P03", "40P01"}), frozenset({"42P01"})

_DIGITS = {"day": 8, "month": 6}


@dataclass(frozen=True, slots=True)
class PartitionedTable:
    """A table that is range-partitioned by UTC day or month."""

    name: str
    column: str
    period: Literal["day", "month"] = "day"

    def partition(self, day: date) -> str:
        """Name of the partition that holds ``day``."""
        return f"{self.name}_p{day:%Y%m%d}"[: len(self.name) + 2 + _DIGITS[self.period]]

    def days(self, day: date) -> tuple[date, date]:
        """The first day of the partition that holds ``day``, and the first behind it."""
        if self.period == "day":
            return day, day + timedelta(days=1)
        first = day.replace(day=1)
        return first, (first + timedelta(days=31)).replace(day=1)

    def day_of(self, partition: str) -> date | None:
        """The first day of the partition of this name; None if it is none that ``partition`` names."""
        digits = partition.removeprefix(f"{self.name}_p")
        if len(digits) != _DIGITS[self.period] or not digits.isdecimal():
            return None
        try:
            return date(int(digits[:4]), int(digits[4:6]), int(digits[6:] or 1))
        except ValueError:
            return None


METRICS = PartitionedTable("agent_metrics", "timestamp")
MESSAGES = PartitionedTable("message_log", "logged_at")
#: By month, for it is kept for long: a year of days would make 365 tables of each hive.
AUDIT = PartitionedTable("audit_log", "at", "month")
PARTITIONED = (METRICS, MESSAGES, AUDIT)


def wanted(table: PartitionedTable, today: date, days_ahead: int = DAYS_AHEAD) -> list[date]:
    """The first days of the partitions that ``table`` has to have, seen from ``today``, in order."""
    days = (today + timedelta(days=offset) for offset in range(-DAYS_BEHIND, days_ahead + 1))
    return list(dict.fromkeys(table.days(day)[0] for day in days))


def expired(table: PartitionedTable, there: Iterable[str], today: date, keep_days: int) -> list[str]:
    """Which of the partitions ``there`` lie wholly more than ``keep_days`` days before ``today``, oldest first."""
    limit = today - timedelta(days=keep_days)
    starts = {name: table.day_of(name) for name in there}
    old = [(start, name) for name, start in starts.items() if start is not None and table.days(start)[1] <= limit]
    return [name for _, name in sorted(old)]


def bounds(table: PartitionedTable, day: date) -> tuple[str, str]:
    """The timestamps that the partition of ``day`` starts with and ends before, as SQL reads them in any time zone."""
    start, end = table.days(day)
    return f"{start} 00:00:00+00", f"{end} 00:00:00+00"


async def maintain_partitions(
    connection: Any,
    schema: str,
    *,
    today: date | None = None,
    tables: Iterable[PartitionedTable] = PARTITIONED,
    days_ahead: int = DAYS_AHEAD,
) -> list[str]:
    """Make the partitions that are missing from yesterday to ``days_ahead`` days ahead.

    Args:
        connection: of a role that owns the tables or is a member of the one that does; not inside a transaction.
        schema: the hive's.
        today: UTC day to count from; the server's by default.
        tables: which.
        days_ahead: how far.

    Returns:
        Names of the partitions this call made.
    """
    missing: list[tuple[PartitionedTable, date]] = []
    async with connection.transaction():
        await connection.execute("SELECT pg_advisory_xact_lock($1)", lock_key("partitions", schema))
        await become_owner(connection, schema)
        today = today or await server_day(connection)
        for table in tables:
            there = await existing_partitions(connection, schema, table)
            if there is None:
                continue  # of a later migration
            missing += [(table, day) for day in wanted(table, today, days_ahead) if table.partition(day) not in there]
        if missing:
            await connection.execute(";".join(_create_partition(schema, table, day) for table, day in missing))
    return [table.partition(day) for table, day in missing]


async def apply_retention(
    connection: Any, schema: str, retention: Retention, *, today: date | None = None
) -> list[str]:
    """Drop the partitions that lie wholly behind what ``retention`` keeps.

    Reads and writes go on: none waits longer than ``LOCK_MILLISECONDS`` for it. A partition that is in use all the
    time, by a long query say, stays until the next call; that is logged. The last audit row of each chain becomes its
    anchor in the transaction that drops it.

    Args:
        connection: of a role that owns the tables; not inside a transaction.
        schema: the hive's.
        retention: how many days of what are kept.
        today: UTC day to count from; the server's by default.

    Returns:
        Names of the partitions this call dropped.
    """
    kept = ((METRICS, retention.metrics_days), (MESSAGES, retention.messages_days), (AUDIT, retention.audit_days))
    async with connection.transaction():  # all that is read and written is in one, for PgBouncer's sake
        today = today or await server_day(connection)
        old = {
            table: expired(table, await existing_partitions(connection, schema, table) or (), today, days)
            for table, days in kept
        }
    dropped = []
    for table, names in old.items():
        for name in names:
            if not await _drop(connection, schema, table, name):
                break  # a later one must not go before it: anchors say where a chain begins
            dropped.append(name)
    async with connection.transaction():
        await become_owner(connection, schema)
        await connection.execute(_forget_anchors(schema), today - timedelta(days=retention.audit_days))
    return dropped


async def existing_partitions(connection: Any, schema: str, table: PartitionedTable) -> set[str] | None:
    """Names of the partitions ``table`` has; None if there is no such table."""
    rows = await connection.fetch(
        """
        SELECT c.relname FROM (SELECT to_regclass($1) AS oid) AS t
        LEFT JOIN pg_catalog.pg_inherits i ON i.inhparent = t.oid LEFT JOIN pg_catalog.pg_class c ON c.oid = i.inhrelid
        WHERE t.oid IS NOT NULL
        """,
        f"{quote(schema)}.{quote(table.name)}",
    )
    return {row["relname"] for row in rows} - {None} if rows else None


async def server_day(connection: Any) -> date:
    """The UTC day of the server."""
    day = await connection.fetchval("SELECT (now() AT TIME ZONE 'UTC')::date")
    assert isinstance(day, date)
    return day


def _create_partition(schema: str, table: PartitionedTable, day: date) -> str:
    # Made apart and attached: CREATE TABLE … PARTITION OF locks the whole table against reading, ATTACH does not.
    parent = f"{quote(schema)}.{quote(table.name)}"
    child = f"{quote(schema)}.{quote(table.partition(day))}"
    start, end = bounds(table, day)
    return (
        f"CREATE TABLE {child} (LIKE {parent} INCLUDING ALL);"
        f"ALTER TABLE {parent} ATTACH PARTITION {child} FOR VALUES FROM ('{start}') TO ('{end}')"
    )


async def _drop(connection: Any, schema: str, table: PartitionedTable, name: str) -> bool:
    """Drop one partition; False if it is in use all the time."""
    child = f"{quote(schema)}.{quote(name)}"
    for delay in islice(backoff(first=0.05, most=2.0), DROP_TRIES):
        try:
            async with connection.transaction():
                await connection.execute(f"SET LOCAL lock_timeout = {LOCK_MILLISECONDS}")
                await connection.execute("SELECT pg_advisory_xact_lock($1)", lock_key("partitions", schema))
                await become_owner(connection, schema)
                if table is AUDIT:
                    # Nobody may add a row to it any more once its last ones are known.
                    await connection.execute(f"LOCK TABLE {child} IN SHARE MODE")
                    await connection.execute(_anchor(schema, child))
                await connection.execute(f"DROP TABLE {child}")
        except asyncpg.PostgresError as error:
            if sqlstate(error) in _GONE:
                return True
            if sqlstate(error) not in _BUSY:
                raise
        else:
            return True
        await asyncio.sleep(delay)
    logger.warning("%s.%s is past its retention, but in use all the time: it is dropped another time", schema, name)
    return False


def _anchor(schema: str, child: str) -> str:
    # One look into the primary key per chain, however many rows it has.
    last = f"SELECT chain, seq, at, hash FROM {child} {{}} ORDER BY chain DESC, seq DESC, at DESC LIMIT 1"
    return f"""
        INSERT INTO {quote(schema)}.audit_anchors AS a (chain, seq, at, hash)
        WITH RECURSIVE heads AS (
            ({last.format("")})
            UNION ALL
            SELECT n.* FROM heads h CROSS JOIN LATERAL ({last.format("WHERE chain < h.chain")}) n
        )
        SELECT chain, seq, at, hash FROM heads
        ON CONFLICT (chain) DO UPDATE
        SET seq = excluded.seq, at = excluded.at, hash = excluded.hash, removed_at = now() WHERE a.seq < excluded.seq
    """


def _forget_anchors(schema: str) -> str:
    # Of chains that are gone whole: their anchors answer to checkpoints, for as long again as the rows were kept.
    return f"""
        DELETE FROM {quote(schema)}.audit_anchors AS a WHERE a.removed_at < $1::date
        AND NOT EXISTS (SELECT FROM {quote(schema)}.audit_log AS l WHERE l.chain = a.chain)
    """


def is_missing_partition(error: BaseException) -> bool:
    """True if a row found no partition for its day."""
    return sqlstate(error) == "23514" and "no partition of relation" in str(error)


async def with_partitions(database: Database, schema: str, write: Callable[[], Awaitable[None]]) -> None:
    """Call ``write``; if it finds a partition missing, make what should be there and call it once more.

    A process that outlives the partitions made ahead thus goes on by itself, if its role owns the tables.
    """
    try:
        await write()
    except asyncpg.PostgresError as error:
        if not is_missing_partition(error):
            raise
        try:
            made = await database.run(lambda connection: maintain_partitions(connection, schema), own_transaction=True)
        except asyncpg.InsufficientPrivilegeError:
            logger.warning(
                "partitions of schema %s are missing and this role may not make them: "
                "run `agenthive db maintain` as their owner (the operator does it daily): %s",
                schema,
                error,
            )
            made = []
        if not made:
            raise
        await write()
