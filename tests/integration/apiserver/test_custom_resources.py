"""CRDs and what they define. The same on both servers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from .conftest import MERGE, STRATEGIC, Http, agent, eventually


@pytest.fixture
def widgets(http_api: Http, kube_namespace: str, unique: str) -> Iterator[str]:
    """Path of a kind of the test's own, with what schemas can do."""
    group = f"{unique}.example.com"
    rules = [
        {"rule": "self.low <= self.high", "message": "low must not be above high"},
        {"rule": "self.high < 100", "messageExpression": "'mode ' + self.mode + ': at most 99'"},
    ]
    spec = {
        "type": "object", "required": ["low"], "x-kubernetes-validations": rules,
        "properties": {
            "low": {"type": "integer", "minimum": 0, "exclusiveMinimum": True},
            "high": {"type": "integer", "default": 10, "maximum": 1000, "multipleOf": 2},
            "size": {"x-kubernetes-int-or-string": True},
            "mode": {"type": "string", "enum": ["on", "off"], "default": "on", "maxLength": 5},
            "names": {"type": "array", "items": {"type": "string"}, "x-kubernetes-list-type": "set", "maxItems": 3},
            "parts": {
                "type": "array", "minItems": 1, "maxItems": 5, "x-kubernetes-list-type": "map",
                "x-kubernetes-list-map-keys": ["id"],
                "items": {
                    "type": "object", "required": ["id"],
                    "properties": {
                        "id": {"type": "string", "maxLength": 9},
                        "n": {
                            "type": "integer", "default": 1,
                            "x-kubernetes-validations": [{"rule": "self >= oldSelf", "message": "n only grows"}],
                        },
                    },
                },
            },
            "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
            "table": {"type": "object", "additionalProperties": {"type": "integer"}, "maxProperties": 2},
            "since": {"type": "string", "format": "date-time"},
            "amount": {
                "type": "string", "maxLength": 9, "x-kubernetes-validations": [
                    {"rule": "isQuantity(self) && quantity(self).compareTo(quantity('1Gi')) <= 0", "message": "1Gi"}
                ],
            },
            "note": {"type": "string", "nullable": True, "pattern": "^[a-z]+$", "maxLength": 5},
            "either": {"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "string"}},
                       "oneOf": [{"required": ["a"]}, {"required": ["b"]}]},
            "replicas": {"type": "integer"},
        },
    }  # fmt: skip
    version = {
        "name": "v1", "served": True, "storage": True, "subresources": {"status": {}},
        "schema": {"openAPIV3Schema": {"type": "object", "properties": {
            "spec": spec, "status": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
        }}},
        "additionalPrinterColumns": [
            {"name": "Low", "type": "integer", "jsonPath": ".spec.low"},
            {"name": "Parts", "type": "string", "jsonPath": ".spec.parts[*].id"},
        ],
        "selectableFields": [{"jsonPath": ".spec.mode"}],
    }  # fmt: skip
    definition = {
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": f"widgets.{group}"},
        "spec": {
            "group": group, "scope": "Namespaced", "names": {"plural": "widgets", "kind": "Widget"},
            "versions": [version],
        },
    }  # fmt: skip
    crds = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
    http_api.ok("POST", crds, definition)
    path = f"/apis/{group}/v1/namespaces/{kube_namespace}/widgets"
    eventually(lambda: http_api("GET", path).code == 200, "serving the new kind")
    yield path
    http_api.ok("DELETE", f"{crds}/widgets.{group}")
    eventually(lambda: http_api("GET", path).code == 404, "the end of the kind")


def widget(path: str, name: str = "w", **spec: Any) -> dict[str, Any]:
    group = path.split("/")[2]
    return {"apiVersion": f"{group}/v1", "kind": "Widget", "metadata": {"name": name}, "spec": {"low": 1, **spec}}


def test_defaults_and_pruning(http_api: Http, widgets: str) -> None:
    spec = {"parts": [{"id": "a"}], "free": {"x": {"y": None}}, "gone": 1, "note": None}
    found = http_api.ok("POST", widgets, widget(widgets, **spec))["spec"]
    assert found == {
        "low": 1, "high": 10, "mode": "on", "parts": [{"id": "a", "n": 1}], "free": {"x": {"y": None}}, "note": None,
    }  # fmt: skip


