"""The servers that a hive has in force while its spec names others: certificates, pods that wait, the end."""

from __future__ import annotations

import base64
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.tls import Authority, redis_front, server_context

from agenthive.bus import Bus
from agenthive.bus.keys import identity_key
from agenthive.protocol import AgentMessage
from agenthive.settings import HiveScope
from agenthive_operator.backends.redis import open_connections
from agenthive_operator.reconcile.context import Options

from .conftest import Cluster, running_operator

REFUSED = {
    "spec": {"containers": [{"name": "side", "image": "side:1", "volumeMounts": [{"name": "no", "mountPath": "/x"}]}]}
}


def encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


async def texts(cluster: Cluster, secret: str) -> dict[str, str]:
    data = (await cluster.need("Secret", secret)).get("data") or {}
    return {name: base64.b64decode(value).decode() for name, value in data.items()}


async def scope_of(cluster: Cluster) -> HiveScope:
    hive = await cluster.need("AgentHive", "demo")
    return HiveScope(instance=hive["status"]["instanceId"], namespace=cluster.namespace, hive="demo")


async def keys_of(url: str, scope: HiveScope) -> int:
    connections = open_connections(url, 5.0)
    try:
        (found,) = await connections.execute([("EXISTS", identity_key(scope))])
    finally:
        await connections.aclose()
    return int(found)


async def test_certificates_in_force_outlive_a_bad_value_and_the_operator(
    cluster: Cluster, options: Options, valkey: Any, postgres_url: str, tmp_path: Path
) -> None:
    ours, stranger = (Authority(tmp_path, name, ends=timedelta(days=90)) for name in ("ours", "stranger"))
    async with redis_front(valkey.port, server_context(ours.issue("server"))) as port:
        await cluster.create("Secret", "ca", stringData={"ca.crt": ours.pem})
        url = f"rediss://:{valkey.password}@127.0.0.1:{port}/0"
        async with running_operator(options):
            await cluster.external_hive("demo", url, postgres_url)
            tls = {"external": {"tls": {"caSecretRef": {"name": "ca"}}}}
            await cluster.patch("AgentHive", "demo", spec={"redis": tls})
            await cluster.condition("AgentHive", "demo", "Ready", "True")
            book = await texts(cluster, "demo-connections")
            assert (book["redis.url"], book["redis-ca.crt"]) == (url, ours.pem), "no path of this process"
            await cluster.patch("Secret", "ca", data={"ca.crt": encoded(stranger.pem)})
            await cluster.condition("AgentHive", "demo", "RedisReady", "True", "NewServerRefused")
        async with running_operator(options):
            await cluster.agent("late", "demo")
            await cluster.exists("Deployment", "late")
            assert (await texts(cluster, "late-agenthive"))["redis-ca.crt"] == ours.pem
            # As after a renewal: another CA of the same server is taken over, and nobody is stopped for it.
            both = stranger.pem + ours.pem
            await cluster.patch("Secret", "ca", data={"ca.crt": encoded(both)})
            await cluster.condition("AgentHive", "demo", "RedisReady", "True", "Reachable")

            async def taken_over() -> bool:
                return (await texts(cluster, "late-agenthive"))["redis-ca.crt"] == both

            await cluster.until("agents have the new one", taken_over)
            assert (await cluster.need("Deployment", "late"))["spec"]["replicas"] == 1
            after = await texts(cluster, "demo-connections")
            assert after == {**book, "redis-ca.crt": both}, "no move, the same server"


async def test_a_hive_of_an_older_operator_whose_agents_have_users_is_adopted(
    cluster: Cluster, options: Options, own_valkey: Any, postgres_url: str
) -> None:
    async with running_operator(options):
        await cluster.external_hive("demo", own_valkey.url, postgres_url)
        admin = {"external": {"adminUrlSecretRef": {"name": "demo-urls", "key": "redis"}}}
        await cluster.patch("AgentHive", "demo", spec={"redis": admin})
        await cluster.agent("anna", "demo")
        deployment = await cluster.exists("Deployment", "anna")
        await cluster.condition("AgentHive", "demo", "RedisReady", "True")
        book, secret = await texts(cluster, "demo-connections"), await texts(cluster, "anna-agenthive")
    assert book["redis.admin"] == own_valkey.url
    assert "demo%2Fanna:" in secret["AGENTHIVE_REDIS_URL"]
    await cluster.delete("Secret", "demo-connections")
    await cluster.patch(
        "Secret", "demo-urls", data={"redis": encoded(own_valkey.url.replace("127.0.0.1", "localhost"))}
    )
    async with running_operator(options):

        async def adopted() -> bool:
            found = await cluster.get("Secret", "demo-connections")
            return found is not None and "localhost" in (await texts(cluster, "demo-connections"))["redis.admin"]

        await cluster.until("the book is there again", adopted)
        now = await cluster.need("Deployment", "anna")
        assert now["spec"]["replicas"] == deployment["spec"]["replicas"] == 1

        async def follows() -> bool:
            return "localhost" in (await texts(cluster, "anna-agenthive"))["AGENTHIVE_REDIS_URL"]

        await cluster.until("agents follow the other name", follows)
    assert (await texts(cluster, "demo-connections"))["redis-identity"] == book["redis-identity"]


