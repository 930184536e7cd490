"""Server-side apply: who owns what, what goes, what conflicts. The same on both servers."""

from __future__ import annotations

import json
from typing import Any

from .conftest import APPLY, MERGE, Http, agent, config_map, deployment


def owners(obj: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    """Fields by manager and operation."""
    return {(entry["manager"], entry["operation"]): entry["fieldsV1"] for entry in obj["metadata"]["managedFields"]}


def test_apply_creates_and_then_changes_nothing(http_api: Http, apps: str) -> None:
    path = f"{apps}/deployments/a"
    first = http_api.apply(path, deployment("a"), "m")
    again = http_api.apply(path, deployment("a"), "m")
    assert (first.code, again.code) == (201, 200)
    assert again.body == first.body


def test_what_a_manager_stops_applying_goes(http_api: Http, core: str) -> None:
    path = f"{core}/configmaps/a"
    http_api.apply(path, config_map("a", {"n": "1", "m": "2"}, labels={"l": "1"}), "m")
    found = http_api.apply(path, config_map("a", {"m": "2"}), "m").body
    assert found["data"] == {"m": "2"}
    assert "labels" not in found["metadata"]


def test_what_others_own_stays(http_api: Http, core: str) -> None:
    path = f"{core}/configmaps/a"
    http_api.apply(path, config_map("a", {"n": "1", "m": "2"}), "m")
    assert http_api.apply(path, config_map("a", {"n": "1"}), "o").code == 200, "the same value is shared"
    http_api.ok("PATCH", path, {"data": {"p": "3"}}, media=MERGE)
    found = http_api.apply(path, config_map("a", {}), "m").body
    assert found["data"] == {"n": "1", "p": "3"}
    assert ("m", "Apply") not in owners(found) or "f:n" not in json.dumps(owners(found)["m", "Apply"])


def test_conflicts_name_field_and_owner(http_api: Http, core: str) -> None:
    path = f"{core}/configmaps/a"
    http_api.apply(path, config_map("a", {"n": "1", "m": "1"}), "first")
    answer = http_api.apply(path, config_map("a", {"n": "2"}), "second")
    assert (answer.code, answer.body["reason"]) == (409, "Conflict")
    assert answer.message == 'Apply failed with 1 conflict: conflict with "first": .data.n'
    cause = {"reason": "FieldManagerConflict", "message": 'conflict with "first"', "field": ".data.n"}
    assert answer.body["details"]["causes"] == [cause]
    both = http_api.apply(path, config_map("a", {"n": "2", "m": "2"}), "second")
    assert both.message == 'Apply failed with 2 conflicts: conflicts with "first":\n- .data.m\n- .data.n'
    forced = http_api.apply(path, config_map("a", {"n": "2"}), "second", force=True).body
    assert forced["data"] == {"n": "2", "m": "1"}
    assert owners(forced)["first", "Apply"] == {"f:data": {"f:m": {}}}
    assert owners(forced)["second", "Apply"] == {"f:data": {"f:n": {}}}


def test_conflict_with_an_update(http_api: Http, core: str) -> None:
    path = f"{core}/configmaps/a"
    http_api.apply(path, config_map("a", {"n": "1"}), "first")
    http_api.ok("PATCH", f"{path}?fieldManager=editor", {"data": {"n": "9"}}, media=MERGE)
    answer = http_api.apply(path, config_map("a", {"n": "1"}), "first")
    assert answer.code == 409
    assert answer.message.startswith('Apply failed with 1 conflict: conflict with "editor" using v1')
    assert http_api.ok("GET", path)["data"] == {"n": "9"}


def test_items_of_keyed_lists_are_owned_one_by_one(http_api: Http, apps: str) -> None:
    path = f"{apps}/deployments/a"
    http_api.apply(path, deployment("a"), "m")
    sidecar = {
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "a"},
        "spec": {"template": {"spec": {"containers": [
            {"name": "side", "image": "s"}, {"name": "c", "env": [{"name": "EXTRA", "value": "1"}]},
        ]}}},
    }  # fmt: skip
    assert http_api.apply(path, sidecar, "o").code == 200
    wanted = deployment("a")
    container = wanted["spec"]["template"]["spec"]["containers"][0]
    container["env"] = [{"name": "B", "value": "2"}]
    del container["livenessProbe"]
    found = http_api.apply(path, wanted, "m").body
    containers = {one["name"]: one for one in found["spec"]["template"]["spec"]["containers"]}
    assert set(containers) == {"c", "side"}
    assert {env["name"] for env in containers["c"]["env"]} == {"B", "EXTRA"}
    assert "livenessProbe" not in containers["c"], "with all its defaults"
    assert containers["c"]["ports"] == [{"containerPort": 80, "protocol": "TCP"}]


