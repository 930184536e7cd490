"""A pod's own way to the API: a kubeconfig with its service account's token.

In a cluster the token is a file of a fixed path, which a process of this machine cannot have for itself. No admission
fills in what a pod leaves out here: a pod gets a token that says ``automountServiceAccountToken: true`` itself.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import yaml

from agenthive_operator.local.client import ApiClient
from agenthive_operator.local.resources import SERVICE_ACCOUNTS, Obj

TOKEN_SECONDS: Final = 365 * 24 * 3600
"""Nobody renews it: it has to last as long as a pod of local mode may run."""


def wants_access(pod: Obj) -> bool:
    """Whether a pod is to be given its account's token. Pure."""
    return pod["spec"].get("automountServiceAccountToken") is True


async def token_of(client: ApiClient, pod: Obj) -> str:
    """A token of the pod's account. Raises ``ApiError`` where there is no such account."""
    account = pod["spec"].get("serviceAccountName") or "default"
    path = SERVICE_ACCOUNTS.path(pod["metadata"]["namespace"], account, "token")
    asked = {
        "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": TOKEN_SECONDS}
    }  # fmt: skip
    answer = await client.request("POST", path, body=asked)
    return str(answer["status"]["token"])


def write_kubeconfig(source: Path, target: Path, token: str) -> None:
    """Write the kubeconfig ``source`` as ``target``, with ``token`` in place of its user's."""
    document = yaml.safe_load(source.read_text())
    for user in document["users"]:
        user["user"] = {"token": token}
    target.parent.mkdir(parents=True, exist_ok=True, mode=0o711)
    target.touch(mode=0o600)
    target.write_text(yaml.safe_dump(document))
