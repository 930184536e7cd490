"""Numbered SQL migrations: forward only, each applied once, whoever upgrades at the same time.

A migration file is ``migrations/<number>_<name>.sql``. Rules for a new one: the code before it must still work on its
result (add, never rename or drop what the previous version uses); it runs in one transaction with the hive's schema as
``search_path``; once released it is never edited, which a checksum guards.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import re
import secrets
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from importlib import resources
from typing import Any

import asyncpg

from agenthive.store.chain import TOOL, Event, follow, person, start
from agenthive.store.database import Address, Connect, connected
from agenthive.store.errors import (
    MigrationError,
    SchemaMissing,
    SchemaTooNew,
    is_collision,
    is_connection_loss,
    is_lock_timeout,
    translate,
)
from agenthive.store.locks import change_tables, plain_names
from agenthive.store.naming import lock_key, quote
from agenthive.store.partitions import DAYS_AHEAD, maintain_partitions
from agenthive.store.roles import become_owner, role_names, secure_tables
from agenthive.store.statements import AuditSql

logger = logging.getLogger(__name__)

_FILE = re.compile(r"^(\d{4})_([a-z0-9_]+)\.sql$")
_APPLICATION = "agenthive db upgrade"
#: A migration may have much to do, and may wait for another upgrader that has.
UPGRADE_SECONDS = 600.0


@dataclass(frozen=True, slots=True)
class Migration:
    """One migration file of this code."""

    version: int
    name: str
    sql: str = field(repr=False)
    checksum: str


@dataclass(frozen=True, slots=True)
class SchemaStatus:
    """How far a hive's schema is.

    Attributes:
        schema: its name.
        current: version of the schema in the database; 0 if it is not there.
        latest: version this code needs.
        pending: migrations that are still to be applied, in order.
    """

    schema: str
    current: int
    latest: int
    pending: tuple[Migration, ...]

    @property
    def too_new(self) -> bool:
        """The schema was upgraded by newer code."""
        return self.current > self.latest


@lru_cache(maxsize=1)
def migrations() -> tuple[Migration, ...]:
    """The migrations of this code, in order."""
    found = []
    for file in resources.files("agenthive.store").joinpath("migrations").iterdir():
        if match := _FILE.match(file.name):
            sql = file.read_text(encoding="utf-8")
            checksum = hashlib.sha256(sql.encode()).hexdigest()
            found.append(Migration(int(match[1]), match[2], sql, checksum))
    return check_sequence(sorted(found, key=lambda migration: migration.version))


def check_sequence(found: list[Migration]) -> tuple[Migration, ...]:
    """``found`` itself if it is numbered 1, 2, 3 …

    Raises:
        MigrationError: a number is missing or there twice.
    """
    numbers = [migration.version for migration in found]
    if numbers != list(range(1, len(found) + 1)):
        raise MigrationError(f"migrations must be numbered 1, 2, 3 … without gaps, not {numbers}")
    return tuple(found)


def pending(known: tuple[Migration, ...], applied: dict[int, str], schema: str) -> tuple[Migration, ...]:
    """Which of ``known`` are still to be applied. Pure.

    Args:
        known: this code's migrations.
        applied: checksum of each applied version.
        schema: for the messages.

    Raises:
        MigrationError: one that was applied has another content here.
        SchemaTooNew: more were applied than this code knows.
    """
    for migration in known:
        if applied.get(migration.version, migration.checksum) != migration.checksum:
            raise MigrationError(
                f"migration {migration.version:04}_{migration.name} was applied to schema {schema} with another "
                "content than this code has: install the version of agenthive-k8s that applied it; "
                "released migrations are never edited"
            )
    newest = max(applied, default=0)
    if newest > len(known):
        raise SchemaTooNew(too_new_text(schema, newest, len(known)))
    return tuple(migration for migration in known if migration.version not in applied)


def too_new_text(schema: str, current: int, latest: int) -> str:
    """What a person reads when the schema is ahead of the code."""
    return (
        f"schema {schema} is at version {current} and this code knows only {latest}: "
        "upgrade agenthive-k8s (the agent's image) to the version that upgraded the schema; "
        "schemas are never downgraded"
    )


def require_current(current: int, schema: str, where: str) -> None:
    """Refuse to work on a schema this code does not fit.

    Raises:
        SchemaMissing: not there, or older than the code.
        SchemaTooNew: newer than the code.
    """
    latest = len(migrations())
    if current == 0:
        raise SchemaMissing(
            f"PostgreSQL at {where} has no schema {schema} for this hive: "
            "run `agenthive db upgrade` (the operator does it for an AgentHive)"
        )
    if current < latest:
        raise SchemaMissing(
            f"schema {schema} of PostgreSQL at {where} is at version {current} and this code needs {latest}: "
            "run `agenthive db upgrade` (the operator does it for an AgentHive)"
        )
    if current > latest:
        raise SchemaTooNew(too_new_text(schema, current, latest))


async def applied_versions(connection: Any, schema: str) -> dict[int, str]:
    """Version → checksum of what was applied; empty if the schema is not there."""
    if await connection.fetchval("SELECT to_regclass($1) IS NULL", f"{quote(schema)}.schema_migrations"):
        return {}
    rows = await connection.fetch(f"SELECT version, checksum FROM {quote(schema)}.schema_migrations")  # noqa: S608
    return {row["version"]: row["checksum"] for row in rows}


async def schema_status(url: str, schema: str, *, connect: Connect = connected) -> SchemaStatus:
    """How far the schema is; changes nothing.

    Args:
        url: where it is.
        schema: its name.
        connect: opens the connection, or lends one that is open.

    Raises:
        StoreUnavailable, StoreAuthError: PostgreSQL cannot be used.
        MigrationError: an applied migration has another content in this code.
    """
    address = Address.parse(url)
    try:
        # In a transaction for PgBouncer, which may send each statement elsewhere.
        async with connect(address, "agenthive db status") as connection, plain_names(connection):
            applied = await applied_versions(connection, schema)
    except (asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        raise translate(error, address.where) from error
    known = migrations()
    current = max(applied, default=0)
    missing = () if current > len(known) else pending(known, applied, schema)
    return SchemaStatus(schema, current, len(known), missing)


async def upgrade(
    url: str, schema: str, *, days_ahead: int = DAYS_AHEAD, connect: Connect = connected
) -> list[Migration]:
    """Apply the migrations the schema lacks, and make the partitions of the days to come.

    Each migration is a transaction of its own under an advisory lock of the schema, those of a new schema, which nobody
    uses yet, are one: two upgraders at once apply each once, and one that dies leaves whole migrations. Needs a direct
    connection, not one through PgBouncer.

    Args:
        url: a role that may create the schema, or owns it.
        schema: as ``schema_name`` makes it.
        days_ahead: for how many days to come partitions are made.
        connect: opens the connection, or lends one that is open.

    Returns:
        What this call applied, in order; empty if there was nothing to do.

    Raises:
        StoreUnavailable, StoreAuthError, StorePermissionError: PostgreSQL cannot be used.
        SchemaTooNew: the schema was upgraded by newer code.
        MigrationError: a migration failed (it left no trace), or an applied one has another content here.
    """
    address = Address.parse(url)
    done: list[Migration] = []
    try:
        async with connect(address, _APPLICATION) as connection, asyncio.timeout(UPGRADE_SECONDS):
            while applied := await change_tables(
                connection,
                lambda: _apply_next(connection, schema),
                what=f"the upgrade of schema {schema}",
                patience=UPGRADE_SECONDS * 0.9,  # so that the lock is what is complained about
            ):
                done += applied
                if len(done) == len(migrations()):
                    break
            await secure_tables(connection, schema)
            await maintain_partitions(connection, schema, days_ahead=days_ahead)
            if done:
                await _tell_audit(connection, schema, done)
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        raise translate(error, address.where) from error
    return done


async def _tell_audit(connection: Any, schema: str, done: list[Migration]) -> None:
    """Into the audit trail, as a chain of its own. The schema is upgraded whatever becomes of it."""
    details = json.dumps({"applied": [f"{one.version:04}_{one.name}" for one in done]})
    event = Event(datetime.now(UTC), "schema.upgrade", schema, details)
    chain = f"{TOOL}/upgrade/{socket.gethostname()}/{secrets.token_hex(6)}"
    columns = [[value] for value in follow(chain, TOOL, person(), start(chain), [event])[0]]
    try:
        async with plain_names(connection):
            await become_owner(connection, schema)
            await connection.execute(AuditSql(schema).insert, *columns)
    except asyncpg.PostgresError as error:
        logger.warning("the upgrade of schema %s is not in its audit trail: %s", schema, error)


async def _apply_next(connection: Any, schema: str) -> list[Migration]:
    """Apply the first missing migration, or all of a new schema, inside a transaction; empty if none is missing."""
    # Waits for another upgrader; what that one applied is visible afterwards.
    await connection.execute("SELECT pg_advisory_xact_lock($1)", lock_key("migrate", schema), timeout=UPGRADE_SECONDS)
    applied = await applied_versions(connection, schema)
    missing = pending(migrations(), applied, schema)
    if not missing:
        return []
    if not applied:
        await _create_schema(connection, schema)
    await become_owner(connection, schema)
    if applied:
        await _apply(connection, schema, missing[0])
        return [missing[0]]
    await _create_bookkeeping(connection, schema)
    if await _apply_together(connection, schema, missing):
        return list(missing)
    done: list[Migration] = []
    for migration in missing:
        try:
            async with connection.transaction():
                await _apply(connection, schema, migration)
        except MigrationError:
            if not done:
                raise
            break  # those before it stay, and it is tried alone
        done.append(migration)
    return done


async def _apply_together(connection: Any, schema: str, missing: Sequence[Migration]) -> bool:
    """Apply all in one exchange; False, and nothing is changed, where one of them fails: which one is not known."""
    script = ";\n".join(
        f"SET LOCAL search_path = {quote(schema)};\n{migration.sql};\n{_noted(schema, migration)}"
        for migration in missing
    )
    try:
        async with connection.transaction():
            await connection.execute(script, timeout=UPGRADE_SECONDS)
    except asyncpg.PostgresError as error:
        if _is_passing(error):
            raise
        return False
    return True


async def _apply(connection: Any, schema: str, migration: Migration) -> None:
    await connection.execute(f"SET LOCAL search_path = {quote(schema)}")
    try:
        await connection.execute(migration.sql, timeout=UPGRADE_SECONDS)
    except asyncpg.PostgresError as error:
        if _is_passing(error):
            raise
        raise MigrationError(
            f"migration {migration.version:04}_{migration.name} of schema {schema} failed and left no trace: {error}"
        ) from error
    await connection.execute(_noted(schema, migration))


def _is_passing(error: BaseException) -> bool:
    """Whether the same may go well another time."""
    return is_connection_loss(error) or is_lock_timeout(error) or is_collision(error)


def _noted(schema: str, migration: Migration) -> str:
    # Values of this code: names and digests of files that ``_FILE`` matches.
    values = f"{migration.version}, '{migration.name}', '{migration.checksum}'"
    return f"INSERT INTO {quote(schema)}.schema_migrations (version, name, checksum) VALUES ({values})"  # noqa: S608


async def _create_schema(connection: Any, schema: str) -> None:
    # Looked up first: CREATE SCHEMA IF NOT EXISTS asks for the right to create even where there is nothing to do.
    if await connection.fetchval("SELECT to_regnamespace($1) IS NULL", quote(schema)):
        owner = quote(role_names(schema).owner)
        there = await connection.fetchval("SELECT to_regrole($1) IS NOT NULL", owner)
        await connection.execute(f"CREATE SCHEMA {quote(schema)}" + (f" AUTHORIZATION {owner}" if there else ""))


async def _create_bookkeeping(connection: Any, schema: str) -> None:
    await connection.execute(
        f"""
        CREATE TABLE IF NOT EXISTS {quote(schema)}.schema_migrations (
            version    integer     PRIMARY KEY,
            name       text        NOT NULL,
            checksum   text        NOT NULL,
            applied_at timestamptz NOT NULL DEFAULT clock_timestamp()
        )
        """
    )
