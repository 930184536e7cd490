"""A hive that moves to other servers: real servers, real agent processes, the operator; only pods are stood in for."""

from __future__ import annotations

import asyncio
import base64
import os
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest

from agenthive.bus import Bus, HiveMoving
from agenthive.protocol import AgentMessage
from agenthive.settings import HiveScope
from agenthive.store import schema_name
from agenthive_operator.backends.connections import hive_settings
from agenthive_operator.plan.cutover import ACCEPT_ANNOTATION, RETRY_ANNOTATION
from agenthive_operator.reconcile.context import Options

from .conftest import Cluster, running_operator

HERE = Path(__file__).parent


def encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def texts(secret: dict[str, Any]) -> dict[str, str]:
    return {name: base64.b64decode(value).decode() for name, value in (secret.get("data") or {}).items()}


@dataclass
class Pods:
    """Does for the Deployment ``relay`` what a cluster would: one process while it wants pods, and its status."""

    cluster: Cluster
    log: Path
    runs: bool = True
    events: list[tuple[float, str, str]] = field(default_factory=list)
    process: asyncio.subprocess.Process | None = None
    of: str = ""

    async def follow(self) -> None:
        while True:
            deployment = await self.cluster.get("Deployment", "relay")
            if deployment is not None:
                await self.bring_about(deployment)
            await asyncio.sleep(0.05)

    async def bring_about(self, deployment: dict[str, Any]) -> None:
        template = deployment["spec"]["template"]
        digest = template["metadata"]["annotations"]["agenthive.dev/checksum"]
        count = deployment["spec"]["replicas"]
        if self.of and (count == 0 or digest != self.of):
            await self.stop()
        if count and not self.of:
            await self.start(template, digest)
        counts = dict.fromkeys(("replicas", "updatedReplicas", "readyReplicas", "availableReplicas"), min(count, 1))
        wanted = {"observedGeneration": deployment["metadata"]["generation"], **counts}
        if {name: (deployment.get("status") or {}).get(name, 0) for name in wanted} != wanted:
            await self.cluster.patch_status("Deployment", "relay", **wanted)

    async def start(self, template: dict[str, Any], digest: str) -> None:
        secret = texts(await self.cluster.need("Secret", "relay-agenthive"))
        self.of = digest
        self.events.append((time.monotonic(), "start", secret["AGENTHIVE_REDIS_URL"]))
        if not self.runs:
            return
        env = {entry["name"]: entry.get("value", "") for entry in template["spec"]["containers"][0]["env"]}
        env |= secret | {"AGENTHIVE_POD": "relay-0", "AGENTHIVE_BIND": "127.0.0.1", "AGENTHIVE_HTTP_PORT": "0"}
        env |= {"PYTHONPATH": str(HERE), "RELAY_LOG": str(self.log), "AGENTHIVE_TERMINATION_LOG": os.devnull}
        program = [str(Path(sys.executable).with_name("agenthive")), "run", "relay_agent:agent"]
        with self.log.with_suffix(".err").open("ab") as output:
            self.process = await asyncio.create_subprocess_exec(
                *program, env={**os.environ, **env}, stdout=output, stderr=output
            )

    async def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            await asyncio.wait_for(self.process.wait(), 20)
            self.process = None
        self.of = ""
        self.events.append((time.monotonic(), "stop", ""))

    def handled(self) -> list[tuple[str, int, str]]:
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [(kind, int(number), url) for kind, number, url in map(str.split, lines)]


@asynccontextmanager
async def following(pods: Pods) -> AsyncIterator[Pods]:
    task = asyncio.create_task(pods.follow())
    try:
        yield pods
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await pods.stop()


@pytest.fixture
async def pods(cluster: Cluster, tmp_path: Path) -> AsyncIterator[Pods]:
    async with following(Pods(cluster, tmp_path / "handled")) as running:
        yield running


async def scope_of(cluster: Cluster) -> HiveScope:
    hive = await cluster.need("AgentHive", "demo")
    return HiveScope(instance=hive["status"]["instanceId"], namespace=cluster.namespace, hive="demo")


async def ready_hive(cluster: Cluster, redis_url: str, postgres_url: str, **cutover: Any) -> HiveScope:
    """A hive whose one agent runs."""
    await cluster.external_hive("demo", redis_url, postgres_url)
    if cutover:
        await cluster.patch("AgentHive", "demo", spec={"redis": {"cutover": cutover}})
    await cluster.agent("relay", "demo", entrypoint="relay_agent:agent", drainSeconds=5)
    await cluster.condition("AgentHive", "demo", "Ready", "True")
    return await scope_of(cluster)


