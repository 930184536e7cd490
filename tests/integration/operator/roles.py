"""The rights that the operator's code names beside what needs them, as Roles, and an account that has just those."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import agenthive_operator

MARKER = re.compile(r"# rbac: (?P<group>[\w.]+)/(?P<resources>[\w,/]+) (?P<verbs>[\w,]+)")
CLUSTER_WIDE = frozenset({"namespaces", "customresourcedefinitions"})
RBAC = "rbac.authorization.k8s.io"


def marked_rules(*, leases: bool) -> list[dict[str, Any]]:
    """The rules of a Role: those for the Lease, or all others. What is cluster-wide is left out."""
    rights: dict[tuple[str, str], set[str]] = {}
    root = Path(agenthive_operator.__file__).parent
    for file in root.rglob("*.py"):
        if "local" in file.relative_to(root).parts:
            continue  # the control plane on a laptop, which no Role binds
        for found in MARKER.finditer(file.read_text()):
            group = "" if found["group"] == "core" else found["group"]
            for resource in found["resources"].split(","):
                if resource not in CLUSTER_WIDE and (resource == "leases") is leases:
                    rights.setdefault((group, resource), set()).update(found["verbs"].split(","))
    return [
        {"apiGroups": [group], "resources": [resource], "verbs": sorted(verbs)}
        for (group, resource), verbs in sorted(rights.items())
    ]


def account(namespace: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "operator", "namespace": namespace}}


def role_and_binding(namespace: str, name: str, rules: list[dict[str, Any]], of: str) -> list[dict[str, Any]]:
    """A Role in a namespace for the account in the namespace ``of``."""
    metadata = {"name": name, "namespace": namespace}
    return [
        {"apiVersion": f"{RBAC}/v1", "kind": "Role", "metadata": metadata, "rules": rules},
        {
            "apiVersion": f"{RBAC}/v1", "kind": "RoleBinding", "metadata": metadata,
            "roleRef": {"apiGroup": RBAC, "kind": "Role", "name": name},
            "subjects": [{"kind": "ServiceAccount", "name": "operator", "namespace": of}],
        },
    ]  # fmt: skip
