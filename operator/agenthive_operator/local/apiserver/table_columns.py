"""Columns of the built-in kinds in ``kubectl get``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from .errors import Json


@dataclass(frozen=True, slots=True)
class BuiltinColumn:
    """One column; ``priority`` 1 shows only with ``-o wide``."""

    name: str
    cell: Callable[[Json, datetime], Any]
    type: str = "string"
    priority: int = 0


Builtin = tuple[BuiltinColumn, ...]


def duration(seconds: float) -> str:
    """Time as kubectl prints it: ``45s``, ``3m10s``, ``2h5m``, ``4d``."""
    if seconds < -1:
        return "<invalid>"
    whole = max(0, int(seconds))
    if whole < 120:
        return f"{whole}s"
    minutes, hours, days = whole // 60, whole // 3600, whole // 86400
    if minutes < 10:
        return f"{minutes}m{whole % 60}s" if whole % 60 else f"{minutes}m"
    if minutes < 180:
        return f"{minutes}m"
    if hours < 8:
        return f"{hours}h{minutes % 60}m" if minutes % 60 else f"{hours}h"
    if hours < 48:
        return f"{hours}h"
    if days < 8:
        return f"{days}d{hours % 24}h" if hours % 24 else f"{days}d"
    return f"{days}d" if days < 730 else f"{days // 365}y"


def age(stamp: Any, moment: datetime) -> str:
    """Time since ``stamp``."""
    if not isinstance(stamp, str):
        return "<unknown>"
    return duration((moment - datetime.fromisoformat(stamp)).total_seconds())


def _age(obj: Json, moment: datetime) -> str:
    return age(obj["metadata"].get("creationTimestamp"), moment)


AGE = BuiltinColumn("Age", _age)


def _at(path: str, default: Any = "") -> Callable[[Json, datetime], Any]:
    names = path.split(".")

    def read(obj: Json, _: datetime) -> Any:
        found: Any = obj
        for name in names:
            found = found.get(name) if isinstance(found, dict) else None
        return default if found is None else found

    return read


def _selector(obj: Json, _: datetime) -> str:
    selector = obj.get("spec", {}).get("selector") or {}
    labels = selector.get("matchLabels", selector if "matchExpressions" not in selector else {})
    return ",".join(f"{key}={value}" for key, value in labels.items()) or "<none>"


def _template(field: str) -> Callable[[Json, datetime], str]:
    def read(obj: Json, _: datetime) -> str:
        spec = obj.get("spec", {}).get("template", {}).get("spec", {})
        return ",".join(container.get(field, "") for container in spec.get("containers", ()))

    return read


def _pod_ready(obj: Json, _: datetime) -> str:
    statuses = obj.get("status", {}).get("containerStatuses", ())
    ready = sum(bool(status.get("ready")) for status in statuses)
    return f"{ready}/{len(obj.get('spec', {}).get('containers', ()))}"


def pod_status(obj: Json) -> str:
    """The word kubectl shows for a pod's state."""
    status = obj.get("status", {})
    word = status.get("reason") or status.get("phase") or "Unknown"
    for container in reversed(status.get("containerStatuses", [])):
        state = container.get("state", {})
        if reason := state.get("waiting", {}).get("reason"):
            word = reason
        elif ended := state.get("terminated"):
            if ended.get("reason"):
                word = ended["reason"]
            else:
                word = f"Signal:{ended['signal']}" if ended.get("signal") else f"ExitCode:{ended.get('exitCode', 0)}"
    for index, container in enumerate(status.get("initContainerStatuses", [])):
        state = container.get("state", {})
        if state.get("terminated", {}).get("exitCode") == 0:
            continue
        reason = state.get("terminated", {}).get("reason") or state.get("waiting", {}).get("reason")
        total = len(obj["spec"].get("initContainers", ()))
        word = f"Init:{reason}" if reason and reason != "PodInitializing" else f"Init:{index}/{total}"
        break
    if "deletionTimestamp" in obj["metadata"]:
        return "Terminating"
    return str(word)


def _restarts(obj: Json, moment: datetime) -> str:
    statuses = obj.get("status", {}).get("containerStatuses", ())
    total = sum(status.get("restartCount", 0) for status in statuses)
    ended = [status.get("lastState", {}).get("terminated", {}).get("finishedAt") for status in statuses]
    last = max((stamp for stamp in ended if stamp), default=None)
    return f"{total} ({age(last, moment)} ago)" if total and last else str(total)


