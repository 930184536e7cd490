"""Defaults and checks of the built-in kinds, kind by kind."""

from __future__ import annotations

from typing import Any

import pytest

from agenthive_operator.local.apiserver.admission import Admission
from agenthive_operator.local.apiserver.errors import ApiError
from agenthive_operator.local.apiserver.kinds import Kind, Registry
from agenthive_operator.local.apiserver.store import Store
from agenthive_operator.local.apiserver.writes import Options, Writer


@pytest.fixture
def writer() -> Writer:
    admission = Admission(Store(None), Registry())
    admission.bootstrap()
    return Writer(admission.store, admission)


def kind_of(writer: Writer, resource: str) -> Kind:
    return next(kind for kind in writer.admission.registry if kind.resource == resource)


def create(writer: Writer, resource: str, name: str = "x", **fields: Any) -> dict[str, Any]:
    kind = kind_of(writer, resource)
    body = {"apiVersion": kind.api_version, "kind": kind.kind, "metadata": {"name": name}} | fields
    return writer.create(kind, "default", body, Options()).obj


CONTAINER = {"name": "c", "image": "i:1"}
TEMPLATE = {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [CONTAINER]}}
SELECTOR = {"matchLabels": {"a": "b"}}


@pytest.mark.parametrize(
    ("resource", "fields", "wanted"),
    [
        (
            "daemonsets.apps", {"spec": {"selector": SELECTOR, "template": TEMPLATE}},
            {"updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1, "maxSurge": 0}}},
        ),
        (
            "networkpolicies.networking.k8s.io",
            {"spec": {"podSelector": {}, "egress": [{"ports": [{"port": 80}]}]}},
            {"policyTypes": ["Ingress", "Egress"], "egress": [{"ports": [{"port": 80, "protocol": "TCP"}]}]},
        ),
        (
            "services", {"spec": {"type": "ExternalName", "externalName": "x.y"}},
            {"type": "ExternalName", "sessionAffinity": "None"},
        ),
        (
            "pods",
            {"spec": {
                "containers": [CONTAINER | {
                    "lifecycle": {"preStop": {"httpGet": {"port": 1}}}, "livenessProbe": {"grpc": {"port": 1}},
                    "env": [{"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}],
                }],
                "serviceAccount": "robot",
                "volumes": [
                    {"name": "e"}, {"name": "h", "hostPath": {"path": "/x"}},
                    {"name": "d", "downwardAPI": {"items": [{"path": "p", "fieldRef": {"fieldPath": "x"}}]}},
                ],
            }},
            {
                "serviceAccountName": "robot",
                "volumes": [
                    {"name": "e", "emptyDir": {}}, {"name": "h", "hostPath": {"path": "/x", "type": ""}},
                    {"name": "d", "downwardAPI": {
                        "items": [{"path": "p", "fieldRef": {"fieldPath": "x", "apiVersion": "v1"}}],
                        "defaultMode": 420,
                    }},
                ],
            },
        ),
    ],
)  # fmt: skip
def test_defaults(writer: Writer, resource: str, fields: dict[str, Any], wanted: dict[str, Any]) -> None:
    spec = create(writer, resource, **fields)["spec"]
    assert {name: spec[name] for name in wanted} == wanted


def test_defaults_outside_spec(writer: Writer) -> None:
    subject = {"kind": "User", "name": "u"}
    role = {"kind": "Role", "name": "r"}
    found = create(writer, "rolebindings.rbac.authorization.k8s.io", subjects=[subject], roleRef=role)
    assert found["subjects"][0]["apiGroup"] == found["roleRef"]["apiGroup"] == "rbac.authorization.k8s.io"
    subsets = [{"addresses": [{"ip": "127.0.0.1"}], "ports": [{"port": 1}]}]
    assert create(writer, "endpoints", subsets=subsets)["subsets"][0]["ports"] == [{"port": 1, "protocol": "TCP"}]
    found = create(writer, "endpointslices.discovery.k8s.io", addressType="IPv4", endpoints=[], ports=[{"port": 1}])
    assert found["ports"] == [{"port": 1, "name": "", "protocol": "TCP"}]


@pytest.mark.parametrize(
    ("containers", "quality"),
    [
        ([CONTAINER], "BestEffort"),
        ([CONTAINER | {"resources": {"requests": {"cpu": "1"}}}], "Burstable"),
        ([CONTAINER | {"resources": {"limits": {"cpu": "1", "memory": "1Gi"}}}], "Guaranteed"),
        (
            [CONTAINER | {"resources": {"limits": {"cpu": "2", "memory": "1Gi"}, "requests": {"cpu": "1"}}}],
            "Burstable",
        ),
    ],
)
def test_quality_of_service(writer: Writer, containers: list[Any], quality: str) -> None:
    assert create(writer, "pods", spec={"containers": containers})["status"]["qosClass"] == quality


def pod(**container: Any) -> dict[str, Any]:
    return {"spec": {"containers": [CONTAINER | container]}}


@pytest.mark.parametrize(
    ("resource", "fields", "text"),
    [
        ("configmaps", {"metadata": {"name": ""}}, "name or generateName is required"),
        ("configmaps", {"metadata": {"name": "A"}}, "a lowercase RFC 1123 subdomain must consist of"),
        ("configmaps", {"metadata": {"name": "a" * 254}}, "must be no more than 253 characters"),
        ("configmaps", {"metadata": {"name": "a", "labels": {"a b": ""}}}, "name part must consist of"),
        ("configmaps", {"metadata": {"name": "a", "labels": {"a": "b c"}}}, "a valid label must be an empty string"),
        ("configmaps", {"metadata": {"name": "a", "annotations": {"a": "x" * 300_000}}}, "Too long"),
        ("configmaps", {"metadata": {"name": "a", "finalizers": ["x"]}}, "neither a standard finalizer name"),
        (
            "configmaps",
            {"metadata": {"name": "a", "ownerReferences": [
                {"apiVersion": "v1", "kind": "K", "name": n, "uid": n, "controller": True} for n in "xy"
            ]}},
            "Only one reference can have Controller set to true",
        ),
        ("configmaps", {"metadata": {"name": "a", "ownerReferences": [{}]}}, "version must not be empty"),
        ("configmaps", {"data": {"a b": ""}}, "a valid config key must consist of"),
        ("roles.rbac.authorization.k8s.io", {"metadata": {"name": "a/b"}}, "may not contain '/'"),
        ("pods", {"spec": {}}, "spec.containers: Required value"),
        ("pods", pod(name=""), "spec.containers[0].name: Required value"),
        ("pods", pod(ports=[{"containerPort": 70000}]), "must be between 1 and 65535, inclusive"),
        ("pods", pod(ports=[{"name": "x"}]), "ports[0].containerPort: Required value"),
        ("pods", pod(ports=[{"containerPort": 1, "name": "Too_Long_A_Name!"}]), "must be 1-15 characters"),
        ("pods", pod(env=[{"name": ""}]), "env[0].name: Required value"),
        ("pods", pod(env=[{"name": "a=b"}]), "a valid environment variable name"),
        ("pods", pod(env=[{"name": "a", "value": "x", "valueFrom": {}}]), "may not be specified when `value` is not"),
        ("pods", {"spec": {"containers": [CONTAINER], "terminationGracePeriodSeconds": -1}},
         "greater than or equal to 0"),
        ("pods", {"spec": {"containers": [CONTAINER], "volumes": [{"name": "A"}]}}, "RFC 1123 label"),
        ("pods", {"spec": {"containers": [CONTAINER], "volumes": [{"name": ""}]}}, "volumes[0].name: Required value"),
        (
            "pods",
            {"spec": {"containers": [CONTAINER], "volumes": [{"name": "v", "emptyDir": {}, "secret": {}}]}},
            "may not specify more than 1 volume type",
        ),
        (
            "pods",
            {"spec": {
                "containers": [CONTAINER | {"volumeMounts": [{"name": "v", "mountPath": "/x"}] * 2}],
                "volumes": [{"name": "v"}],
            }},
            "must be unique",
        ),
        ("services", {"spec": {"type": "Odd", "ports": [{"port": 1}]}}, 'Unsupported value: "Odd"'),
        ("services", {"spec": {}}, "spec.ports: Required value"),
        ("services", {"spec": {"ports": [{"port": 1}, {"port": 2}]}}, "spec.ports[0].name: Required value"),
        (
            "services", {"spec": {"ports": [{"port": 1, "name": "a"}, {"port": 2, "name": "a"}]}},
            'spec.ports[1].name: Duplicate value: "a"',
        ),
        ("services", {"spec": {"ports": [{"port": 1}], "clusterIP": "1.2.3.4"}}, "must be a free address of"),
        ("services", {"spec": {"ports": [{"port": 1}], "clusterIP": "x"}}, "must be a free address of"),
        ("persistentvolumeclaims", {"spec": {}}, "at least 1 access mode is required"),
        ("persistentvolumeclaims", {"spec": {"accessModes": ["ReadWriteOnce"]}}, "spec.resources[storage]"),
        ("deployments.apps", {"spec": {"selector": {}, "template": TEMPLATE}},
         "empty selector is invalid for deployment"),
        ("deployments.apps", {"spec": {"selector": SELECTOR, "template": {"metadata": {"labels": {"a": "b"}}}}},
         "spec.template.spec.containers: Required value"),
        (
            "deployments.apps",
            {"spec": {"selector": SELECTOR, "template": {
                "metadata": {"labels": {"a": "b"}}, "spec": {"containers": [CONTAINER], "restartPolicy": "Never"},
            }}},
            'Unsupported value: "Never": supported values: "Always"',
        ),
    ],
)  # fmt: skip
def test_refusals(writer: Writer, resource: str, fields: dict[str, Any], text: str) -> None:
    with pytest.raises(ApiError) as caught:
        create(writer, resource, **fields)
    assert caught.value.code == 422
    assert text in caught.value.message


CLAIM = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "2Gi"}}}
ROLE = {"kind": "Role", "name": "r"}


