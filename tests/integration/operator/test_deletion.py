"""The end of hives and agents: in order, within a deadline, and leaving what was asked to stay."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import asyncpg
import pytest
from redis import asyncio as aioredis

from agenthive.settings import HiveScope
from agenthive.store import Store, schema_name
from agenthive_operator.plan.names import FINALIZER, INSTANCE_ANNOTATION
from agenthive_operator.reconcile.cache import ObjectCache
from agenthive_operator.reconcile.children import Children
from agenthive_operator.reconcile.context import QUIET, Options

from .conftest import Cluster, running_operator


async def has_finalizer(cluster: Cluster, hive: str) -> bool:
    return FINALIZER in ((await cluster.need("AgentHive", hive))["metadata"].get("finalizers") or [])


@pytest.mark.usefixtures("operator")
async def test_a_hive_without_agents_and_outside_state_has_no_finalizer(
    cluster: Cluster, redis_url: str, postgres_url: str
) -> None:
    await cluster.external_hive("demo", redis_url, postgres_url)
    await cluster.condition("AgentHive", "demo", "Ready", "True")
    assert not await has_finalizer(cluster, "demo")
    await cluster.delete("AgentHive", "demo")
    await cluster.gone("AgentHive", "demo")


@pytest.mark.usefixtures("operator")
async def test_the_finalizer_comes_and_goes_with_the_agents(
    cluster: Cluster, redis_url: str, postgres_url: str
) -> None:
    await cluster.external_hive("demo", redis_url, postgres_url)
    await cluster.agent("greeter", "demo")
    await cluster.until("it is set", lambda: has_finalizer(cluster, "demo"))
    await cluster.delete("Agent", "greeter")
    await cluster.gone("Agent", "greeter")

    async def released() -> bool:
        return not await has_finalizer(cluster, "demo")

    await cluster.until("it is taken off", released)


@pytest.mark.usefixtures("operator")
async def test_agents_drain_before_their_hive_goes(cluster: Cluster, redis_url: str, postgres_url: str) -> None:
    await cluster.external_hive("demo", redis_url, postgres_url)
    await cluster.agent("greeter", "demo", replicas=2)
    await cluster.pods_ready("greeter")
    await cluster.until("the finalizer is set", lambda: has_finalizer(cluster, "demo"))
    await cluster.delete("AgentHive", "demo")

    async def scaled_down() -> bool:
        return bool((await cluster.need("Deployment", "greeter"))["spec"]["replicas"] == 0)

    await cluster.until("the agent is scaled to zero", scaled_down)
    told = await cluster.condition("AgentHive", "demo", "Ready", "False", "Deleting")
    assert "greeter" in told["message"]
    await cluster.condition("Agent", "greeter", "HiveReady", "False", "HiveDeleting")
    assert await cluster.get("AgentHive", "demo") is not None, "pods still run"
    await cluster.pods_ready("greeter")  # the Deployment reports zero pods
    await cluster.gone("AgentHive", "demo")
    await cluster.condition("Agent", "greeter", "Ready", "False", "HiveMissing")


@pytest.mark.usefixtures("operator")
async def test_pods_whose_agent_is_gone_drain_before_the_stores_go(
    cluster: Cluster, redis_url: str, postgres_url: str
) -> None:
    await cluster.external_hive("demo", redis_url, postgres_url)
    await cluster.agent("greeter", "demo")
    template = (await cluster.exists("Deployment", "greeter"))["spec"]["template"]
    labels = template["metadata"]["labels"]
    pod = await cluster.create(
        "Pod", "draining", metadata={"labels": labels, "finalizers": ["example.com/drains"]}, spec=template["spec"]
    )
    await cluster.until("the finalizer is set", lambda: has_finalizer(cluster, "demo"))
    for kind, name in (("Pod", "draining"), ("Agent", "greeter"), ("AgentHive", "demo")):
        await cluster.delete(kind, name)
    await cluster.gone("Agent", "greeter")
    told = await cluster.condition("AgentHive", "demo", "Ready", "False", "Deleting")
    assert "draining 1 agents: greeter" in told["message"]
    await cluster.kube.merge_patch(pod, {"metadata": {"finalizers": []}})
    await cluster.gone("Pod", "draining")
    await cluster.gone("AgentHive", "demo")


async def test_pods_that_never_stop_do_not_hold_a_hive_for_ever(
    cluster: Cluster, options: Options, redis_url: str, postgres_url: str
) -> None:
    async with running_operator(options):
        await cluster.external_hive("demo", redis_url, postgres_url)
        await cluster.agent("greeter", "demo", drainSeconds=1)
        await cluster.pods_ready("greeter")
        await cluster.until("the finalizer is set", lambda: has_finalizer(cluster, "demo"))
        await cluster.delete("AgentHive", "demo")
        await cluster.gone("AgentHive", "demo")

        async def told() -> bool:
            return any(
                event["reason"] == "CleanupAbandoned" and "greeter" in event["message"]
                for event in await cluster.list("Event")
            )

        await cluster.until("an Event says what was left", told)


@pytest.mark.usefixtures("operator")
async def test_deletion_policy_delete_removes_what_lies_in_external_servers(
    cluster: Cluster, redis_url: str, postgres_url: str
) -> None:
    await cluster.external_hive("demo", redis_url, postgres_url, deletionPolicy="Delete")
    await cluster.external_hive("demo2", redis_url, postgres_url)
    await cluster.condition("AgentHive", "demo", "Ready", "True")
    await cluster.condition("AgentHive", "demo2", "Ready", "True")
    mine, other = [
        HiveScope(
            instance=(await cluster.need("AgentHive", name))["status"]["instanceId"],
            namespace=cluster.namespace,
            hive=name,
        )
        for name in ("demo", "demo2")
    ]
    client = aioredis.Redis.from_url(redis_url)
    connection = await asyncpg.connect(postgres_url)
    try:
        for scope in (mine, other):
            await client.set(scope.key_prefix("greeter") + "x", 1)
            await client.set(scope.hive_prefix + "x", 1)
        await cluster.delete("AgentHive", "demo")
        await cluster.gone("AgentHive", "demo")
        assert await client.exists(mine.key_prefix("greeter") + "x", mine.hive_prefix + "x") == 0
        assert await client.exists(other.key_prefix("greeter") + "x", other.hive_prefix + "x") == 2
        assert await connection.fetchval("SELECT to_regnamespace($1) IS NULL", schema_name(mine))
        assert await connection.fetchval("SELECT to_regnamespace($1) IS NOT NULL", schema_name(other))
        await client.delete(other.key_prefix("greeter") + "x", other.hive_prefix + "x")
    finally:
        await connection.close()
        await client.aclose()


@pytest.mark.usefixtures("operator")
async def test_a_server_that_is_down_does_not_hold_a_hive_for_ever(
    cluster: Cluster, redis_url: str, postgres_url: str
) -> None:
    await cluster.external_hive("demo", "redis://:secret-word@127.0.0.1:1/0", postgres_url, deletionPolicy="Delete")
    await cluster.condition("AgentHive", "demo", "PostgresReady", "True")
    await cluster.until("the finalizer is set", lambda: has_finalizer(cluster, "demo"))
    await cluster.delete("AgentHive", "demo")
    await cluster.gone("AgentHive", "demo")

    async def told() -> str:
        return next(
            (event["message"] for event in await cluster.list("Event") if event["reason"] == "CleanupAbandoned"), ""
        )

    message = await cluster.until("an Event says what was left", told)
    assert "redis was not cleaned" in message
    assert "secret-word" not in message


async def test_a_hive_deleted_while_no_operator_runs_goes_when_one_starts(
    cluster: Cluster, options: Options, redis_url: str, postgres_url: str
) -> None:
    async with running_operator(options):
        await cluster.external_hive("demo", redis_url, postgres_url, deletionPolicy="Delete")
        await cluster.until("the finalizer is set", lambda: has_finalizer(cluster, "demo"))
        await cluster.condition("AgentHive", "demo", "Ready", "True")
    await cluster.delete("AgentHive", "demo")
    assert await cluster.get("AgentHive", "demo") is not None
    async with running_operator(options):
        await cluster.gone("AgentHive", "demo")


@pytest.mark.usefixtures("operator")
async def test_an_admin_secret_that_stays_is_adopted_by_a_hive_of_the_same_name(cluster: Cluster) -> None:
    await cluster.create("AgentHive", "demo")
    await cluster.condition("AgentHive", "demo", "RedisReady", "False", "Starting")
    before = await cluster.need("Secret", "demo-postgres")
    assert not before["metadata"].get("ownerReferences"), "Retain: it does not go with the hive"
    await cluster.delete("AgentHive", "demo")
    await cluster.gone("AgentHive", "demo")
    assert await cluster.get("Secret", "demo-postgres") is not None
    await cluster.create("AgentHive", "demo", spec={"deletionPolicy": "Delete"})
    hive = await cluster.need("AgentHive", "demo")

    async def adopted() -> bool:
        owners = (await cluster.need("Secret", "demo-postgres"))["metadata"].get("ownerReferences") or []
        return [owner["uid"] for owner in owners] == [hive["metadata"]["uid"]]

    await cluster.until("the new hive owns it", adopted)
    assert (await cluster.need("Secret", "demo-postgres"))["data"] == before["data"]


@pytest.mark.usefixtures("operator")
async def test_a_hive_that_comes_back_finds_its_rows(cluster: Cluster, postgres_url: str) -> None:
    await cluster.create("Secret", "urls", stringData={"url": postgres_url})
    spec = {"postgres": {"external": {"urlSecretRef": {"name": "urls"}}}}

    async def scope() -> HiveScope:
        await cluster.create("AgentHive", "demo", spec=spec)
        await cluster.condition("AgentHive", "demo", "SchemaReady", "True")
        await cluster.exists("Secret", "demo-redis")
        instance = (await cluster.need("AgentHive", "demo"))["status"]["instanceId"]
        return HiveScope(instance=instance, namespace=cluster.namespace, hive="demo")

    async with await Store.connect(postgres_url, await scope(), agent="greeter") as store:
        await store.state.set("kept", 42)
    await cluster.delete("AgentHive", "demo")
    await cluster.gone("AgentHive", "demo")
    async with await Store.connect(postgres_url, await scope(), agent="greeter") as store:
        assert await store.state.get("kept") == 42


@pytest.mark.usefixtures("operator")
async def test_an_instance_id_in_the_spec_wins_over_the_retained_one(cluster: Cluster) -> None:
    await cluster.create("AgentHive", "demo")
    await cluster.exists("Secret", "demo-postgres")
    await cluster.delete("AgentHive", "demo")
    await cluster.gone("AgentHive", "demo")
    await cluster.create("AgentHive", "demo", spec={"instanceId": "mine"})

    async def relabelled() -> bool:
        annotations = (await cluster.need("Secret", "demo-postgres"))["metadata"]["annotations"]
        return bool(annotations[INSTANCE_ANNOTATION] == "mine")

    await cluster.until("the Secret names the new one", relabelled)
    assert (await cluster.need("AgentHive", "demo"))["status"]["instanceId"] == "mine"


async def test_in_a_namespace_that_ends_nothing_is_made_and_nothing_is_an_alarm(
    cluster: Cluster, api_server: Any, unique: str
) -> None:
    ending = replace(cluster, namespace=f"{unique}-ending")
    manifest = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": ending.namespace}}
    api_server.call("POST", "/api/v1/namespaces", manifest)
    held = await ending.create("ConfigMap", "held", metadata={"finalizers": ["example.com/hold"]})
    api_server.call("DELETE", f"/api/v1/namespaces/{ending.namespace}")
    labels = {"app.kubernetes.io/managed-by": "agenthive-operator", "agenthive.dev/hive": "demo"}
    problem = await Children(cluster.kube, ObjectCache()).apply(
        [ending.body("Secret", "child", metadata={"labels": labels}, data={})]
    )
    assert problem is not None
    assert problem.reason == "NamespaceTerminating"
    assert problem.reason in QUIET
    await ending.kube.merge_patch(held, {"metadata": {"finalizers": []}})
