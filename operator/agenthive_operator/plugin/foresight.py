"""What will happen in one namespace when changes are applied to it: its agents, its hives and their stores. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from agenthive_operator.api.agent import Agent
from agenthive_operator.api.hive import AgentHive
from agenthive_operator.api.podtemplate import AGENT_CONTAINER
from agenthive_operator.backends.kube import Object
from agenthive_operator.plan.forecast import Roll, Startup, drain_of, span_of, span_of_all, startup_of
from agenthive_operator.plan.names import AGENT_LABEL, COMPONENT_LABEL, HIVE_LABEL
from agenthive_operator.plan.preview import (
    Effect,
    Side,
    connection_changes,
    effect_on_agent,
    effect_on_stores,
    expected_template,
    template_of,
)
from agenthive_operator.plan.references import Reference, code_reference
from agenthive_operator.plan.replicas import SURGE_PERCENT, replicas
from agenthive_operator.plan.rolling import needs_slot, slots
from agenthive_operator.plugin.manifests import Change
from agenthive_operator.reconcile.children import covers

Document = dict[str, Any]
UNSEEN_SECRETS = "Secrets are not read: whether another one leads to other servers, or to other logins, stays open"


@dataclass(frozen=True, slots=True)
class Seen:
    """A namespace as it is. ``stores``: the sizes of the hives' volumes by hive and store; ``absent``: ConfigMaps."""

    name: str
    hives: Mapping[str, Object]
    agents: Mapping[str, Object]
    deployments: Mapping[str, Object]
    pods: Sequence[Object] = ()
    stores: Mapping[str, Mapping[str, str | None]] = field(default_factory=dict)
    absent: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Foreseen:
    """What will happen, as documents; ``notes`` are for people."""

    agents: list[Document] = field(default_factory=list)
    hives: list[Document] = field(default_factory=list)
    stores: list[Document] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def foresee(seen: Seen, changes: Sequence[Change]) -> Foreseen:
    """What the changes do to this namespace.

    Raises:
        InvalidObjectError: a resource does not fit its model.
    """
    return _Foresight(seen, changes).all()


