"""What an Agent's plan passes before it is applied: the server's word on its pod template, and its turn to roll."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from agenthive_operator.local.client import ApiClient, Connection
from agenthive_operator.local.controllers.manager import Controllers
from agenthive_operator.local.informer import Informers
from agenthive_operator.plan.rolling import FAILURES, SLOTS
from agenthive_operator.reconcile.context import Options

from .conftest import Cluster, running_operator

NONSENSE = {
    "spec": {"containers": [{"name": "side", "image": "side:1", "volumeMounts": [{"name": "no", "mountPath": "/x"}]}]}
}
AGENTS = tuple(f"a{number}" for number in range(SLOTS + 4))


def image_of(deployment: dict[str, Any]) -> str:
    return str(deployment["spec"]["template"]["spec"]["containers"][0]["image"])


async def with_image(cluster: Cluster, image: str) -> set[str]:
    return {d["metadata"]["name"] for d in await cluster.list("Deployment") if image_of(d) == image}


@pytest.mark.usefixtures("operator")
async def test_a_refused_template_is_told_and_nothing_is_written(
    cluster: Cluster, redis_url: str, postgres_url: str
) -> None:
    await cluster.external_hive("demo", redis_url, postgres_url)
    await cluster.condition("AgentHive", "demo", "SchemaReady", "True")
    await cluster.agent("fresh", "demo", podTemplate=NONSENSE)
    told = await cluster.condition("Agent", "fresh", "Ready", "False", "PodTemplateRejected")
    assert "volumeMounts" in told["message"]
    assert "correct spec.podTemplate of this Agent" in told["message"]
    assert await cluster.get("Secret", "fresh-agenthive") is None
    assert await cluster.get("Deployment", "fresh") is None

    await cluster.agent("runs", "demo", replicas=3)
    await cluster.exists("PodDisruptionBudget", "runs")
    await cluster.pods_ready("runs")
    await cluster.condition("Agent", "runs", "Ready", "True")
    before = (await cluster.need("Deployment", "runs"))["spec"]["template"]
    # A field that pods do not have: server-side apply refuses it with status 500.
    await cluster.patch("AgentHive", "demo", spec={"agentDefaults": {"podTemplate": {"spec": {"nodeSelektor": {}}}}})
    told = await cluster.condition("Agent", "runs", "Ready", "False", "PodTemplateRejected")
    assert "nodeSelektor" in told["message"]
    assert "spec.agentDefaults.podTemplate of AgentHive 'demo'" in told["message"]
    await cluster.condition("Agent", "runs", "Progressing", "False", "Waiting")

    await cluster.patch("Agent", "runs", spec={"replicas": 1})

    async def one() -> bool:
        return bool((await cluster.need("Deployment", "runs"))["spec"]["replicas"] == 1)

    await cluster.until("the number of pods follows all the same", one)
    await cluster.gone("PodDisruptionBudget", "runs")
    assert (await cluster.need("Deployment", "runs"))["spec"]["template"] == before

    await cluster.patch(
        "AgentHive",
        "demo",
        spec={"agentDefaults": {"podTemplate": {"spec": {"nodeSelektor": None, "nodeSelector": {"a": "b"}}}}},
    )

    async def rolled() -> bool:
        spec = (await cluster.need("Deployment", "runs"))["spec"]["template"]["spec"]
        return bool(spec.get("nodeSelector") == {"a": "b"})

    await cluster.until("the corrected template is applied", rolled)
    await cluster.patch("Agent", "fresh", spec={"podTemplate": None})
    await cluster.exists("Deployment", "fresh")


async def test_a_change_of_the_hive_rolls_some_agents_at_a_time_and_stops_when_it_fails(
    cluster: Cluster, options: Options, redis_url: str, postgres_url: str
) -> None:
    async def wait_for(image: str, count: int) -> set[str]:
        async def check() -> set[str] | None:
            found = await with_image(cluster, image)
            assert len(found) <= count, "no more than their turn"
            return found if len(found) == count else None

        found: set[str] = await cluster.until(f"{count} run {image}", check)
        return found

    async def set_image(image: str) -> None:
        await cluster.patch("AgentHive", "demo", spec={"agentDefaults": {"image": image}})

    async with running_operator(options):
        await cluster.external_hive("demo", redis_url, postgres_url, agentDefaults={"image": "ok:1"})
        for name in AGENTS:
            await cluster.agent(name, "demo")
        await wait_for("ok:1", len(AGENTS))  # the first start is not limited
        await asyncio.gather(*(cluster.pods_ready(name) for name in AGENTS))
        await cluster.condition("AgentHive", "demo", "Ready", "True")
        await set_image("ok:2")
        first = await wait_for("ok:2", SLOTS)
        waiting = sorted(set(AGENTS) - first)
        for name in waiting:
            await cluster.condition("Agent", name, "Progressing", "True", "RollQueued")
            await cluster.condition("Agent", name, "Ready", "False", "RollQueued")
        await cluster.patch("Agent", waiting[0], spec={"replicas": 2})

        async def two() -> bool:
            return bool((await cluster.need("Deployment", waiting[0]))["spec"]["replicas"] == 2)

        await cluster.until("scaling does not wait", two)
        await cluster.pods_ready(waiting[0])
    async with running_operator(options):  # a successor knows who rolls from the Deployments alone
        done = sorted(first)[0]
        await cluster.pods_ready(done)
        await wait_for("ok:2", SLOTS + 1)
        rolling = await with_image(cluster, "ok:2")
        while len(rolling) < len(AGENTS):
            await asyncio.gather(*(cluster.pods_ready(name) for name in rolling))
            more = rolling

            async def grown(before: set[str] = more) -> set[str] | None:
                found = await with_image(cluster, "ok:2")
                return found if len(found) > len(before) else None

            rolling = await cluster.until("others come next", grown)
        await asyncio.gather(*(cluster.pods_ready(name) for name in AGENTS))
        await cluster.condition("AgentHive", "demo", "Ready", "True")

        await set_image("bad:1")
        failed = await wait_for("bad:1", SLOTS)
        for name in failed:
            await stall(cluster, name)
        told = await cluster.condition("AgentHive", "demo", "AgentsReady", "False", "RollHalted")
        assert len(failed) >= FAILURES
        assert "is kept from 4 others" in told["message"], "no slot was given to others meanwhile"
        for name in set(AGENTS) - failed:
            await cluster.condition("Agent", name, "Progressing", "False", "RollHalted")
        assert await with_image(cluster, "bad:1") == failed

        await set_image("ok:3")
        await cluster.until("the fix reaches those that failed at once", lambda: fixed(cluster, failed))
        await asyncio.gather(*(cluster.pods_ready(name) for name in failed))
        await wait_for("ok:3", len(AGENTS))


async def fixed(cluster: Cluster, failed: set[str]) -> bool:
    return failed <= await with_image(cluster, "ok:3")


async def stall(cluster: Cluster, name: str) -> None:
    """What the Deployment's controller reports when new pods never become ready: the former go on."""
    generation = (await cluster.need("Deployment", name))["metadata"]["generation"]
    late = {"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded", "message": "too late"}
    counts = {"replicas": 2, "updatedReplicas": 1, "readyReplicas": 1, "availableReplicas": 1}
    await cluster.patch_status("Deployment", name, observedGeneration=generation, conditions=[late], **counts)


