"""What a change of specs will do to pods that run, by the functions that the operator itself plans with. Pure.

Secrets are not needed: both sides are planned with the same placeholders for connections, and with the same digests
for data that stays as it is. So whether pods roll is what the operator will find, and only whether another Secret
leads to another server stays open.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from agenthive_operator.api.agent import Agent
from agenthive_operator.api.external import ExternalPostgres, ExternalRedis
from agenthive_operator.api.hive import AgentHive, Storage
from agenthive_operator.api.meta import InvalidObjectError
from agenthive_operator.api.podtemplate import AGENT_CONTAINER
from agenthive_operator.plan.agent import pod_template
from agenthive_operator.plan.checksum import object_digest
from agenthive_operator.plan.differences import Difference, differences, undone
from agenthive_operator.plan.hive import plan_hive
from agenthive_operator.plan.inputs import ObservedAgent, ObservedHive, ObservedServer
from agenthive_operator.plan.names import CHECKSUM_ANNOTATION, ROTATE_ANNOTATION
from agenthive_operator.plan.quantity import value
from agenthive_operator.plan.references import Reference, agent_references, hive_references
from agenthive_operator.plan.rotation import token

Object = Mapping[str, Any]
Rolls = Literal["yes", "perhaps", "no"]
RUNTIME_IMAGE: Final = "runtime"
"""In place of the operator's runtime image, which no resource tells."""
_KEPT: Final = "kept"
_CONNECTIONS: Final = (
    ("spec", "redis", "external"),
    ("spec", "postgres", "external"),
    ("spec", "redis", "cache", "urlSecretRef"),
)


