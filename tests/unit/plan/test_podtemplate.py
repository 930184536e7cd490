"""The merge of a partial pod template: by merge key where Kubernetes has one, replaced elsewhere."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from agenthive_operator.plan.podtemplate import merge_pod_template

BASE: dict[str, Any] = {
    "metadata": {"labels": {"a": "1"}},
    "spec": {
        "securityContext": {"runAsUser": 1, "fsGroup": 1},
        "containers": [
            {
                "name": "agent",
                "image": "i",
                "env": [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}],
                "ports": [{"name": "http", "containerPort": 8080, "protocol": "TCP"}],
                "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
                "args": ["x", "y"],
            }
        ],
        "volumes": [{"name": "tmp", "emptyDir": {}}],
        "tolerations": [{"key": "a"}],
    },
}

TABLE: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("nothing", {}, {}),
    ("scalar", {"spec": {"hostNetwork": True}}, {"hostNetwork": True}),
    ("object", {"spec": {"securityContext": {"fsGroup": 2}}}, {"securityContext": {"runAsUser": 1, "fsGroup": 2}}),
    ("none removes a field", {"spec": {"securityContext": {"runAsUser": None}}}, {"securityContext": {"fsGroup": 1}}),
    ("none of nothing", {"spec": {"dnsConfig": {"options": None}}}, {"dnsConfig": {}}),
    ("unkeyed list is replaced", {"spec": {"tolerations": [{"key": "b"}]}}, {"tolerations": [{"key": "b"}]}),
    (
        "new volume follows",
        {"spec": {"volumes": [{"name": "v", "emptyDir": {}}]}},
        {"volumes": [{"name": "tmp", "emptyDir": {}}, {"name": "v", "emptyDir": {}}]},
    ),
    (
        "known volume merges in place",
        {"spec": {"volumes": [{"name": "tmp", "emptyDir": {"medium": "Memory"}}]}},
        {"volumes": [{"name": "tmp", "emptyDir": {"medium": "Memory"}}]},
    ),
    ("malformed list replaces", {"spec": {"volumes": "all"}}, {"volumes": "all"}),
    ("malformed item follows", {"spec": {"volumes": ["v"]}}, {"volumes": [{"name": "tmp", "emptyDir": {}}, "v"]}),
]


@pytest.mark.parametrize(("patch", "changes"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE])
def test_merge_into_the_spec(patch: dict[str, Any], changes: dict[str, Any]) -> None:
    before = copy.deepcopy(BASE)
    assert merge_pod_template(BASE, patch) == {**BASE, "spec": {**BASE["spec"], **changes}}
    assert before == BASE, "the base was changed"


CONTAINER_TABLE: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("image", {"image": "j"}, {"image": "j"}),
    ("args are replaced", {"args": ["z"]}, {"args": ["z"]}),
    (
        "a variable is replaced whole",
        {"env": [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "x"}}}, {"name": "C"}]},
        {
            "env": [
                {"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "x"}}},
                {"name": "B", "value": "2"},
                {"name": "C"},
            ]
        },
    ),
    (
        "ports merge by number",
        {"ports": [{"containerPort": 8080, "hostPort": 80}, {"containerPort": 9}]},
        {
            "ports": [
                {"name": "http", "containerPort": 8080, "protocol": "TCP", "hostPort": 80},
                {"containerPort": 9},
            ]
        },
    ),
    (
        "mounts merge by path",
        {"volumeMounts": [{"name": "other", "mountPath": "/tmp"}]},
        {"volumeMounts": [{"name": "other", "mountPath": "/tmp"}]},
    ),
]


@pytest.mark.parametrize(
    ("patch", "changes"), [row[1:] for row in CONTAINER_TABLE], ids=[row[0] for row in CONTAINER_TABLE]
)
def test_merge_into_the_agents_container(patch: dict[str, Any], changes: dict[str, Any]) -> None:
    merged = merge_pod_template(BASE, {"spec": {"containers": [{"name": "agent", **patch}]}})
    assert merged["spec"]["containers"] == [{**BASE["spec"]["containers"][0], **changes}]


def test_a_sidecar_follows_and_is_a_copy() -> None:
    sidecar = {"name": "proxy", "env": [{"name": "X"}]}
    merged = merge_pod_template(BASE, {"spec": {"containers": [sidecar]}})
    assert [c["name"] for c in merged["spec"]["containers"]] == ["agent", "proxy"]
    merged["spec"]["containers"][1]["env"].append({"name": "Y"})
    assert sidecar == {"name": "proxy", "env": [{"name": "X"}]}


def test_metadata_merges() -> None:
    merged = merge_pod_template(BASE, {"metadata": {"labels": {"b": "2"}, "annotations": {"c": "3"}}})
    assert merged["metadata"] == {"labels": {"a": "1", "b": "2"}, "annotations": {"c": "3"}}
