"""Who a server is and whether a hive could move there, asked of real servers without a cluster."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest

from agenthive.settings import HiveScope
from agenthive.store import schema_name, upgrade
from agenthive_operator.backends.candidates import postgres_candidate, redis_candidate
from agenthive_operator.backends.identity import (
    identified_postgres,
    identified_redis,
    is_told,
    postgres_identity,
    redis_identity,
)
from agenthive_operator.backends.logins import Login, with_login
from agenthive_operator.backends.postgres import Access
from agenthive_operator.backends.redis import Needs
from agenthive_operator.backends.reports import PostgresReport, SchemaReport, StoreReport

GOOD = StoreReport(True, "Reachable", "it", "there")
BAD = StoreReport(False, "Unreachable", "no answer", "there")
MIGRATED = SchemaReport(True, "Migrated", "")
NOWHERE = "127.0.0.1:1"


@pytest.fixture
def scope(unique: str) -> HiveScope:
    return HiveScope(namespace=unique, hive="demo")


async def test_a_look_at_a_redis_leaves_nothing_and_finds_who_it_is(valkey: Any, scope: HiveScope) -> None:
    url, needs = valkey.url, Needs(scope.hive_prefix)
    found = await redis_candidate(Access(url, admin=url), scope, needs, shown=url)
    assert (found.ok, found.identity) == (True, "")
    assert await redis_identity(url, scope, make=False) == "", "it is still nobody"
    known = await identified_redis(GOOD, url, scope)
    assert known.identity
    assert (await identified_redis(GOOD, url, scope)).identity == known.identity
    assert (await redis_candidate(Access(url), scope, needs, shown=url)).identity == known.identity
    away = url.rpartition("@")[0] + f"@{NOWHERE}/0"
    assert await identified_redis(BAD, away, scope) == BAD
    assert await identified_redis(GOOD, away, scope) == GOOD, "a moment later it is away: who it is stays as it was"
    assert not (await redis_candidate(Access(away), scope, needs, shown=away)).ok
    for admin, words in ((away, NOWHERE), (f"redis://x:y@{urlsplit(url).netloc.rpartition('@')[2]}", "WRONGPASS")):
        refused = await redis_candidate(Access(url, admin=admin), scope, needs, shown=url)
        assert not refused.ok
        assert words in refused.message


async def test_a_database_is_known_by_its_mark_and_its_place(postgres_url: str, scope: HiveScope) -> None:
    schema = schema_name(scope)
    database = urlsplit(postgres_url).path.lstrip("/")
    empty = await postgres_candidate(Access(postgres_url), scope, shown=postgres_url)
    assert (empty.ok, empty.schema, empty.database.rpartition("/")[2]) == (True, False, database)
    assert empty.identity.startswith(" ")
    assert is_told(empty.identity)
    await upgrade(postgres_url, schema)
    root = await asyncpg.connect(postgres_url)
    try:
        await root.execute(f"COMMENT ON SCHEMA {schema} IS 'it''s ours'")
        report = await identified_postgres(PostgresReport(GOOD, MIGRATED), postgres_url, scope, "")
        identity = report.store.identity
        assert await postgres_identity(postgres_url, scope, "another") == identity, "a mark that is there stays"
        comment = await root.fetchval("SELECT obj_description($1::regnamespace, 'pg_namespace')", schema)
        assert comment.startswith("it's ours\n"), "and so does what somebody else wrote"
        marked = await postgres_candidate(Access(postgres_url), scope, shown=postgres_url)
        assert (marked.identity, marked.schema) == (identity, True)
        away = f"postgresql://u:p@{NOWHERE}/x"
        assert (await identified_postgres(report, away, scope, "")).store.identity == identity
        for access in (Access(away), Access(postgres_url, admin=away)):
            refused = await postgres_candidate(access, scope, shown=access.url)
            assert (refused.ok, refused.reason) == (False, "Unreachable")
        elsewhere = urlsplit(postgres_url)._replace(path="/postgres").geturl()
        apart = await postgres_candidate(Access(elsewhere, admin=postgres_url), scope, shown=elsewhere)
        assert (apart.ok, apart.reason) == (False, "InvalidURL")
        assert "lead to different databases" in apart.message
        # As where a service keeps such questions to itself: then there is no telling the two apart.
        await root.execute(
            f"CREATE ROLE {schema} LOGIN PASSWORD 'pw'; GRANT CREATE ON DATABASE {database} TO {schema};"
            " REVOKE EXECUTE ON FUNCTION pg_control_system() FROM PUBLIC"
        )
        plain = with_login(postgres_url, Login(schema, "pw"))
        assert (await postgres_candidate(Access(plain, admin=postgres_url), scope, shown=plain)).ok
        await root.execute(f"ALTER SCHEMA {schema} OWNER TO {schema}")
        assert not is_told((await postgres_candidate(Access(plain), scope, shown=plain)).identity)
        await root.execute(f"INSERT INTO {schema}.schema_migrations (version, name, checksum) VALUES (99, 'newer', '')")
        newer = await postgres_candidate(Access(postgres_url), scope, shown=postgres_url)
        assert (newer.ok, newer.reason) == (False, "SchemaTooNew")
    finally:
        await root.execute(f"REASSIGN OWNED BY {schema} TO postgres; DROP OWNED BY {schema}; DROP ROLE {schema}")
        await root.close()