@pytest.mark.usefixtures("operator")
async def test_an_agent_whose_template_is_refused_does_not_start_on_the_server_left(
    cluster: Cluster, redis_url: str, postgres_url: str, own_valkey: Any
) -> None:
    await cluster.external_hive("demo", redis_url, postgres_url)
    await cluster.patch("AgentHive", "demo", spec={"redis": {"cutover": {"strategy": "Abandon"}}})
    await cluster.agent("runs", "demo")
    await cluster.create("ConfigMap", "code", data={"greeter.py": ""})
    await cluster.agent("lost", "demo", codeFrom={"configMapRef": {"name": "code"}})
    for name in ("runs", "lost"):
        await cluster.pods_ready(name)
    await cluster.condition("AgentHive", "demo", "Ready", "True")
    await cluster.delete("ConfigMap", "code")
    await cluster.condition("Agent", "lost", "Ready", "False", "CodeMissing")
    await cluster.patch("Agent", "runs", spec={"podTemplate": REFUSED})
    await cluster.condition("Agent", "runs", "Ready", "False", "PodTemplateRejected")
    await cluster.patch("Secret", "demo-urls", data={"redis": encoded(own_valkey.url)})

    async def replicas(name: str = "runs") -> int:
        return int((await cluster.need("Deployment", name))["spec"]["replicas"])

    async def stopped() -> bool:
        return await replicas("runs") == await replicas("lost") == 0

    await cluster.until("the agents are stopped, whatever is wrong with them", stopped)
    for name in ("runs", "lost"):
        await cluster.pods_ready(name)  # the Deployment reports zero pods

    async def moved() -> bool:
        book = await texts(cluster, "demo-connections")
        return book["redis.url"] == own_valkey.url and "move" not in book

    await cluster.until("the hive has moved", moved)
    await cluster.patch("Agent", "runs", spec={"replicas": 2})
    await cluster.condition("Agent", "runs", "Ready", "False", "PodTemplateRejected")
    assert await replicas() == 0, "its Secret leads to the old server"
    assert (await texts(cluster, "runs-agenthive"))["AGENTHIVE_REDIS_URL"] == redis_url
    await cluster.patch("Agent", "runs", spec={"podTemplate": None})

    async def started() -> bool:
        return await replicas() == 2

    await cluster.until("it starts once its template is taken", started)
    assert (await texts(cluster, "runs-agenthive"))["AGENTHIVE_REDIS_URL"] == own_valkey.url


@pytest.mark.usefixtures("operator")
async def test_the_end_of_a_hive_cleans_the_server_that_it_has_in_force(
    cluster: Cluster, redis_url: str, postgres_url: str
) -> None:
    await cluster.external_hive("demo", redis_url, postgres_url, deletionPolicy="Delete")
    await cluster.condition("AgentHive", "demo", "SchemaReady", "True")
    await cluster.condition("AgentHive", "demo", "RedisReady", "True")
    scope = await scope_of(cluster)
    bus = await Bus.connect(redis_url, scope)
    try:
        await bus.send(AgentMessage(from_agent="test", to_agent="nobody", message_type="m", body={}))
    finally:
        await bus.aclose()
    assert await keys_of(redis_url, scope) == 1
    await cluster.patch("AgentHive", "demo", spec={"redis": {"external": None}})
    told = await cluster.condition("AgentHive", "demo", "RedisReady", "True", "CuttingOver")
    assert "it is being started" in told["message"]
    await cluster.delete("AgentHive", "demo")
    await cluster.gone("AgentHive", "demo")
    assert await keys_of(redis_url, scope) == 0
