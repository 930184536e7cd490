"""The database roles of a hive: made, corrected, listed and removed. What they may do is in ``role_script.py``.

Every function takes a plain connection that is not inside a transaction; those that change something need an
administrator: a superuser, or a role with CREATEROLE that may create schemas in the database and made the roles (before
PostgreSQL 16 any role with CREATEROLE will do). All of them raise ``StoreError``.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any, NamedTuple

import asyncpg

from agenthive.store.errors import StorePermissionError, translate
from agenthive.store.locks import change_tables, plain_names
from agenthive.store.naming import lock_key, quote
from agenthive.store.role_script import (
    RoleNames,
    agent_role,
    agent_sql,
    grants_sql,
    groups_sql,
    literal,
    role_comment,
    role_names,
    roles_sql,
    scram_verifier,
)

__all__ = [
    "KnownLogin",
    "RoleNames",
    "agent_role",
    "become_owner",
    "drop_agent",
    "drop_logins",
    "drop_roles",
    "ensure_agent",
    "ensure_agents",
    "ensure_roles",
    "known_agents",
    "known_groups",
    "known_logins",
    "role_names",
    "roles_sql",
    "scram_verifier",
    "secure_tables",
]

logger = logging.getLogger(__name__)

_END_SESSIONS_MS = 5000


class KnownLogin(NamedTuple):
    """A login of an agent, and when it was made."""

    role: str
    agent: str
    made: datetime


class _Found(NamedTuple):
    """What one look-up says about the roles of a hive."""

    owned: bool  # the three roles are there, own what they should, and we may act as the owner
    facts: str | None  # digest of all rights and policies in the schema; None if it has no database_roles yet
    marker: str | None  # what was left behind when they were last set right


# One round trip, catalogs only. $1 schema, $2 owner, $3 agents, $4 readonly, $5 the table that carries the marker.
_LOOK = """
WITH space AS (SELECT oid, nspowner, nspacl FROM pg_catalog.pg_namespace WHERE nspname = $1),
tables AS (
    SELECT c.* FROM pg_catalog.pg_class c JOIN space ON c.relnamespace = space.oid WHERE c.relkind IN ('r', 'p')
),
facts AS (
    SELECT format('schema %s', nspacl) AS fact FROM space
    UNION ALL
    SELECT format('table %s %s %s', relname, relacl, relrowsecurity) FROM tables
    WHERE NOT relispartition OR relacl IS NOT NULL
    UNION ALL
    SELECT format('policy %s %s %s %s %s %s %s', t.relname, p.polname, p.polcmd, p.polpermissive,
        p.polroles::regrole[], pg_get_expr(p.polqual, t.oid), pg_get_expr(p.polwithcheck, t.oid))
    FROM pg_catalog.pg_policy p JOIN tables t ON t.oid = p.polrelid
),
owner AS (SELECT oid FROM pg_catalog.pg_roles WHERE rolname = $2)
SELECT
    (SELECT count(*) FROM pg_catalog.pg_roles WHERE rolname IN ($2, $3, $4) AND NOT rolcanlogin) = 3
        AND (SELECT nspowner FROM space) = (SELECT oid FROM owner)
        AND NOT EXISTS (SELECT FROM tables WHERE relowner <> (SELECT oid FROM owner))
        AND pg_has_role((SELECT oid FROM owner), 'USAGE')
        AND NOT EXISTS (
            SELECT FROM pg_catalog.pg_roles
            WHERE rolname IN ($3, $4) AND NOT has_database_privilege(oid, current_database(), 'CONNECT')
        ),
    CASE WHEN to_regclass($5) IS NOT NULL THEN (SELECT md5(string_agg(fact, E'\\n' ORDER BY fact)) FROM facts) END,
    obj_description(to_regclass($5), 'pg_class')