def test_owners_of_created_fields(http_api: Http, apps: str) -> None:
    found = http_api.ok("POST", f"{apps}/deployments", deployment("a"), agent="creator/1.0 (x)")
    fields = owners(found)["creator", "Update"]
    assert fields["f:metadata"] == {"f:labels": {".": {}, "f:app": {}}}
    assert fields["f:spec"]["f:selector"] == {}
    assert fields["f:spec"]["f:strategy"]["f:rollingUpdate"] == {".": {}, "f:maxSurge": {}, "f:maxUnavailable": {}}
    assert "f:status" not in fields


def test_custom_resources(http_api: Http, hives: str) -> None:
    path = f"{hives}/agents/w"
    body = agent("w", capabilities=["x", "y"], env=[{"name": "A", "value": "b"}])
    first = http_api.apply(path, body, "m")
    assert first.code == 201
    assert http_api.apply(path, body, "m").body == first.body
    assert "f:env" in owners(first.body)["m", "Apply"]["f:spec"]
    del body["spec"]["env"]
    found = http_api.apply(path, body, "m").body
    assert "env" not in found["spec"]
    assert found["metadata"]["generation"] == 2
    other = agent("w")
    other["spec"] = {"replicas": 3}
    assert http_api.apply(path, other, "scaler").code == 200


def test_status_is_applied_through_its_own_path(http_api: Http, hives: str) -> None:
    path = f"{hives}/agents/w"
    http_api.apply(path, agent("w"), "m")
    condition = {
        "type": "Ready", "status": "True", "reason": "R", "message": "", "observedGeneration": 1,
        "lastTransitionTime": "2024-01-01T00:00:00Z",
    }  # fmt: skip
    body = {"apiVersion": "agenthive.dev/v1alpha1", "kind": "Agent", "metadata": {"name": "w"}}
    found = http_api.ok(
        "PATCH", f"{path}/status?fieldManager=op", {**body, "status": {"conditions": [condition]}}, media=APPLY
    )
    assert found["status"]["conditions"] == [condition]
    assert found["metadata"]["generation"] == 1
    kept = http_api.apply(path, {**agent("w"), "status": {"conditions": []}}, "m").body
    assert kept["status"]["conditions"] == [condition]


def test_what_apply_needs(http_api: Http, core: str) -> None:
    path = f"{core}/configmaps/a"
    answer = http_api("PATCH", path, config_map("a"), media=APPLY)
    assert answer.code == 422
    assert "fieldManager: Required value: is required for apply patch" in answer.message
    managed = config_map("a", managedFields=[{"manager": "x"}])
    assert http_api.apply(path, managed, "m").message == "metadata.managedFields must be nil"
    http_api.apply(path, config_map("a"), "m")
    answer = http_api("PATCH", f"{path}?force=true", {"data": {}}, media=MERGE)
    assert answer.code == 422
    assert "may not be specified for non-apply patch" in answer.message
    stale = config_map("a", resourceVersion="1")
    assert http_api.apply(path, stale, "m").code == 409
    assert http_api.apply(f"{core}/configmaps/b", config_map("b", uid="nope"), "m").code == 409


def test_managers_can_be_reset(http_api: Http, core: str) -> None:
    path = f"{core}/configmaps/a"
    http_api.apply(path, config_map("a", {"n": "1"}), "m")
    found = http_api.ok("PATCH", path, {"metadata": {"managedFields": [{}]}}, media=MERGE)
    assert "managedFields" not in found["metadata"]
