"""A Redis user for each agent: made, kept, restored, dropped; and what happens where that cannot be done."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import redis.asyncio
from tests.conftest import ValkeyServer

from agenthive.bus import Bus
from agenthive.bus.access import user_name
from agenthive.bus.errors import AccessDenied
from agenthive.bus.keys import AgentKeys
from agenthive.bus.library import library
from agenthive.protocol import AgentMessage
from agenthive.settings import HiveScope
from agenthive_operator.backends.logins import Login, login_in, with_login
from agenthive_operator.reconcile.context import Options

from .conftest import Cluster, running_operator

PROBE_SECONDS = 40.0
BOSS = "acl function fcall info ping time scan unlink"
"""What an administrator of users needs, as docs/security.md says."""
RESTORED_SECONDS = 5.0


@dataclass
class Servers:
    """A Redis of the test's own, two ways into it: as an ordinary user, and as one who may make users."""

    server: ValkeyServer
    postgres: str

    @property
    def url(self) -> str:
        return with_login(self.server.url, Login("app", "app-word"))

    @property
    def admin(self) -> str:
        return with_login(self.server.url, Login("boss", "boss-word"))

    @asynccontextmanager
    async def root(self) -> AsyncIterator[redis.asyncio.Redis]:
        async with redis.asyncio.Redis.from_url(self.server.url, protocol=2) as client:
            yield client

    async def make_users(self) -> None:
        """As an ACL file of the server's own would, over a restart too."""
        async with self.root() as root:
            await root.execute_command("ACL", "SETUSER", "app", "on", ">app-word", "~*", "&*", "+@all", "-acl")
            rights = [f"+{command}" for command in BOSS.split()]
            await root.execute_command("ACL", "SETUSER", "boss", "on", ">boss-word", "~ah:*", *rights)

    async def make_hive(self, cluster: Cluster, **spec: Any) -> None:
        urls = {"app": self.url, "admin": self.admin, "postgres": self.postgres}
        await cluster.create("Secret", "urls", stringData=urls)
        refs = {
            f"{name}SecretRef": {"name": "urls", "key": key} for name, key in (("url", "app"), ("adminUrl", "admin"))
        }
        servers = {
            "redis": {"external": refs},
            "postgres": {"external": {"urlSecretRef": {"name": "urls", "key": "postgres"}}},
        }
        await cluster.create("AgentHive", "demo", spec={**servers, **spec})

    async def users(self) -> set[str]:
        async with self.root() as root:
            return {name.decode() for name in await root.execute_command("ACL", "USERS")} - {"default", "app", "boss"}


@pytest.fixture
async def servers(own_valkey: ValkeyServer, postgres_url: str) -> Servers:
    servers = Servers(own_valkey, postgres_url)
    await servers.make_users()
    return servers


async def scope_in(cluster: Cluster) -> HiveScope:
    await cluster.condition("AgentHive", "demo", "RedisReady", "True")
    instance = (await cluster.need("AgentHive", "demo"))["status"]["instanceId"]
    return HiveScope(instance=instance, namespace=cluster.namespace, hive="demo")


async def url_of(cluster: Cluster, agent: str) -> str:
    secret = await cluster.exists("Secret", f"{agent}-agenthive")
    return base64.b64decode(secret["data"]["AGENTHIVE_REDIS_URL"]).decode()


def user_in(url: str) -> str | None:
    login = login_in(url)
    return login.role if login else None


def message(to: str, number: int = 0) -> AgentMessage:
    return AgentMessage(from_agent="anna", to_agent=to, message_type="t", body={"n": number})


async def lets_in(url: str) -> bool:
    async with redis.asyncio.Redis.from_url(url, protocol=2) as client:
        try:
            return bool(await client.ping())
        except redis.RedisError:
            return False


@pytest.mark.usefixtures("operator")
async def test_each_agent_has_a_user_that_reads_its_own_queue(cluster: Cluster, servers: Servers) -> None:
    await servers.make_hive(cluster)
    for name in ("anna", "bert"):
        await cluster.agent(name, "demo")
        await cluster.exists("Deployment", name)
    scope = await scope_in(cluster)
    urls = {name: await url_of(cluster, name) for name in ("anna", "bert")}
    assert {name: user_in(url) for name, url in urls.items()} == {name: user_name(scope, name) for name in urls}
    anna, bert = [await Bus.connect(url, scope) for url in urls.values()]
    try:
        consumer = bert.consumer("bert", pod="p")
        await consumer.start()
        await anna.send(message("bert", 7))
        (delivery,) = await consumer.claim(1)
        assert delivery.message.body == {"n": 7}
        await consumer.ack(delivery)
        await consumer.aclose()
    finally:
        await anna.aclose()
        await bert.aclose()
    async with redis.asyncio.Redis.from_url(urls["anna"], protocol=2) as spy:
        with pytest.raises(redis.exceptions.NoPermissionError):
            await spy.xrange(AgentKeys.of(scope, "bert").dead)
    told = str((await cluster.list("AgentHive"), await cluster.list("Agent"), await cluster.list("Event")))
    for word in (
        "app-word",
        "boss-word",
        "://",
        *(login.password for url in urls.values() if (login := login_in(url))),
    ):
        assert word not in told


