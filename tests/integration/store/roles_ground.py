"""What the tests of database roles share: administrators of both kinds, and hives with roles."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import asyncpg

from agenthive.settings import HiveScope, PostgresPool
from agenthive.store import Store, schema_name, upgrade
from agenthive.store.roles import drop_roles, ensure_agent, ensure_roles

from .conftest import as_role

PASSWORD = "p-" + secrets.token_hex(8)
KINDS = ("superuser", "createrole")


@dataclass
class Hive:
    """A hive whose database roles are made."""

    scope: HiveScope
    schema: str
    superuser_url: str
    admin_url: str
    admin: Any

    async def url_of(self, agent: str) -> str:
        """The login of ``agent``, made if it is not there."""
        return as_role(self.superuser_url, await ensure_agent(self.admin, self.schema, agent, PASSWORD), PASSWORD)

    async def store_of(self, agent: str, **options: Any) -> Store:
        """A store as ``agent`` opens it with its own login."""
        options = {"pool": PostgresPool(min_size=0, max_size=3), **options}
        return await Store.connect(await self.url_of(agent), self.scope, agent=agent, **options)


@contextlib.asynccontextmanager
async def administrator(url: str, kind: str) -> AsyncIterator[str]:
    """URL of an administrator of the database: a superuser, or one with no more than it takes."""
    if kind == "superuser":
        yield url
        return
    name = f"admin_{secrets.token_hex(6)}"
    root = await asyncpg.connect(url)
    database = urlsplit(url).path.lstrip("/")
    await root.execute(f"CREATE ROLE {name} LOGIN CREATEROLE PASSWORD '{PASSWORD}'")
    await root.execute(f'GRANT CREATE ON DATABASE "{database}" TO {name}')
    try:
        yield as_role(url, name, PASSWORD)
    finally:
        await root.execute(f"DROP OWNED BY {name} CASCADE")
        await root.execute(f"DROP ROLE {name}")
        await root.close()


@contextlib.asynccontextmanager
async def hive_with_roles(url: str, kind: str, scope: HiveScope) -> AsyncIterator[Hive]:
    """A hive of roles and tables, all gone afterwards."""
    schema = schema_name(scope)
    async with administrator(url, kind) as admin_url:
        admin = await asyncpg.connect(admin_url)
        try:
            await ensure_roles(admin, schema)
            await upgrade(admin_url, schema)
            await ensure_roles(admin, schema)
            yield Hive(scope, schema, url, admin_url, admin)
        finally:
            await drop_roles(admin, schema)
            await admin.execute(f"DROP SCHEMA IF EXISTS {schema} CASCADE")
            await admin.close()


#: Everything of a schema that roles change, as text: what two ways of making them are compared by.
FACTS = """
SELECT format('%s %s owner=%s acl=%s rls=%s', c.relkind, c.relname, c.relowner::regrole, c.relacl, c.relrowsecurity)
FROM pg_class c WHERE c.relnamespace = $1::text::regnamespace AND c.relkind IN ('r', 'p')
UNION ALL
SELECT format('policy %s.%s %s %s %s %s', tablename, policyname, cmd, roles, qual, with_check)
FROM pg_policies WHERE schemaname = $1::text
UNION ALL
SELECT format('schema owner=%s acl=%s', nspowner::regrole, nspacl) FROM pg_namespace WHERE nspname = $1::text
UNION ALL
SELECT format('role %s login=%s super=%s bypass=%s createrole=%s limit=%s', rolname, rolcanlogin, rolsuper,
    rolbypassrls, rolcreaterole, rolconnlimit) FROM pg_roles WHERE starts_with(rolname, $1::text)
UNION ALL
SELECT format('member %s in %s', m.member::regrole, m.roleid::regrole)
FROM pg_auth_members m JOIN pg_roles r ON r.oid = m.member WHERE starts_with(r.rolname, $1::text)
ORDER BY 1
"""


async def facts(connection: Any, schema: str) -> list[str]:
    """See ``FACTS``."""
    return [row[0] for row in await connection.fetch(FACTS, schema)]
