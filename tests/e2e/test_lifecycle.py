"""The ends of hives and agents in any order, orphans taken in again, suspension: whatever happens, nothing hangs."""

from __future__ import annotations

import json
import os
import secrets
import signal
from collections.abc import Iterator
from typing import Any

import psutil
import pytest
from tests.e2e.plane import ECHO, EXISTING, Plane, agent, hive

pytestmark = pytest.mark.timeout(300)

# Beside a bare kube-apiserver no controller empties a namespace that is deleted.
ENDS_NAMESPACES = bool(EXISTING) or "KUBEBUILDER_ASSETS" not in os.environ
ORDERS = ("hive first", "agents first", "all at once", "namespace", "operator away", "redis away")
CHILDREN = "deployments,statefulsets,services,secrets,pods,hives,agents"


@pytest.fixture
def fleet(control_plane: Plane) -> Iterator[dict[str, Plane]]:
    """A hive with two agents in a namespace for each order, all ready."""
    fleet = {}
    for order in ORDERS:
        own = Plane(control_plane.kubeconfig, control_plane.folder, f"e2e-{secrets.token_hex(4)}")
        own.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": own.namespace}})
        own.apply(hive(), *agent("one", code=ECHO, drainSeconds=1), *agent("two", code=ECHO, drainSeconds=1))
        fleet[order] = own
    for own in fleet.values():
        own.wait("condition=Ready", "hive/hive", "agent/one", "agent/two", timeout=180)
    yield fleet
    for own in fleet.values():
        own.kubectl("delete", "namespace", own.namespace, "--ignore-not-found", "--wait=false")


def left(plane: Plane) -> list[str]:
    """What is left of a hive and its agents."""
    return [
        f"{obj['kind']}/{obj['metadata']['name']}"
        for obj in plane.get(CHILDREN)["items"]
        if "agenthive.dev/hive" in (obj["metadata"].get("labels") or {}) or obj["kind"] in {"AgentHive", "Agent"}
    ]


def operator_of(plane: Plane) -> psutil.Process:
    """The operator of this control plane."""
    assert plane.folder is not None
    for process in psutil.process_iter(["cmdline", "cwd"]):
        line = process.info["cmdline"] or []
        if "agenthive_operator" in line and process.info["cwd"] == str(plane.folder):
            return process
    raise AssertionError("no operator runs")


@pytest.mark.needs("processes")
def test_whatever_is_deleted_first_everything_goes(fleet: dict[str, Plane]) -> None:
    fleet["hive first"].kubectl("delete", "hive/hive", "--wait=false")
    fleet["hive first"].kubectl("delete", "agents", "--all", "--wait=false")
    fleet["agents first"].kubectl("delete", "agents", "--all", "--wait=false")
    fleet["agents first"].kubectl("delete", "hive/hive", "--wait=false")
    fleet["all at once"].kubectl("delete", "hives,agents", "--all", "--wait=false")
    gone = fleet["namespace"]
    if ENDS_NAMESPACES:
        gone.kubectl("delete", "namespace", gone.namespace, "--wait=false")
    for process in fleet["redis away"].processes("hive-redis"):
        process.send_signal(signal.SIGSTOP)
    fleet["redis away"].kubectl("delete", "hives,agents", "--all", "--wait=false")
    for order in ("hive first", "agents first", "all at once", "redis away"):
        fleet[order].until(lambda order=order: not left(fleet[order]), f"all is gone: {order}", 120)
    everything = "get", "namespaces", "--output", "name"
    if ENDS_NAMESPACES:
        gone.until(lambda: f"namespace/{gone.namespace}" not in gone.kubectl(*everything).split(), "no namespace", 120)

    away = fleet["operator away"]
    operator = operator_of(away)
    operator.suspend()
    try:
        away.kubectl("delete", "hives,agents", "--all", "--wait=false")
        away.until(lambda: "Agent/one" not in left(away), "agents have no finalizer and go by themselves")
        assert "AgentHive/hive" in left(away), "its finalizer is the operator's to lift"
    finally:
        os.kill(operator.pid, signal.SIGKILL)  # its successor finds the hive on its way out
    away.until(lambda: not left(away), "all is gone once an operator is back", 120)


