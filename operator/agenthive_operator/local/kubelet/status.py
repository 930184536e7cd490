"""A pod's status from the state of its containers: pure functions."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from agenthive_operator.local.objects import condition, format_time, set_condition
from agenthive_operator.local.resources import Obj


@dataclass(slots=True)
class ContainerState:
    """What is known of one container. ``state`` and ``last`` are as the API writes them: {"running": {…}} …"""

    name: str
    image: str
    state: Obj = field(default_factory=lambda: {"waiting": {"reason": "PodInitializing"}})
    last: Obj = field(default_factory=dict)
    restart_count: int = 0
    ready: bool = False
    started: bool = False
    container_id: str = ""

    @property
    def running(self) -> bool:
        """Whether its process runs."""
        return "running" in self.state

    @property
    def exit_code(self) -> int | None:
        """How it ended; None while it has not, or waits to be started again."""
        return self.state["terminated"]["exitCode"] if "terminated" in self.state else None

    def status(self) -> Obj:
        """The entry of ``containerStatuses``."""
        entry: Obj = {
            "name": self.name,
            "image": self.image,
            "imageID": "",
            "ready": self.ready,
            "started": self.started,
            "restartCount": self.restart_count,
            "state": self.state,
            "lastState": self.last,
        }
        if self.container_id:
            entry["containerID"] = self.container_id
        return entry


def remembered(container: Obj, status: Obj, key: str) -> ContainerState:
    """The state to go on from: what the pod's status says of an earlier life of this container."""
    state = ContainerState(container["name"], container["image"])
    for entry in status.get(key) or []:
        if entry["name"] != container["name"]:
            continue
        state.restart_count = entry.get("restartCount", 0)
        state.last = entry.get("lastState") or {}
        if entry.get("containerID"):
            state.restart_count += 1
            if "terminated" in (entry.get("state") or {}):
                state.last = entry["state"]
    return state


def phase(policy: str, init: list[ContainerState], main: list[ContainerState]) -> str:
    """Pending until everything has started once; final once nothing will run again."""
    if any(each.exit_code not in {None, 0} for each in init) and policy == "Never":
        return "Failed"
    if any(each.exit_code != 0 for each in init):
        return "Pending"
    codes = [each.exit_code for each in main]
    ended = [code for code in codes if code is not None]
    if len(ended) == len(codes) and policy != "Always":
        if all(code == 0 for code in ended):
            return "Succeeded"
        if policy == "Never":
            return "Failed"
    if any(each.running or each.exit_code is not None or each.last for each in main):
        return "Running"
    return "Pending"


def pod_status(
    pod: Obj, init: list[ContainerState], main: list[ContainerState], *, address: str, host: str, now: datetime
) -> Obj:
    """The whole status the kubelet writes."""
    old = pod.get("status") or {}
    stamp = format_time(now)
    reached = phase(pod["spec"].get("restartPolicy", "Always"), init, main)
    result: Obj = {
        "phase": reached,
        "startTime": old.get("startTime") or stamp,
        "hostIP": host,
        "hostIPs": [{"ip": host}],
        "containerStatuses": [each.status() for each in main],
    }
    if address:
        result |= {"podIP": address, "podIPs": [{"ip": address}]}
    if init:
        result["initContainerStatuses"] = [each.status() for each in init]
    if pod["metadata"].get("generation"):
        result["observedGeneration"] = pod["metadata"]["generation"]
    conditions = list(old.get("conditions") or [])
    for new in _conditions(pod, init, main, reached):
        conditions = set_condition(conditions, new, stamp)
    result["conditions"] = conditions
    return result


def _conditions(pod: Obj, init: list[ContainerState], main: list[ContainerState], reached: str) -> list[Obj]:
    unfinished = [each.name for each in init if each.exit_code != 0]
    done = reached == "Succeeded"
    unready = [each.name for each in main if not each.ready]
    result = [
        _condition("PodScheduled", True),
        _condition(
            "Initialized",
            not unfinished,
            "ContainersNotInitialized",
            f"containers with incomplete status: {unfinished}",
        ),
    ]
    if done:
        ready = [_condition(kind, False, "PodCompleted", "") for kind in ("ContainersReady", "Ready")]
    else:
        reason = "PodFailed" if reached == "Failed" else "ContainersNotReady"
        message = f"containers with unready status: [{' '.join(unready)}]"
        gates = [
            gate["conditionType"]
            for gate in pod["spec"].get("readinessGates") or []
            if (condition(pod, gate["conditionType"]) or {}).get("status") != "True"
        ]
        ready = [_condition("ContainersReady", not unready, reason, message)]
        if unready or not gates:
            ready.append(_condition("Ready", not unready, reason, message))
        else:
            missing = f"readiness gates that are not True: {', '.join(gates)}"
            ready.append(_condition("Ready", False, "ReadinessGatesNotReady", missing))
    return result + ready


def _condition(kind: str, holds: bool, reason: str = "", message: str = "") -> Obj:
    if holds:
        return {"type": kind, "status": "True"}
    return (
        {"type": kind, "status": "False"}
        | ({"reason": reason} if reason else {})
        | ({"message": message} if message else {})
    )