def test_a_status_of_its_own(http_api: Http, widgets: str) -> None:
    made = http_api.ok("POST", widgets, {**widget(widgets), "status": {"x": 1}})
    assert "status" not in made
    found = http_api.ok("PATCH", f"{widgets}/w/status", {"status": {"x": 2}, "spec": {"low": 3}}, media=MERGE)
    assert (found["status"], found["spec"]["low"], found["metadata"]["generation"]) == ({"x": 2}, 1, 1)


@pytest.mark.parametrize(
    ("spec", "texts"),
    [
        ({"low": None}, ["spec.low: Required value"]),
        ({"low": 0}, ["spec.low in body should be greater than 0"]),
        ({"low": "x"}, ['spec.low in body must be of type integer: "string"']),
        ({"high": 2000}, ["should be less than or equal to 1000", "mode on: at most 99"]),
        ({"high": 9}, ["spec.high in body should be a multiple of 2"]),
        ({"low": 50}, ["spec: Invalid value: low must not be above high"]),
        ({"mode": "maybe"}, ['Unsupported value: "maybe": supported values: "on", "off"']),
        ({"names": ["a", "a"]}, ['spec.names[1]: Duplicate value: "a"']),
        ({"names": ["a", "b", "c", "d"]}, ["Too many: 4: must have at most 3 items"]),
        ({"parts": []}, ["spec.parts in body should have at least 1 items"]),
        ({"parts": [{"id": "a"}, {"id": "a"}]}, ['spec.parts[1]: Duplicate value: {"id":"a"}']),
        ({"table": {"a": 1, "b": 2, "c": 3}}, ["spec.table: Too many: 3: must have at most 2 items"]),
        ({"since": "yesterday"}, ["spec.since in body must be of type date-time"]),
        ({"amount": "2Gi"}, ['spec.amount: Invalid value: "2Gi": 1Gi']),
        ({"amount": "much"}, ['spec.amount: Invalid value: "much": 1Gi']),
        ({"note": "ABC"}, ["spec.note in body should match '^[a-z]+$'"]),
        ({"note": "abcdef"}, ["spec.note: Too long: may not be more than 5 bytes"]),
        ({"either": {"a": "x", "b": "y"}}, ["must validate one and only one schema (oneOf)"]),
        ({"either": {}}, ["must validate one and only one schema (oneOf). Found none valid"]),
        ({"size": True}, ['spec.size in body must be of type integer,string: "boolean"']),
    ],
)
def test_what_a_schema_refuses(http_api: Http, widgets: str, spec: dict[str, Any], texts: list[str]) -> None:
    answer = http_api("POST", widgets, widget(widgets, **spec))
    assert (answer.code, answer.body["reason"]) == (422, "Invalid"), answer.body
    assert [text for text in texts if text not in answer.message] == [], answer.message


def test_transition_rules_follow_the_items(http_api: Http, widgets: str) -> None:
    http_api.ok("POST", widgets, widget(widgets, parts=[{"id": "a", "n": 5}, {"id": "b", "n": 1}]))
    shrunk = {"spec": {"parts": [{"id": "b", "n": 2}, {"id": "a", "n": 4}]}}
    answer = http_api("PATCH", f"{widgets}/w", shrunk, media=MERGE)
    assert answer.code == 422
    assert "spec.parts[1].n: Invalid value: 4: n only grows" in answer.message
    grown = {"spec": {"parts": [{"id": "c", "n": 1}, {"id": "a", "n": 6}]}}
    assert http_api("PATCH", f"{widgets}/w", grown, media=MERGE).code == 200


def test_only_what_changed_is_judged_anew(http_api: Http, widgets: str) -> None:
    crd = f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/widgets.{widgets.split('/')[2]}"
    http_api.ok("POST", widgets, widget(widgets, note="abcde"))
    definition = http_api.ok("GET", crd)
    schema = definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]
    schema["note"]["maxLength"] = 3
    http_api.ok("PUT", crd, definition)
    eventually(lambda: http_api("POST", widgets, widget(widgets, "x", note="abcd")).code == 422, "the new schema")
    assert http_api("PATCH", f"{widgets}/w", {"spec": {"low": 2}}, media=MERGE).code == 200
    assert http_api("PATCH", f"{widgets}/w", {"spec": {"note": "edcba"}}, media=MERGE).code == 422


