"""Users of agents on every server of a Redis: with sentinels, in a Cluster, over restarts and failovers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence

import pytest
from redis.exceptions import AuthenticationError
from tests.conftest import ValkeyServer
from tests.integration.bus.servers import RedisCluster, SentinelSetUp, ask, running_cluster, running_sentinels

from agenthive.bus import Bus
from agenthive.bus.access import user_name
from agenthive.bus.endpoint import Endpoint
from agenthive.bus.library import library
from agenthive.protocol import AgentMessage
from agenthive.settings import HiveScope
from agenthive_operator.backends.logins import Login, with_login
from agenthive_operator.backends.postgres import Access
from agenthive_operator.backends.users import HiveUsers, UsersError, check_admin, remove_users
from agenthive_operator.backends.vigil import Vigil

RESTORED_SECONDS = 5.0


@pytest.fixture(scope="module")
def redis_cluster() -> Iterator[RedisCluster]:
    with running_cluster(replica=True) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def sentinels() -> Iterator[SentinelSetUp]:
    with running_sentinels() as setup:
        yield setup


@pytest.fixture
def scope(unique: str) -> HiveScope:
    return HiveScope(namespace=unique, hive="demo")


class Hive:
    """What the operator does for one hive, without its reconcilers."""

    def __init__(self, url: str, scope: HiveScope) -> None:
        self.access = Access(url, admin=url)
        self.scope = scope
        self.users = HiveUsers()
        self.gone: set[str] = set()
        self.ready: list[str] = []
        self._changed = asyncio.Event()
        self._vigil = Vigil(self._changed.set)

    async def sync(self) -> None:
        async def is_gone(agent: str) -> bool:
            return agent in self.gone

        nodes = await self.users.sync(self.access, self.scope, is_gone=is_gone, on_ready=self.ready.append)
        assert self.access.admin is not None
        self._vigil.keep(Endpoint.parse(self.access.admin), nodes)

    async def run(self) -> None:
        """Look whenever the vigil says so, with a pause after a failure as the monitor makes it."""
        try:
            while True:
                await self._changed.wait()
                self._changed.clear()
                try:
                    await self.sync()
                except UsersError as error:
                    if error.reason != "Unreachable":
                        raise
        finally:
            await self._vigil.aclose()


def lets_in(server: ValkeyServer, user: str, password: str) -> bool:
    try:
        return bool(ask(server, "AUTH", user, password))
    except AuthenticationError:
        return False


async def restored(server: ValkeyServer, user: str, password: str) -> float:
    """Seconds from when the server, killed and started, answers until it knows the user."""
    server.kill()
    await asyncio.sleep(1)
    await asyncio.to_thread(server.start)
    start = time.monotonic()
    async with asyncio.timeout(30):
        while not await asyncio.to_thread(lets_in, server, user, password):  # noqa: ASYNC110 - polls under a deadline
            await asyncio.sleep(0.02)
    return time.monotonic() - start


async def work(hive: Hive, agent: str, password: str) -> None:
    """Send to oneself and handle it, as the agent's user."""
    url = with_login(hive.access.url, Login(user_name(hive.scope, agent), password))
    bus = await Bus.connect(url, hive.scope)
    try:
        consumer = bus.consumer(agent, pod="p", topics=["news"])
        await consumer.start()
        await bus.send(AgentMessage(from_agent=agent, to_agent=agent, message_type="t"))
        (delivery,) = await consumer.claim(1)
        await consumer.ack(delivery)
        await consumer.aclose()
    finally:
        await bus.aclose()


async def tried(hive: Hive, servers: Sequence[ValkeyServer]) -> None:
    """Whether users could be made is found out, and nothing of that stays."""
    try:
        await check_admin(hive.access, hive.scope)
    finally:
        assert not any(name.startswith(b"ah-probe:") for server in servers for name in ask(server, "ACL", "USERS"))


