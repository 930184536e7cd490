"""Deletion: finalizers, grace, preconditions, propagation, collections, namespaces. The same on both servers."""

from __future__ import annotations

from typing import Any

import pytest

from .conftest import MERGE, Http, config_map, deployment, eventually, pod


def test_plain_deletion(http_api: Http, core: str) -> None:
    made = http_api.ok("POST", f"{core}/configmaps", config_map("a"))
    status = http_api.ok("DELETE", f"{core}/configmaps/a")
    assert (status["status"], status["details"]["uid"]) == ("Success", made["metadata"]["uid"])
    assert http_api("DELETE", f"{core}/configmaps/a").code == 404


def test_finalizers_hold_an_object(http_api: Http, apps: str) -> None:
    body = deployment("a")
    body["metadata"]["finalizers"] = ["x.io/y"]
    http_api.ok("POST", f"{apps}/deployments", body)
    path = f"{apps}/deployments/a"
    found = http_api.ok("DELETE", path)
    assert found["metadata"]["deletionTimestamp"]
    assert found["metadata"]["generation"] == 2
    again = http_api.ok("DELETE", path)
    assert again["metadata"]["resourceVersion"] == found["metadata"]["resourceVersion"]
    more = http_api("PATCH", path, {"metadata": {"finalizers": ["x.io/y", "x.io/z"]}}, media=MERGE)
    assert more.code == 422
    assert "no new finalizers can be added if the object is being deleted" in more.message
    http_api.ok("PATCH", path, {"metadata": {"finalizers": None}}, media=MERGE)
    assert http_api("GET", path).code == 404


def test_preconditions(http_api: Http, core: str) -> None:
    made = http_api.ok("POST", f"{core}/configmaps", config_map("a"))
    path = f"{core}/configmaps/a"
    answer = http_api("DELETE", path, {"preconditions": {"uid": "other"}})
    assert answer.code == 409
    assert "the UID in the precondition (other) does not match" in answer.message
    assert http_api("DELETE", path, {"preconditions": {"resourceVersion": "1"}}).code == 409
    right = {"uid": made["metadata"]["uid"], "resourceVersion": made["metadata"]["resourceVersion"]}
    http_api.ok("DELETE", path, {"preconditions": right})


@pytest.mark.parametrize(
    ("policy", "finalizer"), [("Foreground", "foregroundDeletion"), ("Orphan", "orphan"), ("Background", None)]
)
def test_propagation(http_api: Http, apps: str, policy: str, finalizer: str | None) -> None:
    http_api.ok("POST", f"{apps}/deployments", deployment("a"))
    path = f"{apps}/deployments/a"
    found = http_api.ok("DELETE", f"{path}?propagationPolicy={policy}")
    if finalizer is None:
        assert http_api("GET", path).code == 404
        return
    assert found["metadata"]["finalizers"] == [finalizer]
    http_api.ok("PATCH", path, {"metadata": {"finalizers": None}}, media=MERGE)
    assert http_api("GET", path).code == 404


def test_propagation_that_is_none(http_api: Http, core: str) -> None:
    http_api.ok("POST", f"{core}/configmaps", config_map("a"))
    answer = http_api("DELETE", f"{core}/configmaps/a", {"propagationPolicy": "Sideways"})
    assert answer.code == 422
    assert 'Unsupported value: "Sideways"' in answer.message


def test_running_pods_end_gracefully(http_api: Http, core: str) -> None:
    http_api.ok("POST", f"{core}/pods", pod("a", nodeName="n", terminationGracePeriodSeconds=7))
    path = f"{core}/pods/a"
    found = http_api.ok("DELETE", path)
    assert found["metadata"]["deletionGracePeriodSeconds"] == 7
    sooner = http_api.ok("DELETE", path, {"gracePeriodSeconds": 2})
    assert sooner["metadata"]["deletionGracePeriodSeconds"] == 2
    longer = http_api.ok("DELETE", path, {"gracePeriodSeconds": 9})
    assert longer["metadata"]["deletionGracePeriodSeconds"] == 2
    http_api.ok("DELETE", path, {"gracePeriodSeconds": 0})
    assert http_api("GET", path).code == 404


def test_pods_that_never_ran_go_at_once(http_api: Http, core: str) -> None:
    http_api.ok("POST", f"{core}/pods", pod("a"))
    found = http_api.ok("DELETE", f"{core}/pods/a")
    assert found["metadata"]["deletionGracePeriodSeconds"] == 0
    assert http_api("GET", f"{core}/pods/a").code == 404


def test_collections(http_api: Http, core: str) -> None:
    for name, color in (("a", "red"), ("b", "green")):
        http_api.ok("POST", f"{core}/configmaps", config_map(name, labels={"color": color}))
    found = http_api.ok("DELETE", f"{core}/configmaps?labelSelector=color%3Dred")
    assert [item["metadata"]["name"] for item in found["items"]] == ["a"]
    assert http_api("GET", f"{core}/configmaps/b").code == 200


def test_a_deleted_namespace_takes_its_content(http_api: Http, api_server: Any, unique: str) -> None:
    if api_server.real:
        pytest.skip("a real API server leaves this to kube-controller-manager")
    name = f"gone-{unique}"
    http_api.ok("POST", "/api/v1/namespaces", {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    core = f"/api/v1/namespaces/{name}"
    http_api.ok("POST", f"{core}/configmaps", config_map("a"))
    http_api.ok("POST", f"{core}/configmaps", config_map("held", finalizers=["x.io/y"]))
    http_api.ok("POST", f"{core}/pods", pod("p", nodeName="n"))
    found = http_api.ok("DELETE", core)
    assert found["status"]["phase"] == "Terminating"
    assert http_api("GET", f"{core}/configmaps/a").code == 404
    answer = http_api("POST", f"{core}/configmaps", config_map("b"))
    assert answer.code == 403
    assert "because it is being terminated" in answer.message
    assert answer.body["details"]["causes"][0]["reason"] == "NamespaceTerminating"
    http_api.ok("PATCH", f"{core}/configmaps/held", {"metadata": {"finalizers": None}}, media=MERGE)
    assert http_api("GET", core).code == 200, "the pod still runs"
    http_api.ok("DELETE", f"{core}/pods/p", {"gracePeriodSeconds": 0})
    eventually(lambda: http_api("GET", core).code == 404, "the namespace's end")


def test_namespaces_that_must_stay(http_api: Http) -> None:
    answer = http_api("DELETE", "/api/v1/namespaces/default")
    assert (answer.code, answer.message) == (
        403, 'namespaces "default" is forbidden: this namespace may not be deleted'
    )  # fmt: skip
