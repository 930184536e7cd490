"""The bus as agents with users of their own have it: all of it works, and nothing else does."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from urllib.parse import quote

import pytest
import redis.asyncio
from redis.exceptions import NoPermissionError, ResponseError
from tests.conftest import ValkeyServer
from tests.integration.bus.test_backpressure import *  # noqa: F403 - run here once more, as users
from tests.integration.bus.test_cancel import *  # noqa: F403
from tests.integration.bus.test_deduplication import *  # noqa: F403
from tests.integration.bus.test_delivery import *  # noqa: F403
from tests.integration.bus.test_every import *  # noqa: F403
from tests.integration.bus.test_failures import *  # noqa: F403
from tests.integration.bus.test_in_order import *  # noqa: F403
from tests.integration.bus.test_leases import *  # noqa: F403
from tests.integration.bus.test_letters import *  # noqa: F403
from tests.integration.bus.test_ordering import *  # noqa: F403
from tests.integration.bus.test_requests import *  # noqa: F403
from tests.integration.bus.test_status import *  # noqa: F403
from tests.integration.bus.test_topics import *  # noqa: F403

from agenthive.bus import Bus, BusUnavailable, Consumer
from agenthive.bus.access import user_name, user_rules
from agenthive.bus.errors import FunctionsMissing
from agenthive.bus.keys import AgentKeys
from agenthive.bus.library import library
from agenthive.cache_entries import state_name
from agenthive.settings import HiveScope, Messaging

SENDER = "tester"
SENDS = {
    "_replies", "_sender", "_watches", "available", "checked", "clock", "find", "messaging", "publish", "request",
    "scope", "send", "send_in_order", "status", "statuses", "watch",
}  # fmt: skip
"""What agents do to others."""
TOOLS = {"agents", "queues", "redrive", "topics"}
"""What people do, with the hive's own user; all else is done by the agent whose queue it is."""
AGENTS = ("tester", "worker", "other", "alpha", "beta", "mailer", "historian", "archivist")


class Users:
    """Makes users in a server, by its administrator."""

    def __init__(self, admin: redis.asyncio.Redis, url: str, scope: HiveScope) -> None:
        self.admin = admin
        self.scope = scope
        self._url = url
        self._passwords: dict[str, str] = {}

    async def url(self, agent: str) -> str:
        name = user_name(self.scope, agent)
        if agent not in self._passwords:
            self._passwords[agent] = secrets.token_hex(8)
            rules = ["reset", "on", f">{self._passwords[agent]}", *user_rules(self.scope, agent)]
            await self.admin.execute_command("ACL", "SETUSER", name, *rules)
        return f"redis://{quote(name, safe='')}:{self._passwords[agent]}@{self._url.rpartition('@')[2]}"

    async def aclose(self) -> None:
        for agent in self._passwords:
            await self.admin.execute_command("ACL", "DELUSER", user_name(self.scope, agent))


class ManyBuses:
    """One bus to look at, and in truth that of each agent: with its own user, which is that of a sender to others."""

    def __init__(self, users: Users, url: str, messaging: Messaging) -> None:
        self._users = users
        self._url, self._messaging = url, messaging
        self._buses: dict[str, Bus] = {}

    async def _open(self, agent: str) -> Bus:
        if agent not in self._buses:
            url = await self._users.url(agent)
            self._buses[agent] = await Bus.connect(url, self._users.scope, messaging=self._messaging)
        return self._buses[agent]

    async def start(self) -> None:
        for agent in AGENTS:
            await self._open(agent)
        self._buses[""] = await Bus.connect(self._url, self._users.scope, messaging=self._messaging)

    def __getattr__(self, name: str) -> Any:
        if name in SENDS:
            return getattr(self._buses[SENDER], name)
        if name in TOOLS or name.startswith("_"):
            return getattr(self._buses[""], name)
        if name == "fire":
            return self._buses["worker"].fire
        if name == "consumer":
            return lambda agent, **options: self._buses.get(agent, self._buses[""]).consumer(agent, **options)

        async def own(agent: str, *args: Any, **options: Any) -> Any:
            return await getattr(await self._open(agent), name)(agent, *args, **options)

        return own

    def __setattr__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            super().__setattr__(name, value)
        for bus in self._buses.values() if name == "messaging" else ():
            bus.messaging = value

    async def aclose(self) -> None:
        for bus in self._buses.values():
            await bus.aclose()


@pytest.fixture
async def users(valkey: ValkeyServer, scope: HiveScope) -> AsyncIterator[Users]:
    async with redis.asyncio.Redis.from_url(valkey.url, protocol=2) as admin:
        await admin.execute_command("FUNCTION", "LOAD", "REPLACE", library().code)
        users = Users(admin, valkey.url, scope)
        yield users
        await users.aclose()


