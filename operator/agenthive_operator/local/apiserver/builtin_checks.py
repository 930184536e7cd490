"""Validation of metadata and of the built-in kinds: what a manifest is likely to get wrong, not all there is."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from . import crds, errors, jobs
from .errors import FieldError, Json
from .kinds import Kind
from .network_checks import check_network_policy
from .quantity import quantity_value

_LABEL = re.compile(r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
_SUBDOMAIN = re.compile(r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$")
_QUALIFIED = re.compile(r"^[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$")
_LABEL_VALUE = re.compile(r"^([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?$")
_DATA_KEY = re.compile(r"^[-._a-zA-Z0-9]{1,253}$")
_ENV_NAME = re.compile(r"^[ -<>-~]+$")
_PORT_NAME = re.compile(r"^(?=.*[a-z])[a-z0-9]+(-[a-z0-9]+)*$")

_LABEL_TEXT = (
    "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with "
    "an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is "
    "'[a-z0-9]([-a-z0-9]*[a-z0-9])?')"
)
_SUBDOMAIN_TEXT = (
    "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and "
    "end with an alphanumeric character (e.g. 'example.com', regex used for validation is "
    r"'[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"
)
_QUALIFIED_TEXT = (
    "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric "
    "character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is "
    "'([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')"
)
_LABEL_VALUE_TEXT = (
    "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and "
    "end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is "
    "'(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')"
)

# Kinds whose names may hold what a path may hold.
_STANDARD_FINALIZERS = ("kubernetes", "orphan", "foregroundDeletion")
_FREE_NAMES = ("roles", "rolebindings", "clusterroles", "clusterrolebindings")


def check_metadata(kind: Kind, obj: Json, old: Json | None) -> list[FieldError]:
    """What is wrong with an object's metadata."""
    meta = obj["metadata"]
    found: list[FieldError] = []
    name = meta.get("name", "")
    if not name:
        found.append(errors.required("metadata.name", "name or generateName is required"))
    elif old is None:
        found += _check_name(kind, name)
    for field in ("labels", "annotations"):
        for key, value in meta.get(field, {}).items():
            prefix, _, part = key.rpartition("/")
            if not _QUALIFIED.match(part) or (prefix and not _SUBDOMAIN.match(prefix)):
                found.append(errors.invalid(f"metadata.{field}", key, _QUALIFIED_TEXT))
            if field == "labels" and not _LABEL_VALUE.match(value):
                found.append(errors.invalid("metadata.labels", value, _LABEL_VALUE_TEXT))
    if sum(len(k) + len(v) for k, v in meta.get("annotations", {}).items()) > 262_144:
        found.append(errors.too_long("metadata.annotations", 262_144))
    found += _check_owners(meta.get("ownerReferences", ()))
    for index, finalizer in enumerate(meta.get("finalizers", ())):
        if "/" not in finalizer and finalizer not in _STANDARD_FINALIZERS:
            text = "name is neither a standard finalizer name nor is it fully qualified"
            found.append(errors.invalid(f"metadata.finalizers[{index}]", finalizer, text))
    if old is not None and "deletionTimestamp" in old["metadata"]:
        before = old["metadata"].get("finalizers", ())
        added = sorted({*meta.get("finalizers", ())} - {*before})
        if added:
            listed = ", ".join(f'"{name}"' for name in added)
            text = "no new finalizers can be added if the object is being deleted, found new finalizers "
            found.append(errors.forbidden_field("metadata.finalizers", f"{text}[]string{{{listed}}}"))
    return found


def _check_owners(owners: Any) -> list[FieldError]:
    found = []
    for owner in owners:
        found += [
            errors.invalid(
                f"metadata.ownerReferences.{field}",
                "",
                "version must not be empty" if field == "apiVersion" else "must not be empty",
            )
            for field in ("apiVersion", "kind", "name", "uid")
            if not owner.get(field)
        ]
    if sum(bool(owner.get("controller")) for owner in owners) > 1:
        text = "Only one reference can have Controller set to true"
        found.append(errors.invalid("metadata.ownerReferences", list(owners), text))
    return found


