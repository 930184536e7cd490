"""Hives on external servers and their agents: children, conditions, changes, restarts."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

import asyncpg
import pytest

from agenthive.settings import HiveScope
from agenthive.store import schema_name
from agenthive_operator.reconcile.context import Options

from .conftest import Cluster, running_operator

CHECKSUM = "agenthive.dev/checksum"


def checksum(deployment: dict[str, Any]) -> str:
    return str(deployment["spec"]["template"]["metadata"]["annotations"][CHECKSUM])


def decoded(secret: dict[str, Any], key: str) -> str:
    return base64.b64decode(secret["data"][key]).decode()


@pytest.mark.usefixtures("operator")
async def test_a_hive_becomes_ready_and_its_agents_get_their_children(
    cluster: Cluster, redis_url: str, postgres_url: str
) -> None:
    await cluster.external_hive("demo", redis_url, postgres_url)
    await cluster.agent("greeter", "demo", replicas=2)
    for kind in ("RedisReady", "PostgresReady", "SchemaReady"):
        await cluster.condition("AgentHive", "demo", kind, "True")
    deployment = await cluster.exists("Deployment", "greeter")
    assert deployment["spec"]["replicas"] == 2
    secret = await cluster.need("Secret", "greeter-agenthive")
    assert decoded(secret, "AGENTHIVE_REDIS_URL") == redis_url
    assert decoded(secret, "AGENTHIVE_POSTGRES_URL") == postgres_url
    waiting = await cluster.condition("AgentHive", "demo", "Ready", "False", "AgentsNotReady")
    assert "greeter" in waiting["message"]

    await cluster.pods_ready("greeter")
    await cluster.condition("Agent", "greeter", "Ready", "True", "AllPodsReady")
    await cluster.condition("AgentHive", "demo", "Ready", "True", "AllReady")
    status = (await cluster.need("AgentHive", "demo"))["status"]
    assert status["agents"] == {"total": 1, "ready": 1}
    assert status["redis"]["endpoint"] in redis_url
    assert status["postgres"]["version"].startswith("18")
    assert "://" not in str(status), "a status never holds a URL"

    scope = HiveScope(instance=status["instanceId"], namespace=cluster.namespace, hive="demo")
    connection = await asyncpg.connect(postgres_url)
    try:
        assert await connection.fetchval("SELECT to_regnamespace($1) IS NOT NULL", schema_name(scope))
    finally:
        await connection.close()


@pytest.mark.usefixtures("operator")
async def test_an_agent_waits_for_its_hive_and_starts_by_itself(
    cluster: Cluster, redis_url: str, postgres_url: str
) -> None:
    await cluster.agent("early", "late")
    waiting = await cluster.condition("Agent", "early", "HiveReady", "False", "HiveMissing")
    assert "'late' does not exist" in waiting["message"]
    assert await cluster.get("Deployment", "early") is None
    await cluster.external_hive("late", redis_url, postgres_url)
    await cluster.exists("Deployment", "early")
    await cluster.condition("Agent", "early", "HiveReady", "True")


@pytest.mark.usefixtures("operator")
async def test_drift_is_restored_and_foreign_fields_are_left_alone(
    cluster: Cluster, redis_url: str, postgres_url: str
) -> None:
    await cluster.external_hive("demo", redis_url, postgres_url)
    await cluster.agent("greeter", "demo")
    await cluster.exists("Deployment", "greeter")
    await cluster.patch("Deployment", "greeter", metadata={"annotations": {"mine": "stays"}}, spec={"replicas": 7})

    async def restored() -> bool:
        return bool((await cluster.need("Deployment", "greeter"))["spec"]["replicas"] == 1)

    await cluster.until("replicas are what the Agent says", restored)
    assert (await cluster.need("Deployment", "greeter"))["metadata"]["annotations"]["mine"] == "stays"
    before = await cluster.need("Deployment", "greeter")
    await cluster.delete("Deployment", "greeter")
    await cluster.delete("Secret", "greeter-agenthive")

    async def remade() -> bool:
        found, secret = await cluster.get("Deployment", "greeter"), await cluster.get("Secret", "greeter-agenthive")
        return bool(found and secret and found["metadata"]["uid"] != before["metadata"]["uid"])

    await cluster.until("what was deleted by hand is back", remade)


@pytest.mark.usefixtures("operator")
async def test_an_agent_follows_its_spec_and_the_scale_subresource(
    cluster: Cluster, redis_url: str, postgres_url: str
) -> None:
    await cluster.external_hive("demo", redis_url, postgres_url)
    await cluster.agent("greeter", "demo")
    await cluster.exists("Deployment", "greeter")
    cluster.kubectl("-n", cluster.namespace, "scale", "agents/greeter", "--replicas=3")

    async def replicas(wanted: int) -> bool:
        return bool((await cluster.need("Deployment", "greeter"))["spec"]["replicas"] == wanted)

    await cluster.until("three replicas", lambda: replicas(3))
    await cluster.patch("AgentHive", "demo", spec={"suspend": True})
    await cluster.until("suspended: none", lambda: replicas(0))
    await cluster.pods_ready("greeter")
    await cluster.condition("Agent", "greeter", "Ready", "True", "Suspended")
    await cluster.condition("AgentHive", "demo", "Ready", "True", "Suspended")
    await cluster.patch("AgentHive", "demo", spec={"suspend": False})
    await cluster.until("resumed", lambda: replicas(3))
    await cluster.patch("AgentHive", "demo", spec={"agentDefaults": {"image": "registry/other:1"}})

    async def image() -> bool:
        spec = (await cluster.need("Deployment", "greeter"))["spec"]["template"]["spec"]
        return bool(spec["containers"][0]["image"] == "registry/other:1")

    await cluster.until("the hive's new default reached the pods", image)


@pytest.mark.usefixtures("operator")
async def test_data_that_pods_use_rolls_them(cluster: Cluster, redis_url: str, postgres_url: str) -> None:
    await cluster.external_hive("demo", redis_url, postgres_url)
    await cluster.create("ConfigMap", "code", data={"greeter.py": "one"})
    await cluster.create("Secret", "keys", stringData={"token": "a"})
    await cluster.agent(
        "greeter", "demo", codeFrom={"configMapRef": {"name": "code"}}, envFrom=[{"secretRef": {"name": "keys"}}]
    )
    first = checksum(await cluster.exists("Deployment", "greeter"))

    async def rolled(before: str) -> str:
        now = checksum(await cluster.need("Deployment", "greeter"))
        return now if now != before else ""

    await cluster.patch("ConfigMap", "code", metadata={"labels": {"only": "metadata"}})
    await cluster.patch("ConfigMap", "code", data={"greeter.py": "two"})
    second = await cluster.until("new code rolls", lambda: rolled(first))
    await cluster.patch("Secret", "keys", data={"token": base64.b64encode(b"b").decode()})
    await cluster.until("a new secret rolls", lambda: rolled(second))


@pytest.mark.usefixtures("operator")
async def test_a_missing_code_config_map_is_told_and_waited_for(
    cluster: Cluster, redis_url: str, postgres_url: str
) -> None:
    await cluster.external_hive("demo", redis_url, postgres_url)
    await cluster.agent("greeter", "demo", codeFrom={"configMapRef": {"name": "code"}})
    told = await cluster.condition("Agent", "greeter", "Ready", "False", "CodeMissing")
    assert "'code'" in told["message"]
    assert await cluster.get("Deployment", "greeter") is None
    await cluster.create("ConfigMap", "code", data={"greeter.py": "x"})
    await cluster.exists("Deployment", "greeter")


@pytest.mark.usefixtures("brisk", "operator")
async def test_what_belongs_to_somebody_else_is_never_touched(
    cluster: Cluster, redis_url: str, postgres_url: str
) -> None:
    theirs = await cluster.create("Secret", "greeter-agenthive", stringData={"mine": "1"})
    await cluster.external_hive("demo", redis_url, postgres_url)
    await cluster.agent("greeter", "demo")
    told = await cluster.condition("Agent", "greeter", "Ready", "False", "NameConflict")
    assert "greeter-agenthive" in told["message"]
    now = await cluster.need("Secret", "greeter-agenthive")
    assert now["metadata"]["resourceVersion"] == theirs["metadata"]["resourceVersion"]
    await cluster.delete("Secret", "greeter-agenthive")
    await cluster.exists("Deployment", "greeter")


@pytest.mark.usefixtures("operator")
async def test_a_pod_that_fails_tells_why_in_the_agents_condition(
    cluster: Cluster, redis_url: str, postgres_url: str
) -> None:
    await cluster.external_hive("demo", redis_url, postgres_url)
    await cluster.agent("greeter", "demo")
    deployment = await cluster.exists("Deployment", "greeter")
    template = deployment["spec"]["template"]
    await cluster.kube.create(
        cluster.body("Pod", "greeter-1", metadata={"labels": template["metadata"]["labels"]}, spec=template["spec"])
    )
    ended = {"exitCode": 2, "reason": "Error", "message": "ModuleNotFoundError: No module named 'greeter'"}
    state = {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 10s"}}
    container = {
        "name": "agent", "image": "i", "imageID": "", "ready": False, "restartCount": 2,
        "state": state, "lastState": {"terminated": ended},
    }  # fmt: skip
    await cluster.patch_status("Pod", "greeter-1", phase="Running", containerStatuses=[container])
    await cluster.patch_status(
        "Deployment", "greeter", observedGeneration=1, replicas=1, updatedReplicas=1, unavailableReplicas=1
    )
    told = await cluster.condition("Agent", "greeter", "Ready", "False", "ContainerFailed")
    assert "No module named 'greeter'" in told["message"]

    async def event() -> bool:
        return any(entry["reason"] == "ContainerFailed" for entry in await cluster.list("Event"))

    await cluster.until("an Event tells it too", event)


async def test_a_restart_writes_nothing(cluster: Cluster, options: Options, redis_url: str, postgres_url: str) -> None:
    async with running_operator(options):
        await cluster.external_hive("demo", redis_url, postgres_url)
        for number in range(5):
            await cluster.agent(f"agent-{number}", "demo")
        for number in range(5):
            await cluster.pods_ready(f"agent-{number}")
        await cluster.condition("AgentHive", "demo", "Ready", "True")

        async def settled() -> bool:
            # An Agent's first figures come when its queue has been looked at: not a write of the restart.
            if not all("backlog" in (agent.get("status") or {}) for agent in await cluster.list("Agent")):
                return False
            before = await cluster.versions()
            await asyncio.sleep(1.0)
            return await cluster.versions() == before

        await cluster.until("nothing is written any more", settled)
    before = await cluster.versions()
    async with running_operator(options):
        agents = await cluster.create("Secret", "probe-urls", stringData={"redis": redis_url, "postgres": postgres_url})
        assert agents
        # A new hive that becomes ready proves that the new operator has been through its queue.
        await cluster.create(
            "AgentHive",
            "probe",
            spec={
                server: {"external": {"urlSecretRef": {"name": "probe-urls", "key": server}}}
                for server in ("redis", "postgres")
            },
        )
        await cluster.condition("AgentHive", "probe", "Ready", "True")
        await asyncio.sleep(2.0)
        after = await cluster.versions()
    assert {key: version for key, version in after.items() if key in before} == before
