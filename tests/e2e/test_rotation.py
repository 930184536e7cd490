"""New credentials for an agent that is busy: no message is lost or handled twice, and the former ones end."""

from __future__ import annotations

import asyncio
import base64
import contextlib
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import asyncpg
import pytest
from redis import asyncio as aioredis
from redis.exceptions import AuthenticationError
from tests.e2e.plane import Plane, agent, hive

from agenthive.bus import Bus
from agenthive.protocol import AgentMessage
from agenthive.settings import Settings
from agenthive.store import schema_name
from agenthive.store.roles import agent_role
from agenthive_operator.backends.connections import hive_settings
from agenthive_operator.backends.kube import Kube
from agenthive_operator.backends.logins import Login, login_in
from agenthive_operator.backends.resolve import Resolver

pytestmark = [pytest.mark.needs("processes"), pytest.mark.timeout(300)]

PER_SECOND = 200
LEDGER = """
from agenthive import Agent

agent = Agent("ledger")


@agent.on("note")
async def note(message, ctx):
    key = str(message.body["number"])
    await ctx.state.set(key, await ctx.state.get(key, default=0) + 1)
"""


class Traffic:
    """Sends numbered messages at a steady pace until it is told to stop."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.sent = 0

    @contextlib.asynccontextmanager
    async def flowing(self) -> AsyncIterator[None]:
        assert self._settings.redis_url is not None
        url = self._settings.redis_url.get_secret_value()
        bus = await Bus.connect(url, self._settings.scope, messaging=self._settings.messaging)
        sending = asyncio.create_task(self._send(bus))
        try:
            yield
        finally:
            sending.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await sending
            await bus.aclose()

    async def _send(self, bus: Bus) -> None:
        clock = asyncio.get_running_loop().time
        start = clock()
        while True:
            number, self.sent = self.sent, self.sent + 1
            body = {"number": number}
            await bus.send(AgentMessage(from_agent="test", to_agent="ledger", message_type="note", body=body))
            await asyncio.sleep(start + self.sent / PER_SECOND - clock())


def secret_url(plane: Plane) -> str:
    return base64.b64decode(plane.get("secret/ledger-agenthive")["data"]["AGENTHIVE_POSTGRES_URL"]).decode()


def redis_url(plane: Plane) -> str:
    return base64.b64decode(plane.get("secret/ledger-agenthive")["data"]["AGENTHIVE_REDIS_URL"]).decode()


async def redis_refuses(url: str) -> bool:
    client = aioredis.Redis.from_url(await resolved(url))
    try:
        await client.ping()
    except AuthenticationError:
        return True
    finally:
        await client.aclose()
    return False


def login_of(plane: Plane) -> Login:
    login = login_in(secret_url(plane))
    assert login is not None
    return login


def rotated(plane: Plane) -> list[str]:
    events = plane.get("events")["items"]
    return [event["message"] for event in events if event["reason"] == "CredentialsRotated"]


async def resolved(url: str) -> str:
    async with await Kube.connect() as kube:
        return await Resolver(kube, enabled=True).resolve(url)


async def counts(url: str, schema: str) -> dict[int, int]:
    connection = await asyncpg.connect(url)
    try:
        rows = await connection.fetch(f"SELECT key, value FROM {schema}.agent_state WHERE agent = 'ledger'")
    finally:
        await connection.close()
    return {int(row["key"]): int(row["value"]) for row in rows}


def test_a_busy_agent_loses_nothing_while_its_credentials_rotate_twice(
    plane: Plane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(plane.kubeconfig))
    plane.apply(hive(), *agent("ledger", code=LEDGER, replicas=2))
    plane.wait("condition=Ready", "hive/hive", "agent/ledger")
    settings = asyncio.run(hive_settings("hive", plane.namespace))
    assert settings.postgres_url is not None
    schema, everything = schema_name(settings.scope), settings.postgres_url.get_secret_value()

    async def refused(url: str) -> bool:
        try:
            await (await asyncpg.connect(await resolved(url))).close()
        except asyncpg.InvalidAuthorizationSpecificationError:
            return True
        return False

    async def rotate(times: int, *command: str) -> None:
        """Ask, wait for the end, and look at what is left."""
        before, before_url, before_redis = login_of(plane), secret_url(plane), redis_url(plane)
        await asyncio.to_thread(plane.kubectl, "annotate", "--overwrite", *command)
        await asyncio.to_thread(plane.until, lambda: len(rotated(plane)) == times, "the rotation is told")
        after, url = login_of(plane), secret_url(plane)
        assert (after.role != before.role, after.password != before.password) == (True, True)
        assert await refused(before_url)
        assert not await refused(url)
        assert await redis_refuses(before_redis)
        assert not await redis_refuses(redis_url(plane))
        told = plane.kubectl("get", "hives,agents,deployments,replicasets,pods,events", "-o", "yaml")
        words = [urlsplit(each).password or "" for each in (before_redis, redis_url(plane))]
        for word in (before.password, after.password, *words):
            assert word not in told

    async def run() -> int:
        traffic = Traffic(settings)
        async with traffic.flowing():
            first = login_of(plane)
            await rotate(1, "agent/ledger", "agenthive.dev/rotate=1")
            assert login_of(plane).role == agent_role(schema, "ledger", 1)
            await rotate(2, "hive/hive", "agenthive.dev/rotate=now")
            assert login_of(plane).role == first.role, "the two logins take turns"
        return traffic.sent

    sent = asyncio.run(run())
    assert sent > 500
    plane.until(lambda: len(asyncio.run(counts(everything, schema))) >= sent - 1, "all messages are handled")
    found = asyncio.run(counts(everything, schema))
    assert set(range(sent - 1)) <= set(found), "nothing is lost"
    assert set(found.values()) == {1}, "pods that drain finish what they hold: nothing is handled twice"
    secret = plane.get("secret/ledger-agenthive")
    assert not [name for name in secret["data"] if name.startswith("PREVIOUS_")]
    pods = plane.get("pods", "-l", "agenthive.dev/agent=ledger")["items"]
    mark = secret["metadata"]["annotations"]["agenthive.dev/credentials"]
    assert {pod["metadata"]["labels"]["agenthive.dev/credentials"] for pod in pods} == {mark}