"""


async def ensure_roles(connection: Any, schema: str, *, also: Sequence[str] = ()) -> None:
    """Make the hive's owner and group roles, give schema and tables to the owner, set all rights and policies.

    One look-up when nothing is to be done. Without the schema it makes it; tables that come later get their rights
    from the upgrade that makes them. Whoever owned the tables becomes a member of the owner role, so that processes
    that run with such a login go on; and so does each login of ``also`` that is there, in the same transaction:
    row-level security hides all rows from who is neither.
    """
    async with _explained(schema):
        async with plain_names(connection):
            found = await _look(connection, schema)
            if found.owned and _is_current(schema, found) and not await _strangers(connection, schema, also):
                return

        async def change() -> None:
            await _lock(connection, schema)
            now = await _look(connection, schema)
            if not now.owned:
                await connection.execute(groups_sql(schema))
            options = " WITH INHERIT TRUE, SET TRUE" if _is_recent(connection) else ""
            for user in await _strangers(connection, schema, also):
                owner = role_names(schema).owner
                await connection.execute(f"GRANT {quote(owner)} TO {quote(user)}{options}")
            await _set_rights(connection, schema)

        await change_tables(connection, change, what=f"setting the rights in schema {schema}")
        async with plain_names(connection):
            await _tell_if_public_is_open(connection, schema)


async def secure_tables(connection: Any, schema: str) -> None:
    """Set rights and policies right if the hive has roles and we may act as the owner; otherwise nothing.

    What an upgrade ends with: a table it made is not to be forgotten.
    """

    async def change() -> None:
        if await become_owner(connection, schema):
            await _lock(connection, schema)
            await _set_rights(connection, schema)

    async with _explained(schema):
        await change_tables(connection, change, what=f"setting the rights in schema {schema}")


async def become_owner(connection: Any, schema: str) -> bool:
    """Act as the hive's owner role until the end of this transaction, if there is one that owns the schema.

    So what is made belongs to the owner, whoever makes it. Returns False, and changes nothing, where there is no such
    role or we are not a member of it: in a hive without roles, or for an agent's login.
    """
    owner = role_names(schema).owner
    # Before 16 membership alone allows SET ROLE; the word for it is not known there.
    right = "SET" if _is_recent(connection) else "MEMBER"
    if not await connection.fetchval(
        "SELECT count(*) > 0 FROM pg_catalog.pg_namespace n JOIN pg_catalog.pg_roles r ON r.oid = n.nspowner "
        "WHERE n.nspname = $1 AND r.rolname = $2 AND pg_has_role(r.oid, $3)",
        schema, owner, right,
    ):  # fmt: skip
        return False
    await connection.execute(f"SET LOCAL ROLE {quote(owner)}")
    return True


async def ensure_agent(
    connection: Any,
    schema: str,
    agent: str,
    password: str,
    *,
    generation: int = 0,
    connection_limit: int | None = None,
) -> str:
    """Make the login of ``agent`` or correct it: its password, its membership, its row in ``database_roles``.

    Args:
        connection: an administrator's, after ``ensure_roles`` and the upgrade of the schema.
        schema: the hive's.
        agent: a DNS label.
        password: printable ASCII; the server gets its SCRAM-SHA-256 verifier and never the password itself.
        generation: another one is another login, which does not replace this one.
        connection_limit: most connections at a time, of all its pods; None for no limit.

    Returns:
        The name of the login.
    """
    script = agent_sql(
        schema, agent, literal(scram_verifier(password)), generation=generation, connection_limit=connection_limit
    )
    await _run(connection, schema, script)
    return agent_role(schema, agent, generation)


async def ensure_agents(connection: Any, schema: str, logins: Sequence[tuple[str, int, str]]) -> None:
    """As ``ensure_agent`` for several agents, generations and passwords in one transaction: all of them, or none."""
    scripts = [
        agent_sql(schema, agent, literal(scram_verifier(password)), generation=generation)
        for agent, generation, password in logins
    ]
    await _run(connection, schema, "\n".join(scripts))


async def _run(connection: Any, schema: str, script: str) -> None:
    async with _explained(schema), plain_names(connection):
        await _lock(connection, schema)
        await connection.execute(script)


async def known_agents(connection: Any, schema: str) -> dict[str, str]:
    """Login → agent, of all that the hive's ``database_roles`` names and that are there; sorted by login.

    Empty if the hive has no such table.
    """
    return {login.role: login.agent for login in await known_logins(connection, schema)}


async def known_logins(connection: Any, schema: str) -> list[KnownLogin]:
    """As ``known_agents``; an agent has two logins while the one replaces the other."""
    table = f"{quote(schema)}.database_roles"
    async with _explained(schema), plain_names(connection):
        if await connection.fetchval("SELECT to_regclass($1) IS NULL", table):
            return []
        rows = await connection.fetch(
            "SELECT d.role, d.agent, d.created_at "  # noqa: S608
            f"FROM {table} d JOIN pg_catalog.pg_roles r ON r.rolname = d.role ORDER BY 1"
        )
    return [KnownLogin(*row) for row in rows]


async def known_groups(connection: Any, schema: str) -> dict[str, str]:
    """Kind (``owner``, ``agents``, ``readonly``) → role, of those that are there."""
    names = asdict(role_names(schema))
    async with _explained(schema), plain_names(connection):
        rows = await connection.fetch(
            "SELECT rolname FROM pg_catalog.pg_roles WHERE rolname = ANY($1)", list(names.values())
        )
    there = {row["rolname"] for row in rows}
    return {kind: name for kind, name in names.items() if name in there}


async def drop_agent(connection: Any, schema: str, agent: str, *, generation: int | None = None) -> list[str]:
    """Remove the logins of ``agent``, all or that of one generation, and end their sessions; its rows stay.

    Returns the names, sorted.
    """
    login = agent_role(schema, agent, generation or 0)  # refuses what can have no login
    async with _explained(schema):
        logins = await _logins(connection, "= $1", role_comment(schema, agent))
        if generation is not None:
            logins = [login] if login in logins else []
        await _drop_logins(connection, schema, logins)
    return logins


async def drop_logins(connection: Any, schema: str) -> None:
    """Remove all logins of the hive's agents and end their sessions: so that nothing waits for a lock of theirs.

    One that owns anything stays, and cannot log in; a warning names it.
    """
    async with _explained(schema):
        pattern = role_comment(schema, "%")
        logins = await _logins(connection, "LIKE $1", pattern.replace("_", "\\_"))
        await _drop_logins(connection, schema, logins)


async def drop_roles(connection: Any, schema: str) -> None:
    """Remove every role of the hive and end the sessions of its agents; best after the schema is dropped.

    What the owner role still owns belongs to the administrator afterwards. A login that owns anything stays, and cannot
    log in, and so does a group; a warning names it. Another database of the server in which one of the roles has
    rights, or the owner role owns something, stops it: the error says which.
    """
    await drop_logins(connection, schema)
    async with _explained(schema):

        async def change() -> None:
            await _lock(connection, schema)
            for kind, name in (await known_groups(connection, schema)).items():
                await _join(connection, name)
                if kind == "owner":
                    await connection.execute(f"REASSIGN OWNED BY {quote(name)} TO CURRENT_USER")
                elif await _stays(connection, name):
                    continue
                await _drop_role(connection, name)

        await change_tables(connection, change, what=f"removing the roles of schema {schema}")


async def _look(connection: Any, schema: str) -> _Found:
    names = role_names(schema)
    row = await connection.fetchrow(
        _LOOK, schema, names.owner, names.agents, names.readonly, f"{quote(schema)}.database_roles"
    )
    return _Found(bool(row[0]), row[1], row[2])


async def _tell_if_public_is_open(connection: Any, schema: str) -> None:
    """A schema in which agents may make objects is a way to run code as others. Ours to say, not ours to close."""
    if await connection.fetchval(
        "SELECT has_schema_privilege($1, oid, 'CREATE') FROM pg_catalog.pg_namespace WHERE nspname = 'public'",
        role_names(schema).agents,
    ):
        logger.warning(
            "agents of schema %s may create objects in the schema public, where a function of theirs may be run by "
            "others in place of PostgreSQL's: unless somebody relies on it, run there "
            "REVOKE CREATE ON SCHEMA public FROM PUBLIC",
            schema,
        )


async def _strangers(connection: Any, schema: str, users: Sequence[str]) -> list[str]:
    """Those of ``users`` that do not act as the owner role."""
    if not users:
        return []
    # Before 16 what a role inherits is its own affair.
    right = "USAGE" if _is_recent(connection) else "MEMBER"
    rows = await connection.fetch(
        "SELECT rolname FROM pg_catalog.pg_roles WHERE rolname = ANY($1) AND NOT rolsuper"
        " AND NOT pg_has_role(rolname, $2, $3) ORDER BY 1",
        list(users), role_names(schema).owner, right,
    )  # fmt: skip
    return [row["rolname"] for row in rows]


def _is_recent(connection: Any) -> bool:
    """Whether a membership says what it is good for."""
    return bool(connection.get_server_version() >= (16,))


def _is_current(schema: str, found: _Found) -> bool:
    """Whether rights and policies are as they were left, and were left as this code would."""
    return found.facts is not None and found.marker == _marker(schema, found.facts)


def _marker(schema: str, facts: str) -> str:
    wanted = hashlib.sha256(grants_sql(schema).encode()).hexdigest()[:16]
    return f"agenthive roles: {wanted} {facts}"


async def _set_rights(connection: Any, schema: str) -> None:
    """Inside a transaction, under the lock: rights and policies as they should be, and a marker that says so."""
    await become_owner(connection, schema)
    found = await _look(connection, schema)
    if _is_current(schema, found):
        return
    await connection.execute(grants_sql(schema))
    facts = (await _look(connection, schema)).facts
    if facts is not None:
        await connection.execute(
            f"COMMENT ON TABLE {quote(schema)}.database_roles IS {literal(_marker(schema, facts))}"
        )


async def _lock(connection: Any, schema: str) -> None:
    """One at a time. By a lock that no agent's login may take, once there can be such: it could hold everybody up."""
    table = f"{quote(schema)}.database_roles"
    if await connection.fetchval("SELECT to_regclass($1) IS NULL", table):
        await connection.execute("SELECT pg_advisory_xact_lock($1)", lock_key("roles", schema))
    else:
        await connection.execute(f"LOCK TABLE {table} IN SHARE ROW EXCLUSIVE MODE")


