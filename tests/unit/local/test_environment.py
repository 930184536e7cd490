"""A container's environment: order, expansion, references, downward fields."""

from __future__ import annotations

import base64

import pytest

from agenthive_operator.local.kubelet import volumes
from agenthive_operator.local.kubelet.environment import (
    ConfigError,
    Reference,
    command_line,
    data_of,
    environment,
    expand,
    field,
    references,
    resource_field,
)

SECRET, CONFIG = Reference("Secret", "s"), Reference("ConfigMap", "c")
SOURCES = {
    SECRET: {"password": b"p w", "raw": b"\xff", "nul": b"a\0b"},
    CONFIG: {"color": b"blue", "a=b": b"never"},
    Reference("Secret", "gone"): None,
    Reference("ConfigMap", "gone"): None,
}
POD = {
    "metadata": {"name": "p", "namespace": "n", "uid": "u", "labels": {"app": "x"}, "annotations": {"k/v": 'a"b'}},
    "spec": {"nodeName": "local", "containers": [{"name": "c", "resources": {"limits": {"cpu": "250m"}}}]},
    "status": {"podIP": "127.9.0.1", "hostIP": "127.9.0.9"},
}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("$(A)", "1"),
        ("x$(A)y$(B)", "x1y2"),
        ("$$(A)", "$(A)"),
        ("$$$(A)", "$1"),
        ("$(NO)", "$(NO)"),
        ("$A ${A}", "$A ${A}"),
        ("$(A", "$(A"),
    ],
)
def test_expand(text, expected) -> None:
    assert expand(text, {"A": "1", "B": "2"}) == expected


def test_order() -> None:
    container = {
        "envFrom": [
            {"configMapRef": {"name": "c"}, "prefix": "C_"},
            {"secretRef": {"name": "gone", "optional": True}},
        ],
        "env": [
            {"name": "A", "value": "$(BASE)-$(C_color)-$(LATER)"},
            {"name": "LATER", "value": "l"},
            {"name": "BASE", "value": "own"},
            {"name": "EMPTY"},
            {"name": "PW", "valueFrom": {"secretKeyRef": {"name": "s", "key": "password"}}},
            {"name": "NOT", "valueFrom": {"secretKeyRef": {"name": "s", "key": "no", "optional": True}}},
            {"name": "NEITHER", "valueFrom": {"configMapKeyRef": {"name": "gone", "key": "no", "optional": True}}},
            {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
            {"name": "URL", "value": "http://:$(PW)@$(IP)"},
        ],
    }
    assert environment(container, POD, SOURCES, base={"BASE": "b", "PATH": "/bin"}) == {
        "BASE": "own",
        "PATH": "/bin",
        "C_color": "blue",
        "A": "b-blue-$(LATER)",
        "LATER": "l",
        "EMPTY": "",
        "PW": "p w",
        "IP": "127.9.0.1",
        "URL": "http://:p w@127.9.0.1",
    }
    assert references(container) == {CONFIG, SECRET, Reference("Secret", "gone"), Reference("ConfigMap", "gone")}
    assert command_line(["run", "$(A)"], {"A": "x"}) == ["run", "x"]


@pytest.mark.parametrize(
    ("container", "message"),
    [
        ({"envFrom": [{"secretRef": {"name": "gone"}}]}, 'secret "gone" not found'),
        (
            {"env": [{"name": "A", "valueFrom": {"configMapKeyRef": {"name": "gone", "key": "k"}}}]},
            'configmap "gone" not found',
        ),
        (
            {"env": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]},
            "couldn't find key k in Secret n/s",
        ),
        ({"env": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "s", "key": "raw"}}}]}, "is not text"),
        ({"env": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "s", "key": "nul"}}}]}, "NUL"),
        ({"env": [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "spec.x"}}}]}, "not offered"),
        ({"env": [{"name": "A", "valueFrom": {"resourceFieldRef": {"resource": "cpu"}}}]}, "not offered"),
    ],
)
def test_what_is_missing_is_named(container, message) -> None:
    with pytest.raises(ConfigError, match=message):
        environment(container, POD, SOURCES, base={})


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("metadata.name", "p"),
        ("metadata.labels['app']", "x"),
        ("metadata.labels['no']", ""),
        ("metadata.annotations['k/v']", 'a"b'),
        ("metadata.annotations", 'k/v="a\\"b"'),
        ("spec.nodeName", "local"),
        ("spec.serviceAccountName", "default"),
        ("status.hostIP", "127.9.0.9"),
    ],
)
def test_field(path, expected) -> None:
    assert field(POD, path) == expected


