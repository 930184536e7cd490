"""A hive that moves to another Redis while messages are being sent: none is lost, none handled twice."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import asyncpg
import pytest
from tests.e2e.plane import Plane, agent, hive

from agenthive.bus import Bus, HiveMoving
from agenthive.protocol import AgentMessage
from agenthive.settings import Settings
from agenthive.store import schema_name
from agenthive_operator.backends.connections import hive_settings

pytestmark = [pytest.mark.needs("processes"), pytest.mark.timeout(300)]

PER_SECOND = 100
LEDGER = """
import os

from agenthive import Agent

agent = Agent("ledger")
where = os.environ["AGENTHIVE_REDIS_URL"].rpartition("@")[2]


@agent.on("note")
async def note(message, ctx):
    key = f"{message.body['number']} {where}"
    await ctx.state.set(key, await ctx.state.get(key, default=0) + 1)
    await ctx.send("ledger", "again", message.body)


@agent.on("again")
async def again(message, ctx):
    key = f"again {message.body['number']}"
    await ctx.state.set(key, await ctx.state.get(key, default=0) + 1)
"""


class Traffic:
    """Sends numbered messages at a steady pace; while the hive moves it waits, looks where the hive is, sends again."""

    def __init__(self, namespace: str) -> None:
        self._namespace = namespace
        self.accepted: dict[int, str] = {}
        self.refused = 0

    def covers(self, numbers: range) -> bool:
        """Whether all these were accepted."""
        return len(self.accepted) >= len(numbers)

    @contextlib.asynccontextmanager
    async def flowing(self) -> AsyncIterator[None]:
        sending = asyncio.create_task(self._send())
        try:
            yield
        finally:
            sending.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await sending

    async def _send(self) -> None:
        number = 0
        while True:
            settings = await hive_settings("hive", self._namespace)
            url = url_of(settings)
            bus = await Bus.connect(url, settings.scope, messaging=settings.messaging)
            try:
                while True:
                    body = {"number": number}
                    await bus.send(AgentMessage(from_agent="test", to_agent="ledger", message_type="note", body=body))
                    self.accepted[number] = url.rpartition("@")[2]
                    number += 1
                    await asyncio.sleep(1 / PER_SECOND)
            except HiveMoving:
                self.refused += 1
                await asyncio.sleep(0.1)
            finally:
                await bus.aclose()


def url_of(settings: Settings) -> str:
    assert settings.redis_url is not None
    return settings.redis_url.get_secret_value()


def secret(name: str, **texts: str) -> dict[str, Any]:
    data = {key: base64.b64encode(text.encode()).decode() for key, text in texts.items()}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "data": data}


async def state(settings: Settings) -> dict[str, int]:
    assert settings.postgres_url is not None
    connection = await asyncpg.connect(settings.postgres_url.get_secret_value())
    try:
        schema = schema_name(settings.scope)
        rows = await connection.fetch(f"SELECT key, value FROM {schema}.agent_state WHERE agent = 'ledger'")
    finally:
        await connection.close()
    return {row["key"]: int(row["value"]) for row in rows}


def test_nothing_is_lost_and_nothing_handled_twice_while_a_busy_hive_moves(
    plane: Plane, monkeypatch: pytest.MonkeyPatch, valkey: Any, own_valkey: Any
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(plane.kubeconfig))
    redis = {"external": {"urlSecretRef": {"name": "redis", "key": "url"}}}
    plane.apply(secret("redis", url=valkey.url), hive(redis=redis), *agent("ledger", code=LEDGER, replicas=2))
    plane.wait("condition=Ready", "hive/hive", "agent/ledger")

    async def run() -> Traffic:
        traffic = Traffic(plane.namespace)
        places = [url.rpartition("@")[2] for url in (valkey.url, own_valkey.url)]
        async with traffic.flowing():
            for place in places:
                enough = range(len(traffic.accepted) + 200)
                await asyncio.to_thread(plane.until, partial(traffic.covers, enough), "messages flow")
                assert {traffic.accepted[max(traffic.accepted)]} == {place}
                if place == places[0]:
                    await asyncio.to_thread(plane.apply, secret("redis", url=own_valkey.url))
                    await asyncio.to_thread(
                        plane.until, lambda: places[1] in set(traffic.accepted.values()), "the hive has moved"
                    )
        return traffic

    traffic = asyncio.run(run())
    assert traffic.refused, "senders were told to wait"
    settings = asyncio.run(hive_settings("hive", plane.namespace))
    expected = {f"{number} {place}" for number, place in traffic.accepted.items()}
    expected |= {f"again {number}" for number in traffic.accepted}
    plane.until(lambda: expected <= set(asyncio.run(state(settings))), "all messages are handled")
    found = asyncio.run(state(settings))
    assert set(found.values()) == {1}, "nothing is handled twice"
    # What was being sent when the test ended may have been accepted.
    last = max(traffic.accepted) + 1
    assert set(found) - expected <= {f"{last} {traffic.accepted[last - 1]}", f"again {last}"}, "nor on both servers"
    plane.wait("condition=Ready", "hive/hive", "agent/ledger")


def test_a_managed_redis_stays_until_the_hive_has_left_it_and_is_found_again(
    plane: Plane, monkeypatch: pytest.MonkeyPatch, valkey: Any
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(plane.kubeconfig))
    managed = {"managed": {"storage": {"size": "1Gi"}}}
    plane.apply(secret("redis", url=valkey.url), hive(redis=managed), *agent("ledger", code=LEDGER))
    plane.wait("condition=Ready", "hive/hive", "agent/ledger")
    before = asyncio.run(hive_settings("hive", plane.namespace))
    identity = book(plane)["redis-identity"]

    async def send(settings: Settings, number: int) -> None:
        bus = await Bus.connect(url_of(settings), settings.scope)
        try:
            await bus.send(
                AgentMessage(from_agent="t", to_agent="ledger", message_type="note", body={"number": number})
            )
        finally:
            await bus.aclose()

    asyncio.run(send(before, 1))
    # A pointer to nothing: the spec names no managed server any more, and the hive goes on with the one that it has.
    broken = {"managed": None, "external": {"urlSecretRef": {"name": "redis", "key": "nothing"}}}
    patch(plane, {"redis": broken})
    plane.until(lambda: plane.condition("hive/hive", "RedisReady").get("reason") == "NewServerRefused", "it is told")
    for kept in ("statefulset/hive-redis", "service/hive-redis", "networkpolicy/hive-redis"):
        plane.get(kept)
    asyncio.run(send(asyncio.run(hive_settings("hive", plane.namespace)), 2))
    patch(plane, {"redis": {"external": {"urlSecretRef": {"name": "redis", "key": "url"}}}})
    plane.until(lambda: not names(plane, "statefulsets", "hive-redis"), "the managed server is left and removed")
    plane.wait("condition=Ready", "hive/hive", "agent/ledger")
    assert book(plane)["redis.url"] == valkey.url
    assert not names(plane, "services,networkpolicies", "hive-redis")
    assert names(plane, "persistentvolumeclaims,secrets", "hive-redis"), "deletionPolicy Retain"
    now = asyncio.run(hive_settings("hive", plane.namespace))
    asyncio.run(send(now, 3))
    patch(plane, {"redis": {"external": None, **managed}})
    plane.until(lambda: book(plane).get("redis-managed") == "true", "the hive is back on its own server")
    plane.wait("condition=Ready", "hive/hive", "agent/ledger")
    assert book(plane)["redis-identity"] == identity, "the volume is the former one"
    back = asyncio.run(hive_settings("hive", plane.namespace))
    asyncio.run(send(back, 4))
    plane.until(lambda: len(asyncio.run(state(back))) == 8, "all messages are handled")
    assert set(asyncio.run(state(back)).values()) == {1}


def patch(plane: Plane, spec: dict[str, Any]) -> None:
    plane.kubectl("patch", "hive/hive", "--type=merge", "-p", json.dumps({"spec": spec}))


def book(plane: Plane) -> dict[str, str]:
    data = plane.get("secret/hive-connections")["data"]
    return {name: base64.b64decode(value).decode() for name, value in data.items()}


def names(plane: Plane, kinds: str, part: str) -> list[str]:
    found = (entry["metadata"]["name"] for entry in plane.get(kinds)["items"])
    return [name for name in found if part in name]