def _check_name(kind: Kind, name: str) -> list[FieldError]:
    if kind.plural in _FREE_NAMES:
        fits, text, limit = name not in (".", "..") and "/" not in name and "%" not in name, "may not contain '/'", 253
    elif kind.resource in ("namespaces", "services"):
        fits, text, limit = _LABEL.match(name) is not None, _LABEL_TEXT, 63
    else:
        fits, text, limit = _SUBDOMAIN.match(name) is not None, _SUBDOMAIN_TEXT, 253
    found = [] if fits else [errors.invalid("metadata.name", name, text)]
    if len(name) > limit:
        found.append(errors.invalid("metadata.name", name, f"must be no more than {limit} characters"))
    return found


def check(kind: Kind, obj: Json, old: Json | None) -> list[FieldError]:
    """What is wrong with an object of a built-in kind, besides its metadata and types."""
    validate = _CHECKS.get(kind.resource)
    return validate(obj, old) if validate is not None else []


def _port(path: str, number: Any) -> list[FieldError]:
    if isinstance(number, int) and not 1 <= number <= 65535:
        return [errors.invalid(path, number, "must be between 1 and 65535, inclusive")]
    return []


def _containers(spec: Json, path: str) -> list[FieldError]:
    found: list[FieldError] = []
    volumes = {volume.get("name") for volume in spec.get("volumes", ())}
    if not spec.get("containers"):
        found.append(errors.required(f"{path}.containers"))
    seen: set[str] = set()
    for group in ("initContainers", "containers"):
        for index, container in enumerate(spec.get(group, ())):
            here = f"{path}.{group}[{index}]"
            name = container.get("name", "")
            if "name" in container and not _LABEL.match(name):
                found.append(
                    errors.invalid(f"{here}.name", name, _LABEL_TEXT) if name else errors.required(f"{here}.name")
                )
            if not container.get("image"):
                found.append(errors.required(f"{here}.image"))
            found += _container(container, here, volumes)
            if name in seen:
                found.append(errors.duplicate(f"{here}.name", name))
            seen.add(name)
    return found


_PULL_POLICIES = ("Always", "IfNotPresent", "Never")


def _container(container: Json, here: str, volumes: set[str]) -> list[FieldError]:
    found: list[FieldError] = []
    for index, port in enumerate(container.get("ports", ())):
        where = f"{here}.ports[{index}]"
        found += _port(f"{where}.containerPort", port.get("containerPort"))
        if "containerPort" not in port:
            found.append(errors.required(f"{where}.containerPort"))
        if "name" in port and (len(port["name"]) > 15 or not _PORT_NAME.match(port["name"])):
            text = "must be 1-15 characters, contain only alpha-numeric characters (a-z, 0-9) and '-'"
            found.append(errors.invalid(f"{where}.name", port["name"], text))
    for index, env in enumerate(container.get("env", ())):
        where = f"{here}.env[{index}]"
        if not env.get("name"):
            found.append(errors.required(f"{where}.name"))
        elif not _ENV_NAME.match(env["name"]):
            text = "a valid environment variable name must consist only of printable ASCII characters other than '='"
            found.append(errors.invalid(f"{where}.name", env["name"], text))
        if env.get("value") and "valueFrom" in env:
            text = "may not be specified when `value` is not empty"
            found.append(errors.invalid(f"{where}.valueFrom", "", text))
    paths: set[str] = set()
    for index, mount in enumerate(container.get("volumeMounts", ())):
        where = f"{here}.volumeMounts[{index}]"
        if mount.get("name") not in volumes:
            found.append(
                FieldError("FieldValueNotFound", f"{where}.name", f"Not found: {errors.shown(mount.get('name'))}")
            )
        if mount.get("mountPath") in paths:
            found.append(errors.invalid(f"{where}.mountPath", mount["mountPath"], "must be unique"))
        paths.add(mount.get("mountPath", ""))
    policy = container.get("imagePullPolicy")
    if policy and policy not in _PULL_POLICIES:
        found.append(errors.not_supported(f"{here}.imagePullPolicy", policy, _PULL_POLICIES))
    found += _resources(container.get("resources", {}), f"{here}.resources")
    return found


