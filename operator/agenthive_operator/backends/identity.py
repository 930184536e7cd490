"""Who a server is: what tells the same one by another name from another one, and whether it has the hive's data.

A Redis holds a UUID in the hive's keyspace. A PostgreSQL holds the hive's UUID in the comment of its schema, which goes
with a dump; what tells a copy is its place: cluster, database and timeline.
"""

from __future__ import annotations

import asyncio
import logging
import re
import uuid
from dataclasses import replace
from typing import Any, Final

import asyncpg

from agenthive.bus import BusUnavailable
from agenthive.bus.keys import identity_key
from agenthive.bus.wire import Command
from agenthive.settings import HiveScope
from agenthive.store import schema_name
from agenthive.store.database import Address, Connect, connected
from agenthive.store.errors import StoreError
from agenthive.store.naming import quote
from agenthive_operator.backends import postgres, redis
from agenthive_operator.backends.reports import PostgresReport, StoreReport, without_secret
from agenthive_operator.plan.cutover import uuid_of

logger = logging.getLogger(__name__)

LOOK_SECONDS: Final = 10.0
MARK: Final = "agenthive hive "
MARKED: Final = re.compile(rf"^{MARK}([0-9a-f-]{{36}})$", re.MULTILINE)

_PLACE: Final = """
    SELECT (SELECT system_identifier FROM pg_control_system())::text || '/'
           || (SELECT oid FROM pg_database WHERE datname = current_database())::text || '/'
           || CASE WHEN pg_is_in_recovery() THEN '' ELSE left(pg_walfile_name(pg_current_wal_lsn()), 8) END
"""
"""A copy differs: one that was restored in the cluster or the database, a promoted replica in the timeline."""
_ADDRESS: Final = """
    SELECT coalesce(host(inet_server_addr()), '') || ':' || coalesce(inet_server_port()::text, '') || '/'
           || (SELECT oid FROM pg_database WHERE datname = current_database())::text
"""
SCHEMA: Final = "SELECT coalesce(obj_description(oid, 'pg_namespace'), '') FROM pg_namespace WHERE nspname = $1"


async def place_of(connection: Any) -> str:
    """What tells a database from its copies; by its address where a service forbids to ask for more."""
    try:
        return str(await connection.fetchval(_PLACE))
    except (asyncpg.InsufficientPrivilegeError, asyncpg.FeatureNotSupportedError, asyncpg.UndefinedFunctionError):
        return str(await connection.fetchval(_ADDRESS))


def is_told(place: str) -> bool:
    """Whether a place is the database's own word rather than the address that it was reached by. Pure."""
    return place.count("/") == 2


async def redis_identity(url: str, scope: HiveScope, *, make: bool) -> str:
    """The UUID of the hive's keyspace; where there is none it is made, or without ``make`` nothing.

    Raises ``BusUnavailable``, ``OSError`` or ``TimeoutError``.
    """
    connections = redis.open_connections(url, redis.PROBE_SECONDS)
    key = identity_key(scope)
    try:
        async with asyncio.timeout(redis.PROBE_SECONDS):
            made: list[Command] = [("SET", key, str(uuid.uuid4()), "NX")] if make else []
            *_, found = await connections.execute([*made, ("GET", key)])
    finally:
        await connections.aclose()
    return bytes(found).decode() if found is not None else ""


async def postgres_identity(url: str, scope: HiveScope, wanted: str, *, connect: Connect = connected) -> str:
    """The hive's UUID in the comment of its schema and the place of the database.

    Where the schema bears no UUID it is given ``wanted``, or a fresh one. Raises a ``StoreError``,
    ``asyncpg.PostgresError``, ``OSError`` or ``TimeoutError``.
    """
    schema = schema_name(scope)
    async with asyncio.timeout(LOOK_SECONDS), connect(Address.parse(url), postgres.CLIENT_NAME) as connection:
        place = await place_of(connection)
        comment = await connection.fetchval(SCHEMA, schema) or ""
        found = MARKED.search(comment)
        mark = found[1] if found else wanted or str(uuid.uuid4())
        if not found:
            text = f"{comment}\n{MARK}{mark}".lstrip()
            await connection.execute(f"COMMENT ON SCHEMA {quote(schema)} IS {constant(text)}")
    return f"{mark} {place}"


def constant(text: str) -> str:
    """``text`` as a constant of SQL, which COMMENT wants; it may be a user's. Pure."""
    escaped = text.replace("\\", "\\\\").replace("'", "''")
    return f"E'{escaped}'"


async def identified_redis(report: StoreReport, url: str, scope: HiveScope) -> StoreReport:
    """A report on the Redis in force, with who it is. ``url`` is dialled."""
    if not report.ok:
        return report
    try:
        return replace(report, identity=await redis_identity(url, scope, make=True))
    except (BusUnavailable, OSError, TimeoutError) as error:
        logger.info("the identity of Redis at %s is not known: %s", report.endpoint, without_secret(str(error), url))
        return report


async def identified_postgres(
    report: PostgresReport, url: str, scope: HiveScope, known: str, *, connect: Connect = connected
) -> PostgresReport:
    """A report on the PostgreSQL in force, with who it is; ``known`` is what was known of that. ``url`` is dialled."""
    if not report.store.ok or not report.schema.ok:
        return report
    try:
        identity = await postgres_identity(url, scope, uuid_of(known), connect=connect)
    except (StoreError, asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError) as error:
        logger.info("the identity of PostgreSQL at %s is not known: %s", report.store.endpoint, error)
        return report
    return replace(report, store=replace(report.store, identity=identity))
