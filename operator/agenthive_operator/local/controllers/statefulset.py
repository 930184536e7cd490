"""The StatefulSet controller: numbered pods, each with its own volume claims.

Left out: ControllerRevisions. A pod below ``partition`` that is lost is created from the present template.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import datetime

from agenthive_operator.local.client import ApiError
from agenthive_operator.local.controllers.base import Controller
from agenthive_operator.local.controllers.replicaset import pod_from
from agenthive_operator.local.informer import Informers
from agenthive_operator.local.objects import (
    Key,
    digest,
    is_available,
    is_deleting,
    is_finished,
    is_ready,
    labels_of,
    owner_reference,
    utc_now,
)
from agenthive_operator.local.resources import CLAIMS, PODS, STATEFUL_SETS, Obj

REVISION_LABEL = "controller-revision-hash"
POD_NAME_LABEL = "statefulset.kubernetes.io/pod-name"
INDEX_LABEL = "apps.kubernetes.io/pod-index"


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do for one StatefulSet now; what comes after is decided when this has happened."""

    create: list[int] = field(default_factory=list)
    delete: list[Obj] = field(default_factory=list)


def revision_of(stateful_set: Obj) -> str:
    """The name of the present template's revision."""
    spec = stateful_set["spec"]
    return f"{stateful_set['metadata']['name']}-{digest(spec['template'])}"


def ordinal_of(pod: Obj) -> int:
    """The number at the end of the pod's name, -1 without one."""
    found = re.search(r"-(\d+)$", pod["metadata"]["name"])
    return int(found.group(1)) if found else -1


def wanted_ordinals(stateful_set: Obj) -> range:
    """The numbers the pods should have."""
    start = (stateful_set["spec"].get("ordinals") or {}).get("start", 0)
    return range(start, start + stateful_set["spec"]["replicas"])


def decide(stateful_set: Obj, pods: list[Obj], now: datetime) -> Decision:
    """The next step: create missing pods from the lowest, remove surplus ones from the highest, then update.

    With OrderedReady (the default) one pod at a time, and none before its predecessors are available; as in the real
    controller a pod that never becomes ready holds up those behind it, its own update included.
    """
    spec = stateful_set["spec"]
    wanted = wanted_ordinals(stateful_set)
    parallel = spec.get("podManagementPolicy") == "Parallel"
    minimum = spec.get("minReadySeconds", 0)
    by_ordinal = {ordinal_of(pod): pod for pod in pods}
    create: list[int] = []
    for ordinal in wanted:
        pod = by_ordinal.get(ordinal)
        if pod is None:
            create.append(ordinal)
        elif is_finished(pod) and not is_deleting(pod):
            return Decision(create=create, delete=[pod])  # created again once it is gone
        if not parallel and (pod is None or is_deleting(pod) or not is_available(pod, minimum, now)):
            return Decision(create=create)
    if create:
        return Decision(create=create)
    surplus = [by_ordinal[n] for n in sorted(by_ordinal, reverse=True) if n not in wanted]
    if surplus:
        if parallel:
            return Decision(delete=[pod for pod in surplus if not is_deleting(pod)])
        return Decision() if is_deleting(surplus[0]) else Decision(delete=[surplus[0]])
    return Decision(delete=_outdated(stateful_set, by_ordinal, wanted, now))


def _outdated(stateful_set: Obj, by_ordinal: dict[int, Obj], wanted: range, now: datetime) -> list[Obj]:
    strategy = stateful_set["spec"].get("updateStrategy") or {}
    if strategy.get("type") == "OnDelete":
        return []
    partition = (strategy.get("rollingUpdate") or {}).get("partition", 0)
    minimum = stateful_set["spec"].get("minReadySeconds", 0)
    revision = revision_of(stateful_set)
    for ordinal in reversed(wanted):
        if ordinal < partition:
            break
        pod = by_ordinal[ordinal]
        if labels_of(pod).get(REVISION_LABEL) != revision:
            return [] if is_deleting(pod) else [pod]
        if is_deleting(pod) or not is_available(pod, minimum, now):
            return []  # the one updated last comes first
    return []


