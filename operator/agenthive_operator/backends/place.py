"""Where the operator itself runs, as far as NetworkPolicies have to know."""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path
from typing import Final

from agenthive_operator.backends.configuration import kubeconfig_path
from agenthive_operator.plan.inputs import OperatorPlace

NAMESPACE_FILE: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
RESOLV_CONF: Final = Path("/etc/resolv.conf")


def operator_place(namespace_file: Path = NAMESPACE_FILE, resolv_conf: Path = RESOLV_CONF) -> OperatorPlace:
    """The namespace of the operator's pod (POD_NAMESPACE, else its service account's) and its DNS servers.

    Nothing is known where a kubeconfig leads to the cluster: this process need not be a pod of that one.
    """
    if kubeconfig_path():
        return OperatorPlace()
    namespace = os.environ.get("POD_NAMESPACE", "").strip() or _text(namespace_file).strip()
    return OperatorPlace(namespace, nameservers_in(_text(resolv_conf))) if namespace else OperatorPlace()


def nameservers_in(text: str) -> tuple[str, ...]:
    """The addresses of the nameservers in the text of a resolv.conf that a pod can reach over the network."""
    words = (line.split() for line in text.splitlines())
    named = [word[1] for word in words if len(word) > 1 and word[0] == "nameserver"]
    return tuple(address for address in named if _is_remote(address))


def _is_remote(address: str) -> bool:
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return False
    return not found.is_loopback and "%" not in address


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""
