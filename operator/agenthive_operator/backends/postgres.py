"""PostgreSQL as the operator sees it: is it there, may we in, is the hive's schema up to date."""

from __future__ import annotations

import asyncio
import time
from typing import Final

import asyncpg

from agenthive.store import schema_status, upgrade
from agenthive.store.database import Address, connect_once
from agenthive.store.errors import (
    InvalidValue,
    SchemaTooNew,
    StoreAuthError,
    StoreError,
    StorePermissionError,
    StoreUnavailable,
    sqlstate,
)
from agenthive.store.naming import quote
from agenthive_operator.backends.reports import PostgresReport, SchemaReport, StoreReport, endpoint_of

CLIENT_NAME: Final = "agenthive-operator"
PROBE_SECONDS: Final = 6.0
OLDEST: Final = 14
DEFAULT_PORT: Final = 5432
UPKEEP_SECONDS: Final = 6 * 3600.0
"""How often the schema's upkeep (partitions of the days to come) runs although no migration is missing."""


class HiveSchema:
    """The hive's schema in one database: probed often, upgraded when something is missing or due."""

    def __init__(self) -> None:
        self._kept_up: dict[tuple[str, str], float] = {}

    async def check(self, url: str, schema: str, *, shown: str | None = None) -> PostgresReport:
        """Probe the server and bring the schema up to date. Never raises for what the server or the URL does.

        ``url`` is dialled; ``shown`` is the URL as the user knows it, where Service names were resolved first.
        """
        store = await probe(url, shown=shown)
        if not store.ok:
            return PostgresReport(
                store, SchemaReport(False, "WaitingForPostgres", "the schema is migrated once PostgreSQL is ready")
            )
        return PostgresReport(store, await self._migrate(url, schema))

    async def _migrate(self, url: str, schema: str) -> SchemaReport:
        applied: tuple[str, ...] = ()
        try:
            status = await schema_status(url, schema)
            if not status.too_new and (status.pending or self._upkeep_is_due(url, schema)):
                applied = tuple(f"{entry.version:04}_{entry.name}" for entry in await upgrade(url, schema))
                self._kept_up = {(url, schema): time.monotonic()}
                status = await schema_status(url, schema)
        except SchemaTooNew as error:
            return SchemaReport(False, "SchemaTooNew", str(error))
        except StoreUnavailable as error:
            return SchemaReport(False, "WaitingForPostgres", str(error))
        except StoreError as error:
            return SchemaReport(False, "MigrationFailed", str(error))
        if status.too_new:
            text = f"schema {schema} is at version {status.current}, this operator knows {status.latest}: upgrade it"
            return SchemaReport(False, "SchemaTooNew", text)
        return SchemaReport(True, "Migrated", f"schema {schema} is at version {status.current}", applied)

    def _upkeep_is_due(self, url: str, schema: str) -> bool:
        last = self._kept_up.get((url, schema))
        return last is None or time.monotonic() - last > UPKEEP_SECONDS


async def probe(url: str, *, shown: str | None = None) -> StoreReport:
    """Connect, log in and ask for the version; never raises."""
    try:
        endpoint = endpoint_of(shown or url, DEFAULT_PORT)
        address = Address.parse(url)
    except (ValueError, InvalidValue) as error:
        return StoreReport(False, "InvalidURL", str(error))
    try:
        async with asyncio.timeout(PROBE_SECONDS):
            connection = await connect_once(address, CLIENT_NAME)
            try:
                number = int(await connection.fetchval("SHOW server_version_num"))
                version = str(await connection.fetchval("SHOW server_version")).split(" ", maxsplit=1)[0]
            finally:
                await connection.close(timeout=PROBE_SECONDS)
    except (StoreError, asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError) as error:
        return StoreReport(False, reason_of(error), _text(error), endpoint)
    if number // 10_000 < OLDEST:
        text = f"PostgreSQL at {endpoint} is {version}: version {OLDEST} or newer is needed"
        return StoreReport(False, "VersionTooOld", text, endpoint, version)
    return StoreReport(True, "Reachable", f"PostgreSQL {version} at {endpoint}", endpoint, version)


def reason_of(error: BaseException) -> str:
    """The reason of PostgresReady for what connecting raised. Pure."""
    if isinstance(error, StoreAuthError | StorePermissionError):
        return "AuthenticationFailed"
    if isinstance(error, InvalidValue):
        return "InvalidURL"
    state = sqlstate(error.__cause__ or error)
    return {"3D000": "DatabaseMissing", "57P03": "Starting"}.get(state, "Unreachable")


def _text(error: BaseException) -> str:
    return str(error) or f"no answer within {PROBE_SECONDS:g} s"


async def remove_schema(url: str, schema: str, *, timeout: float) -> None:
    """Drop the hive's schema and all in it; nothing happens where there is none.

    Raises a ``StoreError``, ``asyncpg.PostgresError``, ``OSError`` or ``TimeoutError`` when that cannot be done.
    """
    async with asyncio.timeout(timeout):
        connection = await connect_once(Address.parse(url), CLIENT_NAME)
        try:
            await connection.execute(f"DROP SCHEMA IF EXISTS {quote(schema)} CASCADE")
        finally:
            await connection.close(timeout=PROBE_SECONDS)