@dataclass(frozen=True, slots=True)
class Side:
    """An Agent, its hive, and the data that was seen, before or after; None in ``data`` is data that is not there."""

    agent: Object
    hive: Object
    data: Mapping[Reference, Object | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Effect:
    """What becomes of an agent's pods: whether they are replaced, and why, in words."""

    rolls: Rolls
    why: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class StoreEffect:
    """What becomes of a hive's own server: ``new``, ``removed``, ``restarts`` or ``grows``, and why."""

    store: Literal["redis", "postgres"]
    effect: Literal["new", "removed", "restarts", "grows"]
    why: tuple[str, ...] = ()


def filled(obj: Object) -> dict[str, Any]:
    """A hive or an Agent with every default written out, so that a change of a field shows what it was.

    Raises:
        InvalidObjectError: it does not fit its model.
    """
    if obj.get("kind") != "AgentHive":
        return {**obj, "spec": Agent.parse(obj).spec.dump()}
    hive = AgentHive.parse(obj)
    spec = hive.spec.dump()
    for store, run in (("redis", hive.spec.redis.run), ("postgres", hive.spec.postgres.run)):
        if run is not None:
            storage = {} if run.ephemeral else {"storage": (run.storage or Storage()).dump()}
            spec[store]["managed"] = {**run.dump(), **storage}
    return {**obj, "spec": spec}


def changes(before: Object, after: Object) -> list[Difference]:
    """What a hive or an Agent has otherwise afterwards, defaults among it. Raises ``InvalidObjectError``."""
    found = differences(filled(before), filled(after))
    return [difference for difference in found if difference.before or difference.after or _is_value(difference)]


def _is_value(difference: Difference) -> bool:
    """Whether it is one of a value, be it zero or false: what is empty is as good as absent."""
    return not all(isinstance(side, Mapping | list | None) for side in (difference.before, difference.after))


def effect_on_agent(before: Side, after: Side) -> Effect:
    """Whether applying ``after`` replaces the pods that ``before`` has, and by which of the changes.

    Raises:
        InvalidObjectError: a resource does not fit its model.
    """
    if template_of(after) != template_of(before):
        return Effect("yes", tuple(_causes(before, after)))
    if renewed := _renewed(before, after):
        return Effect("yes", tuple(renewed))
    moved = connection_changes(before.hive, after.hive) + _changed_secrets(before, after)
    return Effect("perhaps", tuple(moved)) if moved else Effect("no")


def template_of(side: Side, *, image: str = RUNTIME_IMAGE) -> dict[str, Any]:
    """The pod template of one side, by placeholders; ``image`` is that of agents for which no spec names one."""
    agent, hive = Agent.parse(side.agent), AgentHive.parse(side.hive)
    digests = {}
    for pointer in agent_references(agent, hive):
        found = side.data.get(pointer, _KEPT)
        if found is not None:
            digests[pointer] = _KEPT if isinstance(found, str) else object_digest(found)
    observed = ObservedAgent(
        instance_id=hive.instance_id or "new",
        redis_url="managed" if hive.spec.redis.external is None else "external",
        postgres_url="managed" if hive.spec.postgres.external is None else "external",
        cache_url=None if hive.spec.redis.cache.own_url is None else "own",
        runtime_image=image,
        digests=digests,
        tls_files=dict.fromkeys(_files(hive), ""),
    )
    return pod_template(agent, hive, observed)


def expected_template(side: Side, live: Object) -> dict[str, Any]:
    """As ``template_of``, without what only the operator knows: it should be in a Deployment's ``live`` template."""
    images = [item.get("image") for item in live["spec"]["containers"] if item.get("name") == AGENT_CONTAINER]
    template = template_of(side, image=str(images[0]) if images else RUNTIME_IMAGE)
    del template["metadata"]["annotations"][CHECKSUM_ANNOTATION]
    return template


def _files(hive: AgentHive) -> list[str]:
    found = []
    servers: tuple[tuple[str, ExternalRedis | ExternalPostgres | None], ...] = (
        ("redis", hive.spec.redis.external),
        ("postgres", hive.spec.postgres.external),
    )
    for server, external in servers:
        tls = external.tls if external is not None else None
        if tls is not None and tls.ca_secret_ref is not None:
            found.append(f"{server}-ca.crt")
        if tls is not None and tls.client_cert_secret_ref is not None:
            found += [f"{server}-tls.crt", f"{server}-tls.key"]
    return found


def _causes(before: Side, after: Side) -> list[str]:
    """Each change without which the template were another; all of them where several do the same."""
    wanted = template_of(after)
    of_agent = [
        (d, Side(undone(filled(after.agent), d), after.hive, after.data)) for d in _of_spec(before.agent, after.agent)
    ]
    of_hive = [
        (d, Side(after.agent, undone(filled(after.hive), d), after.data)) for d in _of_spec(before.hive, after.hive)
    ]
    causes = [str(change) for change, side in of_agent if _differs(side, wanted)]
    causes += [f"hive {change}" for change, side in of_hive if _differs(side, wanted)]
    for pointer, names in sorted(_changed_data(before, after).items()):
        if pointer in agent_references(Agent.parse(after.agent), AgentHive.parse(after.hive)):
            causes.append(f"{pointer.kind} {pointer.name}" + (f" ({', '.join(names)})" if names else ""))
    return causes or [*(str(d) for d, _ in of_agent), *(f"hive {d}" for d, _ in of_hive)]


def _of_spec(before: Object, after: Object) -> list[Difference]:
    return [change for change in changes(before, after) if change.path[0] == "spec"]


def _differs(side: Side, template: Mapping[str, Any]) -> bool:
    try:
        return template_of(side) != template
    except InvalidObjectError:
        return True  # it takes another change beside it


def _changed_data(before: Side, after: Side) -> dict[Reference, list[str]]:
    """The Secrets and ConfigMaps whose data changes, and the keys that do."""
    found = {}
    for pointer in before.data.keys() | after.data.keys():
        old, new = before.data.get(pointer), after.data.get(pointer)
        if object_digest(old or {}) != object_digest(new or {}) or (old is None) != (new is None):
            found[pointer] = changed_keys(old or {}, new or {})
    return found


def changed_keys(before: Object, after: Object) -> list[str]:
    """The keys of a Secret or ConfigMap whose values differ."""
    old, new = ({**(obj.get("data") or {}), **(obj.get("binaryData") or {})} for obj in (before, after))
    return sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))


