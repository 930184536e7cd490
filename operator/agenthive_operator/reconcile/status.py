"""The status of both kinds: built from observations, patched only where it differs. Pure, and told the time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from agenthive_operator.backends.reports import Figures, StoreReport
from agenthive_operator.reconcile.conditions import MESSAGE_LIMIT, Rollout, Verdict

Object = dict[str, Any]

FIGURES_SECONDS: Final = 30.0
"""Figures of one object are written at most this often, but for the news that its queue ran empty."""
BUSY_FIGURES: Final = ("backlog", "inFlight")
MATERIAL_SHARE: Final = 0.1
"""A figure that moved by less than this share of itself is no news."""


def timestamp(moment: datetime) -> str:
    """RFC 3339 in UTC with seconds, as Kubernetes writes times."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def merge_conditions(
    previous: list[Object], verdicts: Mapping[str, Verdict], generation: int, now: datetime
) -> list[Object]:
    """The list of conditions for the status: ``lastTransitionTime`` moves only when ``status`` changes.

    Conditions of types that are no longer decided are dropped.
    """
    known = {condition.get("type"): condition for condition in previous}
    merged: list[Object] = []
    for kind, verdict in verdicts.items():
        before = known.get(kind, {})
        same = before.get("status") == verdict.status and "lastTransitionTime" in before
        merged.append(
            {
                "type": kind,
                "status": verdict.status,
                "reason": verdict.reason,
                "message": verdict.message[:MESSAGE_LIMIT],
                "observedGeneration": generation,
                "lastTransitionTime": before["lastTransitionTime"] if same else timestamp(now),
            }
        )
    return merged


def only_ready(live: Mapping[str, Any], verdict: Verdict, now: datetime) -> Object:
    """The status of ``live`` with another verdict on Ready and everything else as it was."""
    before, generation = live.get("status") or {}, int(live["metadata"].get("generation", 0))
    known: list[Object] = before.get("conditions") or []
    ready = merge_conditions(known, {"Ready": verdict}, generation, now)
    others = [entry for entry in known if entry["type"] != "Ready"]
    return {**before, "observedGeneration": generation, "conditions": [*ready, *others]}


def condition(obj: Mapping[str, Any], kind: str) -> Object | None:
    """The condition of one type in an object's status."""
    conditions = (obj.get("status") or {}).get("conditions") or []
    return next((entry for entry in conditions if entry.get("type") == kind), None)


def is_true(obj: Mapping[str, Any], kind: str) -> bool:
    """Whether a condition is there and True for the object's newest generation."""
    entry = condition(obj, kind)
    if entry is None or entry.get("status") != "True":
        return False
    return int(entry.get("observedGeneration", 0)) >= int(obj["metadata"].get("generation", 0))


def hive_status(
    *,
    conditions: list[Object],
    generation: int,
    instance_id: str,
    agents_total: int,
    agents_ready: int,
    redis: StoreReport | None,
    postgres: StoreReport | None,
    backlog: int | None,
) -> Object:
    """The whole status of an AgentHive. Stores without an endpoint and an unknown backlog are left out."""
    status: Object = {
        "observedGeneration": generation,
        "instanceId": instance_id,
        "conditions": conditions,
        "agents": {"total": agents_total, "ready": agents_ready},
    }
    for name, report in (("redis", redis), ("postgres", postgres)):
        if report is not None and report.endpoint:
            store = {"endpoint": report.endpoint, "version": report.version}
            status[name] = {field: value for field, value in store.items() if value}
    if backlog is not None:
        status["backlog"] = backlog
    return status


def agent_status(
    *, conditions: list[Object], generation: int, selector: str, rollout: Rollout | None, figures: Object
) -> Object:
    """The whole status of an Agent; ``figures`` are the fields that ``FigureGate`` let through."""
    return {
        "observedGeneration": generation,
        "conditions": conditions,
        "replicas": rollout.replicas if rollout else 0,
        "readyReplicas": rollout.ready if rollout else 0,
        "selector": selector,
        **figures,
    }


def figure_fields(figures: Figures) -> Object:
    """An agent's figures as fields of its status."""
    fields: Object = {
        "backlog": figures.backlog, "inFlight": figures.in_flight, "deadLetters": figures.dead_letters,
    }  # fmt: skip
    if figures.oldest is not None:
        fields["oldestMessageTime"] = timestamp(figures.oldest)
    return fields


def material(before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    """Whether figures changed enough to be told: to or from zero, or by more than a tenth."""
    for name in ("backlog", "inFlight", "deadLetters"):
        old, new = before.get(name), after.get(name)
        if old is None or new is None:
            if old != new:
                return True
        elif (old == 0) != (new == 0) or abs(new - old) > MATERIAL_SHARE * old:
            return True
    return False


def ran_empty(before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    """Whether nothing waits and nothing runs any more: a change of state rather than of a figure."""
    return any(before.get(name) for name in BUSY_FIGURES) and not any(after.get(name) for name in BUSY_FIGURES)


@dataclass(slots=True)
class FigureGate:
    """Lets figures of one object into its status, at most every ``FIGURES_SECONDS``.

    That the queue ran empty passes at once and does not hold back what comes next, so that an object whose queue fills
    and empties all the time is written twice per ``FIGURES_SECONDS``.
    """

    written: float | None = None
    """When figures were last let through, seconds of a monotonic clock."""

    def choose(self, before: Object, after: Object, now: float) -> tuple[Object, float | None]:
        """The figures to write now, and the seconds after which to look again if some are being held back.

        The first figures of an object go with its first status and do not hold back the next.
        """
        if not before:
            return after, None
        if not material(before, after):
            return before, None
        if ran_empty(before, after):
            return after, None
        if self.written is not None and now - self.written < FIGURES_SECONDS:
            return before, FIGURES_SECONDS - (now - self.written)
        self.written = now
        return after, None


FIGURE_NAMES: Final = ("backlog", "inFlight", "deadLetters", "oldestMessageTime")


def figures_in(status: Mapping[str, Any]) -> Object:
    """The figures that a status holds already."""
    return {name: status[name] for name in FIGURE_NAMES if name in status}


def merge_patch(before: Mapping[str, Any], after: Mapping[str, Any]) -> Object:
    """The JSON merge patch that turns ``before`` into ``after``; empty when nothing differs."""
    patch: Object = {name: None for name in before if name not in after}
    for name, value in after.items():
        old = before.get(name)
        if isinstance(value, dict) and isinstance(old, dict):
            if nested := merge_patch(old, value):
                patch[name] = nested
        elif name not in before or old != value:
            patch[name] = value
    return patch
