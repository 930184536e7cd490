"""Create, read, update, patch: what both servers answer alike."""

from __future__ import annotations

from typing import Any

import pytest

from .conftest import APPLY, JSON_PATCH, MERGE, STRATEGIC, Http, config_map, deployment, pod


def test_create_fills_in_metadata_and_defaults(http_api: Http, apps: str) -> None:
    found = http_api.ok("POST", f"{apps}/deployments", deployment("a"))
    meta = found["metadata"]
    assert meta["generation"] == 1
    assert meta["uid"]
    assert meta["creationTimestamp"].endswith("Z")
    assert found["spec"]["replicas"] == 1
    assert found["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": "25%", "maxUnavailable": "25%"}
    container = found["spec"]["template"]["spec"]["containers"][0]
    assert container["imagePullPolicy"] == "IfNotPresent"
    assert container["livenessProbe"]["httpGet"] == {"path": "/", "port": 80, "scheme": "HTTP"}
    assert container["ports"] == [{"containerPort": 80, "protocol": "TCP"}]


def test_creating_twice_conflicts(http_api: Http, core: str) -> None:
    http_api.ok("POST", f"{core}/configmaps", config_map("a"))
    answer = http_api("POST", f"{core}/configmaps", config_map("a"))
    assert (answer.code, answer.body["reason"]) == (409, "AlreadyExists")
    assert answer.message == 'configmaps "a" already exists'


def test_generate_name(http_api: Http, core: str) -> None:
    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"generateName": "x-"}}
    names = {http_api.ok("POST", f"{core}/configmaps", body)["metadata"]["name"] for _ in range(3)}
    assert len(names) == 3
    assert all(name.startswith("x-") and len(name) == 7 for name in names)


@pytest.mark.parametrize(
    ("path", "code", "text"),
    [
        ("/configmaps/none", 404, 'configmaps "none" not found'),
        ("/foos", 404, "the server could not find the requested resource"),
    ],
)
def test_what_is_not_there(http_api: Http, core: str, path: str, code: int, text: str) -> None:
    answer = http_api("GET", core + path)
    assert (answer.code, answer.body["kind"], answer.message) == (code, "Status", text)


def test_no_such_namespace(http_api: Http, unique: str) -> None:
    answer = http_api("POST", f"/api/v1/namespaces/no-{unique}/configmaps", config_map("a"))
    assert (answer.code, answer.message) == (404, f'namespaces "no-{unique}" not found')


def test_methods_that_make_no_sense(http_api: Http, core: str) -> None:
    assert http_api("PUT", f"{core}/configmaps", config_map("a")).code == 405
    assert http_api("POST", f"{core}/configmaps/a", config_map("a")).code == 405


def test_update_needs_the_newest_version(http_api: Http, core: str) -> None:
    first = http_api.ok("POST", f"{core}/configmaps", config_map("a", {"n": "1"}))
    http_api.ok("PUT", f"{core}/configmaps/a", {**first, "data": {"n": "2"}})
    answer = http_api("PUT", f"{core}/configmaps/a", {**first, "data": {"n": "3"}})
    assert (answer.code, answer.body["reason"]) == (409, "Conflict")
    assert "the object has been modified" in answer.message
    assert http_api.ok("GET", f"{core}/configmaps/a")["data"] == {"n": "2"}


def test_an_update_that_changes_nothing_writes_nothing(http_api: Http, core: str) -> None:
    first = http_api.ok("POST", f"{core}/configmaps", config_map("a", {"n": "1"}))
    second = http_api.ok("PUT", f"{core}/configmaps/a", first)
    assert second["metadata"]["resourceVersion"] == first["metadata"]["resourceVersion"]


def test_names_have_to_match(http_api: Http, core: str, kube_namespace: str) -> None:
    http_api.ok("POST", f"{core}/configmaps", config_map("a"))
    answer = http_api("PUT", f"{core}/configmaps/a", config_map("b"))
    assert answer.message == "the name of the object (b) does not match the name on the URL (a)"
    answer = http_api("POST", f"{core}/configmaps", config_map("c", namespace="other"))
    assert answer.message.startswith("the namespace of the provided object does not match the namespace sent")


def test_status_is_apart(http_api: Http, apps: str) -> None:
    http_api.ok("POST", f"{apps}/deployments", {**deployment("a"), "status": {"replicas": 5}})
    path = f"{apps}/deployments/a"
    assert http_api.ok("GET", path)["status"] == {}
    http_api.ok("PATCH", f"{path}/status", {"status": {"replicas": 2}, "spec": {"replicas": 9}}, media=MERGE)
    found = http_api.ok("PATCH", path, {"status": {"replicas": 7}}, media=MERGE)
    assert (found["status"]["replicas"], found["spec"]["replicas"]) == (2, 1)
    assert found["metadata"]["generation"] == 1