@pytest.fixture
async def connect(users: Users, redis_url: str) -> AsyncIterator[Callable[..., Awaitable[Any]]]:
    opened: list[Any] = []

    async def connect(url: str = redis_url, **messaging: Any) -> Any:
        if url == redis_url:
            bus: Any = ManyBuses(users, url, Messaging(**messaging))
            await bus.start()
        else:  # a server of the test's own, which is to be broken: with its administrator
            bus = await Bus.connect(url, users.scope, messaging=Messaging(**messaging))
        opened.append(bus)
        return bus

    yield connect
    for bus in opened:
        await bus.aclose()


# ---- what is refused


async def as_user(users: Users, agent: str) -> redis.asyncio.Redis:
    return redis.asyncio.Redis.from_url(await users.url(agent), protocol=2)


async def test_another_agents_queue_is_closed(
    users: Users, scope: HiveScope, bus: Any, consume: Any, make: Any
) -> None:
    consumer: Consumer = await consume()
    message_id = await bus.send(make(1))
    (delivery,) = await consumer.claim(1)
    keys, queue = AgentKeys.of(scope, "worker"), f"{scope.key_prefix('worker')}q:2"
    entry, call = delivery.entry, library().call
    async with await as_user(users, "spy") as spy:
        for command in (
            ("XRANGE", queue, "-", "+"),
            ("XREAD", "STREAMS", queue, "0"),
            ("XREADGROUP", "GROUP", "agents", "spy", "STREAMS", queue, ">"),
            ("XACK", queue, "agents", entry),
            ("XCLAIM", queue, "agents", "spy", 0, entry),
            ("XDEL", queue, entry),
            ("XTRIM", queue, "MAXLEN", 0),
            ("XGROUP", "DESTROY", queue, "agents"),
            ("DEL", queue),
            ("UNLINK", queue),
            ("RENAME", queue, f"{scope.key_prefix('spy')}x"),
            ("COPY", queue, f"{scope.key_prefix('spy')}x"),
            ("DUMP", queue),
            ("EXPIRE", queue, 1),
            ("BLPOP", keys.wake, 1),
            ("HGET", f"{scope.key_prefix('worker')}held", message_id),
            ("ZRANGE", f"{scope.key_prefix('worker')}consumers", 0, -1),
            ("XRANGE", keys.dead, "-", "+"),
            call("turn", keys.gate, "spy", 1000, 1000, 3, 9, 9, 9, 9, "00", "0", 0, 0, 0, 0, 0, 0, 0, 0),
            call("register", keys.gate, "spy", 1000),
            call("reclaim", keys.gate, "spy", ""),
            call("leave", keys.gate, consumer.name),
            call("cancel", keys.gate, message_id, "", 1000),
            call("purge", keys.gate, "0-1"),
        ):
            with pytest.raises(ResponseError, match=r"(?i)permission|NOPERM|ACL"):
                await spy.execute_command(*command)
    await consumer.ack(delivery)
    assert (await bus.status("worker", message_id)).final


async def test_nothing_of_other_hives_and_no_administration(
    users: Users, scope: HiveScope, valkey: ValkeyServer
) -> None:
    foreign = HiveScope(namespace=scope.namespace, hive="other")
    namesake = HiveScope(namespace=scope.namespace, hive=f"{scope.hive}-2")
    async with await as_user(users, "spy") as spy:
        for command in (
            *(library().call("send", AgentKeys.of(other, "worker").gate, "0", "9") for other in (foreign, namesake)),
            *(("XADD", f"{other.key_prefix('worker')}q:2", "*", "m", "x") for other in (foreign, namesake)),
            ("SUBSCRIBE", f"{foreign.hive_prefix}reply:x"),
            ("PSUBSCRIBE", f"{scope.hive_prefix}reply:*"),
            ("PUBLISH", "anything", "x"),
            ("GET", "anything"),
            ("FUNCTION", "LOAD", "REPLACE", library().code),
            ("FUNCTION", "FLUSH"),
            ("FUNCTION", "LIST"),
            ("EVAL", "return 1", 0),
            ("SCRIPT", "FLUSH"),
            ("ACL", "LIST"),
            ("ACL", "SETUSER", "spy", "on"),
            ("CONFIG", "GET", "*"),
            ("INFO",),
            ("KEYS", "*"),
            ("SCAN", 0),
            ("RANDOMKEY",),
            ("FLUSHDB",),
            ("FLUSHALL", "ASYNC"),
            ("CLIENT", "LIST"),
            ("CLIENT", "KILL", "TYPE", "normal"),
            ("MONITOR",),
            ("REPLICAOF", "NO", "ONE"),
            ("BGREWRITEAOF",),
            ("SHUTDOWN", "NOSAVE"),
        ):
            with pytest.raises(NoPermissionError):
                await spy.execute_command(*command)
        await spy.ping()