async def _logins(connection: Any, test: str, comment: str) -> list[str]:
    """The logins whose comment matches, sorted."""
    async with plain_names(connection):
        rows = await connection.fetch(
            "SELECT r.rolname FROM pg_catalog.pg_roles r JOIN pg_catalog.pg_shdescription d ON d.objoid = r.oid "  # noqa: S608
            f"AND d.classoid = 'pg_catalog.pg_authid'::regclass WHERE d.description {test} ORDER BY 1",
            comment,
        )
    return [row["rolname"] for row in rows]


async def _drop_logins(connection: Any, schema: str, logins: Sequence[str]) -> None:
    if not logins:
        return
    table = f"{quote(schema)}.database_roles"
    async with plain_names(connection):
        for login in logins:
            await connection.execute(f"ALTER ROLE {quote(login)} NOLOGIN")
            await _join(connection, login)
    # Nobody gets in any more: end who is in, before anything waits for a lock of theirs.
    async with plain_names(connection):
        await connection.fetch(
            "SELECT pg_terminate_backend(pid, $2) FROM pg_catalog.pg_stat_activity WHERE usename = ANY($1)",
            list(logins),
            _END_SESSIONS_MS,
        )
    async with plain_names(connection):
        await _lock(connection, schema)
        if await connection.fetchval("SELECT to_regclass($1) IS NOT NULL", table):
            await become_owner(connection, schema)
            await connection.execute(f"DELETE FROM {table} WHERE role = ANY($1)", list(logins))  # noqa: S608
    async with plain_names(connection):  # as ourselves again
        await _lock(connection, schema)
        for login in logins:
            if not await _stays(connection, login):
                await _drop_role(connection, login)