def _resources(resources: Json, path: str) -> list[FieldError]:
    found = []
    limits = resources.get("limits", {})
    for name, amount in resources.get("requests", {}).items():
        if name in limits and quantity_value(amount) > quantity_value(limits[name]):
            text = f"must be less than or equal to {name} limit of {limits[name]}"
            found.append(errors.invalid(f"{path}.requests", amount, text))
    return found


def _volumes(spec: Json, path: str) -> list[FieldError]:
    found = []
    seen: set[str] = set()
    for index, volume in enumerate(spec.get("volumes", ())):
        here = f"{path}.volumes[{index}]"
        name = volume.get("name", "")
        if not _LABEL.match(name):
            found.append(errors.invalid(f"{here}.name", name, _LABEL_TEXT) if name else errors.required(f"{here}.name"))
        if name in seen:
            found.append(errors.duplicate(f"{here}.name", name))
        seen.add(name)
        if len(volume) > 2:
            text = "may not specify more than 1 volume type"
            found.append(errors.forbidden_field(f"{here}.{sorted(set(volume) - {'name'})[1]}", text))
    return found


_RESTARTS = ("Always", "OnFailure", "Never")


def _pod_spec(spec: Json, path: str) -> list[FieldError]:
    found = _volumes(spec, path) + _containers(spec, path)
    if spec.get("restartPolicy") not in _RESTARTS:
        found.append(errors.not_supported(f"{path}.restartPolicy", spec.get("restartPolicy", ""), _RESTARTS))
    grace = spec.get("terminationGracePeriodSeconds", 0)
    if grace < 0:
        found.append(
            errors.invalid(f"{path}.terminationGracePeriodSeconds", grace, "must be greater than or equal to 0")
        )
    return found


# What may change in a pod's spec after its creation.
_POD_MUTABLE = ("activeDeadlineSeconds", "tolerations", "terminationGracePeriodSeconds", "schedulingGates", "nodeName")


def _frozen_pod(spec: Json) -> Json:
    found = {key: value for key, value in spec.items() if key not in _POD_MUTABLE}
    for group in ("containers", "initContainers"):
        found[group] = [{**container, "image": "", "resources": {}} for container in spec.get(group, ())]
    found.pop("ephemeralContainers", None)
    return found


def _pod(obj: Json, old: Json | None) -> list[FieldError]:
    found = _pod_spec(obj.get("spec", {}), "spec")
    if old is not None:
        before = old.get("spec", {})
        moved = before.get("nodeName") and before.get("nodeName") != obj["spec"].get("nodeName")
        if moved or _frozen_pod(before) != _frozen_pod(obj["spec"]):
            text = (
                "pod updates may not change fields other than `spec.containers[*].image`,"
                "`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to "
                "existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was "
                "previously negative)"
            )
            found.append(errors.forbidden_field("spec", text))
    return found


def selects(selector: Json, labels: Json) -> bool:
    """Whether a LabelSelector selects ``labels``."""
    if any(labels.get(key) != value for key, value in selector.get("matchLabels", {}).items()):
        return False
    for term in selector.get("matchExpressions", ()):
        key, operator, values = term.get("key"), term.get("operator"), term.get("values", ())
        held = {
            "In": labels.get(key) in values,
            "NotIn": labels.get(key) not in values,
            "Exists": key in labels,
            "DoesNotExist": key not in labels,
        }
        if not held.get(operator, False):
            return False
    return True


