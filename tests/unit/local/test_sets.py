"""ReplicaSets, StatefulSets, Services, claims: what their controllers decide."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from agenthive_operator.local.controllers import claims, endpoints, replicaset, statefulset

NOW = datetime(2026, 1, 1, 1, tzinfo=UTC)


def pod(name: str, *, ready: bool = True, phase: str = "Running", deleting: bool = False, **labels: str) -> dict:
    meta = {"name": name, "namespace": "n", "uid": f"u-{name}", "labels": labels}
    meta["creationTimestamp"] = "2026-01-01T00:00:00Z"
    if deleting:
        meta["deletionTimestamp"] = "2026-01-01T00:30:00Z"
    state = {"type": "Ready", "status": str(ready), "lastTransitionTime": "2026-01-01T00:59:50Z"}
    return {
        "metadata": meta,
        "spec": {"nodeName": "local", "containers": [{"name": "c", "ports": [{"name": "web", "containerPort": 8080}]}]},
        "status": {"phase": phase, "conditions": [state], "podIP": "127.9.0." + str(len(name))},
    }


def replica_set(replicas: int) -> dict:
    return {
        "metadata": {"name": "rs", "namespace": "n", "uid": "rs", "generation": 1},
        "spec": {"replicas": replicas, "template": {"metadata": {"labels": {"a": "b"}}, "spec": {}}},
    }


@pytest.mark.parametrize(
    ("replicas", "pods", "create", "delete"),
    [
        (2, [], 2, []),
        (2, [pod("a"), pod("b")], 0, []),
        (2, [pod("a"), pod("b", phase="Failed")], 1, []),
        (2, [pod("a"), pod("b", deleting=True)], 1, []),
        (1, [pod("a"), pod("b", ready=False)], 0, ["b"]),
        (1, [pod("a", ready=False), pod("b", ready=False, phase="Pending")], 0, ["b"]),
        (0, [pod("a"), pod("b")], 0, ["a", "b"]),
    ],
)
def test_replica_set(replicas, pods, create, delete) -> None:
    decision = replicaset.decide(replica_set(replicas), pods)
    assert decision.create == create
    assert sorted(p["metadata"]["name"] for p in decision.delete) == delete


def test_replica_set_status() -> None:
    wanted = replica_set(3)
    wanted["spec"]["minReadySeconds"] = 5
    young = pod("b", a="b")
    young["status"]["conditions"][0]["lastTransitionTime"] = "2026-01-01T00:59:58Z"
    result = replicaset.status(wanted, [pod("a", a="b"), young, pod("c", ready=False)], None, NOW)
    assert result == {
        "observedGeneration": 1,
        "replicas": 3,
        "fullyLabeledReplicas": 2,
        "readyReplicas": 2,
        "availableReplicas": 1,
    }
    failed = replicaset.status(wanted, [], "no", NOW)
    assert failed["conditions"][0]["reason"] == "FailedCreate"
    assert "conditions" not in replicaset.status({**wanted, "status": failed}, [], None, NOW)


def stateful_set(replicas: int = 3, **spec) -> dict:
    return {
        "metadata": {"name": "db", "namespace": "n", "uid": "db", "generation": 4},
        "spec": {
            "replicas": replicas,
            "serviceName": "db",
            "selector": {"matchLabels": {"app": "db"}},
            "template": {"metadata": {"labels": {"app": "db"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}},
            "volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": {"accessModes": ["ReadWriteOnce"]}}],
            **spec,
        },
    }


CURRENT = {"controller-revision-hash": statefulset.revision_of(stateful_set())}
OLD = {"controller-revision-hash": "db-old"}


def member(number: int, revision: dict = CURRENT, **options) -> dict:
    return pod(f"db-{number}", **options, **revision)


@pytest.mark.parametrize(
    ("spec", "pods", "create", "delete"),
    [
        ({}, [], [0], []),
        ({}, [member(0, ready=False)], [], []),
        ({}, [member(0)], [1], []),
        ({}, [member(1), member(2)], [0], []),
        ({}, [member(0), member(1), member(2)], [], []),
        ({}, [member(0, deleting=True), member(1), member(2)], [], []),
        ({}, [member(0), member(1, phase="Failed")], [], ["db-1"]),
        ({"replicas": 1}, [member(0), member(1), member(2)], [], ["db-2"]),
        ({"replicas": 1}, [member(0), member(1), member(2, deleting=True)], [], []),
        ({"podManagementPolicy": "Parallel"}, [], [0, 1, 2], []),
        ({"podManagementPolicy": "Parallel", "replicas": 0}, [member(0), member(1)], [], ["db-1", "db-0"]),
        ({}, [member(0, OLD), member(1, OLD), member(2, OLD)], [], ["db-2"]),
        ({}, [member(0, OLD), member(1, OLD), member(2)], [], ["db-1"]),
        ({}, [member(0, OLD), member(1, OLD), member(2, ready=False)], [], []),
        ({"updateStrategy": {"type": "OnDelete"}}, [member(0, OLD), member(1, OLD), member(2, OLD)], [], []),
        ({"updateStrategy": {"rollingUpdate": {"partition": 2}}}, [member(0, OLD), member(1, OLD), member(2)], [], []),
        ({"ordinals": {"start": 5}, "replicas": 1}, [], [5], []),
        ({"minReadySeconds": 3600}, [member(0)], [], []),
    ],
)
def test_stateful_set(spec, pods, create, delete) -> None:
    decision = statefulset.decide(stateful_set(**spec), pods, NOW)
    assert decision.create == create
    assert [p["metadata"]["name"] for p in decision.delete] == delete


def test_stateful_pod_has_its_name_its_claim_and_its_host() -> None:
    made = statefulset.pod(stateful_set(), 1)
    assert made["metadata"]["name"] == "db-1"
    assert made["metadata"]["labels"]["apps.kubernetes.io/pod-index"] == "1"
    assert (made["spec"]["hostname"], made["spec"]["subdomain"]) == ("db-1", "db")
    assert made["spec"]["volumes"] == [{"name": "data", "persistentVolumeClaim": {"claimName": "data-db-1"}}]
    claim = statefulset.claims(stateful_set(), 1)[0]
    assert claim["metadata"]["name"] == "data-db-1"
    assert claim["metadata"]["ownerReferences"] == []
    owned = stateful_set(persistentVolumeClaimRetentionPolicy={"whenDeleted": "Delete"})
    assert statefulset.claims(owned, 1)[0]["metadata"]["ownerReferences"][0]["uid"] == "db"


def test_stateful_status_follows_the_update() -> None:
    wanted = stateful_set(2)
    wanted["status"] = {"currentRevision": "db-old"}
    halfway = statefulset.status(wanted, [member(0, OLD), member(1)], NOW)
    assert (halfway["currentRevision"], halfway["currentReplicas"], halfway["updatedReplicas"]) == ("db-old", 1, 1)
    done = statefulset.status(wanted, [member(0), member(1)], NOW)
    assert done["currentRevision"] == done["updateRevision"]
    assert (done["readyReplicas"], done["availableReplicas"], done["currentReplicas"]) == (2, 2, 2)


def service(**spec) -> dict:
    return {
        "metadata": {"name": "web", "namespace": "n", "uid": "s"},
        "spec": {"selector": {"app": "web"}, "ports": [{"name": "http", "port": 80, "targetPort": "web"}], **spec},
    }


def test_endpoints_hold_ready_addresses_apart() -> None:
    pods = [pod("aa", app="web"), pod("b", ready=False, app="web"), pod("c", app="other"), pod("d", phase="Failed")]
    (made,) = endpoints.endpoint_slices(service(), pods)
    assert [(e["addresses"], e["conditions"]["ready"]) for e in made["endpoints"]] == [
        (["127.9.0.2"], True),
        (["127.9.0.1"], False),
    ]
    assert made["ports"] == [{"name": "http", "protocol": "TCP", "port": 8080}]
    assert made["metadata"]["labels"]["kubernetes.io/service-name"] == "web"
    (subset,) = endpoints.endpoints(service(), pods)["subsets"]
    assert [a["ip"] for a in subset["addresses"]] == ["127.9.0.2"]
    assert [a["ip"] for a in subset["notReadyAddresses"]] == ["127.9.0.1"]


def test_terminating_pods_serve_no_more() -> None:
    (made,) = endpoints.endpoint_slices(service(), [pod("a", app="web", deleting=True)])
    assert made["endpoints"][0]["conditions"] == {"ready": False, "serving": True, "terminating": True}
    assert "subsets" not in endpoints.endpoints(service(), [pod("a", app="web", deleting=True)])


def test_headless_endpoints_have_host_names() -> None:
    named = pod("db-0", app="web")
    named["spec"] |= {"hostname": "db-0", "subdomain": "web"}
    (made,) = endpoints.endpoint_slices(service(clusterIP="None"), [named])
    assert made["endpoints"][0]["hostname"] == "db-0"
    assert endpoints.endpoints(service(), [named])["subsets"][0]["addresses"][0]["hostname"] == "db-0"


def test_addresses_can_be_published_before_they_are_ready() -> None:
    made = endpoints.endpoint_slices(service(publishNotReadyAddresses=True), [pod("a", ready=False, app="web")])
    assert made[0]["endpoints"][0]["conditions"]["ready"] is True


def test_a_service_without_pods_has_an_empty_slice() -> None:
    (made,) = endpoints.endpoint_slices(service(), [])
    assert (made["endpoints"], made["ports"]) == ([], [])
    assert not endpoints.selects(service(selector=None), pod("a", app="web"))


def test_ports_that_no_container_has_are_left_out() -> None:
    assert endpoints.target_port({"port": 80}, pod("a")) == 80
    assert endpoints.target_port({"port": 80, "targetPort": "nope"}, pod("a")) is None


def test_a_claim_is_used_by_pods_that_are_not_finished() -> None:
    claim = {"metadata": {"name": "data", "namespace": "n", "uid": "1"}, "spec": {}}
    user = pod("a")
    user["spec"]["volumes"] = [{"name": "v", "persistentVolumeClaim": {"claimName": "data"}}]
    assert claims.is_used(claim, [user])
    user["status"]["phase"] = "Succeeded"
    assert not claims.is_used(claim, [user])
    assert claims.folder_name(claim) == "n_data_1"
    assert claims.bound_status(claim)["accessModes"] == ["ReadWriteOnce"]