async def test_the_cache_of_others_is_closed_and_ones_own_and_the_hives_are_open(
    users: Users, scope: HiveScope
) -> None:
    gate, call = f"{scope.hive_prefix}gate", library().call
    long = state_name("worker", "k" * 500)
    async with await as_user(users, "worker") as worker, await as_user(users, "spy") as spy:
        for name in ("s:worker:k", "f:worker:k", "s::shared", "f::shared", long, state_name("", "k" * 500)):
            await worker.execute_command(*call("cache_lease", gate, "token", name))
            filled = await worker.execute_command(*call("cache_fill", gate, 10**6, name, "token", 9000, "V1", "secret"))
            assert filled == b"1"
            await worker.execute_command(*call("cache_renew", gate, name, "token"))
        for name in ("s:worker:k", "f:worker:k", long):
            for command in (
                ("MGET", f"{scope.hive_prefix}c:{name}"),
                call("cache_lease", gate, "spy", name),
                call("cache_change", gate, 0, 1, name, "", "", ""),
            ):
                with pytest.raises(ResponseError, match=r"(?i)permission|ACL"):
                    await spy.execute_command(*command)
        (shared,) = await spy.mget(f"{scope.hive_prefix}c:s::shared")
        assert shared.endswith(b"secret")
        await spy.execute_command(*call("cache_change", gate, 10**6, 1, "s::shared", "", "", ""))
        assert await spy.mget(f"{scope.hive_prefix}c:s::shared") == [None]


# ---- the functions


async def send_at_last(bus: Bus, message: Any) -> None:
    """Send, in spite of a circuit that is open for a while."""
    while True:
        try:
            await bus.send(message)
        except BusUnavailable:
            await asyncio.sleep(0.1)
        else:
            return


async def test_figures_that_rules_of_an_earlier_version_do_not_show_are_unknown(
    users: Users, scope: HiveScope, make: Any
) -> None:
    url = await users.url("worker")
    rules = [rule.replace("+xinfo|stream", "-xinfo|stream") for rule in user_rules(scope, "worker")]
    await users.admin.execute_command("ACL", "SETUSER", user_name(scope, "worker"), "clearselectors", *rules)
    bus = await Bus.connect(url, scope)
    try:
        await bus.send(make(1))
        stats = await bus.queue("worker")
        assert (stats.backlog, stats.arrived, stats.finished, stats.given_up) == (1, None, None, None)
    finally:
        await bus.aclose()


async def test_who_may_not_load_the_functions_uses_those_that_are_there(
    users: Users, own_valkey: ValkeyServer, scope: HiveScope, make: Any, until: Any
) -> None:
    """Without them it says what is wrong; once somebody has loaded them a process goes on by itself."""
    async with redis.asyncio.Redis.from_url(own_valkey.url, protocol=2) as admin:
        url = await Users(admin, own_valkey.url, scope).url("worker")
        with pytest.raises(FunctionsMissing, match=rf"no library {library().name}.*may not load it.*same version"):
            await Bus.connect(url, scope)
        await admin.execute_command("FUNCTION", "LOAD", library().code)
        bus = await Bus.connect(url, scope)
        consumer = bus.consumer("worker", pod="p")
        await consumer.start()
        try:
            await bus.send(make(1))
            (delivery,) = await consumer.claim(1)
            await consumer.ack(delivery)
            await admin.execute_command("FUNCTION", "FLUSH")
            claiming = asyncio.create_task(consumer.claim(1))
            sending = asyncio.create_task(send_at_last(bus, make(2)))
            await until(lambda: "no library" in bus.trouble)
            assert not bus.available
            await admin.execute_command("FUNCTION", "LOAD", library().code)
            (delivery,) = await claiming
            await sending
            assert delivery.message.body == {"n": 2}
            await consumer.ack(delivery)
            assert bus.available
            assert bus.trouble == ""
        finally:
            await consumer.aclose()
            await bus.aclose()


async def test_a_server_that_comes_back_without_its_users_is_waited_for(
    own_valkey: ValkeyServer, scope: HiveScope, make: Any, until: Any
) -> None:
    async with redis.asyncio.Redis.from_url(own_valkey.url, protocol=2) as admin:
        await admin.execute_command("FUNCTION", "LOAD", library().code)
        users = Users(admin, own_valkey.url, scope)
        bus = await Bus.connect(await users.url("worker"), scope)
        consumer = bus.consumer("worker", pod="p")
        await consumer.start()
        try:
            await bus.send(make(1))
            own_valkey.kill()
            own_valkey.start()
            sending = asyncio.create_task(send_at_last(bus, make(2)))
            await until(lambda: "WRONGPASS" in bus.trouble)
            name, password = user_name(scope, "worker"), users._passwords["worker"]
            rules = ["reset", "on", f">{password}", *user_rules(scope, "worker")]
            await admin.execute_command("ACL", "SETUSER", name, *rules)
            seen: list[int] = []
            while len(seen) < 2:
                for delivery in await consumer.claim(2):
                    seen.append(delivery.message.body["n"])
                    await consumer.ack(delivery)
            assert sorted(seen) == [1, 2]
            await sending
        finally:
            await consumer.aclose()
            await bus.aclose()
