"""Conditions: pure functions from what was observed to what the status says.

Each condition is a chain of rules, first match wins. Every reason that can appear is in ``REASONS`` with its meaning;
a test fails when a rule uses one that is not. ``python -m`` this module prints docs/conditions.md.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

from agenthive_operator.backends.reports import SchemaReport, StoreReport
from agenthive_operator.plan.connections import ConnectionBudget, budget_text
from agenthive_operator.reconcile.reasons import REASONS, markdown

__all__ = [
    "REASONS", "AgentInput", "HiveFacts", "HiveInput", "Problem", "Rollout", "Verdict", "agent_conditions",
    "hive_conditions", "pod_failure", "rollout_of", "sooner", "stores_ready",
]  # fmt: skip

Status = Literal["True", "False", "Unknown"]
MESSAGE_LIMIT: Final = 2000


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one condition says now."""

    status: Status
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that keeps an object from being applied: ``reason`` is one of Ready's, ``message`` says what to do.

    ``again``: seconds after which it may be gone without an event; None means as usual for the reason.
    """

    reason: str
    message: str
    again: float | None = None


@dataclass(frozen=True, slots=True)
class HiveInput:
    """All that a hive's conditions depend on. A report is None while the first probe is under way.

    ``cache`` counts where the cache has a Redis of its own (``own_cache``). ``budget`` is None while it is unknown, or
    where PgBouncer stands between the agents and the server. ``closed``: servers that NetworkPolicies keep agents from.
    """

    redis: StoreReport | None
    postgres: StoreReport | None
    schema: SchemaReport | None
    own_cache: bool = False
    cache: StoreReport | None = None
    budget: ConnectionBudget | None = None
    managed_postgres: bool = True
    agents_total: int = 0
    agents_ready: int = 0
    agents_not_ready: tuple[str, ...] = ()
    suspended: bool = False
    closed: frozenset[str] = frozenset()
    problem: Problem | None = None
    halted: str = ""
    """What is said of a change that is kept from the agents because it fails."""


@dataclass(frozen=True, slots=True)
class HiveFacts:
    """What an Agent needs to know of its hive."""

    exists: bool
    ready: bool = False
    suspended: bool = False
    deleting: bool = False
    message: str = ""
    halted: bool = False


@dataclass(frozen=True, slots=True)
class Rollout:
    """A Deployment's progress. ``current`` is False until its controller has seen the newest spec.

    ``refused``: what the API server said when it refused its pods; empty while it takes them.
    """

    desired: int
    replicas: int = 0
    updated: int = 0
    ready: int = 0
    current: bool = True
    stalled: str = ""
    refused: str = ""


@dataclass(frozen=True, slots=True)
class AgentInput:
    """All that an Agent's conditions depend on. ``rollout`` is None while there is no Deployment; ``waits`` says what
    the rotation of its credentials waits for.
    """

    name: str
    hive: str
    facts: HiveFacts
    rollout: Rollout | None = None
    failure: Problem | None = None
    problem: Problem | None = None
    waits: str = ""


BLOCKED_SECONDS: Final = 15.0
"""No event tells that a foreign object went away or that a quota has room: look again this often."""


def sooner(again: float | None, problem: Problem | None) -> float | None:
    """When to look again: what was asked for already, or sooner where only looking can find a problem gone."""
    wait = None if problem is None else problem.again
    if problem is not None and problem.reason in {"NameConflict", "ApplyRejected", "QuotaExceeded"}:
        wait = wait or BLOCKED_SECONDS
    return min((seconds for seconds in (again, wait) if seconds is not None), default=None)


# ---- AgentHive


def hive_conditions(seen: HiveInput) -> dict[str, Verdict]:
    """All conditions of a hive, by type."""
    parts = {
        "RedisReady": _reached(_redis(seen), closed="redis" in seen.closed),
        "PostgresReady": _reached(_postgres(seen), closed="postgres" in seen.closed),
        "SchemaReady": _schema(seen.schema),
        "AgentsReady": _agents(seen),
    }
    return {"Ready": _hive_ready(seen, parts), **parts}


def stores_ready(conditions: Mapping[str, Verdict]) -> bool:
    """Whether agents of a hive may start: both stores and the schema are ready."""
    return all(conditions[kind].status == "True" for kind in ("RedisReady", "PostgresReady", "SchemaReady"))


def _store(report: StoreReport | None) -> Verdict:
    if report is None:
        return Verdict("Unknown", "Probing", "the first probe is under way")
    verdict = Verdict("True" if report.ok else "False", report.reason, report.message)
    for reason, text in report.warnings if report.ok else ():
        verdict = _warned(verdict, reason, text)
    return verdict


def _warned(verdict: Verdict, reason: str, text: str) -> Verdict:
    """A condition that is True with something to mend besides: the first reason stands, the texts are all there."""
    first = verdict.reason if verdict.reason != "Reachable" else reason
    return Verdict("True", first, f"{verdict.message}; {text}")


def _reached(verdict: Verdict, *, closed: bool) -> Verdict:
    """A server that is ready, unless the hive's own NetworkPolicy keeps its agents from it."""
    if verdict.status != "True" or not closed:
        return verdict
    text = (
        "agents are kept from a server that is external, for spec.networkPolicy.egress is deny and allowEgress is"
        " empty: list its address in allowEgress"
    )
    return _warned(verdict, "EgressDenied", text)


