"""What a Deployment's ReplicaSets should look like next: pure functions, no requests.

The arithmetic is that of the real deployment controller: the new ReplicaSet grows while the total stays within
``replicas + maxSurge``; old ones shrink, unhealthy pods first, while ``replicas - maxUnavailable`` stay available.
Left out: proportional scaling of several ReplicaSets when ``replicas`` changes in mid-rollout; the roll itself
converges.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from agenthive_operator.local.objects import (
    condition,
    digest,
    format_time,
    is_deleting,
    owner_reference,
    parse_time,
    set_condition,
)
from agenthive_operator.local.resources import DEPLOYMENTS, Obj

HASH_LABEL = "pod-template-hash"
REVISION = "deployment.kubernetes.io/revision"
DESIRED = "deployment.kubernetes.io/desired-replicas"
MAXIMUM = "deployment.kubernetes.io/max-replicas"
#: Annotations of a Deployment that its ReplicaSets do not inherit.
NOT_INHERITED = {"kubectl.kubernetes.io/last-applied-configuration", REVISION, DESIRED, MAXIMUM}


@dataclass(frozen=True, slots=True)
class Rollout:
    """What to do for one Deployment, in this order."""

    revision: int
    create: Obj | None = None
    #: (ReplicaSet, replicas): set the scale.
    scale: list[tuple[Obj, int]] = field(default_factory=list)
    #: ReplicaSet whose revision annotation must become ``revision``.
    promote: Obj | None = None
    #: Old, empty ReplicaSets beyond revisionHistoryLimit.
    delete: list[Obj] = field(default_factory=list)


def limits(deployment: Obj) -> tuple[int, int]:
    """(maxSurge, maxUnavailable) as numbers of pods; both zero is read as one pod unavailable."""
    spec = deployment["spec"]
    rolling = (spec.get("strategy") or {}).get("rollingUpdate") or {}
    surge = _share(rolling.get("maxSurge", "25%"), spec["replicas"], up=True)
    unavailable = _share(rolling.get("maxUnavailable", "25%"), spec["replicas"], up=False)
    if surge == 0 and unavailable == 0:
        unavailable = 1
    return surge, min(unavailable, spec["replicas"])


def _share(value: int | str, whole: int, *, up: bool) -> int:
    if isinstance(value, str) and value.endswith("%"):
        exact = int(value[:-1]) * whole / 100
        return math.ceil(exact) if up else math.floor(exact)
    return int(value)


def template_of(replica_set: Obj) -> Obj:
    """A ReplicaSet's pod template without the hash label: what the Deployment asked for."""
    template = dict(replica_set["spec"]["template"])
    metadata = dict(template.get("metadata") or {})
    metadata["labels"] = {k: v for k, v in (metadata.get("labels") or {}).items() if k != HASH_LABEL}
    return {**template, "metadata": metadata}


def _without_noise(template: Obj) -> Obj:
    metadata = {k: v for k, v in (template.get("metadata") or {}).items() if v and k != "creationTimestamp"}
    return {**template, "metadata": metadata}


def find_new(deployment: Obj, replica_sets: list[Obj]) -> Obj | None:
    """The ReplicaSet that runs the Deployment's present template: the oldest, should there be several."""
    wanted = _without_noise(deployment["spec"]["template"])
    same = [rs for rs in replica_sets if _without_noise(template_of(rs)) == wanted]
    return min(same, key=_age) if same else None


def _age(replica_set: Obj) -> tuple[str, str]:
    return replica_set["metadata"].get("creationTimestamp", ""), replica_set["metadata"]["name"]


def revision_of(obj: Obj) -> int:
    """The revision annotation, 0 without one."""
    return int((obj["metadata"].get("annotations") or {}).get(REVISION, 0))


def plan(deployment: Obj, replica_sets: list[Obj], old_pods: int) -> Rollout:
    """The next step.

    Args:
        deployment: as the API holds it (defaults filled in).
        replica_sets: those it controls, without the ones being deleted.
        old_pods: pods of old ReplicaSets that still exist, terminating ones too (Recreate waits for them).
    """
    spec = deployment["spec"]
    replicas = spec["replicas"]
    new = find_new(deployment, replica_sets)
    old = sorted((rs for rs in replica_sets if rs is not new), key=_age)
    highest = max((revision_of(rs) for rs in old), default=0)
    revision = revision_of(new) if new is not None and revision_of(new) > highest else highest + 1
    if spec.get("paused"):
        return Rollout(revision=revision_of(deployment), scale=_scale_active(new, old, replicas))
    promote = new if new is not None and revision_of(new) != revision else None
    if (spec.get("strategy") or {}).get("type") == "Recreate":
        running = [(rs, 0) for rs in old if rs["spec"]["replicas"]]
        if running or old_pods:
            return Rollout(revision=revision, scale=running, promote=promote)
        if new is None:
            return Rollout(revision=revision, create=new_replica_set(deployment, revision, replicas))
        scale = [(new, replicas)] if new["spec"]["replicas"] != replicas else []
        return Rollout(revision=revision, scale=scale, promote=promote, delete=_surplus_history(deployment, old))
    surge, unavailable = limits(deployment)
    total = sum(rs["spec"]["replicas"] for rs in replica_sets)
    if new is None:
        first = max(0, min(replicas + surge - total, replicas))
        return Rollout(revision=revision, create=new_replica_set(deployment, revision, first))
    wanted = _new_size(new["spec"]["replicas"], replicas, total, surge)
    if wanted != new["spec"]["replicas"]:
        return Rollout(revision=revision, scale=[(new, wanted)], promote=promote)
    scale = _shrink_old(new, old, replicas - unavailable, total)
    return Rollout(revision=revision, scale=scale, promote=promote, delete=_surplus_history(deployment, old))