class _Foresight:
    def __init__(self, seen: Seen, changes: Sequence[Change]) -> None:
        self._seen = seen
        self._changed = {(c.kind, c.name): c for c in changes if c.is_ours or c.kind in {"Secret", "ConfigMap"}}
        self._hives = {**seen.hives, **{name: c.after for name, c in self._of("AgentHive")}}
        self._agents = {**seen.agents, **{name: c.after for name, c in self._of("Agent")}}
        data = [c for (kind, _), c in self._changed.items() if kind in {"Secret", "ConfigMap"}]
        self._before = {_reference(c): c.before for c in data}
        self._after: dict[Reference, Object | None] = {_reference(c): c.after for c in data}
        self._result = Foreseen()

    def _of(self, kind: str) -> Iterator[tuple[str, Change]]:
        return ((name, change) for (of, name), change in self._changed.items() if of == kind)

    def _what(self, kind: str, name: str) -> str:
        change = self._changed.get((kind, name))
        return change.what if change is not None else "unchanged"

    def all(self) -> Foreseen:
        rolls: dict[str, list[Roll]] = {}
        for name, agent in sorted(self._agents.items()):
            hive = str(agent["spec"]["hiveRef"]["name"])
            document, roll = self._agent(name, hive)
            touched = document["rolls"] != "no" or document["pods"]["before"] != document["pods"]["after"]
            if touched or document["change"] != "unchanged":
                self._result.agents.append(document)
            if roll is not None:
                rolls.setdefault(hive, []).append(roll)
        for name in sorted(self._hives):
            self._hive(name, rolls.get(name, []))
        return self._result

    # ---- agents

    def _agent(self, name: str, hive: str) -> tuple[Document, Roll | None]:
        after, known = Side(self._agents[name], self._hives.get(hive, {}), self._after), self._seen.agents.get(name)
        before = Side(known, self._seen.hives[hive], self._before) if known and hive in self._seen.hives else None
        deployment = self._seen.deployments.get(name)
        count = {"before": _count(before, deployment), "after": _count(after, None) if after.hive else 0}
        effect = Effect("no")
        if before is not None and after.hive and before != after:
            effect = effect_on_agent(before, after)
        self._warn(name, hive, after, before, deployment, effect)
        if not (count["before"] and count["after"]):
            effect = Effect("no")
        roll = None
        drain = None
        if before is not None and (effect.rolls != "no" or count["after"] < count["before"]):
            drain = drain_of(template_of(before), Agent.parse(before.agent).spec.drain_seconds)
            if effect.rolls != "no":
                waits = deployment is None or needs_slot(deployment)
                roll = Roll(count["after"], drain, self._startup(hive, name), waits)
        span = span_of(roll) if roll is not None else None
        status = (known or {}).get("status") or {}
        return {
            "namespace": self._seen.name, "agent": name, "hive": hive, "change": self._what("Agent", name),
            "rolls": effect.rolls, "why": list(effect.why), "pods": count, "drain_seconds": drain,
            "startup": asdict(roll.startup) if roll is not None and roll.startup is not None else None,
            "seconds": asdict(span) if span is not None else None,
            "backlog": status.get("backlog"), "in_flight": status.get("inFlight"),
        }, roll  # fmt: skip

    def _startup(self, hive: str, agent: str) -> Startup | None:
        pods = [pod for pod in self._seen.pods if _label(pod, HIVE_LABEL) == hive and _label(pod, AGENT_LABEL)]
        own = startup_of((pod for pod in pods if _label(pod, AGENT_LABEL) == agent), agent)
        return own or startup_of(pods, "the hive's other agents")

    def _warn(
        self, name: str, hive: str, after: Side, before: Side | None, deployment: Object | None, effect: Effect
    ) -> None:
        """What a person should know of one agent."""
        notes = self._result.notes
        if not after.hive:
            notes.append(f"Agent {name} will wait: there is no AgentHive {hive}")
            return
        code = code_reference(Agent.parse(after.agent))
        if code is not None and code not in self._after and code.name in self._seen.absent:
            notes.append(f"Agent {name} will wait: there is no ConfigMap {code.name} with its code")
        if effect.rolls == "no" or before is None or deployment is None:
            return
        live = deployment["spec"]["template"]
        if not covers(live, expected_template(before, live)):
            notes.append(
                f"the pods of Agent {name} are not yet, or not quite, what its present spec asks for: a roll is under "
                "way, or the operator is of another version than this plugin. What is said of it is an estimate"
            )
        if (image := _image(template_of(after))) != _image(template_of(before)):
            notes.append(f"nodes without the image {image} have to pull it first; that time is not in the estimate")

    # ---- hives

    def _hive(self, name: str, rolls: Sequence[Roll]) -> None:
        before, after = self._seen.hives.get(name), self._hives[name]
        what = self._what("AgentHive", name)
        if what == "unchanged" and not rolls:
            return
        agents = [agent for agent in self._agents.values() if agent["spec"]["hiveRef"]["name"] == name]
        span = span_of_all(rolls, len(agents)) if rolls else None
        connections = connection_changes(before, after) if before is not None else []
        startups = sorted({roll.startup.seconds for roll in rolls if roll.startup is not None})
        self._result.hives.append({
            "namespace": self._seen.name, "hive": name, "change": what,
            "connections": connections, "rolling_agents": len(rolls), "rolling_pods": sum(r.pods for r in rolls),
            "agents_at_once": slots(len(agents)), "surge_percent": SURGE_PERCENT,
            "startup_seconds": startups, "seconds": asdict(span) if span is not None else None,
        })  # fmt: skip
        if (connections or "perhaps" in self._rolls_of(name)) and UNSEEN_SECRETS not in self._result.notes:
            self._result.notes.append(UNSEEN_SECRETS)
        if what != "unchanged":
            self._stores(name, before, after)

    def _rolls_of(self, hive: str) -> set[str]:
        return {document["rolls"] for document in self._result.agents if document["hive"] == hive}

    def _stores(self, name: str, before: Object | None, after: Object) -> None:
        for effect in effect_on_stores(before, after, self._seen.stores.get(name, {})):
            why = list(effect.why)
            if effect.effect == "removed":
                policy = AgentHive.parse(after).spec.deletion_policy
                why.append(f"deletionPolicy {policy}: its volume {'stays' if policy == 'Retain' else 'goes with it'}")
            own = (pod for pod in self._seen.pods if _is_store(pod, name, effect.store))
            startup = startup_of(own, effect.store) if effect.effect == "restarts" else None
            self._result.stores.append({
                "namespace": self._seen.name, "hive": name, "store": effect.store, "effect": effect.effect, "why": why,
                "seconds": startup.seconds if startup is not None else None,
            })  # fmt: skip


def _reference(change: Change) -> Reference:
    return Reference("Secret" if change.kind == "Secret" else "ConfigMap", change.name)


def _count(side: Side | None, deployment: Object | None) -> int:
    """The pods of an agent: as its Deployment has them, else as its spec asks."""
    if side is None:
        return 0
    if deployment is not None:
        return int(deployment["spec"].get("replicas", 1))
    return replicas(Agent.parse(side.agent), AgentHive.parse(side.hive))


def _label(pod: Object, name: str) -> str | None:
    label: str | None = (pod["metadata"].get("labels") or {}).get(name)
    return label


def _is_store(pod: Object, hive: str, store: str) -> bool:
    return _label(pod, HIVE_LABEL) == hive and _label(pod, COMPONENT_LABEL) == store


def _image(template: Mapping[str, Any]) -> str:
    images = [item["image"] for item in template["spec"]["containers"] if item["name"] == AGENT_CONTAINER]
    return str(images[0])