async def test_a_cluster_has_them_on_every_node(redis_cluster: RedisCluster, scope: HiveScope) -> None:
    hive, name = Hive(redis_cluster.url, scope), user_name(scope, "anna")
    for agent in ("anna", "bert"):
        assert hive.users.wish(agent, f"word-of-{agent}")
        assert not hive.users.is_ready(agent, f"word-of-{agent}")
    await tried(hive, redis_cluster.nodes)
    await hive.sync()
    assert sorted(hive.ready) == ["anna", "bert"]
    assert hive.users.is_ready("anna", "word-of-anna")
    assert all(lets_in(node, name, "word-of-anna") for node in redis_cluster.nodes)
    for node in redis_cluster.masters:
        assert ask(node, "FUNCTION", "LIST", "LIBRARYNAME", library().name)
    await work(hive, "anna", "word-of-anna")
    watching = asyncio.create_task(hive.run())
    try:
        replica = redis_cluster.nodes[-1]
        assert await restored(replica, name, "word-of-anna") < RESTORED_SECONDS
        assert await restored(redis_cluster.masters[1], name, "word-of-anna") < RESTORED_SECONDS
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
    await remove_users(redis_cluster.url, scope)
    assert not any(name.encode() in ask(node, "ACL", "USERS") for node in redis_cluster.nodes)


async def test_sentinels_lead_to_them_before_and_after_a_failover(sentinels: SentinelSetUp, scope: HiveScope) -> None:
    hive, name = Hive(sentinels.url, scope), user_name(scope, "anna")
    hive.users.wish("anna", "word")
    await tried(hive, sentinels.servers)
    await hive.sync()
    assert all(lets_in(server, name, "word") for server in sentinels.servers)
    watching = asyncio.create_task(hive.run())
    try:
        former = sentinels.master()
        former.kill()
        async with asyncio.timeout(30):
            while sentinels.master() is former:  # noqa: ASYNC110 - polls under a deadline
                await asyncio.sleep(0.1)
        await work(hive, "anna", "word")
        await hive.sync()  # with a replica that is away
        await asyncio.to_thread(former.start)
        start = time.monotonic()
        async with asyncio.timeout(30):
            while not lets_in(former, name, "word"):  # noqa: ASYNC110 - polls under a deadline
                await asyncio.sleep(0.05)
        assert time.monotonic() - start < RESTORED_SECONDS
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)


async def test_two_passwords_hold_at_once_and_what_was_dropped_is_made_again(
    own_valkey: ValkeyServer, scope: HiveScope
) -> None:
    hive, name = Hive(own_valkey.url, scope), user_name(scope, "anna")
    hive.users.wish("anna", "old")
    await hive.sync()
    assert hive.users.wish("anna", "new", keep=("old",))
    assert not hive.users.wish("anna", "new", keep=("old",)), "no news"
    assert not hive.users.is_ready("anna", "new")
    await hive.sync()
    assert all(lets_in(own_valkey, name, word) for word in ("old", "new"))
    assert all(hive.users.is_ready("anna", word) for word in ("old", "new"))
    assert hive.users.wished("anna") == "new"
    hive.users.wish("anna", "new")
    await hive.sync()
    assert [lets_in(own_valkey, name, word) for word in ("old", "new")] == [False, True]

    ask(own_valkey, "ACL", "DELUSER", name)
    ask(own_valkey, "ACL", "SETUSER", user_name(HiveScope(namespace="elsewhere", hive="demo"), "anna"), "on")
    await hive.sync()
    assert lets_in(own_valkey, name, "new")
    assert "word" not in str(ask(own_valkey, "ACL", "LIST")), "digests only"

    hive.users.forget("anna")
    await hive.sync()
    assert lets_in(own_valkey, name, "new"), "somebody still needs it"
    hive.gone.add("anna")
    await hive.sync()
    assert not lets_in(own_valkey, name, "new")
    assert b"ah:local/elsewhere/demo/anna" in ask(own_valkey, "ACL", "USERS"), "another hive's stays"


async def test_urls_that_lead_to_different_servers_are_told(
    own_valkey: ValkeyServer, valkey: ValkeyServer, scope: HiveScope
) -> None:
    hive = Hive(own_valkey.url, scope)
    hive.access = Access(valkey.url, admin=own_valkey.url)
    hive.users.wish("anna", "word")
    with pytest.raises(UsersError, match="lead to the same Redis") as told:
        await hive.sync()
    assert told.value.reason == "UsersFailed"
    with pytest.raises(UsersError, match="lead to the same Redis"):
        await tried(hive, [own_valkey, valkey])
    assert not hive.users.is_ready("anna", "word")
    for secret in (valkey.password, own_valkey.password):
        assert secret not in str(told.value)
