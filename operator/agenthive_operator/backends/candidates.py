"""Servers that a hive is to move to: could it, and who are they? Nothing of what is asked here stays there."""

from __future__ import annotations

import asyncio
from typing import Final

import asyncpg

from agenthive.bus import BusUnavailable
from agenthive.settings import HiveScope
from agenthive.store import schema_name, schema_status
from agenthive.store.database import Address, close_once, connect_once
from agenthive.store.errors import StoreError
from agenthive.store.migrate import too_new_text
from agenthive.store.naming import quote
from agenthive_operator.backends import postgres, redis
from agenthive_operator.backends.identity import MARKED, SCHEMA, is_told, place_of, redis_identity
from agenthive_operator.backends.postgres import Access
from agenthive_operator.backends.reports import endpoint_of, without_secret
from agenthive_operator.backends.users import UsersError, check_admin
from agenthive_operator.plan.cutover import Candidate

LOOK_SECONDS: Final = 10.0
_RIGHTS: Final = "SELECT rolname, rolsuper OR rolcreaterole FROM pg_roles WHERE rolname = current_user"


async def redis_candidate(access: Access, scope: HiveScope, needs: redis.Needs, *, shown: str) -> Candidate:
    """Whether a Redis could be moved to, and who it is; never raises for what the server does.

    ``access`` is dialled; ``shown`` is its ``url`` as the user knows it.
    """
    report = await redis.probe(access.url, shown=shown, needs=needs)
    if not report.ok:
        return Candidate(False, report.reason, report.message)
    try:
        if access.admin is not None:
            await check_admin(access, scope)
        identity = await redis_identity(access.url, scope, make=False)
    except UsersError as error:
        where = ""
        if error.reason == "Unreachable" and access.admin is not None:
            where = f"the URL of {redis.FIELDS['admin']} ({endpoint_of(access.admin, redis.DEFAULT_PORT)}): "
        return Candidate(False, error.reason, f"{where}{error}")
    except (BusUnavailable, OSError, TimeoutError) as error:
        text = without_secret(str(error), access.url) or "no answer in time"
        return Candidate(False, "Unreachable", f"{report.message} does not tell who it is: {text}")
    return Candidate(True, report.reason, report.message, identity)


async def postgres_candidate(access: Access, scope: HiveScope, *, shown: str) -> Candidate:
    """As ``redis_candidate`` for a PostgreSQL, and what it has of the hive."""
    schema = schema_name(scope)
    report = await postgres.probe(access.url, shown=shown, schema=schema if access.upkeep == access.url else None)
    if report.ok and access.upkeep != access.url:
        other = await postgres.probe(access.upkeep, schema=schema)
        if not other.ok:
            return Candidate(False, other.reason, f"the URL of {access.upkeep_field}: {other.message}")
    if not report.ok:
        return Candidate(False, report.reason, report.message)
    try:
        async with asyncio.timeout(LOOK_SECONDS):
            connection = await connect_once(Address.parse(access.upkeep), postgres.CLIENT_NAME)
            try:
                place = await place_of(connection)
                name = await connection.fetchval("SELECT current_database()")
                comment = await connection.fetchval(SCHEMA, schema)
                admin, makes_roles = await connection.fetchrow(_RIGHTS) or ("", False)
            finally:
                await close_once(connection)
            if access.admin is not None and not makes_roles:
                text = f"{admin} may not create roles: ALTER ROLE {quote(admin)} CREATEROLE"
                return Candidate(False, "RolesFailed", f"the URL of {access.upkeep_field}: {text}")
            if access.upkeep != access.url and not await _is_at(access.url, place):
                fields = f"{postgres.FIELDS['url']} and {access.upkeep_field}"
                return Candidate(False, "InvalidURL", f"{fields} lead to different databases; correct one of them")
            if comment is not None:
                status = await schema_status(access.upkeep, schema)
                if status.too_new:
                    text = too_new_text(schema, status.current, status.latest)
                    return Candidate(False, "SchemaTooNew", text)
    except (StoreError, asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError) as error:
        return Candidate(False, postgres.reason_of(error), str(error) or "no answer in time")
    found = MARKED.search(comment or "")
    database = f"{endpoint_of(shown, postgres.DEFAULT_PORT)}/{name}"
    identity = f"{found[1] if found else ''} {place}"
    return Candidate(True, report.reason, report.message, identity, database, comment is not None)


async def _is_at(url: str, place: str) -> bool:
    """Whether a URL leads to the database at ``place``, as far as the server tells. Raises as ``connect_once``."""
    connection = await connect_once(Address.parse(url), postgres.CLIENT_NAME)
    try:
        found = await place_of(connection)
    finally:
        await close_once(connection)
    return found == place or not (is_told(found) and is_told(place))
