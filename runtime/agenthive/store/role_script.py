"""The database roles of a hive as SQL: who may do what with which table. Pure; ``roles.py`` runs it, a DBA may too.

Three kinds of role, named after the schema: the owner, as whom migrations run; a read-only group, to be granted to
whoever wants to look; the group of the agents, with one login per agent in it. Row-level security shows an agent the
rows that carry its name. Nobody but the owner has rights on a partition: whoever has passes by the parent's policies.
"""
# ruff: noqa: S608 - the only text put into a statement is quoted identifiers, quoted literals and constants

from __future__ import annotations

import hashlib
import hmac
import os
import re
from base64 import b64encode
from collections.abc import Iterable
from dataclasses import dataclass

from agenthive.settings import DNS_LABEL
from agenthive.store.errors import InvalidValue
from agenthive.store.naming import capped, label_part, quote

SCRAM_ITERATIONS = 4096
_SALT_BYTES = 16
#: Names of our policies on each table.
_OF_AGENTS, _OF_READERS = "agenthive_agents", "agenthive_readonly"


@dataclass(frozen=True, slots=True)
class RoleNames:
    """The roles of a hive that nobody logs in as."""

    owner: str
    agents: str
    readonly: str


@dataclass(frozen=True, slots=True)
class Access:
    """What agents may do with a table of the hive's schema.

    Attributes:
        table: its name.
        agents: the privileges of the agents' group; the read-only group has SELECT on every table.
        column: names the agent a row belongs to; None where rows belong to nobody: then all of them are visible.
        shared: whether the rows of agent ``''`` belong to all.
    """

    table: str
    agents: str
    column: str | None = None
    shared: bool = False


#: Every table a migration makes, partitions aside. A test compares it with the schema.
TABLES = (
    Access("agent_state", "SELECT, INSERT, UPDATE, DELETE", "agent", shared=True),
    Access("agent_metrics", "SELECT, INSERT", "agent_name"),
    Access("message_log", "SELECT, INSERT", "agent"),
    Access("inbox", "SELECT, INSERT, UPDATE, DELETE", "agent"),  # UPDATE: locking the marks that are to be removed
    Access("outbox", "SELECT, INSERT, UPDATE, DELETE", "agent"),
    Access("audit_log", "SELECT, INSERT", "agent"),
    Access("audit_anchors", "SELECT"),
    Access("database_roles", "SELECT"),
    Access("schema_migrations", "SELECT"),
)


def role_names(schema: str) -> RoleNames:
    """The roles of the hive whose schema is ``schema``."""
    return RoleNames(*(capped(f"{schema}_{kind}") for kind in ("owner", "agents", "readonly")))


def agent_role(schema: str, agent: str, generation: int = 0) -> str:
    """The login of ``agent``; another ``generation`` is another login, so that one can replace the other at leisure.

    Raises:
        InvalidValue: the agent's name is no DNS label, or the generation is negative.
    """
    if not re.fullmatch(DNS_LABEL, agent) or len(agent) > 63 or generation < 0:
        raise InvalidValue(f"no database role for agent {agent!r}, generation {generation}: its name is no DNS label")
    suffix = f"_{generation}" if generation else ""
    return capped(f"{schema}_agent_{label_part(agent)}{suffix}")


def role_comment(schema: str, agent: str) -> str:
    """What the server keeps with an agent's login, whatever becomes of the schema: how it is found again."""
    return f"agenthive: agent {agent} of schema {schema}"


def scram_verifier(password: str, *, salt: bytes | None = None, iterations: int = SCRAM_ITERATIONS) -> str:
    """What PostgreSQL keeps of a password (RFC 5803): sent in its place, so that no log of the server ever holds it.

    Raises:
        InvalidValue: the password is empty or holds more than printable ASCII, of which SASLprep changes nothing.
    """
    if not password or not password.isascii() or not password.isprintable():
        raise InvalidValue("the password of a database role must be printable ASCII characters, at least one")
    salt = os.urandom(_SALT_BYTES) if salt is None else salt
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, iterations)
    client_key = hmac.digest(salted, b"Client Key", "sha256")
    stored, server = hashlib.sha256(client_key).digest(), hmac.digest(salted, b"Server Key", "sha256")
    encoded = [b64encode(part).decode() for part in (salt, stored, server)]
    return f"SCRAM-SHA-256${iterations}:{encoded[0]}${encoded[1]}:{encoded[2]}"