def _scale_active(new: Obj | None, old: list[Obj], replicas: int) -> list[tuple[Obj, int]]:
    active = [rs for rs in (*old, *([new] if new else [])) if rs["spec"]["replicas"]]
    only = active[0] if len(active) == 1 else new if not active else None
    return [(only, replicas)] if only is not None and only["spec"]["replicas"] != replicas else []


def _new_size(size: int, replicas: int, total: int, surge: int) -> int:
    if size >= replicas:
        return replicas
    room = replicas + surge - total
    return size + max(0, min(room, replicas - size))


def _shrink_old(new: Obj, old: list[Obj], min_available: int, total: int) -> list[tuple[Obj, int]]:
    sizes = {id(rs): rs["spec"]["replicas"] for rs in old}
    if not any(sizes.values()):
        return []
    new_unavailable = new["spec"]["replicas"] - _available(new)
    spare = total - min_available - new_unavailable
    if spare <= 0:
        return []
    # Pods that do not serve anyway go first, and cost no availability.
    for rs in old:
        idle = min(spare, max(0, sizes[id(rs)] - _available(rs)))
        sizes[id(rs)] -= idle
        spare -= idle
    available = _available(new) + sum(_available(rs) for rs in old)
    spare = max(0, available - min_available)
    for rs in old:
        drop = min(spare, sizes[id(rs)], _available(rs))
        sizes[id(rs)] -= drop
        spare -= drop
    return [(rs, sizes[id(rs)]) for rs in old if sizes[id(rs)] != rs["spec"]["replicas"]]


def _available(replica_set: Obj) -> int:
    return int((replica_set.get("status") or {}).get("availableReplicas", 0))


def _surplus_history(deployment: Obj, old: list[Obj]) -> list[Obj]:
    limit = deployment["spec"].get("revisionHistoryLimit", 10)
    empty = [
        rs
        for rs in sorted(old, key=revision_of)
        if not rs["spec"]["replicas"] and not (rs.get("status") or {}).get("replicas") and not is_deleting(rs)
    ]
    return empty[: max(0, len(old) - limit)]


def new_replica_set(deployment: Obj, revision: int, replicas: int) -> Obj:
    """The ReplicaSet of the Deployment's present template; its name is the template's hash."""
    spec, meta = deployment["spec"], deployment["metadata"]
    collisions = (deployment.get("status") or {}).get("collisionCount", 0)
    hashed = digest([_without_noise(spec["template"]), collisions])
    template = {**spec["template"], "metadata": {**(spec["template"].get("metadata") or {})}}
    labels = {**(template["metadata"].get("labels") or {}), HASH_LABEL: hashed}
    template["metadata"]["labels"] = labels
    selector = {**spec["selector"], "matchLabels": {**(spec["selector"].get("matchLabels") or {}), HASH_LABEL: hashed}}
    inherited = {k: v for k, v in (meta.get("annotations") or {}).items() if k not in NOT_INHERITED}
    return {
        "apiVersion": "apps/v1",
        "kind": "ReplicaSet",
        "metadata": {
            "name": f"{meta['name']}-{hashed}",
            "namespace": meta["namespace"],
            "labels": labels,
            "annotations": inherited | scale_annotations(deployment) | {REVISION: str(revision)},
            "ownerReferences": [owner_reference(deployment, DEPLOYMENTS)],
        },
        "spec": {
            "replicas": replicas,
            "minReadySeconds": spec.get("minReadySeconds", 0),
            "selector": selector,
            "template": template,
        },
    }


def scale_annotations(deployment: Obj) -> dict[str, str]:
    """What a ReplicaSet remembers of its Deployment's size."""
    surge, _ = limits(deployment)
    replicas = deployment["spec"]["replicas"]
    return {DESIRED: str(replicas), MAXIMUM: str(replicas + surge)}