@pytest.mark.usefixtures("operator")
async def test_pods_that_the_server_refuses_are_in_the_condition(
    cluster: Cluster, redis_url: str, postgres_url: str
) -> None:
    await cluster.external_hive("demo", redis_url, postgres_url)
    await cluster.agent("greeter", "demo")
    generation = (await cluster.exists("Deployment", "greeter"))["metadata"]["generation"]

    async def refuse(text: str) -> None:
        failure = {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": text}
        await cluster.patch_status("Deployment", "greeter", observedGeneration=generation, conditions=[failure])

    quota = 'pods "greeter-5d8c9f7b-x{}2zz" is forbidden: exceeded quota: small, requested: pods=1, used: pods=9'
    await refuse(quota.format("b"))
    told = await cluster.condition("Agent", "greeter", "Ready", "False", "QuotaExceeded")
    assert told["message"].startswith('pods "greeter" is forbidden: exceeded quota: small')
    await cluster.condition("AgentHive", "demo", "AgentsReady", "False")
    before = (await cluster.need("Agent", "greeter"))["metadata"]["resourceVersion"]
    await refuse(quota.format("c"))
    await refuse('pods "greeter-5d8c9f7b-xb2zz" is forbidden: violates PodSecurity "restricted:latest"')
    told = await cluster.condition("Agent", "greeter", "Ready", "False", "PodsRefused")
    assert "PodSecurity" in told["message"]
    assert before != (await cluster.need("Agent", "greeter"))["metadata"]["resourceVersion"]


@pytest.mark.usefixtures("operator")
async def test_what_admission_refuses_at_the_creation_of_pods_is_told(
    cluster: Cluster, api_server: Any, redis_url: str, postgres_url: str, tmp_path: Path
) -> None:
    """A LimitRange and Pod Security, which only a real API server has; the controllers are our own."""
    if not api_server.real:
        pytest.skip("needs an API server with the admission plugins LimitRanger and PodSecurity")
    limit = {"type": "Container", "min": {"memory": "128Mi"}}
    limits = {"apiVersion": "v1", "kind": "LimitRange", "metadata": {"name": "large"}, "spec": {"limits": [limit]}}
    path = f"/api/v1/namespaces/{cluster.namespace}"
    api_server.call("POST", f"{path}/limitranges", limits)
    cluster.kubectl("label", "namespace", cluster.namespace, "pod-security.kubernetes.io/enforce=restricted")
    async with ApiClient(Connection.from_kubeconfig(api_server.kubeconfig)) as client:
        informers = Informers(client)
        controllers = Controllers(informers, claims_root=tmp_path, node="none")
        await controllers.start()
        running = asyncio.create_task(controllers.run())
        try:
            await cluster.external_hive("demo", redis_url, postgres_url)
            await cluster.agent("greeter", "demo")
            told = await cluster.condition("Agent", "greeter", "Ready", "False", "PodsRefused")
            assert "minimum memory usage per Container is 128Mi" in told["message"]
            unrestricted = {"hostNetwork": True}
            enough = {"requests": {"memory": "128Mi"}}
            await cluster.patch("Agent", "greeter", spec={"resources": enough, "podTemplate": {"spec": unrestricted}})

            async def told_of_security() -> bool:
                status = (await cluster.need("Agent", "greeter"))["status"]
                return any("violates PodSecurity" in entry["message"] for entry in status["conditions"])

            await cluster.until("Pod Security's text is in the condition", told_of_security)
            await cluster.patch("Agent", "greeter", spec={"podTemplate": None})

            async def pods() -> bool:
                return bool(await cluster.list("Pod"))

            await cluster.until("the operator's own pods are restricted", pods)
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            await informers.stop()
