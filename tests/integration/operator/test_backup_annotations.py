"""Annotations for backups: on the server's pods and on its claim, and taken out again."""

from __future__ import annotations

from typing import Any

from tests.integration.operator.conftest import Cluster

FROZEN = {"backup.example/frozen": "yes"}
CLAIM = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}


async def annotations(cluster: Cluster) -> tuple[dict[str, str], dict[str, str]]:
    """Those of the Redis's pod template without the checksum, and those of its claim."""
    template = (await cluster.need("StatefulSet", "demo-redis"))["spec"]["template"]["metadata"]["annotations"]
    claim = (await cluster.need("PersistentVolumeClaim", "data-demo-redis-0"))["metadata"].get("annotations") or {}
    return {key: value for key, value in template.items() if key != "agenthive.dev/checksum"}, claim


async def test_annotations_come_and_go(cluster: Cluster, operator: None) -> None:
    await cluster.create("AgentHive", "demo")
    made = await cluster.exists("StatefulSet", "demo-redis")
    # As the StatefulSet controller makes it, with something of somebody else's.
    foreign = {"volume.example/selected-node": "one"}
    await cluster.create("PersistentVolumeClaim", "data-demo-redis-0", metadata={"annotations": foreign}, spec=CLAIM)

    async def change(wanted: dict[str, str | None]) -> None:
        await cluster.patch("AgentHive", "demo", spec={"redis": {"managed": {"annotations": wanted}}})

    async def until(pod: dict[str, str]) -> None:
        async def arrived() -> Any:
            return await annotations(cluster) == (pod, foreign | pod)

        await cluster.until(f"annotations are {pod}", arrived)

    await change(dict(FROZEN))
    await until(FROZEN)
    now = await cluster.need("StatefulSet", "demo-redis")
    assert now["spec"]["volumeClaimTemplates"] == made["spec"]["volumeClaimTemplates"]
    await change({"backup.example/frozen": None, "backup.example/other": "1"})
    await until({"backup.example/other": "1"})
    await change({"backup.example/other": None})
    await until({})