async def restored(servers: Servers, wanted: Callable[[], Any]) -> float:
    """Seconds from when the restarted server answers until ``wanted``."""
    servers.server.kill()
    servers.server.start()
    ready = time.monotonic()
    await servers.make_users()
    async with asyncio.timeout(PROBE_SECONDS):
        while not await wanted():  # noqa: ASYNC110 - polls under a deadline
            await asyncio.sleep(0.02)
    return time.monotonic() - ready


@pytest.mark.usefixtures("operator")
async def test_users_and_functions_are_there_again_after_a_restart(cluster: Cluster, servers: Servers) -> None:
    await servers.make_hive(cluster)
    await cluster.agent("anna", "demo")
    await cluster.exists("Deployment", "anna")
    url = await url_of(cluster, "anna")
    assert await lets_in(url)
    assert await restored(servers, lambda: lets_in(url)) < RESTORED_SECONDS
    # Down for so long that looks have become rare.
    servers.server.kill()
    await cluster.condition("AgentHive", "demo", "RedisReady", "False", "Unreachable")
    await asyncio.sleep(6)
    assert await restored(servers, lambda: lets_in(url)) < RESTORED_SECONDS
    async with servers.root() as root:
        await root.execute_command("FUNCTION", "FLUSH")

    async def loaded() -> bool:
        async with servers.root() as root:
            return bool(await root.execute_command("FUNCTION", "LIST", "LIBRARYNAME", library().name))

    assert await restored(servers, loaded) < RESTORED_SECONDS
    assert await url_of(cluster, "anna") == url


async def test_a_restarted_operator_keeps_users_and_writes_nothing(
    cluster: Cluster, options: Options, servers: Servers
) -> None:
    async with running_operator(options):
        await servers.make_hive(cluster)
        await cluster.agent("anna", "demo")
        await cluster.exists("Deployment", "anna")
    url, before = await url_of(cluster, "anna"), await cluster.versions()
    async with running_operator(options):
        await cluster.agent("bert", "demo", replicas=0)
        await cluster.exists("Deployment", "bert")
    assert await url_of(cluster, "anna") == url
    assert await lets_in(url)
    now = await cluster.versions()
    unchanged = [("Secret", "anna-agenthive"), ("Deployment", "anna")]
    assert [now[ref] for ref in unchanged] == [before[ref] for ref in unchanged]


@pytest.mark.usefixtures("brisk", "operator")
async def test_a_user_goes_with_its_agent_once_its_pods_are_gone(cluster: Cluster, servers: Servers) -> None:
    await servers.make_hive(cluster)
    for name in ("anna", "bert"):
        await cluster.agent(name, "demo")
        await cluster.exists("Deployment", name)
    scope = await scope_in(cluster)
    labels = (await cluster.need("Deployment", "anna"))["spec"]["template"]["metadata"]["labels"]
    container = {"name": "agent", "image": "x"}
    await cluster.create("Pod", "draining", metadata={"labels": labels}, spec={"containers": [container]})
    await cluster.delete("Agent", "anna")
    await cluster.gone("Agent", "anna")
    await cluster.agent("carl", "demo")  # a user that is made after a look at which are needed
    await cluster.exists("Deployment", "carl")
    assert user_name(scope, "anna") in await servers.users(), "a pod that drains needs its user"
    await cluster.delete("Pod", "draining")

    async def dropped() -> bool:
        return user_name(scope, "anna") not in await servers.users()

    await cluster.until("the user is dropped", dropped, PROBE_SECONDS)
    assert await servers.users() == {user_name(scope, name) for name in ("bert", "carl")}


@pytest.mark.usefixtures("operator")
async def test_an_administrator_without_rights_leaves_what_runs_as_it_is(cluster: Cluster, servers: Servers) -> None:
    await servers.make_hive(cluster)
    await cluster.agent("anna", "demo")
    deployment = await cluster.exists("Deployment", "anna")
    url = await url_of(cluster, "anna")
    await cluster.patch("Secret", "urls", stringData={"admin": servers.url})
    entry = await cluster.condition("AgentHive", "demo", "RedisReady", "True", "NewServerRefused")
    assert "(UsersFailed)" in entry["message"]
    assert "adminUrlSecretRef" in entry["message"]
    assert "app-word" not in entry["message"]
    assert await url_of(cluster, "anna") == url
    now = await cluster.need("Deployment", "anna")
    assert now["metadata"]["generation"] == deployment["metadata"]["generation"]
    assert await lets_in(url)
    await cluster.patch("Secret", "urls", stringData={"admin": servers.admin})
    await cluster.condition("AgentHive", "demo", "RedisReady", "True")


@pytest.mark.usefixtures("operator")
async def test_all_users_go_with_a_hive_that_is_deleted_with_its_data(cluster: Cluster, servers: Servers) -> None:
    await servers.make_hive(cluster, deletionPolicy="Delete")
    await cluster.agent("anna", "demo")
    await cluster.exists("Deployment", "anna")
    url = await url_of(cluster, "anna")
    for kind, name in (("Agent", "anna"), ("AgentHive", "demo")):
        await cluster.delete(kind, name)
    await cluster.gone("AgentHive", "demo", PROBE_SECONDS)
    assert await servers.users() == set()
    with pytest.raises(AccessDenied):
        await Bus.connect(url, HiveScope(namespace=cluster.namespace, hive="demo"))
