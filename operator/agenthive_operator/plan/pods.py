"""What all pods of a hive have in common: Pod Security ``restricted``, environment, probes."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

from agenthive_operator.api.meta import ResourceRequirements
from agenthive_operator.plan.quantity import canonical, canonical_amounts, canonical_resources
from agenthive_operator.plan.references import objects


def pod_security(user: int) -> dict[str, Any]:
    """Security context of a pod that runs as ``user`` and may write to its volumes."""
    return {
        "runAsNonRoot": True,
        "runAsUser": user,
        "runAsGroup": user,
        "fsGroup": user,
        # PostgreSQL refuses a data folder that the group may write: it is not to be changed at every start.
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def container_security() -> dict[str, Any]:
    """Security context of a container: no privileges, nothing written outside its volumes."""
    return {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
    }


def env(name: str, value: str) -> dict[str, Any]:
    """An environment variable; an empty value is absent, as the API server writes it."""
    return {"name": name, "value": value} if value else {"name": name}


def secret_env(name: str, secret: str, key: str, *, optional: bool = False) -> dict[str, Any]:
    """An environment variable from a key of a Secret; the pod starts without it where it is ``optional``."""
    source = {"name": secret, "key": key, **({"optional": True} if optional else {})}
    return {"name": name, "valueFrom": {"secretKeyRef": source}}


def empty_dir(name: str) -> dict[str, Any]:
    """A volume that goes with the pod."""
    return {"name": name, "emptyDir": {}}


def mount(name: str, path: str, *, read_only: bool = False) -> dict[str, Any]:
    """A mount of the volume ``name``."""
    result: dict[str, Any] = {"name": name, "mountPath": path}
    if read_only:
        result["readOnly"] = True
    return result


def probe(action: Mapping[str, Any], *, period: int, failures: int, timeout: int = 1) -> dict[str, Any]:
    """A probe.

    Args:
        action: ``httpGet``, ``tcpSocket`` or ``exec``.
        period: Seconds between two probes.
        failures: Failures in a row that count.
        timeout: Seconds to wait for an answer.
    """
    return {**action, "periodSeconds": period, "failureThreshold": failures, "timeoutSeconds": timeout}


def resources(given: ResourceRequirements | None, default: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    """``given`` in canonical form, or ``default`` where nothing is given."""
    return canonical_resources(default if given is None else given.dump())


def canonical_template(template: dict[str, Any]) -> None:
    """Write quantities and protocols of a pod template, in place, as an API server returns them.

    What is malformed is left alone: the server's own refusal of it says more than ours would.
    """
    spec = template.get("spec", {})
    for kind in ("containers", "initContainers"):
        for container in objects(spec.get(kind)):
            for port in objects(container.get("ports")):
                port.setdefault("protocol", "TCP")
            amounts = container.get("resources")
            if isinstance(amounts, dict):
                container["resources"] = {
                    key: _canonical_or_same(value)
                    if key in ("requests", "limits") and isinstance(value, dict)
                    else value
                    for key, value in amounts.items()
                }
    for volume in objects(spec.get("volumes")):
        empty = volume.get("emptyDir")
        if isinstance(empty, dict) and "sizeLimit" in empty:
            with contextlib.suppress(ValueError):
                empty["sizeLimit"] = canonical(empty["sizeLimit"])


def _canonical_or_same(amounts: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return canonical_amounts(amounts)
    except ValueError:
        return dict(amounts)