def test_generation_counts_changes_of_spec_only(http_api: Http, apps: str) -> None:
    http_api.ok("POST", f"{apps}/deployments", deployment("a"))
    path = f"{apps}/deployments/a"
    labelled = http_api.ok("PATCH", path, {"metadata": {"labels": {"x": "y"}}}, media=MERGE)
    assert labelled["metadata"]["generation"] == 1
    changed = http_api.ok("PATCH", path, {"spec": {"replicas": 3}}, media=MERGE)
    assert changed["metadata"]["generation"] == 2


def test_scale(http_api: Http, apps: str) -> None:
    http_api.ok("POST", f"{apps}/deployments", deployment("a"))
    path = f"{apps}/deployments/a/scale"
    scale = http_api.ok("GET", path)
    assert (scale["kind"], scale["spec"], scale["status"]["selector"]) == ("Scale", {"replicas": 1}, "app=a")
    assert http_api.ok("PUT", path, {**scale, "spec": {"replicas": 4}})["spec"]["replicas"] == 4
    assert http_api.ok("PATCH", path, {"spec": {"replicas": 5}}, media=MERGE)["spec"]["replicas"] == 5
    assert http_api("PUT", path, {**scale, "spec": {"replicas": 6}}).code == 409
    answer = http_api("PATCH", path, {"spec": {"replicas": -1}}, media=MERGE)
    assert answer.code == 422
    assert "must be greater than or equal to 0" in answer.message
    assert http_api.ok("GET", f"{apps}/deployments/a")["spec"]["replicas"] == 5


def test_strategic_merge_patch(http_api: Http, apps: str) -> None:
    http_api.ok("POST", f"{apps}/deployments", deployment("a"))
    path = f"{apps}/deployments/a"

    def patch(**containers: Any) -> list[Any]:
        body = {"spec": {"template": {"spec": containers}}}
        found = http_api.ok("PATCH", path, body, media=STRATEGIC)
        return list(found["spec"]["template"]["spec"]["containers"])

    found = patch(containers=[{"name": "c", "env": [{"name": "B", "value": "1"}]}, {"name": "d", "image": "k"}])
    assert [container["name"] for container in found] == ["c", "d"]
    assert {env["name"] for env in found[0]["env"]} == {"A", "B"}
    found = patch(
        containers=[{"name": "c", "env": [{"$patch": "delete", "name": "A"}]}],
        **{"$setElementOrder/containers": [{"name": "d"}, {"name": "c"}]},
    )
    assert [container["name"] for container in found] == ["d", "c"]
    assert found[1]["env"] == [{"name": "B", "value": "1"}]
    found = patch(containers=[{"$patch": "replace"}, {"name": "e", "image": "z"}])
    assert [container["name"] for container in found] == ["e"]


def test_json_patch(http_api: Http, core: str) -> None:
    http_api.ok("POST", f"{core}/configmaps", config_map("a", {"n": "1", "m": "2"}))
    path = f"{core}/configmaps/a"
    steps = [
        {"op": "test", "path": "/data/n", "value": "1"}, {"op": "move", "from": "/data/n", "path": "/data/o"},
        {"op": "copy", "from": "/data/o", "path": "/data/p"}, {"op": "remove", "path": "/data/m"},
        {"op": "add", "path": "/metadata/labels", "value": {"a~b": "c"}},
    ]  # fmt: skip
    assert http_api("PATCH", path, steps, media=JSON_PATCH).code == 422, "a~b is no label"
    found = http_api.ok("PATCH", path, steps[:-1], media=JSON_PATCH)
    assert found["data"] == {"o": "1", "p": "1"}
    failing = [{"op": "test", "path": "/data/o", "value": "9"}, {"op": "remove", "path": "/data/o"}]
    answer = http_api("PATCH", path, failing, media=JSON_PATCH)
    assert (answer.code, answer.body["reason"]) == (422, "Invalid")
    assert http_api.ok("GET", path)["data"] == {"o": "1", "p": "1"}


def test_merge_patch_removes_by_null(http_api: Http, core: str) -> None:
    http_api.ok("POST", f"{core}/configmaps", config_map("a", {"n": "1", "m": "2"}))
    found = http_api.ok("PATCH", f"{core}/configmaps/a", {"data": {"n": None, "o": "3"}}, media=MERGE)
    assert found["data"] == {"m": "2", "o": "3"}


