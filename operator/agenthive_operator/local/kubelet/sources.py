"""What a container needs from the API before it starts: Secrets, ConfigMaps, claims, addresses of Services."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass

from agenthive_operator.local.client import ApiClient
from agenthive_operator.local.controllers.endpoints import endpoint_slices, selects
from agenthive_operator.local.informer import Informer, Informers
from agenthive_operator.local.kubelet.environment import ConfigError, Reference, Sources, data_of
from agenthive_operator.local.kubelet.rewrite import ServiceName, Target
from agenthive_operator.local.objects import Key, key_of, labels_of
from agenthive_operator.local.resources import (
    CLAIMS,
    CONFIG_MAPS,
    ENDPOINT_SLICES,
    PODS,
    SECRETS,
    SERVICES,
    Obj,
    Resource,
)

_RESOURCES: dict[str, Resource] = {"Secret": SECRETS, "ConfigMap": CONFIG_MAPS}


async def fetch(client: ApiClient, namespace: str, references: Iterable[Reference]) -> Sources:
    """The data of what is referred to, as it is this moment: a copy kept by a watch could lag behind the pod."""
    return {
        reference: data_of(await client.find(_RESOURCES[reference.kind], namespace, reference.name))
        for reference in references
    }


async def bound_claim(client: ApiClient, namespace: str, name: str) -> Obj:
    """A claim that has its volume.

    Raises:
        ConfigError: there is none, or it is not bound yet.
    """
    claim = await client.find(CLAIMS, namespace, name)
    if claim is None:
        raise ConfigError(f'persistentvolumeclaim "{name}" not found')
    if (claim.get("status") or {}).get("phase") != "Bound":
        raise ConfigError(f'persistentvolumeclaim "{name}" is not bound yet')
    return claim


@dataclass(frozen=True, slots=True)
class Resolution:
    """Services that were asked for: those with an address, and those that exist but have no ready one."""

    targets: dict[ServiceName, Target]
    waiting: list[ServiceName]


class Names:
    """Resolves Service names as cluster DNS does.

    From the pods themselves where a Service selects any: a real API server takes no loopback addresses in
    EndpointSlices.
    """

    def __init__(self, informers: Informers) -> None:
        self.services: Informer = informers.of(SERVICES)
        self.slices: Informer = informers.of(ENDPOINT_SLICES)
        self.pods: Informer = informers.of(PODS)
        self._changed = asyncio.Event()
        #: Endpoints by Service, until something changes: many containers that start together ask the same.
        self._known: dict[Key, list[Obj]] = {}
        for informer in (self.services, self.slices, self.pods):
            informer.on_change(self._wake)

    def _wake(self, old: Obj | None, new: Obj | None) -> None:
        self._known.clear()
        self._changed.set()
        self._changed = asyncio.Event()

    async def changed(self) -> None:
        """Wait for the next change of any Service or of who answers for it."""
        await self._changed.wait()

    def resolve(self, names: Iterable[ServiceName], pod: Obj) -> Resolution:
        """Addresses for ``pod``. A Service that selects the pod itself is not waited for: it cannot be ready before."""
        targets: dict[ServiceName, Target] = {}
        waiting = []
        for name in sorted(names, key=lambda each: (each.namespace, each.service, each.host or "")):
            service = self.services.get(name.namespace, name.service)
            if service is None:
                continue  # as in a cluster: the name does not resolve, and the program says so
            if service["spec"].get("externalName"):
                targets[name] = Target(service["spec"]["externalName"])
                continue
            ready, known = self._endpoints(service, name.host)
            if ready or known:
                targets[name] = (ready or known)[0]
            if not ready and not selects(service, pod):
                waiting.append(name)
        return Resolution(targets, waiting)

    def _endpoints(self, service: Obj, host: str | None) -> tuple[list[Target], list[Target]]:
        """(ready, all) endpoints, of one host name where one is asked for."""
        ready, known = [], []
        for each in self._slices_of(service):
            ports = _port_map(service, each)
            for endpoint in each.get("endpoints") or []:
                if host is not None and endpoint.get("hostname") != host:
                    continue
                target = Target(endpoint["addresses"][0], ports)
                known.append(target)
                if (endpoint.get("conditions") or {}).get("ready"):
                    ready.append(target)
        return ready, known

    def _slices_of(self, service: Obj) -> list[Obj]:
        key = key_of(service)
        if key not in self._known:
            if service["spec"].get("selector"):
                self._known[key] = endpoint_slices(service, list(self.pods))
            else:
                self._known[key] = [
                    each
                    for each in self.slices
                    if each["metadata"]["namespace"] == key[0]
                    and labels_of(each).get("kubernetes.io/service-name") == key[1]
                ]
        return self._known[key]


def _port_map(service: Obj, endpoint_slice: Obj) -> dict[int, int]:
    """Service port → port in the pod, where they differ. A headless Service is not translated, as in a cluster."""
    if service["spec"].get("clusterIP") == "None":
        return {}
    numbers = {port.get("name", ""): port["port"] for port in endpoint_slice.get("ports") or []}
    return {
        port["port"]: numbers[port.get("name", "")]
        for port in service["spec"].get("ports") or []
        if numbers.get(port.get("name", ""), port["port"]) != port["port"]
    }


def describe(names: Iterable[ServiceName]) -> str:
    """``demo-redis.default, demo-postgres.default``."""
    return ", ".join(f"{name.service}.{name.namespace}" for name in names)
