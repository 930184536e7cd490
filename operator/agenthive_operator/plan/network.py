"""Who may speak with whom: the NetworkPolicies of a hive, one for each managed server and one for its agents.

Policies add up: what somebody allows with a policy of their own stays allowed, whatever is planned here. Empty lists
are planned and not left out, so that what somebody adds to them by hand is noticed and taken away.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import Any, Final

from agenthive.settings import DEFAULT_HTTP_PORT
from agenthive_operator.api.hive import AgentHive
from agenthive_operator.plan import postgres, redis
from agenthive_operator.plan.inputs import OperatorPlace
from agenthive_operator.plan.names import COMPONENT_LABEL, HIVE_LABEL, Component, hive_child, server_selector

CLIENT_LABEL: Final = "agenthive.dev/client"
"""A pod of the hive's namespace with this label, its value the hive's name, may reach the hive's managed servers."""
OPERATOR_LABELS: Final = {"app.kubernetes.io/name": "agenthive-operator"}
"""What the operator's own pods carry."""
NAMESPACE_LABEL: Final = "kubernetes.io/metadata.name"
SERVER_PORTS: Final[dict[Component, int]] = {"redis": redis.PORT, "postgres": postgres.PORT}
DNS_PORTS: Final = (53, 5353)
"""Policies see the port of the pod and not that of its Service: OpenShift's DNS pods listen on 5353."""
NODE_LOCAL_DNS: Final = "169.254.20.10"
"""Where the DNS cache of each node listens by default. It is no pod that a selector could select."""


def plan_network(hive: AgentHive, operator: OperatorPlace, running: Iterable[Component] = ()) -> list[dict[str, Any]]:
    """The policies of ``hive``, none where they are disabled; the agents', which holds the user's words, comes last.

    ``running``: servers of the operator's own that run beside those of the spec, as the hive has not left them yet.
    """
    if not hive.spec.network_policy.enabled:
        return []
    managed = [component for component in SERVER_PORTS if component in {*_managed(hive), *running}]
    servers = [_server_policy(hive, component, operator) for component in managed]
    return [*servers, _agent_policy(hive, operator, managed)]


def closed_servers(hive: AgentHive, external: Iterable[Component] | None = None) -> frozenset[Component]:
    """External servers that agents cannot reach for sure: egress is denied, and nothing is allowed beside.

    ``external``: those in force; None means those of the spec.
    """
    policy = hive.spec.network_policy
    if not policy.enabled or policy.egress != "deny" or policy.allow_egress:
        return frozenset()
    closed = set(SERVER_PORTS) - set(_managed(hive)) if external is None else set(external)
    if hive.spec.redis.cache.own_url is not None:
        closed.add("redis")
    return frozenset(closed)


def blame(message: str) -> str:
    """What the API server says of the agents' policy, in terms of the fields of the hive that it was made from."""
    told = message.replace("spec.egress[", "spec.networkPolicy.allowEgress[")
    return told.replace("spec.ingress[0].from[", "spec.networkPolicy.metricsFrom[")


def _managed(hive: AgentHive) -> list[Component]:
    """The servers that the operator runs."""
    run: dict[Component, Any] = {"redis": hive.spec.redis.run, "postgres": hive.spec.postgres.run}
    return [component for component, spec in run.items() if spec is not None]


def _agents(hive: AgentHive) -> dict[str, Any]:
    """Selects the pods of all agents of ``hive``."""
    return {"matchLabels": {HIVE_LABEL: hive.metadata.name, COMPONENT_LABEL: "agent"}}


def _ports(*numbers: int, protocols: tuple[str, ...] = ("TCP",)) -> list[dict[str, Any]]:
    return [{"port": number, "protocol": protocol} for number in numbers for protocol in protocols]


def _server_policy(hive: AgentHive, component: Component, operator: OperatorPlace) -> dict[str, Any]:
    """A managed server is reached by the hive's agents and clients and by the operator; it reaches nobody."""
    rule: dict[str, Any] = {"ports": _ports(SERVER_PORTS[component])}
    if operator.namespace is not None:
        rule["from"] = [
            {"podSelector": _agents(hive)},
            {"podSelector": {"matchLabels": {CLIENT_LABEL: hive.metadata.name}}},
            {
                "namespaceSelector": {"matchLabels": {NAMESPACE_LABEL: operator.namespace}},
                "podSelector": {"matchLabels": OPERATOR_LABELS},
            },
        ]
    # Else the operator runs outside of the cluster, where no selector finds it: it must not lock itself out.
    spec = {
        "podSelector": {"matchLabels": server_selector(hive.metadata.name, component)},
        "policyTypes": ["Ingress", "Egress"],
        "ingress": [rule],
        "egress": [],
    }
    return hive_child("networking.k8s.io/v1", "NetworkPolicy", hive, component, spec=spec)


def _agent_policy(hive: AgentHive, operator: OperatorPlace, managed: Iterable[Component]) -> dict[str, Any]:
    policy = hive.spec.network_policy
    spec: dict[str, Any] = {"podSelector": _agents(hive), "policyTypes": ["Ingress"], "ingress": []}
    if policy.metrics_from:  # an empty list of peers would mean everybody
        spec["ingress"] = [{"from": list(policy.metrics_from), "ports": _ports(DEFAULT_HTTP_PORT)}]
    if policy.egress == "deny":
        spec["policyTypes"] = ["Ingress", "Egress"]
        # The user's rules first, so that their place in an error of the API server is that in the hive.
        spec["egress"] = [*policy.allow_egress, _dns(operator), *_to_servers(hive, managed)]
    return hive_child("networking.k8s.io/v1", "NetworkPolicy", hive, "agent", spec=spec)


def _dns(operator: OperatorPlace) -> dict[str, Any]:
    """Any pod of the cluster, the cache of the node, and the servers that the operator itself was given."""
    addresses = dict.fromkeys((NODE_LOCAL_DNS, *operator.nameservers))
    blocks = [{"ipBlock": {"cidr": str(ipaddress.ip_network(address))}} for address in addresses]
    return {"to": [{"namespaceSelector": {}}, *blocks], "ports": _ports(*DNS_PORTS, protocols=("UDP", "TCP"))}


def _to_servers(hive: AgentHive, managed: Iterable[Component]) -> list[dict[str, Any]]:
    return [
        {
            "to": [{"podSelector": {"matchLabels": server_selector(hive.metadata.name, component)}}],
            "ports": _ports(SERVER_PORTS[component]),
        }
        for component in managed
    ]