def status(deployment: Obj, replica_sets: list[Obj], now: datetime) -> Obj:
    """The Deployment's status from its ReplicaSets."""
    spec, previous = deployment["spec"], deployment.get("status") or {}
    new = find_new(deployment, replica_sets)
    figures = [rs.get("status") or {} for rs in replica_sets]
    total = sum(each.get("replicas", 0) for each in figures)
    available = sum(each.get("availableReplicas", 0) for each in figures)
    result: Obj = {
        "observedGeneration": deployment["metadata"]["generation"],
        "replicas": total,
        "updatedReplicas": (new.get("status") or {}).get("replicas", 0) if new else 0,
        "readyReplicas": sum(each.get("readyReplicas", 0) for each in figures),
        "availableReplicas": available,
        "unavailableReplicas": max(0, sum(rs["spec"]["replicas"] for rs in replica_sets) - available),
    }
    if previous.get("collisionCount"):
        result["collisionCount"] = previous["collisionCount"]
    stamp = format_time(now)
    conditions = list(previous.get("conditions") or [])
    conditions = set_condition(
        conditions, _stamped(deployment, _available_condition(spec, available, deployment), stamp), stamp
    )
    progress = _progress(deployment, new, result, now)
    conditions = set_condition(conditions, _stamped(deployment, progress, stamp), stamp)
    newest_first = sorted(replica_sets, key=lambda rs: rs is not new)
    failure = next((c for rs in newest_first if (c := condition(rs, "ReplicaFailure"))), None)
    conditions = [c for c in conditions if c["type"] != "ReplicaFailure"] + ([failure] if failure else [])
    result["conditions"] = conditions
    return result


def _stamped(deployment: Obj, new: Obj, stamp: str) -> Obj:
    """``new`` with its lastUpdateTime: that of before unless something changed, so that an idle status stays equal."""
    old = condition(deployment, new["type"]) or {}
    touched = new.pop("touched", False)
    same = all(old.get(k) == new[k] for k in ("status", "reason", "message"))
    return {**new, "lastUpdateTime": old["lastUpdateTime"] if same and not touched else stamp}


def _available_condition(spec: Obj, available: int, deployment: Obj) -> Obj:
    _, unavailable = limits(deployment)
    if available >= spec["replicas"] - unavailable:
        return {
            "type": "Available", "status": "True", "reason": "MinimumReplicasAvailable",
            "message": "Deployment has minimum availability.",
        }  # fmt: skip
    return {
        "type": "Available", "status": "False", "reason": "MinimumReplicasUnavailable",
        "message": "Deployment does not have minimum availability.",
    }  # fmt: skip


def is_complete(spec: Obj, figures: Obj) -> bool:
    """Whether every pod is of the present template and available, and no other is left."""
    wanted = spec["replicas"]
    return bool(
        figures["updatedReplicas"] == wanted
        and figures["replicas"] == wanted
        and figures["availableReplicas"] == wanted
    )


def _progress(deployment: Obj, new: Obj | None, figures: Obj, now: datetime) -> Obj:
    name = f'ReplicaSet "{new["metadata"]["name"]}"' if new else f'Deployment "{deployment["metadata"]["name"]}"'
    old, previous = condition(deployment, "Progressing"), deployment.get("status") or {}

    def progressing(status: str, reason: str, message: str, *, touched: bool = False) -> Obj:
        return {"type": "Progressing", "status": status, "reason": reason, "message": message, "touched": touched}

    if deployment["spec"].get("paused"):
        return progressing("Unknown", "DeploymentPaused", "Deployment is paused")
    if is_complete(deployment["spec"], figures):
        return progressing("True", "NewReplicaSetAvailable", f"{name} has successfully progressed.")
    moved = (
        figures["updatedReplicas"] > previous.get("updatedReplicas", 0)
        or figures["readyReplicas"] > previous.get("readyReplicas", 0)
        or figures["availableReplicas"] > previous.get("availableReplicas", 0)
        or figures["replicas"] - figures["updatedReplicas"]
        < previous.get("replicas", 0) - previous.get("updatedReplicas", 0)
    )
    generation_moved = previous.get("observedGeneration") != deployment["metadata"]["generation"]
    if moved or generation_moved or old is None:
        return progressing("True", "ReplicaSetUpdated", f"{name} is progressing.", touched=True)
    if old["reason"] == "ProgressDeadlineExceeded" or deadline_left(deployment, now) <= 0:
        return progressing("False", "ProgressDeadlineExceeded", f"{name} has timed out progressing.")
    if old["reason"] == "NewReplicaSetAvailable":
        # Complete before, and now a pod is missing: still the rollout that succeeded.
        return progressing("True", old["reason"], old["message"])
    return progressing("True", "ReplicaSetUpdated", f"{name} is progressing.")


def deadline_left(deployment: Obj, now: datetime) -> float:
    """Seconds until a rollout without progress counts as failed."""
    limit = deployment["spec"].get("progressDeadlineSeconds", 600)
    old = condition(deployment, "Progressing") or {}
    since = parse_time(old.get("lastUpdateTime"))
    if since is None or old.get("reason") == "NewReplicaSetAvailable":
        return float(limit)
    return (since + timedelta(seconds=limit) - now).total_seconds()