def _workload(obj: Json, old: Json | None) -> list[FieldError]:
    spec = obj.get("spec", {})
    found: list[FieldError] = []
    if spec.get("replicas", 0) < 0:
        found.append(errors.invalid("spec.replicas", spec["replicas"], "must be greater than or equal to 0"))
    template = spec.get("template", {})
    selector = spec.get("selector")
    labels = template.get("metadata", {}).get("labels")
    if selector is None:
        found.append(errors.required("spec.selector"))
        text = "`selector` does not match template `labels`"
        found.append(errors.invalid("spec.template.metadata.labels", labels, text))
    else:
        labels = labels or {}
        if not selector.get("matchLabels") and not selector.get("matchExpressions"):
            text = f"empty selector is invalid for {obj['kind'].lower()}"
            found.append(errors.invalid("spec.selector", selector, text))
        elif not selects(selector, labels):
            text = "`selector` does not match template `labels`"
            found.append(errors.invalid("spec.template.metadata.labels", labels, text))
    if "spec" in template:
        found += _pod_spec(template["spec"], "spec.template.spec")
        if template["spec"].get("restartPolicy", "Always") != "Always":
            policy = template["spec"]["restartPolicy"]
            found.append(errors.not_supported("spec.template.spec.restartPolicy", policy, ("Always",)))
    else:
        found.append(errors.required("spec.template.spec.containers"))
    if old is not None and selector != old["spec"].get("selector"):
        found.append(errors.invalid("spec.selector", selector, "field is immutable"))
    return found


_STATEFUL_MUTABLE = (
    "replicas", "ordinals", "template", "updateStrategy", "persistentVolumeClaimRetentionPolicy", "minReadySeconds",
    "revisionHistoryLimit",
)  # fmt: skip


def _with_claims(obj: Json) -> Json:
    """A StatefulSet whose template has the volumes that its pods will have: one for each claim template."""
    spec = obj.get("spec", {})
    template = spec.get("template", {})
    if not spec.get("volumeClaimTemplates") or "spec" not in template:
        return obj
    names = [claim.get("metadata", {}).get("name") for claim in spec["volumeClaimTemplates"]]
    own = [volume for volume in template["spec"].get("volumes", ()) if volume.get("name") not in names]
    volumes = own + [{"name": name, "emptyDir": {}} for name in names]
    return {**obj, "spec": {**spec, "template": {**template, "spec": {**template["spec"], "volumes": volumes}}}}


def _stateful_set(obj: Json, old: Json | None) -> list[FieldError]:
    found = [problem for problem in _workload(_with_claims(obj), old) if problem.message.find("field is immutable") < 0]
    if old is not None:

        def frozen(spec: Json) -> Json:
            return {key: value for key, value in spec.items() if key not in _STATEFUL_MUTABLE}

        if frozen(obj["spec"]) != frozen(old["spec"]):
            text = (
                "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', "
                "'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and "
                "'minReadySeconds' are forbidden"
            )
            found.append(errors.forbidden_field("spec", text))
    return found


def _job(obj: Json, old: Json | None) -> list[FieldError]:
    return _pod_spec(obj["spec"].get("template", {}).get("spec", {}), "spec.template.spec") + jobs.check(obj, old)


def _service(obj: Json, old: Json | None) -> list[FieldError]:
    spec = obj.get("spec", {})
    found: list[FieldError] = []
    kinds = ("ClusterIP", "ExternalName", "LoadBalancer", "NodePort")
    if spec.get("type") not in kinds:
        found.append(errors.not_supported("spec.type", spec.get("type"), kinds))
    ports = spec.get("ports", [])
    if not ports and spec.get("clusterIP") != "None" and spec.get("type") != "ExternalName":
        found.append(errors.required("spec.ports"))
    names: set[str] = set()
    for index, port in enumerate(ports):
        found += _port(f"spec.ports[{index}].port", port.get("port"))
        found += _port(f"spec.ports[{index}].targetPort", port.get("targetPort"))
        name = port.get("name", "")
        if len(ports) > 1 and not name:
            found.append(errors.required(f"spec.ports[{index}].name"))
        if name and name in names:
            found.append(errors.duplicate(f"spec.ports[{index}].name", name))
        names.add(name)
    if old is not None and old["spec"].get("clusterIP") not in (None, "", spec.get("clusterIP")):
        found.append(errors.invalid("spec.clusterIPs[0]", [spec.get("clusterIP")], "may not change once set"))
    return found