@pytest.mark.parametrize(
    ("resource", "fields", "patch", "text"),
    [
        ("secrets", {"type": "a"}, {"type": "b"}, "field is immutable"),
        ("configmaps", {"immutable": True}, {"immutable": False}, "field is immutable when `immutable` is set"),
        (
            "persistentvolumeclaims", {"spec": CLAIM}, {"spec": {"resources": {"requests": {"storage": "1Gi"}}}},
            "field can not be less than previous value",
        ),
        ("persistentvolumeclaims", {"spec": CLAIM}, {"spec": {"storageClassName": "x"}},
         "spec is immutable after creation"),
        ("rolebindings.rbac.authorization.k8s.io", {"roleRef": ROLE}, {"roleRef": {"name": "s"}},
         "cannot change roleRef"),
        (
            "deployments.apps", {"spec": {"selector": SELECTOR, "template": TEMPLATE}},
            {"spec": {"selector": {"matchLabels": {"c": "d"}}, "template": {"metadata": {"labels": {"c": "d"}}}}},
            "spec.selector: Invalid value",
        ),
    ],
)  # fmt: skip
def test_what_may_not_change(writer: Writer, resource: str, fields: Any, patch: Any, text: str) -> None:
    create(writer, resource, **fields)
    with pytest.raises(ApiError) as caught:
        writer.patch(kind_of(writer, resource), ("default", "x"), "", "merge-patch", patch, Options())
    assert caught.value.code == 422
    assert text in caught.value.message


def test_a_claim_may_grow(writer: Writer) -> None:
    create(writer, "persistentvolumeclaims", spec=CLAIM)
    patch = {"spec": {"resources": {"requests": {"storage": "3Gi"}}}}
    entry = writer.patch(
        kind_of(writer, "persistentvolumeclaims"), ("default", "x"), "", "merge-patch", patch, Options()
    )
    assert entry.obj["spec"]["resources"]["requests"]["storage"] == "3Gi"