def literal(text: str) -> str:
    """``text`` as a string of SQL, whatever ``standard_conforming_strings`` says.

    Raises:
        ValueError: it holds a backslash or a NUL, which none of our texts does.
    """
    if "\\" in text or "\0" in text:
        raise ValueError(f"not to be written as an SQL literal: {text!r}")
    return "'" + text.replace("'", "''") + "'"


def groups_sql(schema: str) -> str:
    """Makes the three roles, hands schema and tables to the owner: for an administrator. Repeating it is harmless."""
    names = role_names(schema)
    owner, groups = literal(names.owner), ", ".join(literal(n) for n in (names.owner, names.agents, names.readonly))
    return f"""
DO $agenthive$
DECLARE
    part record;
    title text;
    as_member CONSTANT text := CASE WHEN current_setting('server_version_num')::int >= 160000
        THEN ' WITH INHERIT TRUE, SET TRUE' ELSE '' END;
BEGIN
    FOREACH title IN ARRAY ARRAY[{groups}] LOOP
        IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = title) THEN
            EXECUTE format('CREATE ROLE %I NOLOGIN', title);
        ELSIF EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = title AND rolcanlogin) THEN
            EXECUTE format('ALTER ROLE %I NOLOGIN', title);
        END IF;
        IF NOT has_database_privilege(title::name, current_database()::text, 'CONNECT'::text) THEN
            EXECUTE format('GRANT CONNECT ON DATABASE %I TO %I', current_database(), title);
        END IF;
    END LOOP;
    -- Whoever runs this, and whoever owned the tables so far, acts as the owner from now on: its pods may still run.
    FOR part IN
        SELECT r.rolname FROM pg_catalog.pg_roles r WHERE NOT r.rolsuper AND r.rolname <> {owner} AND (
            r.rolname = current_user
            OR r.oid = (SELECT nspowner FROM pg_catalog.pg_namespace WHERE nspname = {literal(schema)})
            OR r.oid IN ({_owners(schema)})
        )
    LOOP
        EXECUTE format('GRANT %I TO %I', {owner}, part.rolname) || as_member;
    END LOOP;
    IF NOT EXISTS (SELECT FROM pg_catalog.pg_namespace WHERE nspname = {literal(schema)}) THEN
        EXECUTE format('CREATE SCHEMA %I AUTHORIZATION %I', {literal(schema)}, {owner});
    ELSIF EXISTS (
        SELECT FROM pg_catalog.pg_namespace
        WHERE nspname = {literal(schema)} AND pg_get_userbyid(nspowner) <> {owner}
    ) THEN
        EXECUTE format('ALTER SCHEMA %I OWNER TO %I', {literal(schema)}, {owner});
    END IF;
    FOR part IN
        SELECT c.oid::regclass AS entry FROM pg_catalog.pg_class c JOIN pg_catalog.pg_roles r ON r.oid = c.relowner
        WHERE c.relnamespace = to_regnamespace({literal(quote(schema))}) AND c.relkind IN ('r', 'p')
            AND r.rolname <> {owner}
        ORDER BY c.relispartition, c.oid  -- parents first, as statements lock them
    LOOP
        EXECUTE format('ALTER TABLE %s OWNER TO %I', part.entry, {owner});
    END LOOP;
END
$agenthive$;
""".strip()


def _owners(schema: str) -> str:
    return (
        "SELECT c.relowner FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace "
        f"WHERE n.nspname = {literal(schema)} AND c.relkind IN ('r', 'p')"
    )


def grants_sql(schema: str) -> str:
    """Rights and row-level security of the tables that are there: for the owner. Repeating it is harmless."""
    names, place = role_names(schema), quote(schema)
    agents, readers = quote(names.agents), quote(names.readonly)
    others = f"{literal(names.agents)}, {literal(names.readonly)}"
    head = f"""
REVOKE ALL ON SCHEMA {place} FROM PUBLIC, {agents}, {readers};
GRANT USAGE ON SCHEMA {place} TO {agents}, {readers};
DO $agenthive$
DECLARE
    part regclass;
BEGIN
    FOR part IN
        SELECT c.oid FROM pg_catalog.pg_class c
        WHERE c.relnamespace = {literal(place)}::regnamespace AND c.relispartition AND c.relacl IS NOT NULL
            AND c.relkind IN ('r', 'p')
    LOOP
        EXECUTE format('REVOKE ALL ON %s FROM PUBLIC, %I, %I', part, {others});
    END LOOP;
END
$agenthive$;"""
    return "\n".join([head.strip(), *(_table_sql(schema, access, agents, readers) for access in TABLES)])


