"""The endpoints controller: who answers for a Service, as EndpointSlice and as Endpoints."""

from __future__ import annotations

import logging
from typing import Any

from agenthive_operator.local.client import ApiError
from agenthive_operator.local.controllers.base import Controller
from agenthive_operator.local.informer import Informers
from agenthive_operator.local.objects import (
    Key,
    is_deleting,
    is_finished,
    is_ready,
    key_of,
    labels_of,
    owner_reference,
    uid_of,
)
from agenthive_operator.local.resources import ENDPOINT_SLICES, ENDPOINTS, PODS, SERVICES, Obj

logger = logging.getLogger(__name__)

MANAGED_BY = "endpointslice-controller.k8s.io"


def selects(service: Obj, pod: Obj) -> bool:
    """Whether ``pod`` is behind ``service``; a Service without selector has no pods of its own."""
    selector = service["spec"].get("selector")
    return (
        bool(selector)
        and pod["metadata"]["namespace"] == service["metadata"]["namespace"]
        and selector.items() <= labels_of(pod).items()
    )


def target_port(port: Obj, pod: Obj) -> int | None:
    """The number a Service port has in ``pod``; None when the pod has no port of that name."""
    target = port.get("targetPort", port["port"])
    if isinstance(target, int):
        return target
    for container in pod["spec"]["containers"]:
        for candidate in container.get("ports") or []:
            if candidate.get("name") == target and candidate.get("protocol", "TCP") == port.get("protocol", "TCP"):
                return int(candidate["containerPort"])
    return None


def _ports(service: Obj, pod: Obj) -> tuple[tuple[str, str, int], ...]:
    """(name, protocol, number) of each Service port in ``pod``."""
    resolved = []
    for port in service["spec"].get("ports") or []:
        number = target_port(port, pod)
        if number is not None:
            resolved.append((port.get("name", ""), port.get("protocol", "TCP"), number))
    return tuple(resolved)


def _members(service: Obj, pods: list[Obj]) -> list[Obj]:
    """The pods that have an address, in an order that stays the same."""
    members = [
        pod for pod in pods if selects(service, pod) and (pod.get("status") or {}).get("podIP") and not is_finished(pod)
    ]
    return sorted(members, key=key_of)


def _target(pod: Obj) -> Obj:
    namespace, name = key_of(pod)
    return {"kind": "Pod", "namespace": namespace, "name": name, "uid": uid_of(pod)}


def _hostname(service: Obj, pod: Obj) -> str | None:
    """The pod's own name below the Service's, for pods that asked for it (those of a StatefulSet)."""
    spec = pod["spec"]
    return (
        str(spec["hostname"]) if spec.get("hostname") and spec.get("subdomain") == service["metadata"]["name"] else None
    )


def endpoint_slices(service: Obj, pods: list[Obj]) -> list[Obj]:
    """The EndpointSlices of a Service: one for each set of port numbers among its pods."""
    groups: dict[tuple[tuple[str, str, int], ...], list[Obj]] = {}
    for pod in _members(service, pods):
        groups.setdefault(_ports(service, pod), []).append(_endpoint(service, pod))
    if not groups:
        groups[()] = []
    namespace, name = key_of(service)
    return [
        {
            "apiVersion": ENDPOINT_SLICES.api_version,
            "kind": "EndpointSlice",
            "metadata": {
                "name": f"{name}-{index}",
                "namespace": namespace,
                "labels": labels_of(service)
                | {"kubernetes.io/service-name": name, "endpointslice.kubernetes.io/managed-by": MANAGED_BY},
                "ownerReferences": [owner_reference(service, SERVICES)],
            },
            "addressType": "IPv4",
            "endpoints": groups[ports],
            "ports": [{"name": n, "protocol": protocol, "port": number} for n, protocol, number in ports],
        }
        for index, ports in enumerate(sorted(groups))
    ]


def _endpoint(service: Obj, pod: Obj) -> Obj:
    serving, terminating = is_ready(pod), is_deleting(pod)
    published = service["spec"].get("publishNotReadyAddresses", False)
    endpoint: Obj = {
        "addresses": [pod["status"]["podIP"]],
        "conditions": {
            "ready": published or (serving and not terminating),
            "serving": serving,
            "terminating": terminating,
        },
        "targetRef": _target(pod),
        "nodeName": pod["spec"].get("nodeName"),
    }
    if (hostname := _hostname(service, pod)) is not None:
        endpoint["hostname"] = hostname
    return endpoint


