"""Defaults of the built-in kinds, as the real API server fills them in."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import TYPE_CHECKING

from . import crds, jobs
from .errors import Json, unprocessable

if TYPE_CHECKING:
    from .admission import Admission
    from .kinds import Kind


def apply_defaults(kind: Kind, obj: Json, old: Json | None, admission: Admission) -> None:
    """Fill in what the client left out; changes ``obj``."""
    if kind.has_status:
        obj.setdefault("status", {}).update({**_COUNTS.get(kind.resource, {}), **obj["status"]})
    fill = _DEFAULTS.get(kind.resource)
    if fill is not None:
        fill(obj, old)
    if kind.resource == "services":
        problem = admission.service_address(obj, old)
        if problem is not None:
            raise unprocessable("", "Service", obj["metadata"].get("name", ""), [problem])


# Parts of spec that the server sets after it has noted who owns what.
_SERVER_SET = {
    "namespaces": ("finalizers",),
    "services": ("clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"),
}

# Figures of status that are there from the start.
_COUNTS: dict[str, Json] = {
    "statefulsets.apps": {"replicas": 0, "availableReplicas": 0},
    "replicasets.apps": {"replicas": 0},
    "daemonsets.apps": {
        "currentNumberScheduled": 0, "numberMisscheduled": 0, "desiredNumberScheduled": 0, "numberReady": 0
    },
    "poddisruptionbudgets.policy": {
        "disruptionsAllowed": 0, "currentHealthy": 0, "desiredHealthy": 0, "expectedPods": 0
    },
}  # fmt: skip

_TEMPLATE: Json = {"metadata": {}, "spec": {"containers": []}}
_EMPTY: dict[str, Json] = {
    "pods": {"containers": []},
    "deployments.apps": {"strategy": {}, "template": _TEMPLATE},
    "statefulsets.apps": {"updateStrategy": {}, "template": _TEMPLATE},
    "daemonsets.apps": {"updateStrategy": {}, "template": _TEMPLATE},
    "jobs.batch": {"template": _TEMPLATE},
    "replicasets.apps": {"template": _TEMPLATE},
    "persistentvolumeclaims": {"resources": {}},
}


def empty_object(kind: Kind) -> Json:
    """What an object of the kind holds from the start, which nobody comes to own by creating it."""
    if kind.custom:
        return {"metadata": {}}
    found: Json = {"metadata": {}, "spec": _EMPTY.get(kind.resource, {})}
    return found | ({"status": {}} if kind.has_status else {})


def owned_at_creation(kind: Kind, obj: Json) -> Json:
    """A new object without what the server itself has put into it."""
    found = {key: value for key, value in obj.items() if key != "status" or not kind.has_status}
    hidden = _SERVER_SET.get(kind.resource)
    if hidden and "spec" in found:
        found["spec"] = {key: value for key, value in found["spec"].items() if key not in hidden}
    return found


def _fill(target: Json, **defaults: object) -> None:
    for name, value in defaults.items():
        target.setdefault(name, value)


def _probe(probe: Json) -> None:
    _fill(probe, timeoutSeconds=1, periodSeconds=10, successThreshold=1, failureThreshold=3)
    _handler(probe)


def _handler(handler: Json) -> None:
    if "httpGet" in handler:
        _fill(handler["httpGet"], path="/", scheme="HTTP")
    if "grpc" in handler:
        _fill(handler["grpc"], service="")


def image_pull_policy(image: str) -> str:
    """``Always`` for an image without a tag or with the tag latest."""
    name = image.rpartition("/")[2]
    if "@" in name:
        return "IfNotPresent"
    tag = name.partition(":")[2]
    return "Always" if tag in ("", "latest") else "IfNotPresent"


def _container(container: Json) -> None:
    _fill(
        container, terminationMessagePath="/dev/termination-log", terminationMessagePolicy="File", resources={},
        imagePullPolicy=image_pull_policy(container.get("image", "")),
    )  # fmt: skip
    for port in container.get("ports", ()):
        _fill(port, protocol="TCP")
    for probe in ("livenessProbe", "readinessProbe", "startupProbe"):
        if probe in container:
            _probe(container[probe])
    for hook in container.get("lifecycle", {}).values():
        if isinstance(hook, dict):
            _handler(hook)
    for env in container.get("env", ()):
        if "fieldRef" in env.get("valueFrom", {}):
            _fill(env["valueFrom"]["fieldRef"], apiVersion="v1")


def _volume(volume: Json) -> None:
    if set(volume) == {"name"}:
        volume["emptyDir"] = {}
    for source in ("secret", "configMap", "downwardAPI", "projected"):
        if source in volume:
            _fill(volume[source], defaultMode=420)
    if "hostPath" in volume:
        _fill(volume["hostPath"], type="")
    for item in volume.get("downwardAPI", {}).get("items", ()):
        if "fieldRef" in item:
            _fill(item["fieldRef"], apiVersion="v1")


def pod_spec(spec: Json) -> None:
    """Defaults of a PodSpec, in a pod or in a template."""
    _fill(
        spec, restartPolicy="Always", dnsPolicy="ClusterFirst", terminationGracePeriodSeconds=30,
        securityContext={}, schedulerName="default-scheduler",
    )  # fmt: skip
    for group in ("containers", "initContainers"):
        for container in spec.get(group, ()):
            _container(container)
    for volume in spec.get("volumes", ()):
        _volume(volume)
    if "serviceAccountName" in spec:
        spec["serviceAccount"] = spec["serviceAccountName"]
    elif "serviceAccount" in spec:
        spec["serviceAccountName"] = spec["serviceAccount"]


def _pod(obj: Json, old: Json | None) -> None:
    spec = obj.setdefault("spec", {})
    if "serviceAccountName" not in spec and "serviceAccount" not in spec:
        spec["serviceAccountName"] = "default"
    pod_spec(spec)
    _fill(spec, enableServiceLinks=True, preemptionPolicy="PreemptLowerPriority", priority=0)
    for group in ("containers", "initContainers"):
        for container in spec.get(group, ()):
            resources = container["resources"]
            for name, amount in resources.get("limits", {}).items():
                resources.setdefault("requests", {}).setdefault(name, amount)
    spec.setdefault(
        "tolerations",
        [
            {"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}
            for key in ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable")
        ],
    )
    if old is None:
        obj["status"] = {"phase": "Pending", "qosClass": _quality(spec)}


def _quality(spec: Json) -> str:
    containers = [*spec.get("containers", ()), *spec.get("initContainers", ())]
    resources = [container["resources"] for container in containers]
    if not any(amounts.get("limits") or amounts.get("requests") for amounts in resources):
        return "BestEffort"
    for amounts in resources:
        limits, requests = amounts.get("limits", {}), amounts.get("requests", {})
        if not {"cpu", "memory"} <= limits.keys() or any(requests.get(n) != limits[n] for n in ("cpu", "memory")):
            return "Burstable"
    return "Guaranteed"


def _template(spec: Json) -> None:
    template = spec.setdefault("template", {})
    template.setdefault("metadata", {})
    if "spec" in template:
        pod_spec(template["spec"])


def _deployment(obj: Json, _: Json | None) -> None:
    spec = obj.setdefault("spec", {})
    _fill(spec, replicas=1, revisionHistoryLimit=10, progressDeadlineSeconds=600)
    strategy = spec.setdefault("strategy", {})
    _fill(strategy, type="RollingUpdate")
    if strategy["type"] == "RollingUpdate":
        rolling = strategy.setdefault("rollingUpdate", {})
        _fill(rolling, maxUnavailable="25%", maxSurge="25%")
    _template(spec)


def _replica_set(obj: Json, _: Json | None) -> None:
    spec = obj.setdefault("spec", {})
    _fill(spec, replicas=1)
    _template(spec)


def _stateful_set(obj: Json, _: Json | None) -> None:
    spec = obj.setdefault("spec", {})
    _fill(spec, replicas=1, revisionHistoryLimit=10, podManagementPolicy="OrderedReady", serviceName="")
    if not spec["serviceName"]:
        del spec["serviceName"]
    strategy = spec.setdefault("updateStrategy", {})
    _fill(strategy, type="RollingUpdate")
    if strategy["type"] == "RollingUpdate":
        _fill(strategy.setdefault("rollingUpdate", {}), partition=0)
    _fill(spec.setdefault("persistentVolumeClaimRetentionPolicy", {}), whenDeleted="Retain", whenScaled="Retain")
    _template(spec)
    for claim in spec.get("volumeClaimTemplates", ()):
        _fill(claim, apiVersion="v1", kind="PersistentVolumeClaim", metadata={}, spec={}, status={"phase": "Pending"})
        _fill(claim["spec"], volumeMode="Filesystem")


def _daemon_set(obj: Json, _: Json | None) -> None:
    spec = obj.setdefault("spec", {})
    _fill(spec, revisionHistoryLimit=10)
    strategy = spec.setdefault("updateStrategy", {"type": "RollingUpdate"})
    if strategy.get("type") == "RollingUpdate":
        _fill(strategy.setdefault("rollingUpdate", {}), maxUnavailable=1, maxSurge=0)
    _template(spec)


def _job(obj: Json, old: Json | None) -> None:
    jobs.fill(obj, old)
    _template(obj["spec"])


def _service(obj: Json, old: Json | None) -> None:
    spec = obj.setdefault("spec", {})
    _fill(spec, type="ClusterIP", sessionAffinity="None")
    for port in spec.get("ports", ()):
        _fill(port, protocol="TCP", targetPort=port.get("port"))
    if spec["type"] != "ExternalName":
        _fill(spec, ipFamilies=["IPv4"], ipFamilyPolicy="SingleStack", internalTrafficPolicy="Cluster")
    if old is None:
        obj["status"] = {"loadBalancer": {}}


def _secret(obj: Json, _: Json | None) -> None:
    _fill(obj, type="Opaque")
    plain = obj.pop("stringData", None)
    if plain:
        coded = {name: base64.b64encode(text.encode()).decode() for name, text in plain.items()}
        obj["data"] = {**obj.get("data", {}), **coded}


def _claim(obj: Json, old: Json | None) -> None:
    _fill(obj.setdefault("spec", {}), volumeMode="Filesystem")
    if old is None:
        obj["status"] = {"phase": "Pending"}


def _namespace(obj: Json, old: Json | None) -> None:
    meta = obj["metadata"]
    meta["labels"] = {**meta.get("labels", {}), "kubernetes.io/metadata.name": meta.get("name", "")}
    obj.setdefault("spec", {}).setdefault("finalizers", ["kubernetes"])
    if old is None:
        obj["status"] = {"phase": "Active"}


def _definition(obj: Json, _: Json | None) -> None:
    if isinstance(obj.get("spec"), dict):
        crds.complete(obj)


def _endpoint_slice(obj: Json, _: Json | None) -> None:
    for port in obj.get("ports", ()):
        _fill(port, name="", protocol="TCP")


def _endpoints(obj: Json, _: Json | None) -> None:
    for subset in obj.get("subsets", ()):
        for port in subset.get("ports", ()):
            _fill(port, protocol="TCP")


def _network_policy(obj: Json, _: Json | None) -> None:
    spec = obj.setdefault("spec", {})
    _fill(spec, policyTypes=["Ingress", "Egress"] if spec.get("egress") else ["Ingress"])
    for group in ("ingress", "egress"):
        for rule in spec.get(group, ()):
            for port in rule.get("ports", ()):
                _fill(port, protocol="TCP")


def _binding(obj: Json, _: Json | None) -> None:
    for subject in obj.get("subjects", ()):
        if subject.get("kind") in ("User", "Group"):
            _fill(subject, apiGroup="rbac.authorization.k8s.io")
    if "roleRef" in obj:
        _fill(obj["roleRef"], apiGroup="rbac.authorization.k8s.io")


def _event(obj: Json, _: Json | None) -> None:
    _fill(obj, source={}, reportingComponent="", reportingInstance="")


_DEFAULTS: dict[str, Callable[[Json, Json | None], None]] = {
    "pods": _pod,
    "events": _event,
    "events.events.k8s.io": _event,
    "services": _service,
    "secrets": _secret,
    "namespaces": _namespace,
    "persistentvolumeclaims": _claim,
    "endpoints": _endpoints,
    "deployments.apps": _deployment,
    "replicasets.apps": _replica_set,
    "statefulsets.apps": _stateful_set,
    "daemonsets.apps": _daemon_set,
    "jobs.batch": _job,
    "endpointslices.discovery.k8s.io": _endpoint_slice,
    "networkpolicies.networking.k8s.io": _network_policy,
    "rolebindings.rbac.authorization.k8s.io": _binding,
    "clusterrolebindings.rbac.authorization.k8s.io": _binding,
    "customresourcedefinitions.apiextensions.k8s.io": _definition,
}