def _data(obj: Json, old: Json | None) -> list[FieldError]:
    found = []
    for field in ("data", "binaryData"):
        for key in obj.get(field, {}):
            if not _DATA_KEY.match(key):
                text = "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  "
                text += "or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')"
                found.append(errors.invalid(f"{field}[{key}]", key, text))
    if old is not None and old.get("immutable"):
        if not obj.get("immutable"):
            found.append(errors.forbidden_field("immutable", "field is immutable when `immutable` is set"))
        if any(obj.get(field) != old.get(field) for field in ("data", "binaryData")):
            found.append(errors.forbidden_field("data", "field is immutable when `immutable` is set"))
    if old is not None and obj.get("type") != old.get("type"):
        found.append(errors.invalid("type", obj.get("type"), "field is immutable"))
    return found


def _claim(obj: Json, old: Json | None) -> list[FieldError]:
    spec = obj.get("spec", {})
    found: list[FieldError] = []
    if not spec.get("accessModes"):
        found.append(errors.required("spec.accessModes", "at least 1 access mode is required"))
    size = spec.get("resources", {}).get("requests", {}).get("storage")
    if size is None:
        found.append(errors.required("spec.resources[storage]"))
    if old is not None and size is not None:
        before = old["spec"]["resources"]["requests"]["storage"]
        if quantity_value(size) < quantity_value(before):
            text = "field can not be less than previous value"
            found.append(errors.forbidden_field("spec.resources.requests.storage", text))
        mutable = ("resources", "volumeName", "volumeAttributesClassName")
        if any(spec.get(key) != old["spec"].get(key) for key in {**spec, **old["spec"]} if key not in mutable):
            text = "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims"  # noqa: E501
            found.append(errors.forbidden_field("spec", text))
    return found


def _binding(obj: Json, old: Json | None) -> list[FieldError]:
    if old is not None and obj.get("roleRef") != old.get("roleRef"):
        return [errors.invalid("roleRef", obj.get("roleRef"), "cannot change roleRef")]
    return []


def _lease(obj: Json, old: Json | None) -> list[FieldError]:
    spec, found = obj.get("spec") or {}, []
    if (seconds := spec.get("leaseDurationSeconds", 1)) <= 0:
        found.append(errors.invalid("spec.leaseDurationSeconds", seconds, "must be greater than 0"))
    if (transitions := spec.get("leaseTransitions", 0)) < 0:
        found.append(errors.invalid("spec.leaseTransitions", transitions, "must be greater than or equal to 0"))
    return found


_CHECKS: dict[str, Callable[[Json, Json | None], list[FieldError]]] = {
    "pods": _pod,
    "services": _service,
    "secrets": _data,
    "configmaps": _data,
    "persistentvolumeclaims": _claim,
    "deployments.apps": _workload,
    "replicasets.apps": _workload,
    "daemonsets.apps": _workload,
    "statefulsets.apps": _stateful_set,
    "jobs.batch": _job,
    "leases.coordination.k8s.io": _lease,
    "networkpolicies.networking.k8s.io": check_network_policy,
    "rolebindings.rbac.authorization.k8s.io": _binding,
    "clusterrolebindings.rbac.authorization.k8s.io": _binding,
    "customresourcedefinitions.apiextensions.k8s.io": crds.check,
}