def endpoints(service: Obj, pods: list[Obj]) -> Obj:
    """The Endpoints object of a Service: ready addresses apart from those that are not."""
    subsets: dict[tuple[tuple[str, str, int], ...], dict[str, list[Obj]]] = {}
    published = service["spec"].get("publishNotReadyAddresses", False)
    for pod in _members(service, pods):
        address: Obj = {
            "ip": pod["status"]["podIP"],
            "nodeName": pod["spec"].get("nodeName"),
            "targetRef": _target(pod),
        }
        if (hostname := _hostname(service, pod)) is not None:
            address["hostname"] = hostname
        if is_deleting(pod) and not published:
            continue
        side = "addresses" if published or is_ready(pod) else "notReadyAddresses"
        subsets.setdefault(_ports(service, pod), {}).setdefault(side, []).append(address)
    namespace, name = key_of(service)
    document: Obj = {
        "apiVersion": "v1",
        "kind": "Endpoints",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "labels": labels_of(service),
            "ownerReferences": [owner_reference(service, SERVICES)],
        },
    }
    if subsets:
        document["subsets"] = [
            {**sides, "ports": [{"name": n, "protocol": protocol, "port": number} for n, protocol, number in ports]}
            for ports, sides in sorted(subsets.items())
        ]
    return document


class EndpointsController(Controller):
    """Services and their pods → EndpointSlices and Endpoints."""

    resource = SERVICES

    def __init__(self, informers: Informers, *, workers: int = 4) -> None:
        super().__init__(informers, workers=workers)
        self.pods = informers.of(PODS)
        self.slices = informers.of(ENDPOINT_SLICES)
        self.endpoints = informers.of(ENDPOINTS)
        self.pods.on_change(self._pod_changed)
        # A real API server refuses addresses of 127/8 in both; a pod's address it takes.
        self._refused = False
        self.follow_children(ENDPOINT_SLICES)
        self.follow_children(ENDPOINTS)

    def _pod_changed(self, old: Obj | None, new: Obj | None) -> None:
        for service in self.objects:
            if any(pod is not None and selects(service, pod) for pod in (old, new)):
                self.queue.add(key_of(service))

    async def reconcile(self, key: Key) -> float | None:
        """Write what differs, delete what is too much."""
        service = self.objects.get(*key)
        if service is None or is_deleting(service) or not service["spec"].get("selector"):
            return None  # what a deleted Service leaves is the garbage collector's
        try:
            await self._write_all(service)
        except ApiError as error:
            if error.status != 422 or "loopback" not in error.message:
                raise
            if not self._refused:
                logger.warning("the API server takes no loopback addresses: Services have no endpoints in it")
            self._refused = True
        return None

    async def _write_all(self, service: Obj) -> None:
        namespace, name = key_of(service)
        pods = list(self.pods)
        wanted = {each["metadata"]["name"]: each for each in endpoint_slices(service, pods)}
        for old in self.slices.owned_by(service):
            if old["metadata"]["name"] not in wanted:
                await self.delete(ENDPOINT_SLICES, old)
        for each_name, each in wanted.items():
            await self._write(ENDPOINT_SLICES, self.slices.get(namespace, each_name), each, ("endpoints", "ports"))
        await self._write(ENDPOINTS, self.endpoints.get(namespace, name), endpoints(service, pods), ("subsets",))

    async def _write(self, resource: Any, old: Obj | None, new: Obj, fields: tuple[str, ...]) -> None:
        if old is None:
            try:
                await self.create(resource, new)
                return
            except ApiError as error:
                if error.status != 409:
                    raise
            old = await self.client.get(resource, new["metadata"]["namespace"], new["metadata"]["name"])
        change: Obj = {name: new.get(name) for name in fields if (old.get(name) or []) != (new.get(name) or [])}
        labels = new["metadata"]["labels"]
        if not labels.items() <= labels_of(old).items():
            change["metadata"] = {"labels": labels}
        if change:
            await self.patch(resource, old, change)
