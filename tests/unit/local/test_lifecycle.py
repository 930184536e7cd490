"""Probes, back-off and the status of a pod: the counting and the words."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from agenthive_operator.local.kubelet import backoff
from agenthive_operator.local.kubelet.backoff import CrashLoop, restarts
from agenthive_operator.local.kubelet.pod import unsupported
from agenthive_operator.local.kubelet.probes import ProbeError, Settings, Verdict, port_number
from agenthive_operator.local.kubelet.status import ContainerState, phase, pod_status, remembered

NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("thresholds", "results", "verdicts"),
    [
        ((1, 3), "+", [True]),
        ((1, 3), "---", [None, None, False]),
        ((1, 3), "--+--", [None, None, True, True, True]),
        ((1, 3), "+---+", [True, True, True, False, True]),
        ((3, 1), "++-+++", [None, None, False, False, False, True]),
        ((1, 1), "-+-", [False, True, False]),
    ],
)
def test_verdict(thresholds, results, verdicts) -> None:
    verdict = Verdict(Settings(success_threshold=thresholds[0], failure_threshold=thresholds[1]))
    seen = []
    for result in results:
        before = verdict.value
        changed = verdict.observe(result == "+")
        assert changed == (verdict.value is not before)
        seen.append(verdict.value)
    assert seen == verdicts


def test_probe_defaults_are_those_of_the_api() -> None:
    assert Settings.of({}) == Settings(0, 10, 1, 1, 3)
    assert Settings.of({"initialDelaySeconds": 5, "periodSeconds": 2, "timeoutSeconds": 3, "failureThreshold": 9}) == (
        Settings(5, 2, 3, 1, 9)
    )


def test_probe_ports() -> None:
    container = {"name": "c", "ports": [{"name": "http", "containerPort": 8080}]}
    assert [port_number(port, container) for port in (1, "http", "81")] == [1, 8080, 81]
    with pytest.raises(ProbeError, match="no port named 'nope'"):
        port_number("nope", container)


def test_crash_loop() -> None:
    crash = CrashLoop()
    assert [crash.after_exit(1) for _ in range(8)] == [0, 10, 20, 40, 80, 160, 300, 300]
    assert crash.after_exit(601) == 0
    assert crash.after_exit(1) == 10


@pytest.mark.parametrize(
    ("policy", "code", "expected"),
    [("Always", 0, True), ("Always", 1, True), ("OnFailure", 0, False), ("OnFailure", 1, True), ("Never", 1, False)],
)
def test_restarts(policy, code, expected) -> None:
    assert restarts(policy, code) is expected


def test_backoff_base_is_read_from_the_environment(monkeypatch) -> None:
    monkeypatch.setenv(backoff.BASE_VARIABLE, "0.5")
    assert backoff.base_seconds() == 0.5
    for bad in ("0", "soon"):
        monkeypatch.setenv(backoff.BASE_VARIABLE, bad)
        with pytest.raises(ValueError, match="above zero"):
            backoff.base_seconds()


def container(kind: str, code: int = 0, *, ready: bool = False, last: bool = False) -> ContainerState:
    state = {"terminated": {"exitCode": code}} if kind == "terminated" else {kind: {}}
    return ContainerState("c", "i", state, {"terminated": {"exitCode": 1}} if last else {}, ready=ready)


RUN, WAIT = container("running"), container("waiting")
DONE, DEAD = container("terminated"), container("terminated", 1)


@pytest.mark.parametrize(
    ("policy", "init", "main", "expected"),
    [
        ("Always", [], [WAIT], "Pending"),
        ("Always", [], [RUN], "Running"),
        ("Always", [], [RUN, WAIT], "Running"),
        ("Always", [], [DEAD], "Running"),
        ("Always", [], [container("waiting", last=True)], "Running"),
        ("Always", [RUN], [WAIT], "Pending"),
        ("Always", [DEAD], [WAIT], "Pending"),
        ("Never", [DEAD], [WAIT], "Failed"),
        ("Always", [DONE], [RUN], "Running"),
        ("Never", [], [DONE], "Succeeded"),
        ("Never", [], [DONE, DEAD], "Failed"),
        ("Never", [], [DONE, RUN], "Running"),
        ("OnFailure", [], [DONE], "Succeeded"),
        ("OnFailure", [], [DEAD], "Running"),
    ],
)
def test_phase(policy, init, main, expected) -> None:
    assert phase(policy, init, main) == expected


def pod(**spec) -> dict:
    return {
        "metadata": {"name": "p", "namespace": "n", "uid": "u", "generation": 1},
        "spec": {"containers": [{"name": "c", "image": "i"}], **spec},
    }


def written(of: dict, *main: ContainerState, init: tuple[ContainerState, ...] = ()) -> dict:
    return pod_status(of, list(init), list(main), address="127.9.0.1", host="127.9.0.9", now=NOW)


def conditions(status: dict) -> dict[str, tuple]:
    return {c["type"]: (c["status"], c.get("reason")) for c in status["conditions"]}


def test_status_of_a_ready_pod() -> None:
    status = written(pod(), container("running", ready=True))
    assert (status["phase"], status["podIP"], status["hostIP"]) == ("Running", "127.9.0.1", "127.9.0.9")
    assert status["startTime"] == "2026-01-01T00:00:00Z"
    assert {kind: value for kind, (value, _) in conditions(status).items()} == dict.fromkeys(
        ("PodScheduled", "Initialized", "ContainersReady", "Ready"), "True"
    )
    again = pod_status({**pod(), "status": status}, [], [container("running", ready=True)], address="127.9.0.1",
                       host="127.9.0.9", now=datetime(2026, 1, 2, tzinfo=UTC))  # fmt: skip
    assert again == status, "an idle pod's status does not move"


def test_status_while_not_ready() -> None:
    assert conditions(written(pod(), RUN))["Ready"] == ("False", "ContainersNotReady")
    starting = conditions(written(pod(), WAIT, init=(RUN,)))
    assert starting["Initialized"] == ("False", "ContainersNotInitialized")
    done = conditions(written(pod(restartPolicy="Never"), DONE))
    assert done["Ready"] == ("False", "PodCompleted")
    failed = conditions(written(pod(restartPolicy="Never"), DEAD))
    assert failed["Ready"] == ("False", "PodFailed")


def test_readiness_gates() -> None:
    gated = pod(readinessGates=[{"conditionType": "example.org/gate"}])
    assert conditions(written(gated, container("running", ready=True)))["Ready"] == ("False", "ReadinessGatesNotReady")
    gated["status"] = {"conditions": [{"type": "example.org/gate", "status": "True"}]}
    status = conditions(written(gated, container("running", ready=True)))
    assert status["Ready"] == ("True", None)
    assert status["example.org/gate"] == ("True", None), "what others wrote is kept"


def test_a_new_kubelet_goes_on_counting() -> None:
    spec = {"name": "c", "image": "i"}
    ended = {"terminated": {"exitCode": 0}}
    status = {"containerStatuses": [{"name": "c", "restartCount": 2, "state": ended, "containerID": "process://1"}]}
    state = remembered(spec, status, "containerStatuses")
    assert (state.restart_count, state.last) == (3, ended)
    assert remembered(spec, {}, "containerStatuses").restart_count == 0


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"initContainers": [{"name": "s", "image": "i", "restartPolicy": "Always"}]}, "sidecars"),
        ({"containers": [{"name": "c", "image": "i", "lifecycle": {"postStart": {}}}]}, "postStart"),
        ({"containers": [{"name": "c", "image": "i", "volumeDevices": [{}]}]}, "block devices"),
        ({"activeDeadlineSeconds": 5}, "activeDeadlineSeconds"),
        ({"volumes": [{"name": "v", "csi": {}}]}, "csi"),
    ],
)
def test_what_is_not_offered_is_said(spec, message) -> None:
    assert message in (unsupported(pod(**spec)) or "")
    assert unsupported(pod()) is None