def test_unknown_fields(http_api: Http, core: str) -> None:
    body = {**config_map("a"), "dota": {}}
    strict = http_api("POST", f"{core}/configmaps?fieldValidation=Strict", body)
    assert strict.code == 400
    assert 'strict decoding error: unknown field "dota"' in strict.message
    warned = http_api("POST", f"{core}/configmaps?fieldValidation=Warn", body)
    assert warned.code == 201
    assert warned.headers.get_all("Warning") == ['299 - "unknown field \\"dota\\""']
    applied = http_api.apply(f"{core}/configmaps/b", {**config_map("b"), "dota": {}}, "m")
    assert applied.code == 500
    assert ".dota: field not declared in schema" in applied.message


def test_dry_run_stores_nothing(http_api: Http, core: str, apps: str) -> None:
    assert http_api("POST", f"{core}/configmaps?dryRun=All", config_map("a")).code == 201
    assert http_api("GET", f"{core}/configmaps/a").code == 404
    http_api.ok("POST", f"{core}/configmaps", config_map("a", {"n": "1"}))
    found = http_api.ok("PATCH", f"{core}/configmaps/a?dryRun=All", {"data": {"n": "2"}}, media=MERGE)
    assert found["data"] == {"n": "2"}
    assert http_api.ok("GET", f"{core}/configmaps/a")["data"] == {"n": "1"}
    http_api.ok("DELETE", f"{core}/configmaps/a?dryRun=All")
    http_api.ok("GET", f"{core}/configmaps/a")
    broken = deployment("a")
    broken["spec"]["template"]["spec"]["containers"][0]["image"] = ""
    assert http_api("PATCH", f"{apps}/deployments/a?fieldManager=m&dryRun=All", broken, media=APPLY).code == 422


def test_bodies_that_cannot_be_read(http_api: Http, core: str) -> None:
    assert http_api("POST", f"{core}/configmaps", b"{").code == 400
    assert http_api("PATCH", f"{core}/configmaps/a", b"x", media="text/plain").code == 415
    wrong = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": {"n": 1}}
    answer = http_api("POST", f"{core}/configmaps", wrong)
    assert (answer.code, answer.body["reason"]) == (400, "BadRequest")
    assert "cannot unmarshal number into Go struct field" in answer.message


def test_yaml_is_taken_too(http_api: Http, core: str) -> None:
    text = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: day}\ndata:\n  day: monday\n"
    answer = http_api("POST", f"{core}/configmaps", text, media="application/yaml")
    assert (answer.code, answer.body["data"]) == (201, {"day": "monday"})


def test_secret_text_is_encoded(http_api: Http, core: str) -> None:
    body = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "stringData": {"a": "b"}}
    found = http_api.ok("POST", f"{core}/secrets", body)
    assert found["data"] == {"a": "Yg=="}
    assert "stringData" not in found
    assert found["type"] == "Opaque"


def test_immutable_config_map(http_api: Http, core: str) -> None:
    http_api.ok("POST", f"{core}/configmaps", {**config_map("a", {"n": "1"}), "immutable": True})
    answer = http_api("PATCH", f"{core}/configmaps/a", {"data": {"n": "2"}}, media=MERGE)
    assert answer.code == 422
    assert "field is immutable when `immutable` is set" in answer.message


def test_service_addresses(http_api: Http, core: str) -> None:
    def service(name: str, **spec: Any) -> dict[str, Any]:
        ports = [{"port": 80}]
        return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": {"ports": ports, **spec}}

    found = http_api.ok("POST", f"{core}/services", service("a"))["spec"]
    assert found["clusterIP"].startswith("10.96.")
    assert found["ports"] == [{"port": 80, "protocol": "TCP", "targetPort": 80}]
    headless = http_api.ok("POST", f"{core}/services", service("b", clusterIP="None"))["spec"]
    assert headless["clusterIPs"] == ["None"]
    taken = http_api("POST", f"{core}/services", service("c", clusterIP=found["clusterIP"]))
    assert taken.code == 422
    assert "provided IP is already allocated" in taken.message
    moved = http_api("PATCH", f"{core}/services/a", {"spec": {"clusterIP": "None"}}, media=MERGE)
    assert moved.code == 422
    assert "may not change once set" in moved.message