def _gates(obj: Json, _: datetime) -> str:
    return "<none>" if not obj.get("spec", {}).get("readinessGates") else str(len(obj["spec"]["readinessGates"]))


def _ready_of(obj: Json, _: datetime) -> str:
    return f"{obj.get('status', {}).get('readyReplicas', 0)}/{obj.get('spec', {}).get('replicas', 0)}"


def _job_status(obj: Json, _: datetime) -> str:
    return next((kind for kind in ("Complete", "Failed") if _condition(obj, kind) == "True"), "Running")


def _job_completions(obj: Json, _: datetime) -> str:
    return f"{obj.get('status', {}).get('succeeded', 0)}/{obj.get('spec', {}).get('completions', 1)}"


def _job_duration(obj: Json, moment: datetime) -> str:
    status = obj.get("status", {})
    if "startTime" not in status:
        return ""
    end = status.get("completionTime")
    return age(status["startTime"], datetime.fromisoformat(end) if end else moment)


def _service_ports(obj: Json, _: datetime) -> str:
    ports = obj.get("spec", {}).get("ports", ())
    shown = []
    for port in ports:
        node = f":{port['nodePort']}" if port.get("nodePort") else ""
        shown.append(f"{port.get('port')}{node}/{port.get('protocol', 'TCP')}")
    return ",".join(shown) or "<none>"


def _external_ip(obj: Json, _: datetime) -> str:
    spec = obj.get("spec", {})
    if spec.get("type") == "ExternalName":
        return str(spec.get("externalName", "<none>"))
    return ",".join(spec.get("externalIPs", ())) or ("<pending>" if spec.get("type") == "LoadBalancer" else "<none>")


def _size(*fields: str) -> Callable[[Json, datetime], int]:
    return lambda obj, _: sum(len(obj.get(field) or {}) for field in fields)


def _condition(obj: Json, kind: str) -> str:
    for condition in obj.get("status", {}).get("conditions", ()):
        if condition.get("type") == kind:
            return str(condition.get("status"))
    return "Unknown"


def _node_status(obj: Json, _: datetime) -> str:
    word = {"True": "Ready", "False": "NotReady"}.get(_condition(obj, "Ready"), "Unknown")
    return word + (",SchedulingDisabled" if obj.get("spec", {}).get("unschedulable") else "")


def _node_roles(obj: Json, _: datetime) -> str:
    prefix = "node-role.kubernetes.io/"
    roles = [key.removeprefix(prefix) for key in obj["metadata"].get("labels", {}) if key.startswith(prefix)]
    return ",".join(sorted(roles)) or "<none>"


def _node_address(obj: Json, _: datetime) -> str:
    for address in obj.get("status", {}).get("addresses", ()):
        if address.get("type") == "InternalIP":
            return str(address["address"])
    return "<none>"


def _last_seen(obj: Json, moment: datetime) -> str:
    series = obj.get("series") or {}
    stamps = (
        series.get("lastObservedTime"), obj.get("lastTimestamp"), obj.get("deprecatedLastTimestamp"),
        obj.get("eventTime"), obj["metadata"].get("creationTimestamp"),
    )  # fmt: skip
    return age(next((stamp for stamp in stamps if stamp), None), moment)


def _involved(obj: Json, _: datetime) -> str:
    about = obj.get("involvedObject") or obj.get("regarding") or {}
    return f"{about.get('kind', '').lower()}/{about.get('name', '')}"


def _message(obj: Json, _: datetime) -> str:
    return str(obj.get("message") or obj.get("note") or "").strip()


def _claim_modes(obj: Json, _: datetime) -> str:
    short = {"ReadWriteOnce": "RWO", "ReadOnlyMany": "ROX", "ReadWriteMany": "RWX", "ReadWriteOncePod": "RWOP"}
    return ",".join(short.get(mode, mode) for mode in obj.get("status", {}).get("accessModes", ()))


def _endpoints(obj: Json, _: datetime) -> str:
    shown = []
    for subset in obj.get("subsets", ()):
        for address in subset.get("addresses", ()):
            ports = [f":{port['port']}" for port in subset.get("ports", ())] or [""]
            shown += [f"{address['ip']}{port}" for port in ports]
    more = f" + {len(shown) - 3} more..." if len(shown) > 3 else ""
    return ",".join(shown[:3]) + more or "<none>"


def _slice_ports(obj: Json, _: datetime) -> str:
    return ",".join(str(port.get("port", "*")) for port in obj.get("ports") or ()) or "<unset>"