def _redis(seen: HiveInput) -> Verdict:
    bus = _store(seen.redis)
    if bus.status != "True" or not seen.own_cache:
        return bus
    if seen.cache is None:
        return Verdict("Unknown", "Probing", "the first probe of the cache's own Redis is under way")
    if seen.cache.ok:
        return bus
    text = f"the cache's own is not ready ({seen.cache.reason}): {seen.cache.message}"
    return _warned(bus, "CacheNotReady", text)


def _postgres(seen: HiveInput) -> Verdict:
    store = _store(seen.postgres)
    if store.status != "True" or seen.budget is None or not seen.budget.is_near:
        return store
    text = budget_text(seen.budget, managed=seen.managed_postgres)
    return _warned(store, "NearConnectionLimit", text)


def _schema(report: SchemaReport | None) -> Verdict:
    if report is None:
        return Verdict("False", "WaitingForPostgres", "the schema is migrated once PostgreSQL is ready")
    return Verdict("True" if report.ok else "False", report.reason, report.message)


def _agents(seen: HiveInput) -> Verdict:
    if seen.suspended:
        return Verdict("True", "Suspended", "spec.suspend is true: all agents stand at zero replicas")
    if not seen.agents_total:
        return Verdict("True", "NoAgents", "no Agent names this hive")
    if seen.halted:
        return Verdict("False", "RollHalted", seen.halted)
    if seen.agents_ready >= seen.agents_total:
        return Verdict("True", "AllReady", f"{seen.agents_total} of {seen.agents_total} agents are ready")
    named = ", ".join(seen.agents_not_ready[:10]) + (" …" if len(seen.agents_not_ready) > 10 else "")
    counted = f"{seen.agents_ready} of {seen.agents_total} agents are ready"
    return Verdict("False", "AgentsNotReady", f"{counted}; not ready: {named}")


def _hive_ready(seen: HiveInput, parts: Mapping[str, Verdict]) -> Verdict:
    if seen.problem is not None:
        return Verdict("False", seen.problem.reason, seen.problem.message)
    for kind, verdict in parts.items():
        if verdict.status != "True":
            reason = kind.removesuffix("Ready") + "NotReady"
            return Verdict("Unknown" if verdict.status == "Unknown" else "False", reason, verdict.message)
    if seen.suspended:
        return Verdict("True", "Suspended", "spec.suspend is true: all agents stand at zero replicas")
    return Verdict("True", "AllReady", "stores, schema and agents are ready")


# ---- Agent


def agent_conditions(seen: AgentInput) -> dict[str, Verdict]:
    """All conditions of an Agent, by type."""
    hive = _hive_of_agent(seen)
    ready = _agent_ready(seen, hive)
    progressing = _progressing(seen, ready)
    if seen.waits:
        progressing = replace(progressing, message=f"{progressing.message}; {seen.waits}")
    return {"Ready": ready, "Progressing": progressing, "HiveReady": hive}


def _hive_of_agent(seen: AgentInput) -> Verdict:
    facts = seen.facts
    if not facts.exists:
        text = f"AgentHive {seen.hive!r} does not exist in this namespace; create it or correct spec.hiveRef.name"
        return Verdict("False", "HiveMissing", text)
    if facts.deleting:
        return Verdict("False", "HiveDeleting", f"AgentHive {seen.hive!r} is being deleted")
    if not facts.ready:
        return Verdict("False", "HiveNotReady", f"AgentHive {seen.hive!r} is not ready: {facts.message}")
    if facts.suspended:
        return Verdict("True", "HiveSuspended", f"AgentHive {seen.hive!r} is suspended")
    return Verdict("True", "HiveReady", f"AgentHive {seen.hive!r} is ready")


def _agent_ready(seen: AgentInput, hive: Verdict) -> Verdict:
    if seen.problem is not None:
        return Verdict("False", seen.problem.reason, seen.problem.message)
    rollout = seen.rollout
    if hive.reason in {"HiveMissing", "HiveDeleting"} or (rollout is None and hive.status != "True"):
        return Verdict("False", hive.reason, hive.message)
    if rollout is None or not rollout.current:
        return Verdict("False", "RollingOut", "the Deployment is being created or updated")
    if seen.facts.halted:
        text = f"AgentHive {seen.hive!r} moves to another server; its agents stand at zero pods until it is there"
        return Verdict("False", "CuttingOver", text)
    if rollout.desired == 0 and rollout.replicas == 0:
        if seen.facts.suspended:
            return Verdict("True", "Suspended", "the hive is suspended: no pod runs")
        return Verdict("True", "ScaledToZero", "spec.replicas is 0: no pod runs")
    if seen.failure is not None:
        return Verdict("False", seen.failure.reason, seen.failure.message)
    counted = f"{rollout.ready} of {rollout.desired} pods are ready"
    if rollout.updated < rollout.desired or rollout.replicas != rollout.desired:
        return Verdict("False", "RollingOut", f"{counted}, {rollout.updated} run the newest spec")
    if rollout.ready < rollout.desired:
        return Verdict("False", "PodsNotReady", counted)
    return Verdict("True", "AllPodsReady", counted)