async def _stays(connection: Any, role: str) -> bool:
    """Whether agents made something that ``role`` owns; if so, says it."""
    # What agents made, as themselves or as their group, is given to nobody: a function of theirs would run with the
    # heir's rights.
    owned = await connection.fetchval(
        "SELECT count(*) FROM pg_catalog.pg_shdepend WHERE refclassid = 'pg_catalog.pg_authid'::regclass "
        "AND refobjid = to_regrole($1) AND deptype = 'o'",
        quote(role),
    )
    if owned:
        logger.warning(
            "role %s may no longer log in, and stays: it owns %d object(s). "
            "Look at them, then run DROP OWNED BY and DROP ROLE in their database",
            role,
            owned,
        )
    return bool(owned)


async def _drop_role(connection: Any, role: str) -> None:
    # What it was granted is revoked, in this database.
    await connection.execute(f"DROP OWNED BY {quote(role)}")
    await connection.execute(f"DROP ROLE {quote(role)}")


async def _join(connection: Any, role: str) -> None:
    """Become a member of ``role``, which ending its sessions and taking over what it owns asks for."""
    if await connection.fetchval("SELECT NOT pg_has_role($1, 'USAGE')", role):
        options = " WITH INHERIT TRUE, SET TRUE" if _is_recent(connection) else ""
        await connection.execute(f"GRANT {quote(role)} TO CURRENT_USER{options}")


@contextlib.asynccontextmanager
async def _explained(schema: str) -> AsyncIterator[None]:
    """PostgreSQL's errors as the store's own."""
    try:
        yield
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        failure = translate(error, f"the server of schema {schema}")
        if isinstance(failure, StorePermissionError):
            raise StorePermissionError(
                f"{failure}. Roles are made by a superuser, or by a role with CREATEROLE that may create schemas in "
                "the database, made the hive's roles itself (or holds them WITH ADMIN OPTION) and is a member of "
                "whoever owns the tables"
            ) from error
        raise failure from error