async def in_force(cluster: Cluster) -> dict[str, str]:
    return texts(await cluster.need("Secret", "demo-connections"))


async def agent_uses(cluster: Cluster, key: str, url: str) -> None:
    async def moved() -> bool:
        return texts(await cluster.need("Secret", "relay-agenthive"))[key] == url

    await cluster.until(f"the agent has {key}", moved)


def first(number: int, **fields: Any) -> AgentMessage:
    body = {"number": number}
    return AgentMessage(from_agent="test", to_agent="relay", message_type="first", body=body, **fields)


@pytest.mark.usefixtures("operator")
async def test_another_name_of_the_same_servers_rolls(
    cluster: Cluster, redis_url: str, postgres_url: str, pods: Pods
) -> None:
    await ready_hive(cluster, redis_url, postgres_url)
    before = await in_force(cluster)
    assert before["redis-identity"]
    assert before["postgres-identity"]
    redis, postgres = (url.replace("127.0.0.1", "localhost") for url in (redis_url, postgres_url))
    await cluster.patch("Secret", "demo-urls", data={"redis": encoded(redis), "postgres": encoded(postgres)})
    await agent_uses(cluster, "AGENTHIVE_REDIS_URL", redis)
    await agent_uses(cluster, "AGENTHIVE_POSTGRES_URL", postgres)
    await cluster.condition("AgentHive", "demo", "Ready", "True")
    after = await in_force(cluster)
    assert after["redis.url"] == redis
    assert {name: after[name] for name in after if "identity" in name} == {
        name: before[name] for name in before if "identity" in name
    }
    assert "move" not in after
    assert (await cluster.need("Deployment", "relay"))["spec"]["replicas"] == 1


@asynccontextmanager
async def killed_operator(namespace: str, log: Path) -> AsyncIterator[None]:
    """An operator of its own process, which ends by SIGKILL."""
    with log.open("ab") as output:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "agenthive_operator", "--namespace", namespace, stdout=output, stderr=output
        )
    try:
        yield
    finally:
        process.kill()
        await process.wait()


async def test_drain_loses_nothing_and_survives_the_operator(
    cluster: Cluster,
    options: Options,
    redis_url: str,
    postgres_url: str,
    own_valkey: Any,
    pods: Pods,  # after the servers, so that they outlive it
    tmp_path: Path,
) -> None:
    async with killed_operator(cluster.namespace, tmp_path / "operator.log"):
        scope = await ready_hive(cluster, redis_url, postgres_url, timeoutSeconds=60)
        bus = await Bus.connect(redis_url, scope)
        try:
            sent, refused = 0, 0
            for _ in range(200):
                await bus.send(first(sent))
                sent += 1
            await cluster.patch("Secret", "demo-urls", data={"redis": encoded(own_valkey.url)})

            async def fenced() -> bool:
                nonlocal sent, refused
                try:
                    await bus.send(first(sent))
                except HiveMoving:
                    refused += 1
                    return True
                sent += 1
                return False

            await cluster.until("senders are refused", fenced)
        finally:
            await bus.aclose()
    # The operator was killed in the middle of it; another one goes on.
    assert "draining" in (await in_force(cluster))["move"]
    async with running_operator(replace(options)):
        await agent_uses(cluster, "AGENTHIVE_REDIS_URL", own_valkey.url)
        await cluster.condition("AgentHive", "demo", "Ready", "True")
        old, new = await Bus.connect(redis_url, scope), await Bus.connect(own_valkey.url, scope)
        try:
            left = await old.queue("relay")
            assert (left.backlog, left.in_flight, left.delayed) == (0, 0, 0)
            assert not left.dead_letters
            with pytest.raises(HiveMoving):
                await old.send(first(-1))
            await new.send(first(sent))

            async def arrived() -> bool:
                return ("second", sent, own_valkey.url) in pods.handled()

            await cluster.until("the new server is in use", arrived)
        finally:
            await old.aclose()
            await new.aclose()
        assert refused
        handled = pods.handled()
        for kind in ("first", "second"):
            assert sorted(number for what, number, _ in handled if what == kind) == list(range(sent + 1))
        assert {url for _, number, url in handled if number < sent} == {redis_url}
        kinds = [kind for _, kind, _ in pods.events]
        assert kinds == ["start", "stop", "start"], "one process at a time, on one server"
        assert [url for _, _, url in pods.events] == [redis_url, "", own_valkey.url]
        moments = [moment for moment, _, _ in pods.events]
        assert moments == sorted(moments)
        settings = await hive_settings("demo", cluster.namespace)
        assert settings.redis_url.get_secret_value() == own_valkey.url