def _changed_secrets(before: Side, after: Side) -> list[str]:
    """Changed Secrets from which the hive's connections come."""
    pointers = hive_references(AgentHive.parse(after.hive))
    return [
        f"connections: Secret {pointer.name}" for pointer in sorted(_changed_data(before, after)) if pointer in pointers
    ]


def connection_changes(before: Object, after: Object) -> list[str]:
    """The fields of a hive that say where its servers are, as far as they change. Raises ``InvalidObjectError``."""
    return [
        f"connections: {difference}"
        for difference in changes(before, after)
        if any(difference.path[: len(path)] == path[: len(difference.path)] for path in _CONNECTIONS)
    ]


def _renewed(before: Side, after: Side) -> list[str]:
    """Credentials that are asked for anew: with new ones the pods roll."""
    spec = AgentHive.parse(after.hive).spec
    if not (spec.redis.mints_users or spec.postgres.mints_logins):
        return []
    asked = []
    for whose, old, new in (("", before.agent, after.agent), ("hive ", before.hive, after.hive)):
        wished = token(new["metadata"].get("annotations") or {})
        if wished and wished != token(old["metadata"].get("annotations") or {}):
            asked.append(f"{whose}{ROTATE_ANNOTATION}: new credentials")
    return asked


# ---- the hive's own servers


def effect_on_stores(before: Object | None, after: Object, sizes: Mapping[str, str | None]) -> list[StoreEffect]:
    """What becomes of a hive's managed servers.

    Args:
        before: the hive as it is; None where it is new.
        after: the hive as it will be.
        sizes: of each server the size in the claim template of the StatefulSet that exists, if one does.

    Raises:
        InvalidObjectError: the hive does not fit its model.
    """
    old = _servers(before, sizes) if before is not None else {}
    new = _servers(after, sizes)
    found = []
    for store in ("redis", "postgres"):
        if store not in new and store not in old:
            continue
        if store not in new or store not in old:
            found.append(StoreEffect(store, "new" if store in new else "removed"))
        elif new[store] != old[store]:
            found.append(StoreEffect(store, "restarts", tuple(_store_causes(before or {}, after, store, new, sizes))))
        elif before is not None and (grown := _grown(after, store, sizes.get(store))):
            found.append(StoreEffect(store, "grows", (grown,)))
    return found


def _servers(hive: Object, sizes: Mapping[str, str | None]) -> dict[str, Any]:
    """The pod templates of the StatefulSets, by server."""
    observed = {name: ObservedServer(password=_KEPT, claim_size=sizes.get(name)) for name in ("redis", "postgres")}
    planned = plan_hive(AgentHive.parse(hive), ObservedHive(**observed))
    name = hive["metadata"]["name"]
    return {
        obj["metadata"]["name"].removeprefix(f"{name}-"): obj["spec"]["template"]
        for obj in planned
        if obj["kind"] == "StatefulSet"
    }


def _store_causes(
    before: Object, after: Object, store: str, new: Mapping[str, Any], sizes: Mapping[str, str | None]
) -> Sequence[str]:
    found = [change for change in _of_spec(before, after) if change.path[1:2] == (store,)]
    causes = [
        str(change) for change in found if _servers(undone(filled(after), change), sizes).get(store) != new[store]
    ]
    return causes or [str(change) for change in found]


def _grown(hive: Object, store: str, size: str | None) -> str:
    spec = AgentHive.parse(hive).spec
    run = spec.redis.run if store == "redis" else spec.postgres.run
    if run is None or run.storage is None or size is None or value(run.storage.size) <= value(size):
        return ""
    return f"volume {size} → {run.storage.size}"