def test_a_namesake_takes_in_what_an_orphaning_deletion_left(plane: Plane) -> None:
    plane.apply(hive(), *agent("echo", code=ECHO))
    plane.wait("condition=Ready", "hive/hive", "agent/echo")
    before = {name: plane.get(name)["metadata"]["uid"] for name in ("deployment/echo", "statefulset/hive-postgres")}
    pods = {pod["metadata"]["uid"] for pod in plane.get("pods")["items"]}
    plane.kubectl("delete", "agent/echo", "--cascade=orphan")
    plane.kubectl("delete", "hive/hive", "--cascade=orphan")
    plane.apply(hive(), *agent("echo", code=ECHO))
    plane.wait("condition=Ready", "hive/hive", "agent/echo")
    hive_uid, agent_uid = (plane.get(name)["metadata"]["uid"] for name in ("hive/hive", "agent/echo"))
    for name, owner in (("deployment/echo", agent_uid), ("statefulset/hive-postgres", hive_uid)):
        metadata = plane.get(name)["metadata"]
        assert metadata["uid"] == before[name]
        assert [ref["uid"] for ref in metadata["ownerReferences"]] == [owner]
    assert {pod["metadata"]["uid"] for pod in plane.get("pods")["items"]} == pods, "no pod was started anew"


def test_a_child_that_is_edited_or_deleted_by_hand_comes_back(plane: Plane) -> None:
    plane.apply(hive(), *agent("echo", code=ECHO))
    plane.wait("condition=Ready", "hive/hive", "agent/echo")
    for child in ("secret/echo-agenthive", "service/hive-redis", "deployment/echo", "configmap/hive-redis"):
        uid = plane.get(child)["metadata"]["uid"]
        plane.kubectl("delete", child, "--wait=false")

        def is_back(child: str = child, uid: str = uid) -> bool:
            kind, name = child.split("/")
            found = [each for each in plane.get(kind)["items"] if each["metadata"]["name"] == name]
            return bool(found) and found[0]["metadata"]["uid"] != uid

        plane.until(is_back, f"{child} is back", 15)
    patch = {"metadata": {"annotations": {"example.com/note": "mine"}}, "spec": {"paused": True, "replicas": 3}}
    plane.kubectl("patch", "deployment/echo", "--type=merge", "-p", json.dumps(patch))
    plane.until(lambda: plane.get("deployment/echo")["spec"]["replicas"] == 1, "the replicas are as the Agent says", 15)
    assert plane.get("deployment/echo")["metadata"]["annotations"]["example.com/note"] == "mine"
    assert plane.get("deployment/echo")["spec"]["paused"] is True, "what the operator has no word on is left alone"
    plane.kubectl("patch", "deployment/echo", "--type=merge", "-p", '{"spec": {"paused": null}}')
    plane.wait("condition=Ready", "hive/hive", "agent/echo")


def test_suspension_drains_to_zero_and_keeps_what_was_sent(plane: Plane) -> None:
    plane.apply(hive(), *agent("echo", code=ECHO, drainSeconds=1, replicas=2))
    plane.wait("condition=Ready", "hive/hive", "agent/echo")
    plane.kubectl("patch", "hive/hive", "--type=merge", "-p", '{"spec": {"suspend": true}}')
    plane.until(lambda: not pods_of(plane, "echo"), "no pod of the agent is left")
    plane.until(lambda: plane.condition("agent/echo").get("reason") == "Suspended", "the Agent says so")
    plane.until(lambda: plane.condition("hive/hive").get("reason") == "Suspended", "the hive says so")
    plane.agenthive("send", "echo", "echo", "{}", "--hive", "hive")
    plane.until(lambda: plane.get("agent/echo")["status"].get("backlog") == 1, "the message waits")
    plane.kubectl("patch", "hive/hive", "--type=merge", "-p", '{"spec": {"suspend": false}}')
    plane.until(lambda: plane.condition("agent/echo").get("reason") == "AllPodsReady", "it runs again")
    assert plane.get("agent/echo")["status"]["readyReplicas"] == 2
    plane.until(lambda: plane.get("agent/echo")["status"].get("backlog") == 0, "the message was handled", 60)


def pods_of(plane: Plane, name: str) -> list[Any]:
    return [pod for pod in plane.get("pods")["items"] if pod["metadata"]["labels"].get("agenthive.dev/agent") == name]