@pytest.mark.usefixtures("operator")
async def test_a_drain_that_takes_too_long_then_abandon(
    cluster: Cluster, redis_url: str, postgres_url: str, own_valkey: Any, tmp_path: Path
) -> None:
    async with following(Pods(cluster, tmp_path / "handled", runs=False)) as pods:
        scope = await ready_hive(cluster, redis_url, postgres_url, timeoutSeconds=2)
        bus = await Bus.connect(redis_url, scope)
        try:
            await bus.send(first(1))
            await cluster.patch("Secret", "demo-urls", data={"redis": encoded(own_valkey.url)})
            told = await cluster.condition("AgentHive", "demo", "RedisReady", "True", "CutoverTimedOut")
            assert "1 waiting; of agents relay" in told["message"]
            assert RETRY_ANNOTATION in told["message"]
            assert texts(await cluster.need("Secret", "relay-agenthive"))["AGENTHIVE_REDIS_URL"] == redis_url

            async def opened() -> bool:
                try:
                    return bool(await bus.send(first(2)))
                except HiveMoving:
                    return False

            await cluster.until("senders are let in again", opened)
            settings = await hive_settings("demo", cluster.namespace)
            assert settings.redis_url.get_secret_value() == redis_url, "not that of the Secret"
            assert [kind for _, kind, _ in pods.events] == ["start"]
            await cluster.patch("AgentHive", "demo", spec={"redis": {"cutover": {"strategy": "Abandon"}}})
            await agent_uses(cluster, "AGENTHIVE_REDIS_URL", own_valkey.url)
            await cluster.condition("AgentHive", "demo", "Ready", "True")
            assert (await bus.queue("relay")).backlog == 2, "what waits stays in the old server"
        finally:
            await bus.aclose()
        events = [event["message"] for event in await cluster.list("Event") if event["reason"] == "Cutover"]
        assert any("in the old Redis stay: 2 waiting" in text for text in events)
        assert [kind for _, kind, _ in pods.events] == ["start", "stop", "start"]


@pytest.mark.usefixtures("operator")
async def test_another_database_is_accepted_by_name_and_the_way_back_is_known(
    cluster: Cluster, redis_url: str, postgres_url: str, own_postgres: Any, pods: Pods
) -> None:
    scope = await ready_hive(cluster, redis_url, postgres_url)
    other = own_postgres.url()
    await cluster.patch("Secret", "demo-urls", data={"postgres": encoded(other)})
    told = await cluster.condition("AgentHive", "demo", "PostgresReady", "True", "DatabaseNotAccepted")
    place = f"127.0.0.1:{urlsplit(other).port}/postgres"
    command = f"kubectl annotate hive demo -n {cluster.namespace} {ACCEPT_ANNOTATION}={place}"
    assert command in told["message"]
    connection = await asyncpg.connect(other)
    try:
        query = "SELECT count(*) FROM pg_namespace WHERE nspname = $1"
        assert await connection.fetchval(query, schema_name(scope)) == 0, "nothing is made before it is accepted"
    finally:
        await connection.close()
    await cluster.patch("AgentHive", "demo", metadata={"annotations": {ACCEPT_ANNOTATION: "true"}})
    await agent_uses(cluster, "AGENTHIVE_POSTGRES_URL", other)
    await cluster.condition("AgentHive", "demo", "Ready", "True")
    hive = await cluster.need("AgentHive", "demo")
    assert ACCEPT_ANNOTATION not in (hive["metadata"].get("annotations") or {}), "it accepts no other"
    await cluster.patch("Secret", "demo-urls", data={"postgres": encoded(postgres_url)})
    await agent_uses(cluster, "AGENTHIVE_POSTGRES_URL", postgres_url)
    await cluster.condition("AgentHive", "demo", "Ready", "True")
    assert [kind for _, kind, _ in pods.events] == ["start", "stop", "start", "stop", "start"]


async def test_a_hive_of_an_older_operator_is_adopted_as_it_is(
    cluster: Cluster, options: Options, redis_url: str, postgres_url: str, own_valkey: Any, pods: Pods
) -> None:
    async with running_operator(options):
        await ready_hive(cluster, redis_url, postgres_url)
    before = await cluster.need("Deployment", "relay")
    await cluster.delete("Secret", "demo-connections")
    await cluster.patch("Secret", "demo-urls", data={"redis": encoded("redis://:pw@127.0.0.1:1/0")})
    async with running_operator(options):
        await cluster.condition("AgentHive", "demo", "RedisReady", "True", "NewServerRefused")
        book = await in_force(cluster)
        assert (book["redis.url"], book["postgres.url"]) == (redis_url, postgres_url)
        assert (await cluster.need("Deployment", "relay"))["spec"] == before["spec"]