def _slice_endpoints(obj: Json, _: datetime) -> str:
    found = [address for endpoint in obj.get("endpoints") or () for address in endpoint.get("addresses", ())]
    more = f" + {len(found) - 3} more..." if len(found) > 3 else ""
    return ",".join(found[:3]) + more or "<unset>"


_Column = BuiltinColumn
_WORKLOAD_WIDE: Builtin = (
    _Column("Containers", _template("name"), priority=1), _Column("Images", _template("image"), priority=1),
)  # fmt: skip
_SELECTOR = _Column("Selector", _selector, priority=1)

COLUMNS: dict[str, Builtin] = {
    "pods": (
        _Column("Ready", _pod_ready), _Column("Status", lambda obj, _: pod_status(obj)),
        _Column("Restarts", _restarts), AGE, _Column("IP", _at("status.podIP", "<none>"), priority=1),
        _Column("Node", _at("spec.nodeName", "<none>"), priority=1),
        _Column("Nominated Node", _at("status.nominatedNodeName", "<none>"), priority=1),
        _Column("Readiness Gates", _gates, priority=1),
    ),
    "deployments.apps": (
        _Column("Ready", _ready_of), _Column("Up-to-date", _at("status.updatedReplicas", 0), "integer"),
        _Column("Available", _at("status.availableReplicas", 0), "integer"), AGE, *_WORKLOAD_WIDE, _SELECTOR,
    ),
    "replicasets.apps": (
        _Column("Desired", _at("spec.replicas", 0), "integer"),
        _Column("Current", _at("status.replicas", 0), "integer"),
        _Column("Ready", _at("status.readyReplicas", 0), "integer"), AGE, *_WORKLOAD_WIDE, _SELECTOR,
    ),
    "statefulsets.apps": (_Column("Ready", _ready_of), AGE, *_WORKLOAD_WIDE),
    "jobs.batch": (
        _Column("Status", _job_status), _Column("Completions", _job_completions),
        _Column("Duration", _job_duration), AGE, *_WORKLOAD_WIDE, _SELECTOR,
    ),
    "services": (
        _Column("Type", _at("spec.type")), _Column("Cluster-IP", _at("spec.clusterIP", "<none>")),
        _Column("External-IP", _external_ip), _Column("Port(s)", _service_ports), AGE, _SELECTOR,
    ),
    "endpoints": (_Column("Endpoints", _endpoints), AGE),
    "endpointslices.discovery.k8s.io": (
        _Column("AddressType", _at("addressType")), _Column("Ports", _slice_ports),
        _Column("Endpoints", _slice_endpoints), AGE,
    ),
    "secrets": (_Column("Type", _at("type")), _Column("Data", _size("data"), "integer"), AGE),
    "configmaps": (_Column("Data", _size("data", "binaryData"), "integer"), AGE),
    "serviceaccounts": (AGE,),
    "namespaces": (_Column("Status", _at("status.phase")), AGE),
    "nodes": (
        _Column("Status", _node_status), _Column("Roles", _node_roles), AGE,
        _Column("Version", _at("status.nodeInfo.kubeletVersion")),
        _Column("Internal-IP", _node_address, priority=1),
        _Column("OS-Image", _at("status.nodeInfo.osImage", "<unknown>"), priority=1),
        _Column("Kernel-Version", _at("status.nodeInfo.kernelVersion", "<unknown>"), priority=1),
        _Column("Container-Runtime", _at("status.nodeInfo.containerRuntimeVersion", "<unknown>"), priority=1),
    ),
    "persistentvolumeclaims": (
        _Column("Status", _at("status.phase")), _Column("Volume", _at("spec.volumeName")),
        _Column("Capacity", _at("status.capacity.storage")), _Column("Access Modes", _claim_modes),
        _Column("StorageClass", _at("spec.storageClassName")),
        _Column("VolumeAttributesClass", _at("spec.volumeAttributesClassName", "<unset>")), AGE,
        _Column("VolumeMode", _at("spec.volumeMode"), priority=1),
    ),
    "events": (
        _Column("Last Seen", _last_seen), _Column("Type", _at("type")), _Column("Reason", _at("reason")),
        _Column("Object", _involved), _Column("Message", _message),
    ),
    "leases.coordination.k8s.io": (_Column("Holder", _at("spec.holderIdentity")), AGE),
    "customresourcedefinitions.apiextensions.k8s.io": (_Column("Created At", _at("metadata.creationTimestamp")),),
}  # fmt: skip
COLUMNS["events.events.k8s.io"] = COLUMNS["events"]
