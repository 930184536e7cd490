"""Daily partitions: which there should be (pure), and making those that are missing."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

import asyncpg

from agenthive.store.database import Database
from agenthive.store.errors import sqlstate
from agenthive.store.naming import lock_key, quote
from agenthive.store.roles import become_owner

logger = logging.getLogger(__name__)

#: Days made ahead: how long the store keeps working if nobody calls maintenance.
DAYS_AHEAD = 14
#: Days made behind today: rows of just before midnight, and of clocks that are behind.
DAYS_BEHIND = 1


@dataclass(frozen=True, slots=True)
class PartitionedTable:
    """A table that is range-partitioned by UTC day."""

    name: str
    column: str

    def partition(self, day: date) -> str:
        """Name of the partition of ``day``."""
        return f"{self.name}_p{day:%Y%m%d}"


METRICS = PartitionedTable("agent_metrics", "timestamp")
MESSAGES = PartitionedTable("message_log", "logged_at")
PARTITIONED = (METRICS, MESSAGES)


def wanted_days(today: date) -> list[date]:
    """The days that have to have a partition, seen from ``today``."""
    return [today + timedelta(days=offset) for offset in range(-DAYS_BEHIND, DAYS_AHEAD + 1)]


def bounds(day: date) -> tuple[str, str]:
    """The timestamps a partition starts with and ends before, as SQL reads them in any time zone."""
    return f"{day} 00:00:00+00", f"{day + timedelta(days=1)} 00:00:00+00"


async def maintain_partitions(
    connection: Any, schema: str, *, today: date | None = None, tables: Iterable[PartitionedTable] = PARTITIONED
) -> list[str]:
    """Make the partitions that are missing from yesterday to ``DAYS_AHEAD`` days ahead.

    Args:
        connection: of a role that owns the tables or is a member of the one that does; not inside a transaction.
        schema: the hive's.
        today: UTC day to count from; the server's by default.
        tables: which.

    Returns:
        Names of the partitions this call made.
    """
    made = []
    async with connection.transaction():
        await connection.execute("SELECT pg_advisory_xact_lock($1)", lock_key("partitions", schema))
        await become_owner(connection, schema)
        if today is None:
            today = await connection.fetchval("SELECT (now() AT TIME ZONE 'UTC')::date")
        for table in tables:
            there = await existing_partitions(connection, schema, table)
            for day in wanted_days(today):
                if table.partition(day) not in there:
                    await connection.execute(_create_partition(schema, table, day))
                    made.append(table.partition(day))
    return made


async def existing_partitions(connection: Any, schema: str, table: PartitionedTable) -> set[str]:
    """Names of the partitions ``table`` has."""
    rows = await connection.fetch(
        """
        SELECT c.relname FROM pg_catalog.pg_inherits i JOIN pg_catalog.pg_class c ON c.oid = i.inhrelid
        WHERE i.inhparent = to_regclass($1)
        """,
        f"{quote(schema)}.{quote(table.name)}",
    )
    return {row["relname"] for row in rows}


def _create_partition(schema: str, table: PartitionedTable, day: date) -> str:
    # Made apart and attached: CREATE TABLE … PARTITION OF locks the whole table against reading, ATTACH does not.
    parent = f"{quote(schema)}.{quote(table.name)}"
    child = f"{quote(schema)}.{quote(table.partition(day))}"
    start, end = bounds(day)
    return (
        f"CREATE TABLE {child} (LIKE {parent} INCLUDING ALL);"
        f"ALTER TABLE {parent} ATTACH PARTITION {child} FOR VALUES FROM ('{start}') TO ('{end}')"
    )


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
            logger.warning("partitions of schema %s are missing and this role may not make them", schema)
            made = []
        if not made:
            raise
        await write()
