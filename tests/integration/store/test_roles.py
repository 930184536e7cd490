"""Making, correcting and removing database roles, by administrators of both kinds."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from collections.abc import AsyncIterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from agenthive.settings import HiveScope
from agenthive.store import Store, StoreAuthError, StoreError, StorePermissionError, migrate, schema_name, upgrade
from agenthive.store.migrate import Migration
from agenthive.store.naming import lock_key
from agenthive.store.partitions import maintain_partitions
from agenthive.store.role_script import TABLES, password_variable
from agenthive.store.roles import (
    agent_role,
    drop_agent,
    drop_roles,
    ensure_agent,
    ensure_roles,
    known_agents,
    role_names,
    roles_sql,
    scram_verifier,
)
from agenthive_operator.local import servers

from .conftest import as_role
from .roles_ground import KINDS, PASSWORD, Hive, administrator, facts, hive_with_roles


@pytest.fixture(params=KINDS)
async def hive(request: pytest.FixtureRequest, postgres_url: str, scope: HiveScope) -> AsyncIterator[Hive]:
    """A hive with roles, made by each kind of administrator."""
    async with hive_with_roles(postgres_url, request.param, scope) as hive:
        yield hive


async def count_statements(connection: Any, work: Any) -> list[str]:
    seen: list[str] = []
    connection.add_query_logger(lambda record: seen.append(record.query))
    await work
    await asyncio.sleep(0)  # loggers are called by the loop
    connection._query_loggers.clear()
    return seen


async def test_everything_belongs_to_the_owner_and_repeating_is_one_look(hive: Hive) -> None:
    owner = role_names(hive.schema).owner
    rows = await hive.admin.fetch(
        "SELECT relname FROM pg_class WHERE relnamespace = $1::regnamespace AND relowner <> $2::regrole",
        hive.schema, owner,
    )  # fmt: skip
    assert rows == []
    before = await facts(hive.admin, hive.schema)
    seen = await count_statements(hive.admin, ensure_roles(hive.admin, hive.schema))
    assert len([query for query in seen if "pg_catalog.pg" in query]) == 1
    assert len(seen) == 4, "and its transaction"
    assert await upgrade(hive.admin_url, hive.schema) == []
    assert await facts(hive.admin, hive.schema) == before


async def test_every_table_of_the_schema_has_its_line_in_the_table_of_rights(hive: Hive) -> None:
    rows = await hive.admin.fetch(
        "SELECT relname FROM pg_class WHERE relnamespace = $1::regnamespace AND NOT relispartition "
        "AND relkind IN ('r', 'p', 'v', 'm', 'S', 'f')",
        hive.schema,
    )
    assert sorted(row["relname"] for row in rows) == sorted(access.table for access in TABLES), (
        "a migration made a table: say in role_script.TABLES what agents may do with it"
    )
    acl = await hive.admin.fetchval(
        "SELECT count(*) FROM pg_class WHERE relnamespace = $1::regnamespace AND relispartition AND relacl IS NOT NULL",
        hive.schema,
    )
    assert acl == 0, "no grants on partitions ever"


@pytest.mark.parametrize(
    "harm",
    [
        "ALTER TABLE {s}.agent_state DISABLE ROW LEVEL SECURITY",
        "GRANT UPDATE ON {s}.audit_log TO {agents}",
        "GRANT ALL ON {s}.agent_state TO PUBLIC",
        "GRANT CREATE ON SCHEMA {s} TO {agents}",
        "REVOKE SELECT ON {s}.message_log FROM {readonly}",
        "DROP POLICY agenthive_agents ON {s}.outbox",
        "ALTER POLICY agenthive_agents ON {s}.agent_state USING (true)",
        "ALTER TABLE {s}.inbox OWNER TO CURRENT_USER",
        "ALTER ROLE {agents} LOGIN",
        "ALTER SCHEMA {s} OWNER TO CURRENT_USER",
        "DO $$ BEGIN EXECUTE format('GRANT SELECT ON {s}.agent_metrics_p%s TO {agents}', to_char(now() AT TIME ZONE "
        "'UTC', 'YYYYMMDD')); END $$",
    ],
)
async def test_what_somebody_changed_is_set_right(postgres_url: str, scope: HiveScope, harm: str) -> None:
    async with hive_with_roles(postgres_url, "superuser", scope) as hive:
        names = role_names(hive.schema)
        before = await facts(hive.admin, hive.schema)
        await hive.admin.execute(harm.format(s=hive.schema, agents=names.agents, readonly=names.readonly))
        await ensure_roles(hive.admin, hive.schema)
        after = await facts(hive.admin, hive.schema)
        # An ACL that was revoked again stays behind as the owner's own rights, written out.
        assert [line.split(" acl=")[0] for line in after] == [line.split(" acl=")[0] for line in before]
        assert not any(f"{names.agents}=" in line for line in after if "_p2" in line)
        assert [line for line in after if "_p2" not in line] == [line for line in before if "_p2" not in line]


async def test_rights_that_somebody_else_sets_at_the_same_moment_are_waited_for(
    postgres_url: str, scope: HiveScope
) -> None:
    """PostgreSQL has no lock for that: it waits for the other one, and then refuses."""
    async with hive_with_roles(postgres_url, "superuser", scope) as hive:
        other = await asyncpg.connect(postgres_url)
        table, readonly, setting = f"{hive.schema}.agent_state", role_names(hive.schema).readonly, None
        try:
            await hive.admin.execute(f"REVOKE SELECT ON {table} FROM {readonly}")
            async with other.transaction():
                await other.execute(f"GRANT TRIGGER ON {table} TO {readonly}")
                setting = asyncio.create_task(ensure_roles(hive.admin, hive.schema))
                waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted AND $1 = ANY(pg_blocking_pids(pid))"
                async with asyncio.timeout(20):
                    while not await other.fetchval(waiting, other.get_server_pid()):  # noqa: ASYNC110 - under a deadline
                        await asyncio.sleep(0.005)
            await setting
        finally:
            if setting is not None:
                await asyncio.gather(setting, return_exceptions=True)
            await other.close()
        rights = "SELECT has_table_privilege($1, $2, 'SELECT'), has_table_privilege($1, $2, 'TRIGGER')"
        found = await hive.admin.fetchrow(rights, readonly, table)
        assert tuple(found) == (True, False)


async def test_many_at_once(postgres_url: str, scope: HiveScope) -> None:
    schema = schema_name(scope)
    connections = [await asyncpg.connect(postgres_url) for _ in range(5)]
    await asyncio.gather(*(ensure_roles(connection, schema) for connection in connections))
    await asyncio.gather(upgrade(postgres_url, schema), *(ensure_roles(c, schema) for c in connections))
    await asyncio.gather(
        *(ensure_agent(connection, schema, "librarian", PASSWORD) for connection in connections),
    )
    assert await known_agents(connections[0], schema) == {agent_role(schema, "librarian"): "librarian"}
    await drop_roles(connections[0], schema)
    for connection in connections:
        await connection.close()


async def test_later_migrations_and_partitions_belong_to_the_owner_and_are_secured(
    hive: Hive, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = migrate.migrations()
    extra = Migration(len(known) + 1, "extra", "CREATE TABLE notes (agent text PRIMARY KEY)", "ddd")
    owner = role_names(hive.schema).owner
    with monkeypatch.context() as patch:
        patch.setattr(migrate, "migrations", lambda: (*known, extra))
        table = (*TABLES, type(TABLES[0])("notes", "SELECT", "agent"))
        patch.setattr("agenthive.store.role_script.TABLES", table)
        assert await upgrade(hive.admin_url, hive.schema) == [extra]
        lines = [line for line in await facts(hive.admin, hive.schema) if "notes" in line]
    assert any(f"owner={owner}" in line and "rls=t" in line for line in lines)
    assert any(line.startswith("policy notes.agenthive_agents") for line in lines)
    made = await maintain_partitions(hive.admin, hive.schema, today=date(2031, 1, 1))
    assert made
    owners = await hive.admin.fetch(
        "SELECT DISTINCT relowner::regrole::text, relacl FROM pg_class WHERE relname = ANY($1)", made
    )
    assert [tuple(row) for row in owners] == [(owner, None)]


@pytest.mark.parametrize("kind", KINDS)
async def test_a_hive_with_one_login_becomes_one_with_roles_while_its_pods_run(
    postgres_url: str, scope: HiveScope, unique: str, kind: str
) -> None:
    schema, single = schema_name(scope), f"app_{unique}"
    root = await asyncpg.connect(postgres_url)
    await root.execute(f"CREATE ROLE {single} LOGIN PASSWORD '{PASSWORD}'")
    await root.execute(f"CREATE SCHEMA {schema} AUTHORIZATION {single}")
    url = as_role(postgres_url, single, PASSWORD)
    await upgrade(url, schema)
    async with (
        await Store.connect(url, scope, agent="librarian") as pod,
        administrator(postgres_url, kind) as admin_url,
    ):
        await pod.state.set("k", 1)
        admin = await asyncpg.connect(admin_url)
        if kind == "createrole":
            with pytest.raises(StorePermissionError, match="is a member of whoever owns the tables"):
                await ensure_roles(admin, schema)
            assert await root.fetchval("SELECT to_regrole($1)", role_names(schema).owner) is None, "nothing by halves"
            await root.execute(f"GRANT {single} TO {admin_url.split('//')[1].split(':')[0]} WITH ADMIN OPTION")
        await ensure_roles(admin, schema)
        await pod.state.set("k", 2)
        assert await pod.maintain(today=date(2031, 1, 1))
        assert await upgrade(url, schema) == [], "the old login may still upgrade"
        await ensure_agent(admin, schema, "librarian", PASSWORD)
        login = as_role(postgres_url, agent_role(schema, "librarian"), PASSWORD)
        async with await Store.connect(login, scope, agent="librarian") as rolled:
            assert await rolled.state.get("k") == 2
        await drop_roles(admin, schema)
        await admin.execute(f"DROP SCHEMA {schema} CASCADE")
        await admin.close()
    await root.execute(f"DROP OWNED BY {single}")
    await root.execute(f"DROP ROLE {single}")
    await root.close()


async def test_a_login_is_corrected_and_its_password_never_sent(hive: Hive, monkeypatch: pytest.MonkeyPatch) -> None:
    async def open_store(password: str) -> None:
        url = as_role(hive.superuser_url, agent_role(hive.schema, "librarian"), password)
        await (await Store.connect(url, hive.scope, agent="librarian")).aclose()

    sent = await count_statements(hive.admin, ensure_agent(hive.admin, hive.schema, "librarian", "first-password"))
    assert not any("first-password" in query for query in sent)
    await open_store("first-password")
    role = agent_role(hive.schema, "librarian")
    await hive.admin.execute(f"ALTER ROLE {role} NOLOGIN")
    await hive.admin.execute(f"REVOKE {role_names(hive.schema).agents} FROM {role}")
    await hive.admin.execute(f"DELETE FROM {hive.schema}.database_roles")
    assert await ensure_agent(hive.admin, hive.schema, "librarian", "second-password", connection_limit=7) == role
    await open_store("second-password")
    with pytest.raises(StoreAuthError):
        await open_store("first-password")
    assert await hive.admin.fetchval("SELECT rolconnlimit FROM pg_roles WHERE rolname = $1", role) == 7


async def test_two_generations_are_one_agent(hive: Hive) -> None:
    roles = [await ensure_agent(hive.admin, hive.schema, "code-atlas", f"pw{n}", generation=n) for n in (0, 1)]
    assert await known_agents(hive.admin, hive.schema) == dict.fromkeys(roles, "code-atlas")
    for number, role in enumerate(roles):
        url = as_role(hive.superuser_url, role, f"pw{number}")
        async with await Store.connect(url, hive.scope, agent="code-atlas") as store:
            assert await store.state.get("k", default=0) == number
            await store.state.set("k", number + 1)
    assert await drop_agent(hive.admin, hive.schema, "code-atlas", generation=0) == [roles[0]]
    assert await drop_agent(hive.admin, hive.schema, "code-atlas", generation=0) == []
    with pytest.raises(StoreAuthError):
        await Store.connect(as_role(hive.superuser_url, roles[0], "pw0"), hive.scope, agent="code-atlas")
    async with await Store.connect(url, hive.scope, agent="code-atlas") as store:
        assert await store.state.get("k") == 2, "the other generation goes on"
    await ensure_agent(hive.admin, hive.schema, "code-atlas", "pw2")
    assert await drop_agent(hive.admin, hive.schema, "code-atlas") == sorted(roles)
    assert await known_agents(hive.admin, hive.schema) == {}


async def test_dropping_an_agent_ends_its_sessions_and_leaves_its_rows(hive: Hive) -> None:
    async with await hive.store_of("librarian") as store, await hive.store_of("other") as other:
        await store.state.set("k", 1)
        await other.state.set("k", 2)
        assert await drop_agent(hive.admin, hive.schema, "librarian") == [agent_role(hive.schema, "librarian")]
        with pytest.raises(StoreAuthError):
            await store.state.get("k")
        assert await other.state.get("k") == 2
        assert await drop_agent(hive.admin, hive.schema, "librarian") == []
    assert await hive.admin.fetchval(f"SELECT value FROM {hive.schema}.agent_state WHERE agent = 'librarian'") == "1"
    async with await hive.store_of("librarian") as store:
        assert await store.state.get("k") == 1


@pytest.mark.parametrize("schema_first", [True, False])
async def test_nothing_of_a_hive_is_left(hive: Hive, schema_first: bool) -> None:
    reader = f"reader_{hive.scope.hive}"
    root = await asyncpg.connect(hive.superuser_url)
    await root.execute(f"CREATE ROLE {reader} LOGIN PASSWORD '{PASSWORD}'")
    await root.execute(f"GRANT {role_names(hive.schema).readonly} TO {reader}")
    async with await hive.store_of("librarian"), await hive.store_of("code-atlas"):
        if schema_first:
            await hive.admin.execute(f"DROP SCHEMA {hive.schema} CASCADE")
        await drop_roles(hive.admin, hive.schema)
    left = await root.fetch("SELECT rolname FROM pg_roles WHERE starts_with(rolname, $1)", hive.schema)
    assert left == []
    assert await root.fetchval("SELECT to_regrole($1) IS NOT NULL", reader), "somebody's own login stays"
    await drop_roles(hive.admin, hive.schema)  # again does no harm
    if not schema_first:
        await hive.admin.execute(f"DROP SCHEMA {hive.schema} CASCADE")
    await root.execute(f"DROP ROLE {reader}")
    await root.close()


async def test_a_role_in_use_elsewhere_is_named(postgres_url: str, postgres: Any, scope: HiveScope) -> None:
    async with hive_with_roles(postgres_url, "superuser", scope) as hive:
        owner = role_names(hive.schema).owner
        elsewhere = await asyncpg.connect(postgres.url())
        await elsewhere.execute(f"CREATE SCHEMA {hive.schema}_x AUTHORIZATION {owner}")
        try:
            with pytest.raises(StoreError, match=r"(?s)cannot be dropped.*1 object in database postgres"):
                await drop_roles(hive.admin, hive.schema)
        finally:
            await elsewhere.execute(f"DROP SCHEMA {hive.schema}_x")
            await elsewhere.close()


async def test_a_plain_login_cannot_make_roles(postgres_url: str, scope: HiveScope, unique: str) -> None:
    root = await asyncpg.connect(postgres_url)
    await root.execute(f"CREATE ROLE {unique} LOGIN PASSWORD '{PASSWORD}'")
    plain = await asyncpg.connect(as_role(postgres_url, unique, PASSWORD))
    with pytest.raises(StorePermissionError, match="Roles are made by a superuser, or by a role with CREATEROLE"):
        await ensure_roles(plain, schema_name(scope))
    await plain.close()
    await root.execute(f"DROP ROLE {unique}")
    await root.close()


async def test_a_login_that_passes_by_the_policies_is_refused(hive: Hive) -> None:
    root = await asyncpg.connect(hive.superuser_url)
    role = agent_role(hive.schema, "librarian")
    await root.execute(f"CREATE ROLE {role} LOGIN SUPERUSER")
    with pytest.raises(StorePermissionError, match="passes by row-level security: drop it"):
        await ensure_agent(hive.admin, hive.schema, "librarian", PASSWORD)
    await root.execute(f"DROP ROLE {role}")
    await root.close()


@pytest.mark.parametrize("kind", KINDS)
async def test_the_printed_sql_does_the_same(postgres_url: str, scope: HiveScope, kind: str, tmp_path: Path) -> None:
    agents = ["librarian", "code-atlas"]
    async with hive_with_roles(postgres_url, kind, scope) as hive:
        for agent in agents:
            await ensure_agent(hive.admin, hive.schema, agent, PASSWORD)
        wanted = await facts(hive.admin, hive.schema)
        await drop_roles(hive.admin, hive.schema)
        await hive.admin.execute(f"DROP SCHEMA {hive.schema} CASCADE")
        await upgrade(hive.admin_url, hive.schema)
        script = roles_sql(hive.schema, agents)
        psql = shutil.which("psql") or str(servers.postgres_program("psql"))
        variables = [f"-v{password_variable(agent)}={scram_verifier(PASSWORD)}" for agent in agents]
        for _ in range(2):  # repeating it is harmless
            done = await asyncio.to_thread(
                subprocess.run, [psql, "-X", "-q", *variables, "-d", hive.admin_url, "-f", "-"],
                input=script, capture_output=True, text=True, check=False,
            )  # fmt: skip
            assert (done.returncode, done.stderr) == (0, "")
        assert await facts(hive.admin, hive.schema) == wanted
        async with await Store.connect(
            as_role(postgres_url, agent_role(hive.schema, "code-atlas"), PASSWORD), scope, agent="code-atlas"
        ) as store:
            await store.state.set("k", 1)
            now = datetime.now(UTC)
            await store.metrics.record("code-atlas", "m", 1, timestamp=now + timedelta(days=1))


@pytest.mark.parametrize("drop", ["agent", "hive"])
async def test_what_an_agent_made_is_given_to_nobody(postgres_url: str, scope: HiveScope, drop: str) -> None:
    async with hive_with_roles(postgres_url, "superuser", scope) as hive:
        login = await ensure_agent(hive.admin, hive.schema, "mallory", PASSWORD)
        await hive.admin.execute(f"CREATE SCHEMA theirs AUTHORIZATION {login}")
        stranger = await asyncpg.connect(as_role(postgres_url, login, PASSWORD))
        await stranger.execute(
            "CREATE FUNCTION theirs.who() RETURNS text LANGUAGE sql SECURITY DEFINER AS 'SELECT current_user::text'"
        )
        # Anybody may hold an advisory lock, and a session of an agent may be in the middle of something.
        await stranger.execute("SELECT pg_advisory_lock($1)", lock_key("roles", hive.schema))
        block = stranger.transaction()
        await block.start()
        await stranger.fetch(f"SELECT * FROM {hive.schema}.agent_state")
        async with asyncio.timeout(20):
            if drop == "agent":
                assert await drop_agent(hive.admin, hive.schema, "mallory") == [login]
            else:
                await drop_roles(hive.admin, hive.schema)
        assert await hive.admin.fetchval("SELECT theirs.who()") == login
        assert not await hive.admin.fetchval("SELECT rolcanlogin FROM pg_roles WHERE rolname = $1", login)
        await hive.admin.execute("DROP SCHEMA theirs CASCADE")
        await hive.admin.execute(f"DROP OWNED BY {login}; DROP ROLE {login}")
        stranger.terminate()


async def test_a_login_that_reads_on_never_finds_its_rows_gone(
    postgres_url: str, scope: HiveScope, unique: str
) -> None:
    schema, app = schema_name(scope), f"app_{unique}"
    root = await asyncpg.connect(postgres_url)
    await upgrade(postgres_url, schema)
    await root.execute(
        f"CREATE ROLE {app} LOGIN PASSWORD '{PASSWORD}'; GRANT USAGE ON SCHEMA {schema} TO {app};"
        f"GRANT ALL ON ALL TABLES IN SCHEMA {schema} TO {app}"
    )
    async with await Store.connect(as_role(postgres_url, app, PASSWORD), scope, agent="librarian") as pod:
        await pod.state.set("k", 1)
        seen: set[object] = set()
        work = asyncio.create_task(ensure_roles(root, schema, also=[app, "nobody-of-this-name"]))
        while not work.done():
            seen.add(await pod.state.get("k", default="gone"))
        await work
        seen.add(await pod.state.get("k", default="gone"))
        assert seen == {1}
        owner = role_names(schema).owner
        await root.execute(f"REVOKE {owner} FROM {app}")
        await ensure_roles(root, schema, also=[app])
        assert await pod.state.get("k") == 1, "also where all else is as it should be"
    await root.execute(f"DROP SCHEMA {schema} CASCADE")
    await drop_roles(root, schema)
    await root.execute(f"DROP OWNED BY {app}; DROP ROLE {app}")
    await root.close()


async def test_no_function_of_an_agent_runs_as_the_administrator(
    postgres_url: str, scope: HiveScope, caplog: pytest.LogCaptureFixture
) -> None:
    async with hive_with_roles(postgres_url, "superuser", scope) as hive:
        await hive.admin.execute("GRANT CREATE ON SCHEMA public TO PUBLIC")  # as databases of 14 have it
        login = await ensure_agent(hive.admin, hive.schema, "mallory", PASSWORD)
        mallory = await asyncpg.connect(as_role(postgres_url, login, PASSWORD))
        calls = {
            "format(text, aclitem[])": "text", "format(text, name)": "text", "pg_has_role(oid, text)": "boolean",
            "has_database_privilege(oid, name, text)": "boolean", "pg_get_userbyid(name)": "name",
            "has_database_privilege(name, name, text)": "boolean", "to_regclass(character varying)": "regclass",
        }  # fmt: skip
        for signature, result in calls.items():
            await mallory.execute(
                f"CREATE FUNCTION public.{signature} RETURNS {result} LANGUAGE plpgsql AS "
                "$$ BEGIN RAISE 'a trap ran as %', current_user; END $$"
            )
        await mallory.execute(
            "CREATE FUNCTION public.trap(name, text) RETURNS boolean LANGUAGE plpgsql AS "
            "$$ BEGIN RAISE 'a trap ran as %', current_user; END $$;"
            "CREATE OPERATOR public.= (LEFTARG = name, RIGHTARG = text, FUNCTION = public.trap);"
            "CREATE OPERATOR public.<> (LEFTARG = name, RIGHTARG = text, FUNCTION = public.trap)"
        )
        await mallory.close()
        await ensure_roles(hive.admin, hive.schema)
        assert "schema public" not in caplog.text, "said when something is set right, and not with every look"
        await hive.admin.execute(f"REVOKE SELECT ON {hive.schema}.outbox FROM {role_names(hive.schema).agents}")
        await ensure_roles(hive.admin, hive.schema)
        await upgrade(hive.admin_url, hive.schema)
        await ensure_agent(hive.admin, hive.schema, "anna", PASSWORD)
        assert len(await known_agents(hive.admin, hive.schema)) == 2
        other = f"{hive.schema}_b"
        caplog.clear()
        await ensure_roles(hive.admin, other)
        assert "REVOKE CREATE ON SCHEMA public FROM PUBLIC" in caplog.text
        await drop_agent(hive.admin, hive.schema, "anna")
        await drop_roles(hive.admin, other)
        await hive.admin.execute(f"DROP SCHEMA {other}; DROP OWNED BY {login} CASCADE")


async def test_what_agents_made_as_their_group_is_given_to_nobody(postgres_url: str, scope: HiveScope) -> None:
    async with hive_with_roles(postgres_url, "superuser", scope) as hive:
        group = role_names(hive.schema).agents
        login = await ensure_agent(hive.admin, hive.schema, "mallory", PASSWORD)
        await hive.admin.execute(f"CREATE SCHEMA theirs; GRANT ALL ON SCHEMA theirs TO {group}")
        async with asyncio.timeout(20):
            stranger = await asyncpg.connect(as_role(postgres_url, login, PASSWORD))
            await stranger.execute(
                f"SET ROLE {group}; CREATE FUNCTION theirs.who() RETURNS text LANGUAGE sql SECURITY DEFINER "
                "AS 'SELECT current_user::text'"
            )
            await drop_roles(hive.admin, hive.schema)
        assert await hive.admin.fetchval("SELECT theirs.who()") == group
        await hive.admin.execute(f"DROP SCHEMA theirs CASCADE; DROP OWNED BY {group}; DROP ROLE {group}")
        stranger.terminate()