def test_selectable_fields(http_api: Http, widgets: str) -> None:
    for name, mode in (("a", "on"), ("b", "off")):
        http_api.ok("POST", widgets, widget(widgets, name, mode=mode))
    found = http_api.ok("GET", f"{widgets}?fieldSelector=spec.mode%3Doff")
    assert [item["metadata"]["name"] for item in found["items"]] == ["b"]


def test_updates_of_custom_resources_need_a_version(http_api: Http, widgets: str) -> None:
    http_api.ok("POST", widgets, widget(widgets))
    answer = http_api("PUT", f"{widgets}/w", widget(widgets))
    assert answer.code == 422
    assert "metadata.resourceVersion: Invalid value: 0: must be specified for an update" in answer.message


def test_there_is_no_strategic_merge(http_api: Http, widgets: str) -> None:
    http_api.ok("POST", widgets, widget(widgets))
    assert http_api("PATCH", f"{widgets}/w", {"spec": {"low": 2}}, media=STRATEGIC).code == 415


def test_agents_scale(http_api: Http, hives: str) -> None:
    http_api.ok("POST", f"{hives}/agents", agent("w"))
    scale = http_api.ok("PATCH", f"{hives}/agents/w/scale", {"spec": {"replicas": 4}}, media=MERGE)
    assert scale["spec"]["replicas"] == 4
    found = http_api.ok("GET", f"{hives}/agents/w")
    assert (found["spec"]["replicas"], found["metadata"]["generation"]) == (4, 2)
    http_api.ok("PATCH", f"{hives}/agents/w/status", {"status": {"replicas": 2, "selector": "a=b"}}, media=MERGE)
    assert http_api.ok("GET", f"{hives}/agents/w/scale")["status"] == {"replicas": 2, "selector": "a=b"}


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"metadata": {"name": "wrong.example.com"}}, "metadata.name"),
        ({"scope": "Galactic"}, 'spec.scope: Unsupported value: "Galactic"'),
        ({"schema": {"type": "object", "properties": {"a": {}}}}, "properties[a].type: Required value"),
        ({"schema": {"type": "object", "properties": {"a": {"type": "array"}}}}, "properties[a].items"),
        (
            {"schema": {"type": "object", "x-kubernetes-validations": [{"rule": "self.("}]}},
            "x-kubernetes-validations[0].rule",
        ),
        (
            {"schema": {"type": "object", "x-kubernetes-validations": [{"rule": "nosuch(self)"}]}},
            "x-kubernetes-validations[0].rule",
        ),
        ({"schema": {"type": "object", "properties": {"a": {"type": "string", "pattern": "("}}}}, "pattern"),
        ({"schema": {"type": "object", "properties": {"a": {"type": "string", "default": 3}}}}, "default"),
    ],
)
def test_crds_that_are_refused(http_api: Http, unique: str, change: dict[str, Any], text: str) -> None:
    group = f"{unique}.example.com"
    schema = change.get("schema", {"type": "object"})
    if "properties" in schema or "x-kubernetes-validations" in schema:
        schema = {"type": "object", "properties": {"spec": schema}}
    definition = {
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": f"things.{group}", **change.get("metadata", {})},
        "spec": {
            "group": group, "scope": change.get("scope", "Cluster"), "names": {"plural": "things", "kind": "Thing"},
            "versions": [{"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}}],
        },
    }  # fmt: skip
    answer = http_api("POST", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", definition)
    assert answer.code == 422, answer.body
    assert text in answer.message


def test_discovery_shows_the_kind(http_api: Http, widgets: str) -> None:
    group = widgets.split("/")[2]
    found = http_api.ok("GET", f"/apis/{group}/v1")
    assert [resource["name"] for resource in found["resources"]] == ["widgets", "widgets/status"]
    assert http_api.ok("GET", f"/apis/{group}")["preferredVersion"]["version"] == "v1"
    accept = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"
    eventually(
        lambda: group in json.dumps(http_api("GET", "/apis", accept=accept).body), "the group in aggregated discovery"
    )
    listed = http_api.ok("GET", "/apis")
    assert group in [one["name"] for one in listed["groups"]]
    eventually(lambda: f"apis/{group}/v1" in http_api.ok("GET", "/openapi/v3")["paths"], "the group's OpenAPI")
    document = http_api.ok("GET", f"/openapi/v3/apis/{group}/v1")
    assert any(name.endswith(".v1.Widget") for name in document["components"]["schemas"])
