"""Deployments: what the ReplicaSets should look like next."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from agenthive_operator.local.controllers import rollout

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def template(image: str) -> dict:
    return {"metadata": {"labels": {"app": "x"}}, "spec": {"containers": [{"name": "c", "image": image}]}}


def deployment(replicas: int = 4, image: str = "v2", **spec) -> dict:
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "x", "namespace": "n", "uid": "d", "generation": 2},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": "x"}},
            "template": template(image),
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": 0}},
            **spec,
        },
    }


def replica_set(of: dict, image: str, size: int, *, available: int | None = None, revision: int = 1, **status) -> dict:
    owner = {**of, "spec": {**of["spec"], "template": template(image)}}
    made = rollout.new_replica_set(owner, revision, size)
    ready = size if available is None else available
    made["metadata"] |= {"uid": f"rs-{image}", "creationTimestamp": f"2026-01-01T00:00:0{revision}Z", "generation": 1}
    made["status"] = {"replicas": size, "readyReplicas": ready, "availableReplicas": ready, **status}
    return made


@pytest.mark.parametrize(
    ("replicas", "surge", "unavailable", "expected"),
    [
        (4, "25%", "25%", (1, 1)),
        (1, "25%", "25%", (1, 0)),  # surge rounds up, unavailable down
        (10, "25%", 0, (3, 0)),
        (3, 0, 0, (0, 1)),  # both nothing: it could never move
        (2, 5, 5, (5, 2)),
    ],
)
def test_limits(replicas, surge, unavailable, expected) -> None:
    strategy = {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable}}
    assert rollout.limits(deployment(replicas, strategy=strategy)) == expected


def test_first_replica_set() -> None:
    step = rollout.plan(deployment(3), [], 0)
    assert step.create is not None
    assert step.create["spec"]["replicas"] == 3
    hashed = step.create["metadata"]["labels"]["pod-template-hash"]
    assert step.create["metadata"]["name"] == f"x-{hashed}"
    assert step.create["spec"]["selector"]["matchLabels"] == {"app": "x", "pod-template-hash": hashed}
    assert step.create["spec"]["template"]["metadata"]["labels"]["pod-template-hash"] == hashed
    assert step.create["metadata"]["annotations"][rollout.REVISION] == "1"
    assert step.revision == 1


def test_new_template_starts_with_the_surge() -> None:
    wanted = deployment(4)
    step = rollout.plan(wanted, [replica_set(wanted, "v1", 4)], 4)
    assert step.create is not None
    assert step.create["spec"]["replicas"] == 1
    assert step.revision == 2
    assert not step.scale  # nothing goes before the new one serves


def sizes(step: rollout.Rollout) -> dict[str, int]:
    return {rs["spec"]["template"]["spec"]["containers"][0]["image"]: n for rs, n in step.scale}


@pytest.mark.parametrize(
    ("old", "new", "unavailable", "expected"),
    [
        ((4, 4), (1, 0), 0, {}),  # the surge is used up and not available yet: wait
        ((4, 4), (1, 1), 0, {"v1": 3}),
        ((3, 3), (1, 1), 0, {"v2": 2}),
        ((1, 1), (3, 3), 0, {"v2": 4}),
        ((1, 1), (4, 4), 0, {"v1": 0}),
        ((4, 4), (1, 0), 1, {"v1": 3}),  # one may be missing: drop it at once
        ((4, 1), (1, 0), 0, {}),
        ((4, 0), (1, 1), 0, {"v1": 3}),  # pods that do not serve make room for new ones
        ((2, 0), (3, 3), 0, {"v1": 1}),
    ],
)
def test_rolling(old, new, unavailable, expected) -> None:
    strategy = {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": unavailable}}
    wanted = deployment(4, strategy=strategy)
    sets = [
        replica_set(wanted, "v1", old[0], available=old[1]),
        replica_set(wanted, "v2", new[0], available=new[1], revision=2),
    ]
    assert sizes(rollout.plan(wanted, sets, old[0])) == expected


def test_rolling_always_ends() -> None:
    wanted = deployment(5)
    old, new = replica_set(wanted, "v1", 5), replica_set(wanted, "v2", 0, revision=2)
    for _ in range(30):
        step = rollout.plan(wanted, [old, new], 0)
        if not step.scale:
            break
        for each, size in step.scale:
            each["spec"]["replicas"] = size
            each["status"] |= {"replicas": size, "readyReplicas": size, "availableReplicas": size}
        total = old["spec"]["replicas"] + new["spec"]["replicas"]
        assert 5 <= total <= 7, "between replicas - maxUnavailable and replicas + maxSurge"
    assert (old["spec"]["replicas"], new["spec"]["replicas"]) == (0, 5)


def test_scale() -> None:
    wanted = deployment(2)
    assert sizes(rollout.plan(wanted, [replica_set(wanted, "v2", 5)], 0)) == {"v2": 2}
    assert sizes(rollout.plan(deployment(7), [replica_set(wanted, "v2", 5)], 0)) == {"v2": 7}


def test_recreate_waits_for_old_pods() -> None:
    wanted = deployment(2, strategy={"type": "Recreate"})
    old = replica_set(wanted, "v1", 2)
    assert sizes(rollout.plan(wanted, [old], 2)) == {"v1": 0}
    old["spec"]["replicas"] = 0
    assert rollout.plan(wanted, [old], 1) == rollout.Rollout(revision=2)
    step = rollout.plan(wanted, [old], 0)
    assert step.create is not None
    assert step.create["spec"]["replicas"] == 2


def test_paused_scales_but_does_not_roll() -> None:
    wanted = deployment(3, paused=True)
    step = rollout.plan(wanted, [replica_set(wanted, "v1", 2)], 0)
    assert step.create is None
    assert sizes(step) == {"v1": 3}


def test_rollback_takes_the_old_replica_set_and_a_new_revision() -> None:
    wanted = deployment(2, image="v1")
    v1, v2 = replica_set(wanted, "v1", 0, revision=1), replica_set(wanted, "v2", 2, revision=2)
    step = rollout.plan(wanted, [v1, v2], 2)
    assert step.create is None
    assert step.promote is v1
    assert step.revision == 3


def test_history_is_bounded() -> None:
    wanted = deployment(2, revisionHistoryLimit=1)
    sets = [replica_set(wanted, f"old{n}", 0, revision=n) for n in (1, 2, 3)]
    sets.append(replica_set(wanted, "v2", 2, revision=4))
    assert [rollout.revision_of(rs) for rs in rollout.plan(wanted, sets, 0).delete] == [1, 2]


def conditions(status: dict) -> dict[str, tuple[str, str]]:
    return {c["type"]: (c["status"], c["reason"]) for c in status["conditions"]}


def test_status_of_a_complete_rollout() -> None:
    wanted = deployment(2)
    result = rollout.status(wanted, [replica_set(wanted, "v2", 2)], NOW)
    assert result["observedGeneration"] == 2
    assert [result[k] for k in ("replicas", "updatedReplicas", "readyReplicas", "availableReplicas")] == [2, 2, 2, 2]
    assert conditions(result) == {
        "Available": ("True", "MinimumReplicasAvailable"),
        "Progressing": ("True", "NewReplicaSetAvailable"),
    }


def test_an_idle_status_does_not_change() -> None:
    wanted = deployment(2)
    sets = [replica_set(wanted, "v2", 2)]
    first = rollout.status(wanted, sets, NOW)
    assert rollout.status({**wanted, "status": first}, sets, NOW + timedelta(minutes=5)) == first


def test_progress_deadline() -> None:
    wanted = deployment(2, progressDeadlineSeconds=60)
    sets = [replica_set(wanted, "v2", 2, available=0)]
    wanted["status"] = rollout.status(wanted, sets, NOW)
    assert conditions(wanted["status"])["Progressing"] == ("True", "ReplicaSetUpdated")
    assert rollout.deadline_left(wanted, NOW) == 60
    wanted["status"] = rollout.status(wanted, sets, NOW + timedelta(seconds=59))
    assert conditions(wanted["status"])["Progressing"] == ("True", "ReplicaSetUpdated")
    wanted["status"] = rollout.status(wanted, sets, NOW + timedelta(seconds=61))
    assert conditions(wanted["status"])["Progressing"] == ("False", "ProgressDeadlineExceeded")
    # A pod that comes up is progress again.
    sets = [replica_set(wanted, "v2", 2, available=1)]
    wanted["status"] = rollout.status(wanted, sets, NOW + timedelta(seconds=70))
    assert conditions(wanted["status"])["Progressing"] == ("True", "ReplicaSetUpdated")


def test_a_lost_pod_after_the_rollout_is_no_failed_rollout() -> None:
    wanted = deployment(2, progressDeadlineSeconds=60)
    wanted["status"] = rollout.status(wanted, [replica_set(wanted, "v2", 2)], NOW)
    later = rollout.status(wanted, [replica_set(wanted, "v2", 2, available=1)], NOW + timedelta(hours=1))
    assert conditions(later) == {
        "Available": ("False", "MinimumReplicasUnavailable"),
        "Progressing": ("True", "NewReplicaSetAvailable"),
    }


def test_a_refused_pod_shows_on_the_deployment() -> None:
    wanted = deployment(1)
    failure = {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": "forbidden"}
    result = rollout.status(wanted, [replica_set(wanted, "v2", 1, available=0, conditions=[failure])], NOW)
    assert failure in result["conditions"]


def test_the_failure_of_the_newest_replica_set_is_told_first() -> None:
    of = deployment(image="v2")

    def failing(image: str, revision: int) -> dict:
        failure = {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": image}
        return replica_set(of, image, 4, available=0, revision=revision, conditions=[failure])

    told = rollout.status(of, [failing("v1", 1), failing("v2", 2)], NOW)["conditions"]
    assert [c["message"] for c in told if c["type"] == "ReplicaFailure"] == ["v2"]
    told = rollout.status(of, [failing("v1", 1), replica_set(of, "v2", 4, revision=2)], NOW)["conditions"]
    assert [c["message"] for c in told if c["type"] == "ReplicaFailure"] == ["v1"]
