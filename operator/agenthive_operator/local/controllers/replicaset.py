"""The ReplicaSet controller: as many pods as asked for."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from datetime import datetime

from agenthive_operator.local.client import ApiError
from agenthive_operator.local.controllers.base import Controller, random_suffix
from agenthive_operator.local.informer import Informers
from agenthive_operator.local.objects import (
    Key,
    format_time,
    is_available,
    is_deleting,
    is_finished,
    is_ready,
    labels_of,
    matches,
    owner_reference,
    parse_time,
    set_condition,
    utc_now,
)
from agenthive_operator.local.resources import PODS, REPLICA_SETS, Obj

#: Pods created or deleted at once for one ReplicaSet.
BURST = 16


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do for one ReplicaSet."""

    create: int = 0
    delete: list[Obj] = field(default_factory=list)


def decide(replica_set: Obj, pods: list[Obj]) -> Decision:
    """How many pods to create, or which to delete. Finished and terminating pods do not count."""
    active = [pod for pod in pods if not is_finished(pod) and not is_deleting(pod)]
    missing = replica_set["spec"]["replicas"] - len(active)
    if missing >= 0:
        return Decision(create=missing)
    return Decision(delete=sorted(active, key=_worth)[:-missing])


def _worth(pod: Obj) -> tuple[bool, bool, bool, int, float]:
    """Pods that are worth least come first: unscheduled, pending, not ready, often restarted, then the youngest."""
    status = pod.get("status") or {}
    restarts = max((c.get("restartCount", 0) for c in status.get("containerStatuses") or []), default=0)
    created = parse_time(pod["metadata"].get("creationTimestamp"))
    return (
        bool(pod["spec"].get("nodeName")),
        status.get("phase") == "Running",
        is_ready(pod),
        -restarts,
        -(created.timestamp() if created else 0.0),
    )


def status(replica_set: Obj, pods: list[Obj], failure: str | None, now: datetime) -> Obj:
    """The ReplicaSet's status from its pods; ``failure``: why pods could not be created."""
    active = [pod for pod in pods if not is_finished(pod) and not is_deleting(pod)]
    template_labels = replica_set["spec"]["template"]["metadata"].get("labels") or {}
    minimum = replica_set["spec"].get("minReadySeconds", 0)
    result: Obj = {
        "observedGeneration": replica_set["metadata"]["generation"],
        "replicas": len(active),
        "fullyLabeledReplicas": sum(template_labels.items() <= labels_of(pod).items() for pod in active),
        "readyReplicas": sum(is_ready(pod) for pod in active),
        "availableReplicas": sum(is_available(pod, minimum, now) for pod in active),
    }
    conditions = (replica_set.get("status") or {}).get("conditions") or []
    if failure is not None:
        failed = {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": failure}
        result["conditions"] = set_condition(conditions, failed, format_time(now))
    elif others := [c for c in conditions if c["type"] != "ReplicaFailure"]:
        result["conditions"] = others
    return result


def pod_from(template: Obj, namespace: str, name: str, owner: Obj) -> Obj:
    """A pod of a template."""
    metadata = template.get("metadata") or {}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "labels": metadata.get("labels") or {},
            "annotations": metadata.get("annotations") or {},
            "ownerReferences": [owner],
        },
        "spec": template["spec"],
    }


class ReplicaSetController(Controller):
    """ReplicaSets → pods."""

    resource = REPLICA_SETS

    def __init__(self, informers: Informers, *, workers: int = 8) -> None:
        super().__init__(informers, workers=workers)
        self.pods = informers.of(PODS)
        self.follow_children(PODS)

    async def reconcile(self, key: Key) -> float | None:
        """Create or delete pods until their number is right, then write the status."""
        replica_set = self.objects.get(*key)
        if replica_set is None:
            return None
        failure: ApiError | None = None
        if not is_deleting(replica_set):
            await self._adopt(replica_set)
            failure = await self._carry_out(replica_set, decide(replica_set, self.pods.owned_by(replica_set)))
        now = utc_now()
        pods = self.pods.owned_by(replica_set)
        figures = status(replica_set, pods, failure.message if failure else None, now)
        await self.write_status(replica_set, figures)
        if failure is not None:
            raise failure
        waiting = figures["readyReplicas"] - figures["availableReplicas"]
        return float(replica_set["spec"].get("minReadySeconds", 0)) if waiting else None

    async def _adopt(self, replica_set: Obj) -> None:
        for pod in self.pods.orphans(replica_set["metadata"]["namespace"]):
            if (
                not is_deleting(pod)
                and not is_finished(pod)
                and matches(replica_set["spec"]["selector"], labels_of(pod))
            ):
                owners = [*(pod["metadata"].get("ownerReferences") or []), owner_reference(replica_set, REPLICA_SETS)]
                await self.patch(PODS, pod, {"metadata": {"ownerReferences": owners}})

    async def _carry_out(self, replica_set: Obj, decision: Decision) -> ApiError | None:
        """Create or delete, at most ``BURST`` at once; the first refusal to create, if there was one."""
        gate = asyncio.Semaphore(BURST)
        refused: list[ApiError] = []
        name, namespace = replica_set["metadata"]["name"], replica_set["metadata"]["namespace"]
        owner = owner_reference(replica_set, REPLICA_SETS)

        async def create() -> None:
            async with gate:
                if refused:
                    return  # what was refused once will be refused again: the next look tries anew
                pod = pod_from(replica_set["spec"]["template"], namespace, f"{name}-{random_suffix()}", owner)
                try:
                    await self.create(PODS, pod)
                except ApiError as error:
                    refused.append(error)

        async def delete(pod: Obj) -> None:
            async with gate:
                await self.delete(PODS, pod)

        await asyncio.gather(*(create() for _ in range(decision.create)), *(delete(pod) for pod in decision.delete))
        return refused[0] if refused else None
