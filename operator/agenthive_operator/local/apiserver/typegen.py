"""Write ``builtin_types.json``: the fields of the built-in kinds, taken from the kubernetes client's models.

``python -m agenthive_operator.local.apiserver.typegen`` rewrites the file; a test fails when it differs. The table
spares the server the import of the client (half a second and 46 MiB).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import orjson

TARGET = Path(__file__).with_name("builtin_types.json")

# Model of each kind the server knows; those of the events group differ from the core group's.
ROOTS = (
    "V1Pod", "V1Service", "V1Endpoints", "V1Secret", "V1ConfigMap", "V1ServiceAccount", "V1PersistentVolumeClaim",
    "V1PersistentVolume", "V1Node", "V1Namespace", "CoreV1Event", "EventsV1Event", "V1Deployment", "V1ReplicaSet",
    "V1StatefulSet", "V1DaemonSet", "V1Job", "V1ControllerRevision", "V1Lease", "V1PodDisruptionBudget",
    "V1NetworkPolicy", "V1Role", "V1RoleBinding", "V1ClusterRole", "V1ClusterRoleBinding", "V1EndpointSlice",
    "V1StorageClass", "V1PriorityClass", "V1ResourceQuota", "V1LimitRange", "V1Scale", "V1CustomResourceDefinition",
)  # fmt: skip

# A CRD's schema is recursive and read by its own module.
OPAQUE = {"V1JSONSchemaProps"}


def table() -> dict[str, dict[str, str]]:
    """Fields of every model reachable from the roots: ``{model: {jsonName: type}}``, ``!`` marks required ones."""
    from kubernetes.client import models  # noqa: PLC0415  heavy, and only this program needs it

    found: dict[str, dict[str, str]] = {}

    def visit(name: str) -> None:
        if name in found or name in OPAQUE:
            return
        model: Any = getattr(models, name)
        types, names = dict(model.openapi_types), dict(model.attribute_map)
        must = {field.alias or attribute for attribute, field in model.model_fields.items() if field.is_required()}
        found[name] = {}
        for attribute, declared in types.items():
            field = names[attribute]
            found[name][field] = declared + ("!" if field in must else "")
            for part in re.findall(r"\w+", declared):
                if re.match(r"[A-Za-z]*V\d", part):
                    visit(part)

    for root in ROOTS:
        visit(root)
    return found


def render() -> bytes:
    """The file's content."""
    return orjson.dumps(table(), option=orjson.OPT_SORT_KEYS) + b"\n"


if __name__ == "__main__":
    TARGET.write_bytes(render())
