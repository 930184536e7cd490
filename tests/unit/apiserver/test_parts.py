"""Selectors, columns, types, decoding, protobuf: the small pure parts."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from agenthive_operator.local.apiserver import protobuf, typegen
from agenthive_operator.local.apiserver.builtin_checks import selects
from agenthive_operator.local.apiserver.builtin_defaults import image_pull_policy
from agenthive_operator.local.apiserver.builtin_types import builtin_type
from agenthive_operator.local.apiserver.decode import Decoder
from agenthive_operator.local.apiserver.errors import ApiError
from agenthive_operator.local.apiserver.jsonpath import compile_path
from agenthive_operator.local.apiserver.kinds import BUILTIN, Registry
from agenthive_operator.local.apiserver.openapi import OpenApi
from agenthive_operator.local.apiserver.routing import find_target, wanted_form, write_options
from agenthive_operator.local.apiserver.table_columns import COLUMNS, age, duration, pod_status


def test_the_table_of_types_is_that_of_the_client() -> None:
    assert typegen.TARGET.read_bytes() == typegen.render(), "run python -m agenthive_operator.local.apiserver.typegen"


@pytest.mark.parametrize("kind", BUILTIN, ids=lambda kind: f"{kind.resource}")
def test_every_built_in_kind_has_its_type(kind: Any) -> None:
    assert {"apiVersion", "kind", "metadata"} <= set(kind.node.fields)


def test_types_know_how_lists_merge() -> None:
    ports = builtin_type("", "Service", "V1Service").fields["spec"].fields["ports"]
    assert (ports.topology, ports.keys, ports.patch_key) == ("map", ("port", "protocol"), "port")
    assert ports.identity({"port": 80}) == (80, "TCP")
    assert ports.identity({}) is None
    assert ports.identity("x") is None


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-5, "<invalid>"), (0, "0s"), (119, "119s"), (120, "2m"), (190, "3m10s"), (3600, "60m"), (11000, "3h3m"),
        (40000, "11h"), (200000, "2d7h"), (900000, "10d"), (10**8, "3y"),
    ],
)  # fmt: skip
def test_durations(seconds: int, text: str) -> None:
    assert duration(seconds) == text


def test_ages() -> None:
    moment = datetime(2024, 1, 1, 0, 0, 30, tzinfo=UTC)
    assert age("2024-01-01T00:00:00Z", moment) == "30s"
    assert age(None, moment) == "<unknown>"


@pytest.mark.parametrize(
    ("status", "word"),
    [
        ({"phase": "Running"}, "Running"),
        ({"phase": "Failed", "reason": "Evicted"}, "Evicted"),
        ({"containerStatuses": [{"state": {"waiting": {"reason": "CrashLoopBackOff"}}}]}, "CrashLoopBackOff"),
        ({"containerStatuses": [{"state": {"terminated": {"reason": "Error", "exitCode": 1}}}]}, "Error"),
        ({"containerStatuses": [{"state": {"terminated": {"exitCode": 3}}}]}, "ExitCode:3"),
        ({"containerStatuses": [{"state": {"terminated": {"signal": 9}}}]}, "Signal:9"),
        ({"phase": "Pending", "initContainerStatuses": [{"state": {"running": {}}}]}, "Init:0/1"),
        ({"phase": "Pending", "initContainerStatuses": [{"state": {"waiting": {"reason": "X"}}}]}, "Init:X"),
        ({"phase": "Running", "initContainerStatuses": [{"state": {"terminated": {"exitCode": 0}}}]}, "Running"),
    ],
)
def test_pod_status(status: Any, word: str) -> None:
    assert pod_status({"metadata": {}, "spec": {"initContainers": [{}]}, "status": status}) == word
    ending = {"metadata": {"deletionTimestamp": "x"}, "spec": {"initContainers": [{}]}, "status": status}
    assert pod_status(ending) == "Terminating"


def test_every_column_stands_an_empty_object() -> None:
    moment = datetime.now(UTC)
    for columns in COLUMNS.values():
        for column in columns:
            column.cell({"metadata": {"name": "x"}}, moment)


@pytest.mark.parametrize(
    ("resource", "obj", "wanted"),
    [
        ("services", {"spec": {"ports": [{"port": 80, "nodePort": 9}], "clusterIP": "None"}}, {"Port(s)": "80:9/TCP"}),
        ("services", {"spec": {"type": "ExternalName", "externalName": "x.y"}}, {"External-IP": "x.y"}),
        ("services", {"spec": {"type": "LoadBalancer", "selector": {"a": "b"}}},
         {"External-IP": "<pending>", "Selector": "a=b"}),
        (
            "nodes",
            {
                "metadata": {"labels": {"node-role.kubernetes.io/worker": ""}}, "spec": {"unschedulable": True},
                "status": {
                    "conditions": [{"type": "Ready", "status": "True"}],
                    "addresses": [{"type": "InternalIP", "address": "1.2.3.4"}],
                },
            },
            {"Status": "Ready,SchedulingDisabled", "Roles": "worker", "Internal-IP": "1.2.3.4"},
        ),
        ("persistentvolumeclaims", {"status": {"accessModes": ["ReadWriteOnce"]}}, {"Access Modes": "RWO"}),
        ("endpoints", {"subsets": [{"addresses": [{"ip": "1"}], "ports": [{"port": 2}]}]}, {"Endpoints": "1:2"}),
        (
            "endpointslices.discovery.k8s.io",
            {"ports": [{"port": 1}], "endpoints": [{"addresses": list("abcd")}]},
            {"Ports": "1", "Endpoints": "a,b,c + 1 more..."},
        ),
        ("events", {"involvedObject": {"kind": "Pod", "name": "p"}, "message": "m "},
         {"Object": "pod/p", "Message": "m"}),
        ("secrets", {"data": {"a": "", "b": ""}}, {"Data": 2}),
        ("pods", {"spec": {"readinessGates": [{}], "containers": [{}]},
                  "status": {"containerStatuses": [{"ready": True, "restartCount": 2}]}},
         {"Ready": "1/1", "Restarts": "2", "Readiness Gates": "1"}),
        ("deployments.apps",
         {"spec": {"replicas": 2, "template": {"spec": {"containers": [{"name": "c", "image": "i"}]}}}},
         {"Ready": "0/2", "Containers": "c", "Images": "i"}),
    ],
)  # fmt: skip
def test_columns(resource: str, obj: Any, wanted: dict[str, Any]) -> None:
    full = {"metadata": {"name": "x"}} | obj
    cells = {column.name: column.cell(full, datetime.now(UTC)) for column in COLUMNS[resource]}
    assert {name: cells[name] for name in wanted} == wanted


@pytest.mark.parametrize(
    ("path", "found"),
    [
        (".spec.n", [1]), ("{.spec.n}", [1]), (".spec.none", []), (".l[0].a", [1]), (".l[-1].a", [2]), (".l[9]", []),
        (".l[*].a", [1, 2]), (".m.*", ["x"]), (".m['k']", ["x"]), (".c[?(@.type=='Ready')].status", ["True"]),
        ('.c[?(@.type=="Ready")].status', ["True"]), (".c[?(@.type!='Ready')].status", ["False"]), (".m.a\\.b", []),
        (".l[?(@.on==true)].a", [2]),
    ],
)  # fmt: skip
def test_json_paths(path: str, found: list[Any]) -> None:
    obj = {
        "spec": {"n": 1}, "l": [{"a": 1}, {"a": 2, "on": True}], "m": {"k": "x"},
        "c": [{"type": "Ready", "status": "True"}, {"type": "Other", "status": "False"}],
    }  # fmt: skip
    assert compile_path(path)(obj) == found


def test_json_paths_that_are_not_understood() -> None:
    with pytest.raises(ValueError, match="nothing this server understands"):
        compile_path(".a[1:2]")


@pytest.mark.parametrize(
    ("selector", "held"),
    [
        ({"matchLabels": {"a": "b"}}, True), ({"matchLabels": {"a": "c"}}, False),
        ({"matchExpressions": [{"key": "a", "operator": "In", "values": ["b"]}]}, True),
        ({"matchExpressions": [{"key": "a", "operator": "NotIn", "values": ["b"]}]}, False),
        ({"matchExpressions": [{"key": "a", "operator": "Exists"}]}, True),
        ({"matchExpressions": [{"key": "z", "operator": "DoesNotExist"}]}, True),
        ({"matchExpressions": [{"key": "a", "operator": "Near"}]}, False),
    ],
)  # fmt: skip
def test_label_selectors(selector: Any, held: bool) -> None:
    assert selects(selector, {"a": "b"}) is held


@pytest.mark.parametrize(
    ("image", "policy"),
    [("i", "Always"), ("i:latest", "Always"), ("h:5000/i", "Always"),
     ("i:1", "IfNotPresent"), ("i@sha256:x", "IfNotPresent")],
)  # fmt: skip
def test_pull_policies(image: str, policy: str) -> None:
    assert image_pull_policy(image) == policy


@pytest.mark.parametrize(
    ("accept", "form"),
    [
        ("", "object"), ("*/*", "object"), ("application/json", "object"),
        ("application/json;as=Table;v=v1;g=meta.k8s.io,application/json", "table"),
        ("application/json;as=Table;v=v9;g=meta.k8s.io,application/json", "object"),
        ("application/vnd.kubernetes.protobuf, application/json", "object"),
        ("application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io", "metadata"),
    ],
)  # fmt: skip
def test_accept_headers(accept: str, form: str) -> None:
    assert wanted_form(accept) == form


@pytest.mark.parametrize("accept", ["text/html", "application/vnd.kubernetes.protobuf"])
def test_accept_headers_without_json(accept: str) -> None:
    with pytest.raises(ApiError) as caught:
        wanted_form(accept)
    assert caught.value.code == 406


@pytest.mark.parametrize("query", [{"dryRun": "Some"}, {"fieldValidation": "Maybe"}, {"fieldManager": "x" * 129}])
def test_write_options_that_are_none(query: dict[str, str]) -> None:
    with pytest.raises(ApiError) as caught:
        write_options(query, "")
    assert caught.value.code == 422


@pytest.mark.parametrize(
    "parts",
    [["foos"], ["pods", "a"], ["namespaces", "n", "nodes"], ["namespaces", "n", "pods", "p", "attach"],
     ["namespaces", "n", "pods", "p", "log", "x"]],
)  # fmt: skip
def test_paths_that_name_nothing(parts: list[str]) -> None:
    with pytest.raises(ApiError) as caught:
        find_target(Registry(), "", "v1", parts)
    assert caught.value.code == 404


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"spec": 1}, ".spec: json: cannot unmarshal number"),
        ({"spec": {"containers": {}}}, "of type array"),
        ({"spec": {"hostNetwork": "yes"}}, "of type bool"),
        ({"spec": {"priority": True}}, "of type int"),
        ({"metadata": {"labels": []}}, "of type object"),
        ({"metadata": {"creationTimestamp": "soon"}}, "it must look like 2006-01-02"),
        ({"metadata": {"creationTimestamp": "2024-01-01T00:00:00"}}, "the time zone is missing"),
        ({"metadata": {"creationTimestamp": 5}}, "of type string"),
        ({"spec": {"overhead": {"cpu": []}}}, "of type string"),
    ],
)
def test_decoding_refuses(fields: Any, text: str) -> None:
    with pytest.raises(ApiError) as caught:
        Decoder("Pod", "v1").decode(fields, builtin_type("", "Pod", "V1Pod"))
    assert caught.value.code == 400
    assert text in caught.value.message


def test_decoding_brings_into_form() -> None:
    decoder = Decoder("Pod", "v1")
    body = {
        "metadata": {"creationTimestamp": "2024-01-01T01:00:00+01:00", "labels": {"a": None}},
        "spec": {"priority": 2.0, "nodeName": None, "nope": 1, "overhead": {"cpu": "0.5"}},
    }  # fmt: skip
    found = decoder.decode(body, builtin_type("", "Pod", "V1Pod"))
    assert found["metadata"] == {"creationTimestamp": "2024-01-01T00:00:00Z", "labels": {"a": ""}}
    assert found["spec"] == {"priority": 2, "overhead": {"cpu": "500m"}}
    assert decoder.unknown == ["spec.nope"]
    assert [str(problem) for problem in decoder.missing] == ["spec.containers: Required value"]


def test_openapi_covers_every_kind() -> None:
    found = OpenApi(Registry())
    paths = found.index()["paths"]
    assert {"api/v1", "apis/apps/v1", "apis/events.k8s.io/v1"} <= set(paths)
    assert found.document("apis/nope/v1") is None
    assert b'"x-kubernetes-patch-merge-key":"name"' in (found.document("api/v1") or b"")


def field(number: int, value: bytes | int) -> bytes:
    if isinstance(value, int):
        out = bytes([number << 3])
        while value > 0x7F:
            out += bytes([value & 0x7F | 0x80])
            value >>= 7
        return out + bytes([value])
    return bytes([number << 3 | 2, len(value)]) + value


def envelope(kind: str, body: bytes) -> bytes:
    return protobuf.MAGIC + field(1, field(1, b"v1") + field(2, kind.encode())) + field(2, body)


def test_protobuf() -> None:
    meta = field(1, b"s") + field(11, field(1, b"a") + field(2, b"b")) + field(14, b"x/y") + field(3, b"")
    body = field(1, meta) + field(2, field(1, b"k") + field(2, b"v")) + field(3, b"Opaque") + field(5, 1)
    assert protobuf.parse(envelope("Secret", body)) == {
        "apiVersion": "v1", "kind": "Secret", "type": "Opaque", "immutable": True, "data": {"k": "dg=="},
        "metadata": {"name": "s", "labels": {"a": "b"}, "finalizers": ["x/y"]},
    }  # fmt: skip
    options = field(1, 300) + field(2, field(1, b"u")) + field(4, b"Orphan") + field(5, b"All")
    assert protobuf.parse(envelope("DeleteOptions", options)) == {
        "apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": 300, "preconditions": {"uid": "u"},
        "propagationPolicy": "Orphan", "dryRun": ["All"],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"nope", 400), (protobuf.MAGIC + b"\x0a\x7f", 400), (protobuf.MAGIC + b"\x80", 400),
        (envelope("Pod", b""), 415),
        (envelope("ObjectMeta", b""), 415), (envelope("ConfigMap", field(9, b"x")), 415),
        (envelope("ConfigMap", b"\x0d\x00\x00\x00\x00"), 400), (envelope("ConfigMap", field(1, 7)), 400),
    ],
)  # fmt: skip
def test_protobuf_that_is_refused(data: bytes, code: int) -> None:
    with pytest.raises(ApiError) as caught:
        protobuf.parse(data)
    assert caught.value.code == code