@pytest.mark.parametrize(
    ("resource", "divisor", "expected"),
    [
        ("limits.cpu", None, "1"),  # rounded up
        ("limits.cpu", "1m", "250"),
        ("limits.memory", "1Mi", "128"),
        ("requests.memory", None, "0"),
    ],
)
def test_resource_field(resource, divisor, expected) -> None:
    container = {"name": "c", "resources": {"limits": {"cpu": "250m", "memory": "128Mi"}}}
    assert resource_field(container, {"resource": resource, "divisor": divisor}) == expected


def test_a_resource_field_that_is_no_quantity_is_refused() -> None:
    container = {"resources": {"limits": {"cpu": "much", "memory": "1e3"}}}
    assert resource_field(container, {"resource": "limits.memory"}) == "1000"
    with pytest.raises(ConfigError, match=r"limits\.cpu: 'much' is not a quantity"):
        resource_field(container, {"resource": "limits.cpu"})


def test_data_of() -> None:
    encoded = base64.b64encode(b"\xff").decode()
    assert data_of({"kind": "Secret", "data": {"a": encoded}}) == {"a": b"\xff"}
    config = {"kind": "ConfigMap", "data": {"a": "x"}, "binaryData": {"b": encoded}}
    assert data_of(config) == {"a": b"x", "b": b"\xff"}
    assert data_of(None) is None


@pytest.mark.parametrize(
    ("volume", "expected"),
    [
        ({"secret": {"secretName": "s", "items": [{"key": "password", "path": "a/pw"}]}}, {"a/pw": b"p w"}),
        ({"configMap": {"name": "c"}}, {"color": b"blue", "a=b": b"never"}),
        ({"configMap": {"name": "gone", "optional": True}}, {}),
        ({"configMap": {"name": "c", "optional": True, "items": [{"key": "no", "path": "x"}]}}, {}),
        ({"downwardAPI": {"items": [{"path": "n", "fieldRef": {"fieldPath": "metadata.name"}}]}}, {"n": b"p"}),
        (
            {
                "projected": {
                    "sources": [
                        {"secret": {"name": "s", "items": [{"key": "password", "path": "pw"}]}},
                        {"configMap": {"name": "c", "items": [{"key": "color", "path": "color"}]}},
                        {
                            "downwardAPI": {
                                "items": [
                                    {
                                        "path": "cpu",
                                        "resourceFieldRef": {"containerName": "c", "resource": "limits.cpu"},
                                    }
                                ]
                            }
                        },
                    ]
                }
            },
            {"pw": b"p w", "color": b"blue", "cpu": b"1"},
        ),
    ],
)
def test_files_of_volumes(volume, expected) -> None:
    named = {"name": "v", **volume}
    assert volumes.files_of(named, POD, SOURCES) == expected
    assert volumes.is_written(named)
    assert volumes.unsupported(named) is None
    assert volumes.references(named) <= set(SOURCES)


@pytest.mark.parametrize(
    ("volume", "message"),
    [
        ({"secret": {"secretName": "gone"}}, 'secret "gone" not found'),
        ({"secret": {"secretName": "s", "items": [{"key": "no", "path": "x"}]}}, "non-existent key no"),
        ({"secret": {"secretName": "s", "items": [{"key": "password", "path": "../x"}]}}, "leads out"),
        (
            {"downwardAPI": {"items": [{"path": "x", "resourceFieldRef": {"containerName": "z", "resource": "a.b"}}]}},
            "no container",
        ),
    ],
)
def test_volumes_that_cannot_be_filled(volume, message) -> None:
    with pytest.raises(ConfigError, match=message):
        volumes.files_of({"name": "v", **volume}, POD, SOURCES)


@pytest.mark.parametrize(
    ("volume", "message"),
    [
        ({"nfs": {}}, "nfs is not offered"),
        ({"projected": {"sources": [{"serviceAccountToken": {}}]}}, "projected serviceAccountToken is not offered"),
    ],
)
def test_volumes_that_are_not_offered(volume, message) -> None:
    assert message in (volumes.unsupported({"name": "v", **volume}) or "")


def test_mount_paths(tmp_path) -> None:
    container = {"name": "c", "volumeMounts": [{"name": "v", "mountPath": "/a", "subPath": "x/y"}]}
    assert volumes.mount_paths(container, {"v": tmp_path}) == {"/a": str(tmp_path / "x/y")}
    with pytest.raises(ConfigError, match="does not have"):
        volumes.mount_paths(container, {})
    container["volumeMounts"][0]["subPathExpr"] = "$(X)"
    with pytest.raises(ConfigError, match="subPathExpr"):
        volumes.mount_paths(container, {"v": tmp_path})
