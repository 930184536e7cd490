"""What an agent's login may do, and everything it may not, on tables with rows of several agents."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import asyncpg
import pytest

from agenthive.settings import HiveScope
from agenthive.store import InvalidValue, Store, StorePermissionError, VersionConflict, upgrade
from agenthive.store.role_script import TABLES
from agenthive.store.roles import agent_role, role_names

from .conftest import as_role
from .roles_ground import PASSWORD, Hive, hive_with_roles

NOW = datetime.now(UTC)

#: A row of each table that belongs to somebody; {a} is whose.
ROWS = {
    "agent_state": "(agent, key, value, version) VALUES ('{a}', '{k}', '1', 1)",
    "agent_metrics": "(agent_name, metric_type, value) VALUES ('{a}', 'm', 1)",
    "message_log": "(agent, message_id, from_agent, to_agent, message_type, status, attempts, created_at) "
    "VALUES ('{a}', '{k}', 'x', 'y', 't', 'failed', 1, now())",
    "inbox": "(agent, message_id, keep_until) VALUES ('{a}', '{k}', now())",
    "outbox": "(id, agent, kind, message_id, recipient, document, due_at) "
    "VALUES (gen_random_uuid(), '{a}', 'message', 'm', 'r', '{{}}', now())",
    "audit_log": "(chain, seq, at, agent, actor, action, subject, details, previous, hash) "
    "VALUES ('{a}/{k}', 1, now(), '{a}', 'x', 'y', 'z', '', sha256('a'), sha256('b'))",
}
OWNED = [access for access in TABLES if access.column]
DENIED = (asyncpg.InsufficientPrivilegeError,)


@pytest.fixture
async def hive(postgres_url: str, scope: HiveScope) -> AsyncIterator[Hive]:
    """A hive with roles."""
    async with hive_with_roles(postgres_url, "superuser", scope) as hive:
        yield hive


@pytest.fixture
async def filled(hive: Hive) -> Hive:
    """Rows of three agents, and shared state, in every table."""
    for table, row in ROWS.items():
        for agent in ("librarian", "other", "third"):
            await hive.admin.execute(f"INSERT INTO {hive.schema}.{table} {row.format(a=agent, k='theirs')}")
    await hive.admin.execute(f"INSERT INTO {hive.schema}.agent_state {ROWS['agent_state'].format(a='', k='shared')}")
    return hive


@pytest.fixture
async def agent(filled: Hive) -> AsyncIterator[Any]:
    """A plain connection of the login of agent ``librarian``."""
    connection = await asyncpg.connect(await filled.url_of("librarian"))
    yield connection
    await connection.close()


async def test_a_store_does_with_the_agents_login_what_it_does_with_the_owners(hive: Hive) -> None:
    async with await hive.store_of("librarian") as store:
        version = await store.state.set("k", {"a": 1})
        assert await store.state.set("k", {"a": 2}, expect_version=version) > version
        with pytest.raises(VersionConflict):
            await store.state.set("k", 3, expect_version=version)
        await asyncio.gather(*(store.state.set(f"many/{n}", n) for n in range(200)))
        assert len(await store.state.list("many/", limit=500)) == 200
        assert await store.state.delete("many/0")
        await store.state.set("short", 1, ttl=3600)
        await store.state.shared.set("common", 5)
        assert await store.state.shared.get("common") == 5
        await store.metrics.record("librarian", "m", 1.5)
        assert [metric.value for metric in await store.metrics.query(agent="librarian")] == [1.5]
        store.messages.record(
            "m1", from_agent="a", to_agent="librarian", message_type="t", status="failed", attempts=1, created_at=NOW
        )
        await store.messages.flush()
        assert [row.message_id for row in await store.messages.recent()] == ["m1"]
        assert store.messages.dropped == 0
        await store.audit.record("test", "subject", {"a": 1})
        assert [(row.agent, row.action) for row in await store.audit.recent()] == [("librarian", "test")]
        assert not (await store.audit.verify()).findings
        await store.ping()
    async with await hive.store_of("other") as store:
        assert await store.state.shared.get("common") == 5
        assert await store.state.get("k") is None


async def test_a_store_gets_nothing_of_another_agent(hive: Hive) -> None:
    async with await hive.store_of("other") as other:
        version = await other.state.set("k", "theirs")
        await other.metrics.record("other", "m", 1)
        async with await hive.store_of("librarian") as store:
            theirs = store.state.for_agent("other")
            assert await theirs.get("k") is None
            assert await theirs.list() == []
            assert not await theirs.delete("k")
            with pytest.raises(VersionConflict):
                await theirs.set("k", 1, expect_version=version)
            for write in (theirs.set("k", 1), theirs.set("new", 1), store.metrics.record("other", "m", 1)):
                with pytest.raises(StorePermissionError, match="row-level security"):
                    await write
            assert await store.metrics.query() == []
            # One refused write spoils no other of its batch.
            results = await asyncio.gather(
                store.state.set("mine", 1), theirs.set("k", 2), store.state.set("mine2", 1), return_exceptions=True
            )
            assert [type(result) for result in results] == [int, StorePermissionError, int]
        assert await other.state.get("k") == "theirs"


async def test_missing_partitions_are_a_clear_error(hive: Hive) -> None:
    async with await hive.store_of("librarian") as store:
        with pytest.raises(InvalidValue, match=r"no partition of agent_metrics for 2050-01-01.*yesterday to 14 days"):
            await store.metrics.record("librarian", "m", 1, timestamp=datetime(2050, 1, 1, tzinfo=UTC))
        with pytest.raises(StorePermissionError):
            await store.maintain(today=datetime(2050, 1, 1, tzinfo=UTC).date())


@pytest.mark.parametrize("access", OWNED, ids=lambda access: access.table)
async def test_rows_of_others_are_neither_seen_nor_touched(filled: Hive, agent: Any, access: Any) -> None:
    table = f"{filled.schema}.{access.table}"
    seen = {row[0] for row in await agent.fetch(f"SELECT {access.column} FROM {table}")}
    assert seen == ({"librarian", ""} if access.shared else {"librarian"})
    for who in ("other", "nobody"):
        with pytest.raises(DENIED, match="row-level security"):
            await agent.execute(f"INSERT INTO {table} {ROWS[access.table].format(a=who, k='new')}")
    if not access.shared:
        with pytest.raises(DENIED, match="row-level security"):
            await agent.execute(f"INSERT INTO {table} {ROWS[access.table].format(a='', k='new')}")
    assert await agent.execute(f"INSERT INTO {table} {ROWS[access.table].format(a='librarian', k='new')}")
    if "UPDATE" in access.agents:
        with pytest.raises(DENIED, match="row-level security"):  # giving a row away
            await agent.execute(f"UPDATE {table} SET {access.column} = 'other' WHERE {access.column} = 'librarian'")
        assert await agent.execute(f"UPDATE {table} SET agent = agent WHERE {access.column} = 'other'") == "UPDATE 0"
    else:
        with pytest.raises(DENIED, match="permission denied"):
            await agent.execute(f"UPDATE {table} SET {access.column} = {access.column}")
    if "DELETE" in access.agents:
        assert await agent.execute(f"DELETE FROM {table} WHERE {access.column} = 'other'") == "DELETE 0"
    else:
        with pytest.raises(DENIED, match="permission denied"):
            await agent.execute(f"DELETE FROM {table}")
    with pytest.raises(DENIED, match="permission denied"):
        await agent.execute(f"TRUNCATE {table}")
    of_others = f"SELECT count(*) FROM {table} WHERE {access.column} IN ('other', 'third')"
    assert await filled.admin.fetchval(of_others) == 2


async def test_partitions_cannot_be_reached_directly(filled: Hive, agent: Any) -> None:
    partitions = await filled.admin.fetch(
        "SELECT oid::regclass::text AS name FROM pg_class WHERE relispartition AND relkind = 'r' "
        "AND relnamespace = $1::regnamespace",
        filled.schema,
    )
    assert len(partitions) > 8
    for row in partitions:
        for statement in ("SELECT FROM {}", "INSERT INTO {} DEFAULT VALUES", "DELETE FROM {}", "TRUNCATE {}"):
            with pytest.raises(DENIED, match="permission denied"):
                await agent.execute(statement.format(row["name"]))


async def test_a_login_cannot_become_another_or_make_anything(filled: Hive, agent: Any) -> None:
    names, schema = role_names(filled.schema), filled.schema
    await filled.url_of("other")
    for role in (names.owner, names.readonly, agent_role(schema, "other"), "postgres"):
        for statement in (f"SET ROLE {role}", f"SET SESSION AUTHORIZATION {role}"):
            with pytest.raises(DENIED):
                await agent.execute(statement)
    for statement in (
        f"CREATE TABLE {schema}.mine (x int)",
        f"CREATE FUNCTION {schema}.f() RETURNS int LANGUAGE sql AS 'SELECT 1'",
        f"DROP TABLE {schema}.agent_state",
        f"ALTER TABLE {schema}.agent_state DISABLE ROW LEVEL SECURITY",
        f"DROP POLICY agenthive_agents ON {schema}.agent_state",
        f"INSERT INTO {schema}.database_roles (role, agent) VALUES ('x', 'other')",
        f"UPDATE {schema}.database_roles SET agent = 'other'",
        f"DELETE FROM {schema}.audit_anchors",
        f"INSERT INTO {schema}.schema_migrations (version, name, checksum) VALUES (99, 'x', 'x')",
        f"GRANT {names.readonly} TO {agent_role(schema, 'librarian')}",
        f"ALTER ROLE {agent_role(schema, 'other')} PASSWORD 'x'",
        f"COMMENT ON TABLE {schema}.database_roles IS 'x'",
    ):
        with pytest.raises(DENIED):
            await agent.execute(statement)
    # Turning the policies off for a session is an error and not a way around them.
    await agent.execute("SET row_security = off")
    with pytest.raises(DENIED, match="would be affected by row-level security"):
        await agent.fetch(f"SELECT FROM {schema}.agent_state")
    await agent.execute("SET row_security = on")
    # The group itself is no agent: as the group one sees what all share and nothing else.
    await agent.execute(f"SET ROLE {names.agents}")
    assert [row[0] for row in await agent.fetch(f"SELECT agent FROM {schema}.agent_state")] == [""]
    assert await agent.fetch(f"SELECT FROM {schema}.outbox") == []
    with pytest.raises(DENIED):
        await agent.execute(f"INSERT INTO {schema}.agent_state {ROWS['agent_state'].format(a='librarian', k='q')}")


async def test_another_hive_is_out_of_reach(filled: Hive, agent: Any, unique: str) -> None:
    other = HiveScope(namespace="team-b", hive=unique)
    async with hive_with_roles(filled.superuser_url, "superuser", other) as second:
        await second.url_of("librarian")  # the same agent's name
        for access in TABLES:
            with pytest.raises(DENIED, match="permission denied for schema"):
                await agent.fetch(f"SELECT FROM {second.schema}.{access.table}")
        url = await filled.url_of("librarian")
        with pytest.raises(StorePermissionError, match="permission denied for schema"):
            await Store.connect(url, other, agent="librarian")


async def test_an_agents_login_cannot_upgrade(filled: Hive, monkeypatch: pytest.MonkeyPatch) -> None:
    assert await upgrade(await filled.url_of("librarian"), filled.schema) == [], "nothing to do is no error"


async def test_the_read_only_role_sees_everything_and_writes_nothing(filled: Hive) -> None:
    reader = f"reader_{filled.scope.hive}"
    await filled.admin.execute(f"CREATE ROLE {reader} LOGIN PASSWORD '{PASSWORD}'")
    await filled.admin.execute(f"GRANT {role_names(filled.schema).readonly} TO {reader}")
    connection = await asyncpg.connect(as_role(filled.superuser_url, reader, PASSWORD))
    try:
        for access in TABLES:
            table = f"{filled.schema}.{access.table}"
            count = f"SELECT count(*) FROM {table}"
            assert await connection.fetchval(count) == await filled.admin.fetchval(count), access.table
            for statement in (f"DELETE FROM {table}", f"TRUNCATE {table}", f"INSERT INTO {table} DEFAULT VALUES"):
                with pytest.raises(DENIED, match="permission denied"):
                    await connection.execute(statement)
        with pytest.raises(DENIED):
            await connection.execute(f"CREATE TABLE {filled.schema}.x (y int)")
    finally:
        await connection.close()
        await filled.admin.execute(f"DROP OWNED BY {reader}")
        await filled.admin.execute(f"DROP ROLE {reader}")


async def test_policies_leave_the_indexes_in_use(filled: Hive, agent: Any) -> None:
    """The look-up of the agent is an InitPlan, made once, and the statement's own conditions still find the index."""
    schema = filled.schema
    await filled.admin.execute(
        f"INSERT INTO {schema}.agent_state (agent, key, value, version) "
        "SELECT a, 'k' || n, '1', 1 FROM generate_series(1, 3000) AS n, unnest(ARRAY['librarian', 'other', 'x']) AS a"
    )
    await filled.admin.execute(
        f"INSERT INTO {schema}.agent_metrics (agent_name, metric_type, value) "
        "SELECT a, 'm' || n % 100, 1 FROM generate_series(1, 3000) AS n, unnest(ARRAY['librarian', 'other']) AS a"
    )
    await filled.admin.execute(f"ANALYZE {schema}.agent_state")
    await filled.admin.execute(f"ANALYZE {schema}.agent_metrics")
    statements = {
        f"SELECT value FROM {schema}.agent_state WHERE agent = 'librarian' "
        "AND key = ANY(ARRAY['k1', 'k7'])": "key = ANY",
        f"SELECT key FROM {schema}.agent_state WHERE agent = 'librarian' AND key >= 'k1' AND key < 'k2' "
        "ORDER BY key LIMIT 10": "key >= 'k1'",
        f"UPDATE {schema}.agent_state SET version = 2 WHERE agent = 'librarian' AND key = 'k1'": "key = 'k1'",
        f"SELECT value FROM {schema}.agent_metrics WHERE agent_name = 'librarian' AND metric_type = 'm1' "
        "AND timestamp >= now() - interval '1 hour'": "metric_type = 'm1'",
    }
    for statement, condition in statements.items():
        text = await agent.fetchval(f"EXPLAIN (FORMAT JSON) {statement}")
        plan = json.loads(text)
        nodes = list(walk(plan[0]["Plan"]))
        assert any(node.get("Parent Relationship") == "InitPlan" for node in nodes), statement
        assert not any(node.get("Parent Relationship") == "SubPlan" for node in nodes), statement
        conditions = [str(node.get("Index Cond", "")) for node in nodes]
        assert any(condition in found for found in conditions), (statement, text)


def walk(node: dict[str, Any]) -> Any:
    yield node
    for below in node.get("Plans", []):
        yield from walk(below)
