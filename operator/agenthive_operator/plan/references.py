"""Which Secrets and ConfigMaps of the user a resource points at: the operator reads and follows them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from agenthive_operator.api.agent import Agent
from agenthive_operator.api.hive import AgentHive
from agenthive_operator.api.meta import EnvFromSource, EnvVar


@dataclass(frozen=True, slots=True, order=True)
class Reference:
    """A Secret or ConfigMap in the namespace of the resource that points at it."""

    kind: Literal["ConfigMap", "Secret"]
    name: str


def hive_references(hive: AgentHive) -> frozenset[Reference]:
    """The Secrets with the URLs of the hive's external servers."""
    redis, postgres = hive.spec.redis.external, hive.spec.postgres.external
    pointers = [hive.spec.redis.cache.own_url]
    if redis is not None:
        pointers += [redis.url_secret_ref, redis.admin_url_secret_ref]
    if postgres is not None:
        pointers += [postgres.url_secret_ref, postgres.direct_url_secret_ref, postgres.admin_url_secret_ref]
    return frozenset(Reference("Secret", pointer.name) for pointer in pointers if pointer is not None)


def code_reference(agent: Agent) -> Reference | None:
    """The ConfigMap that holds the agent's code."""
    code = agent.spec.code_from
    return None if code is None else Reference("ConfigMap", code.config_map_ref.name)


def agent_references(agent: Agent, hive: AgentHive) -> frozenset[Reference]:
    """Every Secret and ConfigMap whose data the pods of ``agent`` see, those in its podTemplate among them.

    Registry credentials are left out: a change of theirs rolls no pod.
    """
    found: set[Reference] = set()
    if (code := code_reference(agent)) is not None:
        found.add(code)
    for spec in (hive.spec.agent_defaults, agent.spec):
        found.update(_of_env(spec.env))
        found.update(_of_env_from(spec.env_from))
    found.update(_of_pod_spec(agent.spec.pod_template.spec))
    return frozenset(found)


def _of_env(env: Iterable[EnvVar]) -> Iterator[Reference]:
    for variable in env:
        source = variable.value_from
        if source is not None and source.secret_key_ref is not None:
            yield Reference("Secret", source.secret_key_ref.name)
        if source is not None and source.config_map_key_ref is not None:
            yield Reference("ConfigMap", source.config_map_key_ref.name)


def _of_env_from(sources: Iterable[EnvFromSource]) -> Iterator[Reference]:
    for source in sources:
        if source.secret_ref is not None:
            yield Reference("Secret", source.secret_ref.name)
        if source.config_map_ref is not None:
            yield Reference("ConfigMap", source.config_map_ref.name)


# Names under which a pod's spec points at data, and the field that holds the name.
_POINTERS: Mapping[str, tuple[Literal["ConfigMap", "Secret"], str]] = {
    "secretKeyRef": ("Secret", "name"),
    "secretRef": ("Secret", "name"),
    "configMapKeyRef": ("ConfigMap", "name"),
    "configMapRef": ("ConfigMap", "name"),
}
_VOLUME_POINTERS: Mapping[str, tuple[Literal["ConfigMap", "Secret"], str]] = {
    "secret": ("Secret", "secretName"),
    "configMap": ("ConfigMap", "name"),
}
_PROJECTED_POINTERS: Mapping[str, tuple[Literal["ConfigMap", "Secret"], str]] = {
    "secret": ("Secret", "name"),
    "configMap": ("ConfigMap", "name"),
}


def _of_pod_spec(spec: Mapping[str, Any]) -> Iterator[Reference]:
    """References in a partial pod spec; what is malformed there is the API server's to refuse."""
    for containers in ("containers", "initContainers"):
        for container in objects(spec.get(containers)):
            for variable in objects(container.get("env")):
                yield from _pointed(variable.get("valueFrom"), _POINTERS)
            for source in objects(container.get("envFrom")):
                yield from _pointed(source, _POINTERS)
    for volume in objects(spec.get("volumes")):
        yield from _pointed(volume, _VOLUME_POINTERS)
        projected = volume.get("projected")
        if isinstance(projected, Mapping):
            for source in objects(projected.get("sources")):
                yield from _pointed(source, _PROJECTED_POINTERS)


def objects(value: Any) -> Iterator[Any]:
    """The objects in a list of the user's; nothing where it is no list: the API server refuses that."""
    if isinstance(value, list):
        yield from (item for item in value if isinstance(item, dict))


def _pointed(value: Any, pointers: Mapping[str, tuple[Literal["ConfigMap", "Secret"], str]]) -> Iterator[Reference]:
    if not isinstance(value, Mapping):
        return
    for key, (kind, name_field) in pointers.items():
        target = value.get(key)
        if isinstance(target, Mapping) and isinstance(target.get(name_field), str):
            yield Reference(kind, target[name_field])
