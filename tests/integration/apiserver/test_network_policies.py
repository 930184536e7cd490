"""NetworkPolicies that an API server refuses, word by word: the emulator, or the real one with KUBEBUILDER_ASSETS."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from tests.integration.api.server import Server

BLOCK = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)"
EXISTS = {"key": "a", "operator": "Exists"}


def to(peer: dict[str, Any]) -> dict[str, Any]:
    return {"egress": [{}, {"to": [peer]}]}


def on(**port: Any) -> dict[str, Any]:
    return {"ingress": [{"ports": [port]}]}


TAKEN = [
    {"ingress": []},
    {"egress": [{}], "policyTypes": ["Egress"]},
    to({"podSelector": {}, "namespaceSelector": {"matchExpressions": [EXISTS]}}),
    to({"ipBlock": {"cidr": "2001:db8::/64", "except": ["2001:db8::/72"]}}),
    on(port="http", protocol="UDP"),
    on(port=80, endPort=90),
]
REFUSED: list[tuple[dict[str, Any], str]] = [
    (to({}), "spec.egress[1].to[0]: Required value: must specify a peer"),
    (
        to({"podSelector": {}, "ipBlock": {"cidr": "10.0.0.0/8"}}),
        "spec.egress[1].to[0]: Forbidden: may not specify both ipBlock and another peer",
    ),
    (to({"ipBlock": {"cidr": "10.0.0.0"}}), f'spec.egress[1].to[0].ipBlock.cidr: Invalid value: "10.0.0.0": {BLOCK}'),
    (to({"ipBlock": {"cidr": ""}}), "spec.egress[1].to[0].ipBlock.cidr: Required value"),
    (
        to({"ipBlock": {"cidr": "10.0.0.0/8", "except": ["11.0.0.0/9"]}}),
        'spec.egress[1].to[0].ipBlock.except[0]: Invalid value: "11.0.0.0/9": must be a strict subset of `cidr`',
    ),
    (
        to({"ipBlock": {"cidr": "10.0.0.0/8", "except": ["all"]}}),
        f'spec.egress[1].to[0].ipBlock.except[0]: Invalid value: "all": {BLOCK}',
    ),
    (
        to({"podSelector": {"matchExpressions": [{"key": "a", "operator": "Is"}]}}),
        'podSelector.matchExpressions[0].operator: Invalid value: "Is": not a valid selector operator',
    ),
    (
        to({"podSelector": {"matchExpressions": [{"key": "a", "operator": "In"}]}}),
        "matchExpressions[0].values: Required value: must be specified when `operator` is 'In' or 'NotIn'",
    ),
    (
        to({"podSelector": {"matchExpressions": [EXISTS | {"values": ["b"]}]}}),
        "values: Forbidden: may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
    ),
    (on(port=0), "spec.ingress[0].ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive"),
    (on(port="a_b"), 'spec.ingress[0].ports[0].port: Invalid value: "a_b": must contain only alpha-numeric characters'),
    (on(port=9, endPort=8), "endPort: Invalid value: 9: must be greater than or equal to `port`"),
    (on(port=9, endPort=70000), "endPort: Invalid value: 70000: must be between 1 and 65535, inclusive"),
    (on(endPort=8), "endPort: Invalid value: 8: may not be specified when `port` is not specified"),
    (on(port="http", endPort=8), "endPort: Invalid value: 8: may not be specified when `port` is non-numeric"),
    (
        on(port=1, protocol="ICMP"),
        'spec.ingress[0].ports[0].protocol: Unsupported value: "ICMP": supported values: "TCP", "UDP", "SCTP"',
    ),
    (
        {"policyTypes": ["Both"]},
        'spec.policyTypes[0]: Unsupported value: "Both": supported values: "Ingress", "Egress"',
    ),
]


@pytest.fixture(scope="module")
def server(api_server: Any) -> Iterator[Server]:
    found = Server.of(api_server, "network-policies")
    yield found
    found.close()


def attempt(server: Server, spec: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    body = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "probe"},
        "spec": {"podSelector": {}, **spec},
    }
    return server.request("POST", server.path("NetworkPolicy") + "?dryRun=All&fieldValidation=Strict", body)


@pytest.mark.parametrize("spec", TAKEN, ids=str)
def test_taken(server: Server, spec: dict[str, Any]) -> None:
    status, answer = attempt(server, spec)
    assert status == 201, answer


@pytest.mark.parametrize(("spec", "said"), REFUSED, ids=str)
def test_refused(server: Server, spec: dict[str, Any], said: str) -> None:
    status, answer = attempt(server, spec)
    assert (status, answer["reason"]) == (422, "Invalid"), answer
    assert said in answer["message"]