def status(stateful_set: Obj, pods: list[Obj], now: datetime) -> Obj:
    """The StatefulSet's status from its pods."""
    previous = stateful_set.get("status") or {}
    update = revision_of(stateful_set)
    alive = [pod for pod in pods if not is_deleting(pod) and not is_finished(pod)]
    updated = [pod for pod in alive if labels_of(pod).get(REVISION_LABEL) == update]
    minimum = stateful_set["spec"].get("minReadySeconds", 0)
    ready = sum(is_ready(pod) for pod in alive)
    current = previous.get("currentRevision") or update
    if len(updated) == len(pods) == stateful_set["spec"]["replicas"] == ready:
        current = update  # the update is complete
    return {
        "observedGeneration": stateful_set["metadata"]["generation"],
        "replicas": len(pods),
        "readyReplicas": ready,
        "availableReplicas": sum(is_available(pod, minimum, now) for pod in alive),
        "currentReplicas": sum(labels_of(pod).get(REVISION_LABEL) == current for pod in alive),
        "updatedReplicas": len(updated),
        "currentRevision": current,
        "updateRevision": update,
        "collisionCount": 0,
    }


def claim_name(template: Obj, stateful_set: Obj, ordinal: int) -> str:
    """The name of a pod's claim: ``<template>-<set>-<ordinal>``."""
    return f"{template['metadata']['name']}-{stateful_set['metadata']['name']}-{ordinal}"


def claims(stateful_set: Obj, ordinal: int) -> list[Obj]:
    """The claims a pod needs."""
    spec, meta = stateful_set["spec"], stateful_set["metadata"]
    policy = spec.get("persistentVolumeClaimRetentionPolicy") or {}
    owners = [owner_reference(stateful_set, STATEFUL_SETS)] if policy.get("whenDeleted") == "Delete" else []
    return [
        {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {
                "name": claim_name(template, stateful_set, ordinal),
                "namespace": meta["namespace"],
                "labels": {**(template["metadata"].get("labels") or {}), **(spec["selector"].get("matchLabels") or {})},
                "annotations": template["metadata"].get("annotations") or {},
                "ownerReferences": owners,
            },
            "spec": template["spec"],
        }
        for template in spec.get("volumeClaimTemplates") or []
    ]


def pod(stateful_set: Obj, ordinal: int) -> Obj:
    """The pod of that number."""
    spec, meta = stateful_set["spec"], stateful_set["metadata"]
    name = f"{meta['name']}-{ordinal}"
    body = pod_from(spec["template"], meta["namespace"], name, owner_reference(stateful_set, STATEFUL_SETS))
    body["metadata"]["labels"] = {
        **body["metadata"]["labels"],
        REVISION_LABEL: revision_of(stateful_set),
        POD_NAME_LABEL: name,
        INDEX_LABEL: str(ordinal),
    }
    claimed = {
        template["metadata"]["name"]: claim_name(template, stateful_set, ordinal)
        for template in spec.get("volumeClaimTemplates") or []
    }
    volumes = [v for v in body["spec"].get("volumes") or [] if v["name"] not in claimed]
    volumes += [{"name": k, "persistentVolumeClaim": {"claimName": v}} for k, v in claimed.items()]
    body["spec"] = {**body["spec"], "hostname": name, "subdomain": spec.get("serviceName", ""), "volumes": volumes}
    if not body["spec"]["subdomain"]:
        del body["spec"]["subdomain"]
    return body


class StatefulSetController(Controller):
    """StatefulSets → claims and pods."""

    resource = STATEFUL_SETS

    def __init__(self, informers: Informers, *, workers: int = 2) -> None:
        super().__init__(informers, workers=workers)
        self.pods = informers.of(PODS)
        self.claims = informers.of(CLAIMS)
        self.follow_children(PODS)

    async def reconcile(self, key: Key) -> float | None:
        """Take the next step, then write the status."""
        stateful_set = self.objects.get(*key)
        if stateful_set is None:
            return None
        if not is_deleting(stateful_set):
            step = decide(stateful_set, self.pods.owned_by(stateful_set), utc_now())
            for ordinal in step.create:
                await self._create(stateful_set, ordinal)
            for surplus in step.delete:
                await self.delete(PODS, surplus)
        figures = status(stateful_set, self.pods.owned_by(stateful_set), utc_now())
        await self.write_status(stateful_set, figures)
        waiting = figures["readyReplicas"] - figures["availableReplicas"]
        return float(stateful_set["spec"].get("minReadySeconds", 0)) if waiting else None

    async def _create(self, stateful_set: Obj, ordinal: int) -> None:
        for claim in claims(stateful_set, ordinal):
            if self.claims.get(claim["metadata"]["namespace"], claim["metadata"]["name"]) is None:
                try:
                    await self.create(CLAIMS, claim)
                except ApiError as error:
                    if error.status != 409:  # it exists: that of an earlier life of this set, adopted with its data
                        raise
        await self.create(PODS, pod(stateful_set, ordinal))
