"""What the server does besides storing: namespaces, custom kinds, Service addresses, consequences of deletion."""

from __future__ import annotations

import ipaddress
import logging
from collections import Counter
from typing import Any

from . import crds, errors
from .decode import now
from .errors import FieldError, Json
from .kinds import Kind, Registry
from .store import Entry, Key, Store

log = logging.getLogger(__name__)

SERVICE_NETWORK = ipaddress.ip_network("10.96.0.0/16")
_PROTECTED = ("default", "kube-system", "kube-public", "kube-node-lease")
CRD_FINALIZER = "customresourcecleanup.apiextensions.k8s.io"


class Admission:
    """Keeps what depends on more than one object.

    Args:
        store: The state; its objects are counted and its CRDs registered at once.
        registry: Where custom kinds are registered.
    """

    def __init__(self, store: Store, registry: Registry) -> None:
        self.store = store
        self.registry = registry
        self.population: Counter[str] = Counter()
        self._service_ips: set[str] = set()
        self._next_ip = 10
        for entry in store.resource("customresourcedefinitions.apiextensions.k8s.io").objects.values():
            self._register(entry.obj)
        for table in store.resources.values():
            for namespace, _ in table.objects:
                self.population[namespace] += 1
        for entry in store.resource("services").objects.values():
            self._service_ips.add(entry.obj.get("spec", {}).get("clusterIP", ""))

    def bootstrap(self) -> None:
        """Make what every cluster has: the namespaces, and the Service `kubernetes` is left to the local mode."""
        for name in _PROTECTED:
            if self.store.get("namespaces", ("", name)) is None:
                obj = {
                    "apiVersion": "v1", "kind": "Namespace",
                    "metadata": {
                        "name": name, "uid": crds.new_uid(), "creationTimestamp": now(),
                        "labels": {"kubernetes.io/metadata.name": name},
                    },
                    "spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Active"},
                }  # fmt: skip
                kind = self.registry.find("", "v1", "namespaces")
                assert kind is not None
                self.stored(kind, self.store.put("namespaces", ("", name), obj))

    def namespace_accepts(self, kind: Kind, key: Key) -> None:
        """Check that something can be created in the namespace.

        Raises:
            ApiError: 404 for a namespace that is not there, 403 for one that is going.
        """
        if not kind.namespaced:
            return
        entry = self.store.get("namespaces", ("", key[0]))
        if entry is None:
            raise errors.not_found("", "namespaces", key[0])
        if "deletionTimestamp" in entry.obj["metadata"]:
            why = f"unable to create new content in namespace {key[0]} because it is being terminated"
            text = f"namespace {key[0]} is being terminated"
            cause = {"reason": "NamespaceTerminating", "message": text, "field": "metadata.namespace"}
            raise errors.forbidden(kind.group, kind.plural, key[1], why, [cause])

    def may_delete(self, kind: Kind, key: Key) -> None:
        """Refuse to delete what a cluster cannot be without.

        Raises:
            ApiError: 403.
        """
        if kind.resource == "namespaces" and key[1] in _PROTECTED[:2]:
            raise errors.forbidden("", "namespaces", key[1], "this namespace may not be deleted")

    def service_address(self, obj: Json, old: Json | None) -> FieldError | None:
        """Fill in ``spec.clusterIP``; returns what is wrong with the one asked for."""
        spec = obj["spec"]
        before = (old or {}).get("spec", {}).get("clusterIP", "")
        if spec.get("type") == "ExternalName":
            return None
        wanted = spec.get("clusterIP") or before
        if not wanted:
            wanted = self._free_address()
        elif wanted not in ("None", before):
            try:
                inside = ipaddress.ip_address(wanted) in SERVICE_NETWORK
            except ValueError:
                inside = False
            if not inside or wanted in self._service_ips:
                why = "provided IP is already allocated" if inside else f"must be a free address of {SERVICE_NETWORK}"
                return errors.invalid("spec.clusterIPs", [wanted], f"failed to allocate IP {wanted}: {why}")
        spec["clusterIP"] = wanted
        spec["clusterIPs"] = [wanted]
        return None

    def _free_address(self) -> str:
        for _ in range(SERVICE_NETWORK.num_addresses):
            self._next_ip = self._next_ip % (SERVICE_NETWORK.num_addresses - 2) + 1
            address = str(SERVICE_NETWORK[self._next_ip])
            if address not in self._service_ips:
                return address
        raise errors.internal(f"every address of {SERVICE_NETWORK} is taken")

    def stored(self, kind: Kind, entry: Entry) -> None:
        """What follows from an object's new version."""
        obj = entry.obj
        meta = obj["metadata"]
        if int(meta["resourceVersion"]) == entry.version and self._is_new(kind, entry):
            self.population[meta.get("namespace", "")] += 1
        if kind.resource == "customresourcedefinitions.apiextensions.k8s.io":
            self._register(obj)
        elif kind.resource == "services":
            self._service_ips.add(obj["spec"].get("clusterIP", ""))
        elif kind.resource == "namespaces" and "deletionTimestamp" not in meta:
            self._default_account(meta["name"])

    def _is_new(self, kind: Kind, entry: Entry) -> bool:
        history = self.store.resource(kind.storage).history
        return bool(history) and history[-1].entry is entry and history[-1].previous is None

    def _default_account(self, namespace: str) -> None:
        key = (namespace, "default")
        if self.store.get("serviceaccounts", key) is not None:
            return
        kind = self.registry.find("", "v1", "serviceaccounts")
        assert kind is not None
        obj: dict[str, Any] = {
            "apiVersion": "v1", "kind": "ServiceAccount",
            "metadata": {
                "name": "default", "namespace": namespace, "uid": crds.new_uid(), "creationTimestamp": now()
            },
        }  # fmt: skip
        self.stored(kind, self.store.put("serviceaccounts", key, obj))

    def removed(self, kind: Kind, entry: Entry) -> Entry:
        """What follows from an object's end; returns its last state."""
        meta = entry.obj["metadata"]
        namespace = meta.get("namespace", "")
        self.population[namespace] -= 1
        if kind.resource == "services":
            self._service_ips.discard(entry.obj["spec"].get("clusterIP", ""))
        elif kind.resource == "customresourcedefinitions.apiextensions.k8s.io":
            self._unregister(entry.obj)
        elif kind.resource == "serviceaccounts" and meta["name"] == "default":
            owner = self.store.get("namespaces", ("", namespace))
            if owner is not None and "deletionTimestamp" not in owner.obj["metadata"]:
                self._default_account(namespace)
        if namespace and self.population[namespace] == 0:
            self._finish_namespace(namespace)
        if kind.custom:
            self._finish_crd(kind)
        return entry

    def _finish_namespace(self, namespace: str) -> None:
        """Remove a namespace that is being deleted once nothing is left in it."""
        kind = self.registry.find("", "v1", "namespaces")
        entry = self.store.get("namespaces", ("", namespace))
        assert kind is not None
        if entry is None or "deletionTimestamp" not in entry.obj["metadata"] or self.population[namespace] > 0:
            return
        if entry.obj["metadata"].get("finalizers"):
            return
        self.removed(kind, self.store.remove("namespaces", ("", namespace)))

    def _finish_crd(self, kind: Kind) -> None:
        definitions = self.registry.find("apiextensions.k8s.io", "v1", "customresourcedefinitions")
        assert definitions is not None
        key = ("", kind.resource)
        entry = self.store.get(definitions.storage, key)
        if entry is None or "deletionTimestamp" not in entry.obj["metadata"]:
            return
        if self.store.resource(kind.storage).objects:
            return
        rest = [name for name in entry.obj["metadata"].get("finalizers", ()) if name != CRD_FINALIZER]
        meta = {**entry.obj["metadata"], "finalizers": rest}
        self.store.put(definitions.storage, key, {**entry.obj, "metadata": meta})
        if not rest:
            self.removed(definitions, self.store.remove(definitions.storage, key))

    def finish_deletion(self, kind: Kind, key: Key) -> None:
        """Complete the deletion of a namespace or CRD that turned out to be empty."""
        if kind.resource == "namespaces":
            self._finish_namespace(key[1])
        else:
            for custom in self.registry.of_resource(*crds.resource_of(key[1])):
                self._finish_crd(custom)
                return

    def _register(self, obj: Json) -> None:
        served = crds.kinds_of(obj)
        group, plural = crds.resource_of(obj["metadata"]["name"])
        for kind in self.registry.of_resource(group, plural):
            if kind.version not in {new.version for new in served}:
                self.registry.remove(kind)
        for kind in served:
            self.registry.add(kind)

    def _unregister(self, obj: Json) -> None:
        group, plural = crds.resource_of(obj["metadata"]["name"])
        for kind in self.registry.of_resource(group, plural):
            self.registry.remove(kind)
            self.store.drop(kind.storage)
