"""The logins of one hive against a real PostgreSQL, without a cluster: what is believed, what is made, what fails."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest
from kubernetes.aio import client
from tests.conftest import PostgresServer

from agenthive.store import upgrade
from agenthive.store.naming import quote
from agenthive.store.roles import agent_role, drop_roles, role_names
from agenthive_operator.backends.kube import Kube
from agenthive_operator.backends.logins import HiveLogins, Login, with_login
from agenthive_operator.backends.postgres import Access, remove_schema
from agenthive_operator.backends.reports import SchemaReport
from agenthive_operator.reconcile.cache import Key, ObjectCache
from agenthive_operator.reconcile.logins import Logins
from agenthive_operator.reconcile.queue import KeyedQueue


@dataclass
class Scene:
    """A migrated schema, and the logins of its hive."""

    url: str
    schema: str
    root: Any
    logins: HiveLogins = field(default_factory=HiveLogins)
    ready: list[str] = field(default_factory=list)
    gone: set[str] = field(default_factory=set)

    async def sync(self) -> SchemaReport | None:
        async def is_gone(agent: str) -> bool:
            return agent in self.gone

        access = Access(self.url, admin=self.url)
        return await self.logins.sync(access, self.schema, is_gone=is_gone, on_ready=self.ready.append)

    def role(self, agent: str, generation: int = 0) -> str:
        return agent_role(self.schema, agent, generation)

    async def stamp(self, agent: str) -> str:
        """Changes with every change of a role."""
        return str(await self.root.fetchval("SELECT xmin FROM pg_authid WHERE rolname = $1", self.role(agent)))

    async def lets_in(self, agent: str, password: str, generation: int = 0) -> bool:
        login = Login(self.role(agent, generation), password)
        try:
            await (await asyncpg.connect(with_login(self.url, login))).close()
        except asyncpg.InvalidPasswordError:
            return False
        return True


@pytest.fixture
async def scene(postgres_url: str, unique: str) -> AsyncIterator[Scene]:
    schema = f"ah_{unique}"
    await upgrade(postgres_url, schema)
    root = await asyncpg.connect(postgres_url)
    try:
        yield Scene(postgres_url, schema, root)
        await drop_roles(root, schema)
    finally:
        await root.close()


async def test_logins_are_made_once_and_told_as_soon_as_they_are_ready(scene: Scene) -> None:
    for agent in ("anna", "bert"):
        assert scene.logins.wish(agent, f"of-{agent}", fresh=True)
        assert not scene.logins.is_ready(agent, f"of-{agent}")
    assert await scene.sync() is None
    assert scene.ready == ["anna", "bert"]
    assert scene.logins.is_ready("anna", "of-anna")
    assert not scene.logins.is_ready("anna", "another")
    assert await scene.lets_in("bert", "of-bert")
    before = await scene.stamp("anna")
    assert await scene.sync() is None
    assert (scene.ready, await scene.stamp("anna")) == (["anna", "bert"], before)
    assert scene.logins.wish("anna", "new", fresh=False), "another password in the Secret is to be the server's"
    assert not scene.logins.is_ready("anna", "new")
    assert await scene.sync() is None
    assert await scene.lets_in("anna", "new")
    assert scene.logins.is_ready("anna", "new")


async def test_what_lacks_is_made_in_one_transaction_once_the_first_was_let_in(scene: Scene) -> None:
    agents = ["anna", "bert", "carl", "dora"]
    for agent in agents:
        scene.logins.wish(agent, f"of-{agent}", fresh=True)
    assert await scene.sync() is None
    assert scene.ready == agents
    first, *others = [await scene.stamp(agent) for agent in agents]
    assert len(set(others)) == 1
    assert first != others[0]
    assert await scene.lets_in("dora", "of-dora")


async def test_a_restarted_operator_believes_what_is_there(scene: Scene) -> None:
    scene.logins.wish("anna", "pw", fresh=True)
    await scene.sync()
    before = await scene.stamp("anna")
    scene.logins = HiveLogins()
    scene.logins.wish("anna", "pw", fresh=False)
    assert await scene.sync() is None
    assert await scene.stamp("anna") == before
    assert scene.ready == ["anna", "anna"]
    scene.logins = HiveLogins()
    scene.logins.wish("anna", "minted again", fresh=True)  # its Secret was lost meanwhile
    assert await scene.sync() is None
    assert await scene.lets_in("anna", "minted again")


async def test_on_another_server_nothing_is_believed(scene: Scene) -> None:
    for agent in ("anna", "bert"):
        scene.logins.wish(agent, f"of-{agent}", fresh=True)
    await scene.sync()
    # As in a server that was left, and had the login before its password was replaced elsewhere.
    await scene.root.execute(f"ALTER ROLE {quote(scene.role('bert'))} PASSWORD 'former'")
    scene.url = scene.url.replace("127.0.0.1", "localhost")
    assert await scene.sync() is None
    assert await scene.lets_in("bert", "of-bert")


async def test_a_password_that_was_changed_by_hand_is_set_again(scene: Scene) -> None:
    scene.logins.wish("anna", "pw", fresh=True)
    await scene.sync()
    await scene.root.execute(f"ALTER ROLE {scene.role('anna')} PASSWORD 'changed'")
    scene.logins, scene.ready = HiveLogins(), []
    scene.logins.wish("anna", "pw", fresh=False)
    report = await scene.sync()
    assert report is not None
    assert (report.reason, scene.ready) == ("RolesFailed", [])
    assert "pw" not in report.message
    assert await scene.sync() is None
    assert scene.ready == ["anna"]


async def test_a_login_that_cannot_be_made_does_not_keep_the_others(scene: Scene) -> None:
    await scene.root.execute(f"CREATE ROLE {scene.role('bert')} SUPERUSER")
    try:
        for agent in ("anna", "bert", "carl"):
            scene.logins.wish(agent, "pw", fresh=True)
        report = await scene.sync()
        assert report is not None
        assert (report.ok, report.reason) == (False, "RolesFailed")
        assert "passes by row-level security" in report.message
        assert scene.ready == ["anna", "carl"]
    finally:
        await scene.root.execute(f"DROP ROLE {scene.role('bert')}")
    assert await scene.sync() is None
    assert scene.ready == ["anna", "carl", "bert"]


async def test_only_logins_that_nobody_needs_are_dropped(scene: Scene) -> None:
    for agent in ("anna", "bert"):
        scene.logins.wish(agent, "pw", fresh=True)
    await scene.sync()
    for agent in ("anna", "bert"):
        scene.logins.forget(agent)
    scene.gone = {"anna"}
    assert await scene.sync() is None
    assert await scene.stamp("anna") == "None"
    assert await scene.stamp("bert") != "None"


async def test_a_login_that_cannot_be_dropped_lets_nobody_in_and_stops_nothing(
    scene: Scene, postgres: PostgresServer, caplog: pytest.LogCaptureFixture
) -> None:
    for agent in ("anna", "bert"):
        scene.logins.wish(agent, "pw", fresh=True)
    await scene.sync()
    elsewhere = await asyncpg.connect(postgres.url())
    try:
        await elsewhere.execute(f"CREATE TABLE {scene.schema} ()")
        await elsewhere.execute(f"ALTER TABLE {scene.schema} OWNER TO {scene.role('anna')}")
        scene.logins.forget("anna")
        scene.logins.wish("carl", "pw", fresh=True)
        scene.gone = {"anna"}
        with caplog.at_level(logging.WARNING):
            assert await scene.sync() is None
        assert f"role {scene.role('anna')} may no longer log in, and stays: it owns 1 object" in caplog.text
        assert scene.ready == ["anna", "bert", "carl"]
        with pytest.raises(asyncpg.InvalidAuthorizationSpecificationError):
            await scene.lets_in("anna", "pw")
    finally:
        await elsewhere.execute(f"DROP TABLE {scene.schema}")
        await elsewhere.close()


async def test_a_server_that_is_away_is_waited_for(scene: Scene) -> None:
    scene.logins.wish("anna", "pw", fresh=True)
    scene.url, url = "postgresql://u:p@127.0.0.1:1/d", scene.url
    report = await scene.sync()
    assert report is not None
    assert report.reason == "WaitingForPostgres"
    scene.url = url
    assert await scene.sync() is None
    assert scene.ready == ["anna"]


async def test_what_one_server_said_counts_for_no_other(scene: Scene) -> None:
    anna, demo, other = Key("Agent", "ns", "anna"), Key("AgentHive", "ns", "demo"), "postgresql://hive:word@other/d"
    async with Kube(client.Configuration()) as kube:
        logins = Logins(kube, ObjectCache(), KeyedQueue(nothing))
        logins.want(anna, demo, scene.schema, None, server=scene.url)
        assert await logins.sync(demo, Access(scene.url, admin=scene.url), scene.schema, shown=scene.url) is None
        login, _ = logins.want(anna, demo, scene.schema, None, server=scene.url)
        assert login is not None
        assert login.role == scene.role("anna")
        for server in (other, None):
            assert logins.want(anna, demo, scene.schema, None, server=server) == (None, False)


async def test_the_schema_goes_although_an_agent_is_in_the_middle_of_something(scene: Scene) -> None:
    scene.logins.wish("anna", "pw", fresh=True)
    assert await scene.sync() is None
    anna = await asyncpg.connect(with_login(scene.url, Login(scene.role("anna"), "pw")))
    await anna.execute(f"BEGIN; SELECT FROM {scene.schema}.agent_state")
    async with asyncio.timeout(20):
        await remove_schema(scene.url, scene.schema, roles=True)
    assert await scene.root.fetchval("SELECT to_regnamespace($1) IS NULL", scene.schema)
    assert await scene.root.fetchval("SELECT count(*) FROM pg_roles WHERE starts_with(rolname, $1)", scene.schema) == 0
    anna.terminate()


async def nothing(key: Key) -> None:
    del key


async def test_two_logins_are_let_in_while_one_replaces_the_other(scene: Scene) -> None:
    scene.logins.wish("anna", "first", fresh=True)
    await scene.sync()
    assert scene.logins.wish("anna", "second", fresh=True, generation=1, following=True)
    assert not scene.logins.wish("anna", "second", fresh=True, generation=1, following=True)
    assert not scene.logins.is_there("anna", 1)
    assert await scene.sync() is None
    assert scene.logins.is_ready("anna", "second", 1)
    assert scene.ready == ["anna", "anna"]
    for generation, password in enumerate(("first", "second")):
        assert await scene.lets_in("anna", password, generation)
    assert not scene.logins.wish("anna", "second", fresh=False, generation=1), "now the present one"
    assert scene.logins.revoke("anna", 0)
    assert not scene.logins.revoke("anna", 0)
    assert not scene.logins.is_revoked("anna", 0)
    assert await scene.sync() is None
    assert scene.logins.is_revoked("anna", 0)
    assert (scene.logins.is_there("anna", 0), scene.logins.is_there("anna", 1)) == (False, True)
    assert len(scene.ready) == 3
    assert not await scene.lets_in("anna", "first")
    assert await scene.lets_in("anna", "second", 1)
    assert await scene.sync() is None
    assert len(scene.ready) == 3, "nothing is told twice"


async def test_a_restarted_operator_finds_both_and_revokes_what_it_is_told(scene: Scene) -> None:
    scene.logins.wish("anna", "first", fresh=True)
    scene.logins.wish("anna", "second", fresh=True, generation=1)
    await scene.sync()
    scene.logins = HiveLogins()
    scene.logins.wish("anna", "second", fresh=False, generation=1)
    assert await scene.sync() is None
    assert scene.logins.is_there("anna", 0), "nobody said that it may go"
    scene.logins.wish("anna", "first", fresh=False)
    await scene.root.execute(f"DROP OWNED BY {scene.role('anna')}; DROP ROLE {scene.role('anna')}")
    assert await scene.sync() is None
    assert await scene.lets_in("anna", "first"), "the server lost what pods still use"
    scene.logins.revoke("anna", 0)
    scene.logins.forget("anna")
    scene.gone = {"anna"}
    assert await scene.sync() is None
    assert not await scene.lets_in("anna", "second", 1)
    assert not scene.logins.is_there("anna", 1)


async def test_a_next_login_that_cannot_be_made_is_no_trouble_of_the_hive(scene: Scene) -> None:
    scene.logins.wish("anna", "first", fresh=True)
    await scene.sync()
    await scene.root.execute(f"CREATE ROLE {scene.role('anna', 1)} SUPERUSER")
    try:
        scene.logins.wish("anna", "second", fresh=True, generation=1, following=True)
        for _ in range(2):
            assert await scene.sync() is None
        assert "passes by row-level security" in scene.logins.trouble("anna", 1)
        assert scene.ready == ["anna", "anna"], "told once"
        assert not scene.logins.is_ready("anna", "second", 1)
        assert scene.logins.is_ready("anna", "first")
    finally:
        await scene.root.execute(f"DROP ROLE {scene.role('anna', 1)}")
    assert await scene.sync() is None
    assert scene.logins.is_ready("anna", "second", 1)
    assert scene.logins.trouble("anna", 1) == ""


async def test_a_former_login_that_cannot_be_dropped_is_told_and_stops_nothing(scene: Scene) -> None:
    for generation in (0, 1):
        scene.logins.wish("anna", "pw", fresh=True, generation=generation)
    await scene.sync()
    other = f"admin_{scene.schema}"
    await scene.root.execute(f"CREATE ROLE {other} LOGIN CREATEROLE PASSWORD 'pw'")
    owner, name = role_names(scene.schema).owner, urlsplit(scene.url).path.lstrip("/")
    await scene.root.execute(f'GRANT {owner} TO {other}; GRANT CREATE ON DATABASE "{name}" TO {other}')
    root, scene.url = scene.url, with_login(scene.url, Login(other, "pw"))
    try:
        scene.logins.revoke("anna", 0)
        scene.logins.wish("bert", "pw", fresh=True)
        assert await scene.sync() is not None, "this administrator did not make the group"
        assert not scene.logins.is_revoked("anna", 0)
        assert "permission denied" in scene.logins.trouble("anna", 0)
    finally:
        scene.url = root
    assert await scene.sync() is None
    assert scene.logins.is_revoked("anna", 0)
    assert scene.logins.trouble("anna", 0) == ""
    await scene.root.execute(f"DROP OWNED BY {other}; DROP ROLE {other}")
