"""Roles of the operator, and an account that has just those."""

from __future__ import annotations

from typing import Any

RBAC = "rbac.authorization.k8s.io"


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
