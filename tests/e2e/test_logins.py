"""On the managed servers each agent has a login of its own, from the first start to its end."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import asyncpg
import psutil
import pytest
import redis.asyncio
from tests.e2e.plane import Plane, agent, environment, hive

from agenthive.bus.access import user_name
from agenthive.settings import Settings
from agenthive.store import schema_name
from agenthive.store.roles import agent_role
from agenthive_operator.backends.connections import hive_settings
from agenthive_operator.backends.kube import Kube
from agenthive_operator.backends.logins import login_in
from agenthive_operator.backends.resolve import Resolver

pytestmark = [pytest.mark.needs("processes"), pytest.mark.timeout(240)]

KEEPER = """
from agenthive import Agent

agent = Agent("keeper")


@agent.on("keep")
async def keep(message, ctx):
    await ctx.state.set("secret", message.body["secret"])
    return {"kept": await ctx.state.get("secret")}
"""


@pytest.fixture
def settings(plane: Plane, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """A hive with two agents that are ready, and how its own login reaches it."""
    monkeypatch.setenv("KUBECONFIG", str(plane.kubeconfig))
    for name in ("anna", "bert"):
        plane.apply(*agent(name, code=KEEPER))
    plane.apply(hive())
    plane.wait("condition=Ready", "hive/hive", "agent/anna", "agent/bert")
    return asyncio.run(hive_settings("hive", plane.namespace))


def run(url: str, work: Callable[[Any], Awaitable[Any]]) -> Any:
    """What ``work`` returns, with a connection to ``url``, whose Service name is resolved."""

    async def connected() -> Any:
        async with await Kube.connect() as kube:
            connection = await asyncpg.connect(await Resolver(kube, enabled=True).resolve(url))
        try:
            return await work(connection)
        finally:
            await connection.close()

    return asyncio.run(connected())


def url_in(plane: Plane, name: str) -> str:
    return base64.b64decode(plane.get(f"secret/{name}-agenthive")["data"]["AGENTHIVE_POSTGRES_URL"]).decode()


def ask(plane: Plane, name: str, secret: str) -> Any:
    body = json.dumps({"secret": secret})
    answer = plane.agenthive("ask", name, "keep", body, "--hive", "hive", "--timeout", "60", "--output", "json")
    return json.loads(answer)


def test_agents_keep_their_state_from_each_other(plane: Plane, settings: Settings) -> None:
    for name in ("anna", "bert"):
        assert ask(plane, name, f"of {name}") == {"kept": f"of {name}"}
    schema = schema_name(settings.scope)
    seen = run(url_in(plane, "anna"), lambda c: c.fetch(f"SELECT agent FROM {schema}.agent_state"))
    assert {row["agent"] for row in seen} == {"anna"}
    assert settings.postgres_url is not None
    everything = settings.postgres_url.get_secret_value()
    seen = run(everything, lambda c: c.fetch(f"SELECT agent FROM {schema}.agent_state"))
    assert {row["agent"] for row in seen} == {"anna", "bert"}
    users = run(everything, lambda c: c.fetch("SELECT DISTINCT usename FROM pg_stat_activity"))
    assert {agent_role(schema, name) for name in ("anna", "bert")} <= {row["usename"] for row in users}


def test_a_login_ends_with_its_agent_and_begins_again_with_it(plane: Plane, settings: Settings) -> None:
    ask(plane, "anna", "kept")
    schema = schema_name(settings.scope)
    assert settings.postgres_url is not None
    everything = settings.postgres_url.get_secret_value()
    there = "SELECT count(*) FROM pg_roles WHERE rolname = $1"

    def count() -> Any:
        return run(everything, lambda c: c.fetchval(there, agent_role(schema, "anna")))

    assert count() == 1
    plane.kubectl("delete", "agent/anna")
    plane.until(lambda: count() == 0, "the login is dropped")
    plane.apply(*agent("anna", code=KEEPER))
    plane.wait("condition=Ready", "agent/anna")
    assert count() == 1
    rows = run(url_in(plane, "anna"), lambda c: c.fetch(f"SELECT key FROM {schema}.agent_state"))
    assert [row["key"] for row in rows] == ["secret"], "what the agent kept outlives its login"


def test_each_agent_has_a_redis_user_that_outlives_the_server(plane: Plane, settings: Settings) -> None:
    def redis_url(name: str) -> str:
        data = plane.get(f"secret/{name}-agenthive")["data"]
        return base64.b64decode(data["AGENTHIVE_REDIS_URL"]).decode()

    before = {name: redis_url(name) for name in ("anna", "bert")}
    for name, url in before.items():
        login = login_in(url)
        assert login is not None
        assert login.role == user_name(settings.scope, name)
    assert settings.redis_url.get_secret_value() not in before.values()
    assert ask(plane, "anna", "before") == {"kept": "before"}
    plane.until(lambda: users_in_file(plane) == 2, "the file of users has both")
    pods = plane.get("pod/hive-redis-0")["metadata"]["uid"]
    with no_operator(plane):
        plane.kubectl("delete", "pod/hive-redis-0")
        plane.until(lambda: pods not in plane.kubectl("get", "pods", "-o", "yaml"), "the server ended")
        plane.until(lambda: plane.kubectl("get", "pods", "-o", "name").count("pod/hive-redis-0"), "another comes")
        plane.wait("condition=Ready", "pod/hive-redis-0")
        assert [asyncio.run(comes_in(url)) for url in before.values()] == [True, True]
    plane.wait("condition=Ready", "hive/hive", "agent/anna")
    assert ask(plane, "anna", "after") == {"kept": "after"}
    assert {name: redis_url(name) for name in before} == before


def users_in_file(plane: Plane) -> int:
    """How many users the managed Redis finds when it starts."""
    found = plane.kubectl("get", "secret/hive-redis-users", "--ignore-not-found", "-o", "jsonpath={.data.users\\.acl}")
    return base64.b64decode(found).count(b"user ah:")


@contextlib.contextmanager
def no_operator(plane: Plane) -> Iterator[None]:
    """Nobody acts meanwhile: the operator is halted."""
    halted = [process for process in psutil.process_iter() if is_operator(process, plane)]
    assert halted
    for process in halted:
        process.suspend()
    try:
        yield
    finally:
        for process in halted:
            process.resume()


def is_operator(process: psutil.Process, plane: Plane) -> bool:
    """Whether a process is the operator of this plane."""
    try:
        return "agenthive_operator" in process.cmdline() and environment(process)["KUBECONFIG"] == str(plane.kubeconfig)
    except (psutil.Error, KeyError):
        return False


async def comes_in(url: str) -> bool:
    """Whether Redis lets in by this URL, whose Service name is resolved."""
    async with await Kube.connect() as kube:
        dialled = await Resolver(kube, enabled=True).resolve(url)
    async with redis.asyncio.Redis.from_url(dialled, protocol=2) as client:
        return bool(await client.ping())
