"""What the chart's pre-delete hook does to an API server whose operator, if any, is a Deployment without pods."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable

import pytest
from click.testing import CliRunner
from tests.integration.operator.conftest import Cluster

from agenthive_operator.backends.kube import ApiError
from agenthive_operator.hooks import patience, uninstall
from agenthive_operator.hooks.uninstall import Asked, LeftError, Uninstall
from agenthive_operator.plan.names import FINALIZER

FOREIGN = "example.com/theirs"
LABELS = {"app": "operator"}
POD = {"containers": [{"name": "operator", "image": "any"}], "terminationGracePeriodSeconds": 0}


@pytest.fixture(autouse=True)
def _in_haste(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uninstall, "LOOK_SECONDS", 0.05)


async def add_operator(cluster: Cluster, *, ready: int = 0) -> None:
    """The Deployment and a pod of it; nothing runs them."""
    template = {"metadata": {"labels": LABELS}, "spec": POD}
    spec = {"replicas": 1, "selector": {"matchLabels": LABELS}, "template": template}
    await cluster.create("Deployment", "operator", spec=spec)
    await cluster.create("Pod", "operator-1", metadata={"labels": LABELS}, spec=POD)
    if ready:
        counts = {"replicas": 1, "readyReplicas": ready, "observedGeneration": 1}
        await cluster.patch_status("Deployment", "operator", **counts)


async def add_hive(cluster: Cluster, name: str, *finalizers: str) -> None:
    await cluster.create("AgentHive", name, metadata={"finalizers": list(finalizers)}, spec={})


async def add_agent(cluster: Cluster, name: str, hive: str, *finalizers: str) -> None:
    spec = {"hiveRef": {"name": hive}, "entrypoint": "code:agent"}
    await cluster.create("Agent", name, metadata={"finalizers": list(finalizers)}, spec=spec)


async def finalizers(cluster: Cluster, kind: str, name: str) -> list[str]:
    return (await cluster.need(kind, name))["metadata"].get("finalizers") or []


def hook(cluster: Cluster, said: list[str], *, delete: bool = False, seconds: float = 30) -> Uninstall:
    asked = Asked(cluster.namespace, "operator", (cluster.namespace,), delete, seconds)
    return Uninstall(cluster.kube, asked, said.append)


async def told(said: list[str], pattern: str) -> None:
    async with asyncio.timeout(20):
        while not any(re.search(pattern, line) for line in said):  # noqa: ASYNC110 - lines of a list
            await asyncio.sleep(0.02)


async def test_the_operator_ends_before_its_finalizer_comes_off_and_others_stay(cluster: Cluster) -> None:
    await add_operator(cluster)
    await add_hive(cluster, "plain")
    await add_hive(cluster, "held", FOREIGN, FINALIZER)
    await add_agent(cluster, "worker", "held", FINALIZER)
    said: list[str] = []
    running = asyncio.create_task(hook(cluster, said).run())
    await told(said, "scaled to 0")

    async def scaled() -> bool:
        return bool((await cluster.need("Deployment", "operator"))["spec"]["replicas"] == 0)

    async with asyncio.timeout(20):
        while not await scaled():  # noqa: ASYNC110 - the API server's state
            await asyncio.sleep(0.02)
    assert await finalizers(cluster, "AgentHive", "held") == [FOREIGN, FINALIZER], "its pod is still there"
    await cluster.delete("Pod", "operator-1")
    await running
    assert await finalizers(cluster, "AgentHive", "held") == [FOREIGN]
    assert await finalizers(cluster, "AgentHive", "plain") == []
    assert await finalizers(cluster, "Agent", "worker") == []
    assert said[-1].endswith("it came off 2")
    # Again, as after a first try that was cut off: nothing is left to do.
    await hook(cluster, said).run()
    assert said[-1].endswith("it came off 0")


async def test_what_is_deleted_has_until_the_deadline_and_is_let_go_loudly(cluster: Cluster) -> None:
    await add_operator(cluster, ready=1)
    await cluster.delete("Pod", "operator-1")
    await add_hive(cluster, "stuck", FINALIZER)
    await add_agent(cluster, "worker", "stuck")
    said: list[str] = []
    await hook(cluster, said, delete=True, seconds=0.3).run()
    assert await cluster.list("AgentHive") == []
    assert await cluster.list("Agent") == []
    assert said[0].startswith("deleting 2 hives and agents")
    assert f"waiting for the operator to take apart AgentHive {cluster.namespace}/stuck" in said
    assert any(line.startswith("after 0 s these are still being deleted") for line in said)
    assert any(line.startswith(f"WARNING: AgentHive {cluster.namespace}/stuck was being deleted") for line in said)


async def test_a_hive_that_its_operator_takes_apart_is_waited_for(cluster: Cluster) -> None:
    await add_operator(cluster, ready=1)
    await cluster.delete("Pod", "operator-1")
    await add_hive(cluster, "going", FINALIZER)
    await add_hive(cluster, "kept", FINALIZER)
    await cluster.delete("AgentHive", "going")
    said: list[str] = []
    running = asyncio.create_task(hook(cluster, said).run())
    await told(said, "take apart")
    assert (await cluster.need("Deployment", "operator"))["spec"]["replicas"] == 1, "the operator is let work"
    await cluster.patch("AgentHive", "going", metadata={"finalizers": []})
    await running
    assert not any("WARNING" in line for line in said)
    assert await finalizers(cluster, "AgentHive", "kept") == []


async def test_neither_pods_that_do_not_end_nor_an_operator_that_is_gone_stop_it(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uninstall, "STOP_SECONDS", 0.0)
    await add_operator(cluster)
    await add_hive(cluster, "held", FINALIZER)
    said: list[str] = []
    await hook(cluster, said).run()
    assert any(line.startswith("WARNING: after 0 s these have not ended: Pod") for line in said)
    assert await finalizers(cluster, "AgentHive", "held") == []
    await cluster.delete("Deployment", "operator")
    await cluster.patch("AgentHive", "held", metadata={"finalizers": [FINALIZER]})
    await hook(cluster, said).run()
    assert await finalizers(cluster, "AgentHive", "held") == []


async def test_what_keeps_its_finalizer_is_named(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uninstall, "LIFT_SECONDS", 0.0)
    await add_hive(cluster, "held", FINALIZER)
    with pytest.raises(LeftError, match=f"{FINALIZER} is still on AgentHive {cluster.namespace}/held"):
        await hook(cluster, []).run()


async def test_kinds_that_are_not_served_hold_nothing(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = uninstall.Resource("AgentHive", "beehives", "agenthive.dev", "v1alpha1")
    monkeypatch.setattr(uninstall, "CUSTOM", (gone,))
    said: list[str] = []
    await hook(cluster, said, delete=True).run()
    assert said[-1].endswith("it came off 0")


async def test_an_answer_that_may_change_is_waited_for_and_another_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "LOOK_SECONDS", 0.0)

    def answers(*errors: ApiError) -> Callable[[], asyncio.Future[str]]:
        left = list(errors)

        async def answer() -> str:
            if left:
                raise left.pop(0)
            return "well"

        return lambda: asyncio.ensure_future(answer())

    away, refused = ApiError(503, "ServiceUnavailable", "a moment"), ApiError(403, "Forbidden", "never")
    assert await patience.patiently(answers(away, away)) == "well"
    with pytest.raises(ApiError, match="never"):
        await patience.patiently(answers(away, refused))
    with pytest.raises(ApiError, match="a moment"):
        await patience.patiently(answers(away, away), seconds=0)


def test_a_failure_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", "/nowhere")
    done = CliRunner().invoke(uninstall.main, ["--namespace=n", "--deployment=d"])
    assert done.exit_code == 1
    assert "helm uninstall --no-hooks" in done.output
    assert "docs/install.md" in done.output


def test_long_lists_are_cut() -> None:
    hives = [{"kind": "AgentHive", "metadata": {"namespace": "n", "name": f"h{number}"}} for number in range(12)]
    assert uninstall.named(hives).endswith("AgentHive n/h9 and 2 more")