@pytest.mark.parametrize(
    ("change", "texts"),
    [
        ({"replicas": -1}, ["spec.replicas: Invalid value: -1: must be greater than or equal to 0"]),
        ({"selector": {"matchLabels": {"x": "y"}}}, ["`selector` does not match template `labels`"]),
        ({"selector": None, "template": {}}, ["spec.selector: Required value", "containers: Required value"]),
    ],
)
def test_deployments_that_are_refused(http_api: Http, apps: str, change: dict[str, Any], texts: list[str]) -> None:
    answer = http_api("POST", f"{apps}/deployments", deployment("a", **change))
    assert (answer.code, answer.body["reason"]) == (422, "Invalid")
    assert all(text in answer.message for text in texts), answer.message
    assert answer.body["details"]["causes"]


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ({"containers": []}, "spec.containers: Required value"),
        ({"containers": [{"name": "A b", "image": "i"}]}, "a lowercase RFC 1123 label must consist of"),
        ({"containers": [{"name": "c"}]}, "spec.containers[0].image: Required value"),
        ({"containers": [{"name": "c", "image": "i"}, {"name": "c", "image": "i"}]}, "Duplicate value"),
        ({"containers": [{"name": "c", "image": "i", "imagePullPolicy": "X"}]}, "Unsupported value"),
        (
            {"containers": [{"name": "c", "image": "i", "volumeMounts": [{"name": "v", "mountPath": "/v"}]}]},
            "spec.containers[0].volumeMounts[0].name: Not found",
        ),
        (
            {"containers": [{"name": "c", "image": "i", "resources": {"limits": {"cpu": 1}, "requests": {"cpu": 2}}}]},
            "must be less than or equal to cpu limit",
        ),
        ({"restartPolicy": "Sometimes"}, "Unsupported value"),
        ({"volumes": [{"name": "v"}, {"name": "v"}]}, "spec.volumes[1].name: Duplicate value"),
    ],
)
def test_pods_that_are_refused(http_api: Http, core: str, spec: dict[str, Any], text: str) -> None:
    http_api(
        "POST",
        f"{core}/serviceaccounts",
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}},
    )
    answer = http_api("POST", f"{core}/pods", pod("a", **spec))
    assert answer.code == 422, answer.body
    assert text in answer.message


def test_quantities_are_made_canonical(http_api: Http, core: str) -> None:
    limits = {"memory": "1024Mi", "cpu": 0.5}
    body = pod("q", containers=[{"name": "c", "image": "i", "resources": {"limits": limits}}])
    found = http_api.ok("POST", f"{core}/pods", body)
    amounts = found["spec"]["containers"][0]["resources"]
    assert amounts["limits"] == amounts["requests"] == {"memory": "1Gi", "cpu": "500m"}
    assert found["status"]["qosClass"] == "Guaranteed"
    limits["memory"] = "1 GB"
    assert "quantities must match" in http_api("POST", f"{core}/pods", body).message


def test_a_pod_s_spec_stays(http_api: Http, core: str) -> None:
    http_api.ok("POST", f"{core}/pods", pod("a"))
    body = {"spec": {"containers": [{"name": "c", "command": ["x"]}]}}
    answer = http_api("PATCH", f"{core}/pods/a", body, media=STRATEGIC)
    assert answer.code == 422
    assert "pod updates may not change fields other than" in answer.message
    body = {"spec": {"containers": [{"name": "c", "image": "j"}]}}
    assert http_api("PATCH", f"{core}/pods/a", body, media=STRATEGIC).code == 200


def test_stateful_sets_stay_what_they_are(http_api: Http, apps: str) -> None:
    claim = {
        "metadata": {"name": "d"},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
    }
    spec = {**deployment("a")["spec"], "serviceName": "h", "volumeClaimTemplates": [claim]}
    body = {"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "a"}, "spec": spec}
    found = http_api.ok("POST", f"{apps}/statefulsets", body)
    assert found["spec"]["podManagementPolicy"] == "OrderedReady"
    assert found["spec"]["volumeClaimTemplates"][0]["spec"]["volumeMode"] == "Filesystem"
    answer = http_api("PATCH", f"{apps}/statefulsets/a", {"spec": {"serviceName": "z"}}, media=MERGE)
    assert answer.code == 422
    assert "updates to statefulset spec for fields other than" in answer.message


def test_events_of_both_groups_are_the_same(http_api: Http, core: str, kube_namespace: str) -> None:
    group = f"/apis/events.k8s.io/v1/namespaces/{kube_namespace}/events"
    about = {"kind": "Pod", "name": "a", "namespace": kube_namespace}
    body = {
        "apiVersion": "events.k8s.io/v1", "kind": "Event", "metadata": {"name": "e"}, "regarding": about,
        "reason": "R", "note": "m", "type": "Normal", "eventTime": "2024-01-01T00:00:00.000000Z", "action": "A",
        "reportingController": "x.io/y", "reportingInstance": "z",
    }  # fmt: skip
    http_api.ok("POST", group, body)
    found = http_api.ok("GET", f"{core}/events/e")
    assert (found["involvedObject"], found["message"], found["apiVersion"]) == (about, "m", "v1")
    assert http_api.ok("GET", f"{group}/e")["note"] == "m"
    assert len(http_api.ok("GET", f"{core}/events?fieldSelector=involvedObject.name%3Da")["items"]) == 1
    assert http_api.ok("GET", f"{group}?fieldSelector=regarding.name%3Db")["items"] == []