def _progressing(seen: AgentInput, ready: Verdict) -> Verdict:
    rollout = seen.rollout
    if rollout is None or ready.reason == "PodTemplateRejected":
        return Verdict("False", "Waiting", ready.message)
    if ready.reason in {"RollQueued", "RollHalted"}:
        return Verdict("True" if ready.reason == "RollQueued" else "False", ready.reason, ready.message)
    if rollout.stalled:
        return Verdict("False", "Stalled", rollout.stalled)
    counted = f"{rollout.updated} of {rollout.desired} pods run the newest spec"
    if not rollout.current or rollout.updated < rollout.desired or rollout.replicas > rollout.desired:
        return Verdict("True", "RollingOut", counted)
    return Verdict("False", "UpToDate", counted)


# ---- what Deployments and pods tell

_NOT_STARTED: Final = frozenset(
    {
        "ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "RegistryUnavailable",
        "CreateContainerConfigError", "CreateContainerError", "RunContainerError", "PreStartHookError",
    }
)  # fmt: skip


def rollout_of(deployment: Mapping[str, Any]) -> Rollout:
    """How far a Deployment is."""
    status, spec = deployment.get("status") or {}, deployment["spec"]
    said = {(entry["type"], entry["status"]): entry.get("message", "") for entry in status.get("conditions") or ()}
    stalled, refused = ("Progressing", "False"), ("ReplicaFailure", "True")
    return Rollout(
        desired=spec.get("replicas", 1),
        replicas=status.get("replicas", 0),
        updated=status.get("updatedReplicas", 0),
        ready=status.get("readyReplicas", 0),
        current=status.get("observedGeneration", 0) >= deployment["metadata"].get("generation", 0),
        stalled=said[stalled] or "the Deployment exceeded its progress deadline" if stalled in said else "",
        refused=said[refused] or "the API server refused its pods" if refused in said else "",
    )


def pod_failure(pods: Sequence[Mapping[str, Any]]) -> Problem | None:
    """The most telling thing that keeps a pod from running, or None.

    A container's last words (its termination message, where the runtime writes an import error) come before
    anything else; then containers that cannot start, pods without a node, pods that were thrown out.
    """
    living = [pod for pod in pods if not pod["metadata"].get("deletionTimestamp")]
    for rule in (_last_words, _cannot_start, _no_node, _thrown_out):
        for pod in living:
            problem = rule(pod)
            if problem is not None:
                message = f"pod {pod['metadata']['name']}: {problem.message}"
                return Problem(problem.reason, message[:MESSAGE_LIMIT])
    return None


def _containers(pod: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    status = pod.get("status") or {}
    return [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]


def _last_words(pod: Mapping[str, Any]) -> Problem | None:
    for container in _containers(pod):
        if container.get("ready"):
            continue
        state = container.get("state") or {}
        ended = state.get("terminated") or (container.get("lastState") or {}).get("terminated")
        if not ended or ended.get("exitCode", 0) == 0:
            continue
        restarts = container.get("restartCount", 0)
        how = f"container {container['name']} ended with exit code {ended.get('exitCode')}"
        again = f" (restarted {restarts} times)" if restarts > 1 else ""
        words = (ended.get("message") or "").strip() or ended.get("reason", "")
        return Problem("ContainerFailed", f"{how}{again}: {words}" if words else f"{how}{again}")
    return None


def _cannot_start(pod: Mapping[str, Any]) -> Problem | None:
    for container in _containers(pod):
        waiting = (container.get("state") or {}).get("waiting") or {}
        reason = waiting.get("reason", "")
        if reason in _NOT_STARTED or reason == "CrashLoopBackOff":
            text = waiting.get("message", "")
            return Problem("ContainerWaiting", f"container {container['name']}: {reason}{': ' if text else ''}{text}")
    return None


def _no_node(pod: Mapping[str, Any]) -> Problem | None:
    for condition in (pod.get("status") or {}).get("conditions") or ():
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            return Problem("Unschedulable", condition.get("message", "") or "no node fits")
    return None


def _thrown_out(pod: Mapping[str, Any]) -> Problem | None:
    status = pod.get("status") or {}
    if status.get("phase") != "Failed":
        return None
    return Problem("PodFailed", f"{status.get('reason', 'failed')}: {status.get('message', '')}".rstrip(": "))


if __name__ == "__main__":
    sys.stdout.write(markdown())
