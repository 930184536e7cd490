"""Service names to addresses, for an operator (or a person) outside of the cluster's DNS.

``redis://demo-redis.default.svc:6379/0`` becomes ``redis://127.0.0.5:6379/0``: the address of a ready endpoint, read
from the API. Where pods live on loopback addresses, as in the local mode, a real API server refuses EndpointSlices
for them; then the ready pods that the Service selects are asked. Inside a cluster nothing is resolved here: DNS does
it.
"""

from __future__ import annotations

from typing import Any, Final
from urllib.parse import urlsplit, urlunsplit

from agenthive.urls import split_url
from agenthive_operator.backends.kube import ENDPOINT_SLICE, POD, SERVICE, Kube

SUFFIXES: Final = (".svc", ".svc.cluster.local")
SERVICE_LABEL: Final = "kubernetes.io/service-name"


class NoEndpointError(LookupError):
    """The Service has no ready endpoint (yet)."""


class Resolver:
    """Turns URLs with Service names into URLs with addresses; passes others, and all when disabled."""

    def __init__(self, kube: Kube, *, enabled: bool) -> None:
        self._kube = kube
        self._enabled = enabled

    async def resolve(self, url: str) -> str:
        """``url`` with an address in place of a Service name.

        Raises ``NoEndpointError`` when the Service has no ready endpoint, ``ApiError`` when the API cannot be asked.
        """
        if not self._enabled:
            return url
        parts = split_url(url, "the URL")
        login, at, hosts = parts.netloc.rpartition("@")
        found = [await self._resolve_host(host) for host in hosts.split(",")]
        return urlunsplit(parts._replace(netloc=login + at + ",".join(found)))

    async def _resolve_host(self, host: str) -> str:
        """``host:port`` with an address in place of a Service name."""
        service = service_of(f"//{host}")
        if service is None:
            return host
        name, namespace = service
        # rbac: discovery.k8s.io/endpointslices list
        slices, _ = await self._kube.list(ENDPOINT_SLICE, namespace, labels=f"{SERVICE_LABEL}={name}")
        found = ready_endpoint(slices) or await self._ready_pod(name, namespace)
        if found is None:
            raise NoEndpointError(f"Service {namespace}/{name} has no ready endpoint")
        return urlsplit(with_address(f"//{host}", *found)).netloc

    async def _ready_pod(self, name: str, namespace: str) -> tuple[str, None] | None:
        # rbac: core/services get
        # rbac: core/pods list
        service = await self._kube.get(SERVICE, namespace, name)
        selector = (service or {}).get("spec", {}).get("selector")
        if not selector:
            return None
        labels = ",".join(f"{key}={value}" for key, value in sorted(selector.items()))
        pods, _ = await self._kube.list(POD, namespace, labels=labels)
        address = ready_address(pods)
        return (address, None) if address else None


def service_of(url: str) -> tuple[str, str] | None:
    """(name, namespace) of the Service that the URL's host names; None for any other host. Pure.

    Raises ``ValueError`` for what is no URL; the text repeats nothing of it.
    """
    host = (split_url(url, "the URL").hostname or "").rstrip(".")
    for suffix in SUFFIXES:
        name, _, namespace = host.removesuffix(suffix).partition(".")
        if host.endswith(suffix) and name and namespace and "." not in namespace:
            return name, namespace
    return None


def ready_endpoint(slices: list[dict[str, Any]]) -> tuple[str, int | None] | None:
    """Address and, where the slice has exactly one, port of a ready endpoint. Pure."""
    for entry in slices:
        ports = entry.get("ports") or []
        port = ports[0].get("port") if len(ports) == 1 else None
        for endpoint in entry.get("endpoints") or ():
            ready = (endpoint.get("conditions") or {}).get("ready")
            if ready is not False and endpoint.get("addresses"):
                return str(endpoint["addresses"][0]), port
    return None


def ready_address(pods: list[dict[str, Any]]) -> str | None:
    """The address of a pod that is ready and not on its way out. Pure."""
    for pod in pods:
        status = pod.get("status") or {}
        ready = any(entry["type"] == "Ready" and entry["status"] == "True" for entry in status.get("conditions") or ())
        if ready and status.get("podIP") and not pod["metadata"].get("deletionTimestamp"):
            return str(status["podIP"])
    return None


def with_address(url: str, address: str, port: int | None) -> str:
    """``url`` with another host, and another port if one is given. Pure."""
    parts = urlsplit(url)
    login, at, _ = parts.netloc.rpartition("@")
    host = f"[{address}]" if ":" in address else address
    number = port if port is not None else parts.port
    netloc = f"{login}{at}{host}" + (f":{number}" if number is not None else "")
    return urlunsplit(parts._replace(netloc=netloc))
