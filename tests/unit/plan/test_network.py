"""Who may reach whom by the planned policies: a table of connections, judged as a cluster's network would."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from typing import Any

import pytest
from tests.unit.plan.build import OBSERVED_AGENT, OBSERVED_HIVE, PLACE, agent, hive, manifest

from agenthive_operator.api import AgentHive
from agenthive_operator.plan.agent import plan_agent
from agenthive_operator.plan.hive import plan_hive
from agenthive_operator.plan.inputs import OperatorPlace
from agenthive_operator.plan.names import server_selector
from agenthive_operator.plan.network import blame, closed_servers, plan_network

EXTERNAL = {"external": {"urlSecretRef": {"name": "urls", "key": "url"}}}
TO_RANGE = {"to": [{"ipBlock": {"cidr": "10.9.0.0/16", "except": ["10.9.1.0/24"]}}], "ports": [{"port": 443}]}


@dataclass(frozen=True)
class End:
    """One end of a connection: a pod, or an address outside of the cluster (``namespace`` is empty)."""

    namespace: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    address: str = ""


def matches(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    assert selector.keys() <= {"matchLabels"}, "the judge knows no more"
    return selector.get("matchLabels", {}).items() <= labels.items()


def is_peer(peer: dict[str, Any], other: End, home: str) -> bool:
    if "ipBlock" in peer:
        if not other.address:
            return False
        address = ipaddress.ip_address(other.address)
        excepted = any(address in ipaddress.ip_network(part) for part in peer["ipBlock"].get("except", ()))
        return address in ipaddress.ip_network(peer["ipBlock"]["cidr"]) and not excepted
    if not other.namespace:
        return False
    if "namespaceSelector" in peer:
        named = {"kubernetes.io/metadata.name": other.namespace}
        if not matches(peer["namespaceSelector"], named):
            return False
    elif other.namespace != home:
        return False
    return matches(peer.get("podSelector", {}), other.labels)


def lets(policy: dict[str, Any], direction: str, other: End, port: int, protocol: str) -> bool:
    rules, peers = ("ingress", "from") if direction == "Ingress" else ("egress", "to")
    for rule in policy["spec"].get(rules, ()):
        ports = rule.get("ports", ())
        right_port = not ports or any(
            entry.get("port", port) == port and entry.get("protocol", "TCP") == protocol for entry in ports
        )
        others = rule.get(peers, ())
        if right_port and (not others or any(is_peer(p, other, policy["metadata"]["namespace"]) for p in others)):
            return True
    return False


def may(policies: list[dict[str, Any]], source: End, target: End, port: int, protocol: str = "TCP") -> bool:
    """Whether a network that enforces ``policies`` lets ``source`` connect to ``target``."""
    for direction, mine, other in (("Egress", source, target), ("Ingress", target, source)):
        of = [
            policy
            for policy in policies
            if direction in policy["spec"]["policyTypes"]
            and policy["metadata"]["namespace"] == mine.namespace
            and matches(policy["spec"]["podSelector"], mine.labels)
        ]
        if of and not any(lets(policy, direction, other, port, protocol) for policy in of):
            return False
    return True


def pods_of(name: str, namespace: str = "team") -> dict[str, End]:
    """The pods that the plans of a hive called ``name`` and of an agent of it lead to."""
    resource = manifest("hive-minimal")
    resource["metadata"] |= {"name": name, "namespace": namespace}
    of = AgentHive.parse(resource)
    worker = agent()
    worker = worker.model_copy(
        update={
            "metadata": worker.metadata.model_copy(update={"namespace": namespace}),
            "spec": worker.spec.model_copy(update={"hive_ref": worker.spec.hive_ref.model_copy(update={"name": name})}),
        }
    )
    found = {}
    for obj in plan_hive(of, OBSERVED_HIVE) + plan_agent(worker, of, OBSERVED_AGENT):
        if obj["kind"] in {"StatefulSet", "Deployment"}:
            labels = obj["spec"]["template"]["metadata"]["labels"]
            found[labels["app.kubernetes.io/component"]] = End(namespace, labels)
    return found


OURS, NEIGHBOUR, ELSEWHERE = pods_of("demo"), pods_of("other"), pods_of("demo", "elsewhere")
ENDS = {
    **OURS,
    "neighbour": NEIGHBOUR["agent"],
    "neighbour's redis": NEIGHBOUR["redis"],
    "namesake": ELSEWHERE["agent"],
    "client": End("team", {"agenthive.dev/client": "demo"}),
    "client of another": End("team", {"agenthive.dev/client": "other"}),
    "client elsewhere": End("elsewhere", {"agenthive.dev/client": "demo"}),
    "operator": End("agenthive-system", {"app.kubernetes.io/name": "agenthive-operator", "pod-template-hash": "x"}),
    "false operator": End("team", {"app.kubernetes.io/name": "agenthive-operator"}),
    "operator's neighbour": End("agenthive-system", {"app.kubernetes.io/name": "something"}),
    "prometheus": End("monitoring", {"app": "prometheus"}),
    "stranger": End("team", {"app": "shop"}),
    "dns": End("kube-system", {"k8s-app": "kube-dns"}, "10.1.0.2"),
    "dns of openshift": End("openshift-dns", {"dns.operator.openshift.io/daemonset-dns": "default"}),
    "dns of the node": End(address="169.254.20.10"),
    "address of dns": End(address="10.96.0.10"),
    "metadata": End(address="169.254.169.254"),
    "internet": End(address="203.0.113.7"),
    "range": End(address="10.9.2.1"),
    "excepted": End(address="10.9.1.1"),
}
MONITORING = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}
OPEN: dict[str, Any] = {}
METRICS = {"metricsFrom": [MONITORING]}
DENY = {"egress": "deny"}
RANGE = {"egress": "deny", "allowEgress": [TO_RANGE]}


@pytest.mark.parametrize(
    ("policy", "port", "allowed", "refused"),
    [
        # Ingress of the servers, whatever the rest says.
        *(
            (policy, f"{server} {port}",
             "agent, client, operator",
             "neighbour, namesake, client of another, client elsewhere, false operator, operator's neighbour,"
             "prometheus, stranger, internet, neighbour's redis")
            for policy in (OPEN, METRICS, DENY, RANGE)
            for server, port in (("redis", 6379), ("postgres", 5432))
        ),
        *(
            (OPEN, f"{server} {port}", "", "agent, client, operator, stranger")
            for server, port in (("redis", 22), ("redis", 5432), ("postgres", 6379), ("postgres", 8080))
        ),
        # Ingress of agents.
        (OPEN, "agent 8080", "", "agent, operator, prometheus, stranger, internet, redis, client"),
        (METRICS, "agent 8080", "prometheus", "agent, operator, stranger, internet, redis, client"),
        (METRICS, "agent 8081", "", "prometheus"),
        (DENY, "agent 8080", "", "agent, operator, prometheus"),
    ],
)  # fmt: skip
def test_who_reaches_the_pods(policy: dict[str, Any], port: str, allowed: str, refused: str) -> None:
    target, number = port.split()
    policies = plan_network(hive(networkPolicy=policy), PLACE)
    for names, expected in ((allowed, True), (refused, False)):
        for name in filter(None, map(str.strip, names.split(","))):
            assert may(policies, ENDS[name], ENDS[target], int(number)) is expected, f"{name} to {port}"


NAMES = "dns, dns of openshift, dns of the node, address of dns"


@pytest.mark.parametrize(
    ("policy", "source", "port", "allowed", "refused"),
    [
        (OPEN, "agent", "443/TCP", "internet, range, stranger, metadata, dns", ""),
        (OPEN, "agent", "53/UDP", NAMES, ""),
        (DENY, "agent", "443/TCP", "", "internet, range, stranger, metadata, dns, operator"),
        (DENY, "agent", "53/UDP", NAMES, "internet, metadata"),
        (DENY, "agent", "53/TCP", NAMES, "internet, metadata"),
        (DENY, "agent", "5353/UDP", "dns of openshift", "internet"),
        (DENY, "agent", "6379/TCP", "redis", "neighbour's redis, postgres, internet"),
        (DENY, "agent", "5432/TCP", "postgres", "redis, internet"),
        (DENY, "stranger", "443/TCP", "internet", ""),
        (RANGE, "agent", "443/TCP", "range", "excepted, internet"),
        (RANGE, "agent", "80/TCP", "", "range"),
        (RANGE, "agent", "443/UDP", "", "range"),
        (RANGE, "agent", "6379/TCP", "redis", "range"),
        # Servers reach nobody.
        *(
            (policy, server, port, "", "internet, dns, agent, stranger, redis, postgres, operator")
            for policy in (OPEN, DENY)
            for server in ("redis", "postgres")
            for port in ("443/TCP", "53/UDP", "6379/TCP", "8080/TCP")
        ),
    ],
)
def test_whom_the_pods_reach(policy: dict[str, Any], source: str, port: str, allowed: str, refused: str) -> None:
    number, protocol = port.split("/")
    policies = plan_network(hive(networkPolicy=policy), PLACE)
    for names, expected in ((allowed, True), (refused, False)):
        for name in filter(None, map(str.strip, names.split(","))):
            assert may(policies, ENDS[source], ENDS[name], int(number), protocol) is expected, f"to {name} {port}"


def test_an_operator_outside_of_the_cluster_does_not_lock_itself_out() -> None:
    policies = plan_network(hive(), OperatorPlace())
    for name, end in ENDS.items():
        if name not in {"redis", "postgres"}:  # the servers connect to nobody
            assert may(policies, end, OURS["redis"], 6379), name
        assert not may(policies, end, OURS["redis"], 6380), name


def test_disabled_means_none() -> None:
    assert plan_network(hive(networkPolicy={"enabled": False}), PLACE) == []


def test_external_servers_have_no_policy_and_agents_do() -> None:
    names = [policy["metadata"]["name"] for policy in plan_network(hive("hive-external"), PLACE)]
    assert names == ["demo-agent"]


def test_a_managed_server_that_the_hive_has_not_left_is_reached_as_before() -> None:
    policies = plan_network(hive("hive-external", networkPolicy=DENY), PLACE, ["redis"])
    assert [policy["metadata"]["name"] for policy in policies] == ["demo-redis", "demo-agent"]
    selected = {"matchLabels": server_selector("demo", "redis")}
    assert policies[0]["spec"]["podSelector"] == selected
    rules = policies[1]["spec"]["egress"]
    assert {"to": [{"podSelector": selected}], "ports": [{"port": 6379, "protocol": "TCP"}]} in rules
    assert closed_servers(hive("hive-external", networkPolicy=DENY), ["postgres"]) == {"postgres"}


def test_addresses_of_either_family_and_no_address_twice() -> None:
    place = OperatorPlace("system", ("fd00::a", "169.254.20.10"))
    (dns,) = [
        rule
        for policy in plan_network(hive("hive-external", networkPolicy=DENY), place)
        for rule in policy["spec"]["egress"]
    ]
    blocks = [peer["ipBlock"]["cidr"] for peer in dns["to"] if "ipBlock" in peer]
    assert blocks == ["169.254.20.10/32", "fd00::a/128"]


@pytest.mark.parametrize(
    ("spec", "closed"),
    [
        ({"networkPolicy": DENY}, set()),
        ({"networkPolicy": DENY, "redis": EXTERNAL}, {"redis"}),
        ({"networkPolicy": DENY, "postgres": EXTERNAL}, {"postgres"}),
        ({"networkPolicy": DENY, "redis": {"cache": {"urlSecretRef": {"name": "u", "key": "k"}}}}, {"redis"}),
        ({"networkPolicy": RANGE, "redis": EXTERNAL, "postgres": EXTERNAL}, set()),
        ({"networkPolicy": {"enabled": False} | DENY, "redis": EXTERNAL}, set()),
        ({"redis": EXTERNAL}, set()),
    ],
)
def test_servers_that_agents_are_kept_from(spec: dict[str, Any], closed: set[str]) -> None:
    assert closed_servers(hive(**spec)) == closed


def test_a_refusal_names_the_field_of_the_hive() -> None:
    said = (
        'NetworkPolicy demo-agent: [spec.egress[2].to[0].ipBlock.cidr: Invalid value: "x", spec.ingress[0].from[1]: y]'
    )
    assert blame(said) == (
        'NetworkPolicy demo-agent: [spec.networkPolicy.allowEgress[2].to[0].ipBlock.cidr: Invalid value: "x", '
        "spec.networkPolicy.metricsFrom[1]: y]"
    )
