"""Names, labels and owner references of the objects that the operator makes."""

from __future__ import annotations

from typing import Any, Literal

from agenthive_operator.api.agent import Agent
from agenthive_operator.api.hive import AgentHive

Component = Literal["redis", "postgres", "agent", "connections"]

FIELD_MANAGER = "agenthive-operator"
# Annotations of volume claims are applied by a name of their own: leaving them out takes away nothing else.
ANNOTATIONS_MANAGER = "agenthive-operator-annotations"
FINALIZER = "agenthive.dev/cleanup"
CHECKSUM_ANNOTATION = "agenthive.dev/checksum"
# On an agent's Deployment: digests of its pod template, and of the hive's part in it.
TEMPLATE_ANNOTATION = "agenthive.dev/template"
CHANGE_ANNOTATION = "agenthive.dev/hive-change"
# On admin Secrets: which keys and schemas in the server are the hive's.
INSTANCE_ANNOTATION = "agenthive.dev/instance-id"
# On a hive or an Agent, by a user: a new value asks for new credentials. On an Agent's Secret: the value last answered.
ROTATE_ANNOTATION = "agenthive.dev/rotate"
ROTATE_HIVE_ANNOTATION = "agenthive.dev/rotate-hive"
# On an Agent's Secret (an annotation) and on its pods (a label): since when the credentials are in use.
CREDENTIALS_MARK = "agenthive.dev/credentials"

MANAGED_BY_LABEL = "app.kubernetes.io/managed-by"
COMPONENT_LABEL = "app.kubernetes.io/component"
HIVE_LABEL = "agenthive.dev/hive"
AGENT_LABEL = "agenthive.dev/agent"
MANAGED_BY = "agenthive-operator"


def server_name(hive: str, component: Component) -> str:
    """Name of the StatefulSet, Service, Secret and ConfigMap of a hive's managed server."""
    return f"{hive}-{component}"


def users_name(hive: str) -> str:
    """Name of the Secret with the users of a hive's managed Redis."""
    return f"{server_name(hive, 'redis')}-users"


def agent_secret_name(agent: str) -> str:
    """Name of the Secret with the connections of ``agent``."""
    return f"{agent}-agenthive"


def connections_name(hive: str) -> str:
    """Name of the Secret that says which servers ``hive`` uses."""
    return server_name(hive, "connections")


def claim_name(hive: str, component: Component) -> str:
    """Name of the volume claim that the StatefulSet controller makes for a managed server."""
    return f"data-{server_name(hive, component)}-0"


def labels(hive: str, component: Component, agent: str | None = None) -> dict[str, str]:
    """The labels that every child carries."""
    result = {
        "app.kubernetes.io/name": "agenthive",
        "app.kubernetes.io/instance": hive,
        COMPONENT_LABEL: component,
        MANAGED_BY_LABEL: MANAGED_BY,
        HIVE_LABEL: hive,
    }
    if agent is not None:
        result[AGENT_LABEL] = agent
    return result


def server_selector(hive: str, component: Component) -> dict[str, str]:
    """What selects the pods of a managed server; immutable in a StatefulSet."""
    return {HIVE_LABEL: hive, COMPONENT_LABEL: component}


def agent_selector(hive: str, agent: str) -> dict[str, str]:
    """What selects the pods of an agent; immutable in a Deployment."""
    return {HIVE_LABEL: hive, AGENT_LABEL: agent}


def selector_string(selector: dict[str, str]) -> str:
    """``selector`` in the form of ``status.selector``, which the scale subresource hands to autoscalers."""
    return ",".join(f"{key}={value}" for key, value in sorted(selector.items()))


def hive_child(api_version: str, kind: str, hive: AgentHive, component: Component, **fields: Any) -> dict[str, Any]:
    """A child of ``hive`` for one of its servers: identity, labels and owner, then ``fields``."""
    return {
        "apiVersion": api_version,
        "kind": kind,
        "metadata": {
            "name": server_name(hive.metadata.name, component),
            "namespace": hive.metadata.namespace,
            "labels": labels(hive.metadata.name, component),
            "ownerReferences": [hive.owner()],
        },
        **fields,
    }


def agent_child(api_version: str, kind: str, name: str, agent: Agent, **fields: Any) -> dict[str, Any]:
    """A child of ``agent`` called ``name``: identity, labels and owner, then ``fields``."""
    return {
        "apiVersion": api_version,
        "kind": kind,
        "metadata": {
            "name": name,
            "namespace": agent.metadata.namespace,
            "labels": labels(agent.spec.hive_ref.name, "agent", agent.metadata.name),
            "ownerReferences": [agent.owner()],
        },
        **fields,
    }
