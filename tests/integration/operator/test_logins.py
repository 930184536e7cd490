"""A database login for each agent: made, kept, restored, dropped; and what happens where that cannot be done."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import SplitResult, urlsplit

import asyncpg
import pytest

from agenthive.settings import HiveScope
from agenthive.store import Store, schema_name
from agenthive.store.roles import agent_role, role_names
from agenthive_operator.backends.logins import Login, login_in, with_login
from agenthive_operator.reconcile.context import Options

from .conftest import Cluster, running_operator

PROBE_SECONDS = 40.0


def encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


@dataclass
class Servers:
    """A database, two ways into it: as its owner without any other right, and as one who may create roles."""

    redis: str
    url: str
    admin: str
    root: asyncpg.Connection[asyncpg.Record]
    root_url: SplitResult

    async def make_hive(self, cluster: Cluster, *, admin: bool = True, **spec: Any) -> None:
        urls = {"redis": self.redis, "app": self.url, "admin": self.admin}
        await cluster.create("Secret", "urls", stringData=urls)
        refs = {"urlSecretRef": {"name": "urls", "key": "app"}}
        if admin:
            refs["adminUrlSecretRef"] = {"name": "urls", "key": "admin"}
        servers = {
            "redis": {"external": {"urlSecretRef": {"name": "urls", "key": "redis"}}},
            "postgres": {"external": refs},
        }
        await cluster.create("AgentHive", "demo", spec={**servers, **spec})

    async def roles(self, schema: str) -> set[str]:
        rows = await self.root.fetch("SELECT rolname FROM pg_roles WHERE starts_with(rolname, $1)", schema)
        return {row["rolname"] for row in rows}


@pytest.fixture
async def database(redis_url: str, postgres_url: str, unique: str) -> AsyncIterator[Servers]:
    """Roles belong to the server and not to its databases: those made here go again."""
    root = await asyncpg.connect(postgres_url)
    app, admin = f"app_{unique}", f"admin_{unique}"
    name = urlsplit(postgres_url).path.lstrip("/")
    await root.execute(f"CREATE ROLE {app} LOGIN PASSWORD 'app-word'")
    await root.execute(f"CREATE ROLE {admin} LOGIN CREATEROLE PASSWORD 'admin-word'")
    await root.execute(f'GRANT ALL ON DATABASE "{name}" TO {app}, {admin}')
    await root.execute(f'ALTER DATABASE "{name}" OWNER TO {admin}')
    try:
        yield Servers(
            redis_url,
            with_login(postgres_url, Login(app, "app-word")),
            with_login(postgres_url, Login(admin, "admin-word")),
            root,
            urlsplit(postgres_url),
        )
    finally:
        await root.close()


async def schema_of(cluster: Cluster) -> tuple[HiveScope, str]:
    await cluster.condition("AgentHive", "demo", "SchemaReady", "True")
    instance = (await cluster.need("AgentHive", "demo"))["status"]["instanceId"]
    scope = HiveScope(instance=instance, namespace=cluster.namespace, hive="demo")
    return scope, schema_name(scope)


async def url_of(cluster: Cluster, agent: str) -> str:
    secret = await cluster.exists("Secret", f"{agent}-agenthive")
    return base64.b64decode(secret["data"]["AGENTHIVE_POSTGRES_URL"]).decode()


async def role_of(cluster: Cluster, agent: str) -> str | None:
    login = login_in(await url_of(cluster, agent))
    return login.role if login else None


@pytest.mark.usefixtures("operator")
async def test_each_agent_has_a_login_that_sees_its_own_rows(cluster: Cluster, database: Servers) -> None:
    await database.make_hive(cluster)
    for name in ("anna", "bert"):
        await cluster.agent(name, "demo")
        await cluster.exists("Deployment", name)
    scope, schema = await schema_of(cluster)
    assert [await role_of(cluster, name) for name in ("anna", "bert")] == [
        agent_role(schema, name) for name in ("anna", "bert")
    ]
    for name in ("anna", "bert"):
        async with await Store.connect(await url_of(cluster, name), scope, agent=name) as store:
            await store.state.set("secret", name)
            assert await store.state.get("secret") == name
    spy = await asyncpg.connect(await url_of(cluster, "anna"))
    try:
        rows = await spy.fetch(f"SELECT agent FROM {schema}.agent_state")
        assert [row["agent"] for row in rows] == ["anna"]
        assert await spy.execute(f"DELETE FROM {schema}.agent_state WHERE agent = 'bert'") == "DELETE 0"
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await spy.execute(f"INSERT INTO {schema}.agent_state (agent, key, value) VALUES ('bert', 'x', '1')")
    finally:
        await spy.close()
    # The hive's own login, which command lines use, sees everything, although another migrated.
    async with await Store.connect(database.url, scope, agent="bert") as store:
        assert await store.state.get("secret") == "bert"
    told = str((await cluster.list("AgentHive"), await cluster.list("Agent"), await cluster.list("Event")))
    for word in ("app-word", "admin-word", "://"):
        assert word not in told


async def test_a_restarted_operator_keeps_logins_and_writes_nothing(
    cluster: Cluster, options: Options, database: Servers
) -> None:
    async with running_operator(options):
        await database.make_hive(cluster)
        await cluster.agent("anna", "demo")
        await cluster.pods_ready("anna")
        await cluster.condition("AgentHive", "demo", "Ready", "True")

        async def settled() -> bool:
            # The first figures come when the queue has been looked at: not a write of the restart.
            return "backlog" in (await cluster.need("Agent", "anna"))["status"]

        await cluster.until("the first figures are written", settled)
    _, schema = await schema_of(cluster)
    role = agent_role(schema, "anna")

    async def stamp() -> tuple[Any, ...]:
        found = await database.root.fetchrow(
            "SELECT xmin::text, rolpassword, (SELECT xmin::text FROM pg_class WHERE relname = 'database_roles')"
            " FROM pg_authid WHERE rolname = $1", role,
        )  # fmt: skip
        assert found is not None
        return tuple(found)

    before, objects = await stamp(), await cluster.versions()
    async with running_operator(options):
        # What only a hive that was looked at gets: a second agent, with a login.
        await cluster.agent("bert", "demo", replicas=0)
        await cluster.exists("Deployment", "bert")
    assert await stamp() == before, "nothing is made that is there"
    now = await cluster.versions()
    unchanged = [("Secret", "anna-agenthive"), ("Deployment", "anna"), ("Agent", "anna")]
    assert [now[ref] for ref in unchanged] == [objects[ref] for ref in unchanged]


@pytest.mark.usefixtures("brisk", "operator")
async def test_a_login_goes_with_its_agent_once_its_pods_are_gone_and_comes_again_with_it(
    cluster: Cluster, database: Servers
) -> None:
    await database.make_hive(cluster)
    for name in ("anna", "bert"):
        await cluster.agent(name, "demo")
        await cluster.exists("Deployment", name)
    _, schema = await schema_of(cluster)
    role = agent_role(schema, "anna")
    first = await url_of(cluster, "anna")
    labels = (await cluster.need("Deployment", "anna"))["spec"]["template"]["metadata"]["labels"]
    container = {"name": "agent", "image": "x"}
    await cluster.create("Pod", "draining", metadata={"labels": labels}, spec={"containers": [container]})
    await cluster.delete("Agent", "anna")
    await cluster.gone("Agent", "anna")
    await cluster.agent("carl", "demo")  # a login that is made after a look at which are needed
    await cluster.exists("Deployment", "carl")
    assert role in await database.roles(schema), "a pod that drains needs its login"
    await cluster.delete("Pod", "draining")

    async def dropped() -> bool:
        return role not in await database.roles(schema)

    await cluster.until("the login is dropped", dropped, PROBE_SECONDS)
    assert agent_role(schema, "bert") in await database.roles(schema)
    for kind, name in (("Secret", "anna-agenthive"), ("Deployment", "anna")):  # as a garbage collector would
        if await cluster.get(kind, name) is not None:
            await cluster.delete(kind, name)
    await cluster.agent("anna", "demo")
    await cluster.exists("Deployment", "anna")
    second = await url_of(cluster, "anna")
    assert second != first
    await (await asyncpg.connect(second)).close()


@pytest.mark.usefixtures("brisk", "operator")
async def test_a_login_that_was_dropped_by_hand_is_restored(cluster: Cluster, database: Servers) -> None:
    await database.make_hive(cluster)
    await cluster.agent("anna", "demo")
    await cluster.exists("Deployment", "anna")
    _, schema = await schema_of(cluster)
    url = await url_of(cluster, "anna")
    await database.root.execute(f"DROP OWNED BY {agent_role(schema, 'anna')}")
    await database.root.execute(f"DROP ROLE {agent_role(schema, 'anna')}")

    async def works() -> bool:
        try:
            await (await asyncpg.connect(url)).close()
        except asyncpg.PostgresError:
            return False
        return True

    await cluster.until("the same password is let in again", works, PROBE_SECONDS)


@pytest.mark.usefixtures("operator")
async def test_a_secret_that_was_deleted_comes_back_with_the_same_login(cluster: Cluster, database: Servers) -> None:
    await database.make_hive(cluster)
    await cluster.agent("anna", "demo")
    deployment = await cluster.exists("Deployment", "anna")
    url = await url_of(cluster, "anna")
    await cluster.delete("Secret", "anna-agenthive")
    assert await url_of(cluster, "anna") == url
    assert (await cluster.need("Deployment", "anna"))["spec"] == deployment["spec"]


@pytest.mark.usefixtures("operator")
async def test_where_logins_cannot_be_made_it_is_told_and_agents_run_on(cluster: Cluster, database: Servers) -> None:
    await database.make_hive(cluster, admin=False)
    await cluster.agent("anna", "demo")
    before = await cluster.exists("Deployment", "anna")
    assert await url_of(cluster, "anna") == database.url
    _, schema = await schema_of(cluster)

    async def admin_is(url: str) -> None:
        await cluster.patch("Secret", "urls", data={"admin": encoded(url)})

    async def told(kind: str, reason: str, *words: str) -> None:
        status = "True" if reason == "NewServerRefused" else "False"

        async def says() -> bool:
            found = await cluster.condition("AgentHive", "demo", kind, status, reason)
            assert "-word" not in found["message"]
            return all(word in found["message"] for word in words)

        await cluster.until(f"{kind} says {words}", says)
        assert (await cluster.need("Deployment", "anna"))["spec"] == before["spec"]
        assert await url_of(cluster, "anna") == database.url

    pointer = {"name": "urls", "key": "nothing"}
    await cluster.patch("AgentHive", "demo", spec={"postgres": {"external": {"adminUrlSecretRef": pointer}}})
    await told("PostgresReady", "NewServerRefused", "spec.postgres.external.adminUrlSecretRef", "'nothing'")
    await admin_is(database.admin.replace("admin-word", "no-word"))
    pointer = {"name": "urls", "key": "admin"}
    await cluster.patch("AgentHive", "demo", spec={"postgres": {"external": {"adminUrlSecretRef": pointer}}})
    await told("PostgresReady", "NewServerRefused", "spec.postgres.external.adminUrlSecretRef", "refused the login")
    await admin_is(database.url)  # owns the tables, may not create roles
    await told("PostgresReady", "NewServerRefused", "(RolesFailed)", "CREATEROLE", "adminUrlSecretRef")
    await admin_is("mysql://nonsense")
    await told("PostgresReady", "NewServerRefused", "InvalidURL")
    await database.root.execute(f"ALTER ROLE {login_name(database.url)} CREATEROLE")
    await admin_is(database.url)
    await cluster.condition("AgentHive", "demo", "SchemaReady", "True")

    async def moved() -> bool:
        return await role_of(cluster, "anna") == agent_role(schema, "anna")

    await cluster.until("the agent moves to a login of its own", moved)
    await cluster.patch("AgentHive", "demo", spec={"postgres": {"external": {"adminUrlSecretRef": None}}})

    async def back() -> bool:
        return await url_of(cluster, "anna") == database.url

    await cluster.until("without administrative access the hive's own login it is", back)


def login_name(url: str) -> str:
    login = login_in(url)
    assert login is not None
    return login.role


@pytest.mark.usefixtures("operator")
async def test_logins_that_the_agents_way_does_not_let_in_never_reach_pods(
    cluster: Cluster, database: Servers, own_postgres: Any
) -> None:
    database.url = own_postgres.url()  # another server than the administrator's
    await database.make_hive(cluster)
    await cluster.agent("anna", "demo")
    told = await cluster.condition("AgentHive", "demo", "SchemaReady", "False", "RolesFailed")
    for words in ("spec.postgres.external.urlSecretRef", "same database", "PgBouncer"):
        assert words in told["message"]
    assert await cluster.get("Deployment", "anna") is None


@pytest.mark.usefixtures("operator")
async def test_a_database_whose_schema_cannot_be_used_never_reaches_pods(cluster: Cluster, database: Servers) -> None:
    await database.make_hive(cluster)
    await cluster.agent("anna", "demo")
    await cluster.exists("Deployment", "anna")
    _, schema = await schema_of(cluster)
    before, elsewhere = await url_of(cluster, "anna"), f"{urlsplit(database.url).path.lstrip('/')}_b"
    await database.root.execute(f'CREATE DATABASE "{elsewhere}"')
    url = database.root_url._replace(path=f"/{elsewhere}").geturl()
    newer = await asyncpg.connect(url)
    try:
        await newer.execute(
            f"CREATE SCHEMA {schema}; CREATE TABLE {schema}.schema_migrations (version int, checksum text); "
            f"INSERT INTO {schema}.schema_migrations VALUES (99, '')"
        )
        await cluster.patch("Secret", "urls", data={"app": encoded(url), "admin": encoded(url)})
        await cluster.condition("AgentHive", "demo", "PostgresReady", "True", "NewServerRefused")
        await cluster.patch("Agent", "anna", spec={"replicas": 2})

        async def scaled() -> bool:
            return bool((await cluster.need("Deployment", "anna"))["spec"]["replicas"] == 2)

        await cluster.until("the Agent was reconciled since", scaled)
        assert await url_of(cluster, "anna") == before
    finally:
        await newer.close()
        await database.root.execute(f'DROP DATABASE "{elsewhere}" WITH (FORCE)')


@pytest.mark.usefixtures("operator")
async def test_the_end_of_a_hive_takes_schema_and_roles_along(cluster: Cluster, database: Servers) -> None:
    await database.make_hive(cluster, deletionPolicy="Delete")
    await cluster.agent("anna", "demo", replicas=0)
    await cluster.exists("Deployment", "anna")
    _, schema = await schema_of(cluster)
    names = role_names(schema)
    made = {agent_role(schema, "anna"), names.owner, names.agents, names.readonly}
    assert await database.roles(schema) == made
    await cluster.delete("AgentHive", "demo")
    await cluster.gone("AgentHive", "demo")
    assert await database.roles(schema) == set()
    assert await database.root.fetchval("SELECT to_regnamespace($1) IS NULL", schema)