def _table_sql(schema: str, access: Access, agents: str, readers: str) -> str:
    table = f"{quote(schema)}.{access.table}"
    lookup = f"{quote(schema)}.database_roles"
    lines = [
        f"REVOKE ALL ON {table} FROM PUBLIC, {agents}, {readers};",
        f"GRANT SELECT ON {table} TO {readers};",
        f"GRANT {access.agents} ON {table} TO {agents};",
    ]
    if access.column:
        # In a subquery of its own it is an InitPlan: looked up once per statement and not once per row.
        own = f"{access.column} = (SELECT r.agent FROM {lookup} r WHERE r.role = current_user)"
        mine = f"({access.column} = '' OR {own})" if access.shared else own
        lines += [
            f"DROP POLICY IF EXISTS {_OF_AGENTS} ON {table};",
            f"DROP POLICY IF EXISTS {_OF_READERS} ON {table};",
            f"CREATE POLICY {_OF_AGENTS} ON {table} TO {agents} USING ({mine}) WITH CHECK ({mine});",
            f"CREATE POLICY {_OF_READERS} ON {table} FOR SELECT TO {readers} USING (true);",
            f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY;",
        ]
    body = "\n        ".join(lines)
    return f"""DO $agenthive$
BEGIN
    IF to_regclass({literal(table)}) IS NOT NULL AND to_regclass({literal(lookup)}) IS NOT NULL THEN
        {body}
    END IF;
END
$agenthive$;"""


def agent_sql(
    schema: str, agent: str, password: str, *, generation: int = 0, connection_limit: int | None = None
) -> str:
    """Makes or corrects the login of an agent: for an administrator, once the tables are there.

    Args:
        schema: the hive's.
        agent: whose.
        password: as SQL writes it: a literal, or a variable of psql.
        generation: see ``agent_role``.
        connection_limit: most connections at a time; None for no limit.
    """
    role, names = agent_role(schema, agent, generation), role_names(schema)
    limit = -1 if connection_limit is None else connection_limit
    return f"""
DO $agenthive$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = {literal(role)}) THEN
        CREATE ROLE {quote(role)} LOGIN;
    ELSIF EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = {literal(role)} AND (rolsuper OR rolbypassrls)) THEN
        RAISE insufficient_privilege USING MESSAGE = {literal(f"role {role} passes by row-level security: drop it")};
    END IF;
END
$agenthive$;
ALTER ROLE {quote(role)} LOGIN INHERIT CONNECTION LIMIT {limit:d} PASSWORD {password};
COMMENT ON ROLE {quote(role)} IS {literal(role_comment(schema, agent))};
GRANT {quote(names.agents)} TO {quote(role)};
SET LOCAL ROLE {quote(names.owner)};
INSERT INTO {quote(schema)}.database_roles AS r (role, agent) VALUES ({literal(role)}, {literal(agent)})
    ON CONFLICT (role) DO UPDATE SET agent = excluded.agent WHERE r.agent <> excluded.agent;
SET LOCAL ROLE NONE;
""".strip()


def password_variable(agent: str) -> str:
    """The variable of psql that holds the password of ``agent`` in ``roles_sql``."""
    return f"password_{label_part(agent)}"


def roles_sql(schema: str, agents: Iterable[str] = ()) -> str:
    """All of it, for psql: what ``ensure_roles`` and ``ensure_agent`` do where there is no administrative URL.

    Args:
        schema: the hive's.
        agents: those that get a login; the password of ``code-atlas`` is the psql variable ``password_code__atlas``.

    Raises:
        InvalidValue: an agent's name is no DNS label.
    """
    agents = sorted(set(agents))
    owner = quote(role_names(schema).owner)
    logins = "".join(f"\n{agent_sql(schema, agent, f':{literal(password_variable(agent))}')}" for agent in agents)
    variables = " ".join(f"-v {password_variable(agent)}=…" for agent in agents)
    return f"""\
-- Database roles of the hive in schema {schema}. For psql, in the hive's database, as a superuser or as a role with
-- CREATEROLE that may create schemas and owns the tables. Repeating it is harmless.
{f"-- psql {variables}" if agents else "-- No agent was named: groups only."}
-- A password is best given as its SCRAM-SHA-256 verifier: what psql sends may end in the server's log.
\\set ON_ERROR_STOP on
BEGIN;
SET LOCAL client_min_messages = warning;
SET LOCAL search_path = pg_catalog;  -- no function of somebody else's runs as whoever runs this
{groups_sql(schema)}
SET LOCAL ROLE {owner};
{grants_sql(schema)}
SET LOCAL ROLE NONE;{logins}
COMMIT;
"""
