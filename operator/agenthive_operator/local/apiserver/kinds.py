"""The kinds the server knows: the built-in ones as one table, custom ones as their CRDs come and go."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from .builtin_types import builtin_type
from .errors import Json, resource_name
from .typing_tree import Node

if TYPE_CHECKING:
    from .structural import Schema

Conversion = Callable[[Json], Json]


@dataclass(frozen=True)
class Scale:
    """Where a kind keeps what its scale subresource shows: dotted paths without the leading dot."""

    spec: str
    status: str
    selector: str | None


@dataclass(frozen=True)
class Column:
    """A printer column of a custom resource."""

    name: str
    type: str
    path: str
    priority: int = 0
    format: str = ""
    description: str = ""


@dataclass(frozen=True, eq=False)
class Kind:
    """One version of one resource.

    Attributes:
        group: API group, empty for the core group.
        has_status: There is a status subresource, and the main endpoint leaves status alone.
        generation: ``metadata.generation`` counts changes of what is neither metadata nor status.
        model: Of a built-in kind, its name in the generated table of types.
        schema: Of a custom kind, its schema.
        stored_as: Resource that holds the objects, where two groups show the same ones.
        to_storage: Turns an object of this version into the stored form.
        from_storage: The way back.
        selectable: Fields a CRD allows field selectors on.
        verbs: What can be done with it.
    """

    group: str
    version: str
    kind: str
    plural: str
    namespaced: bool = True
    singular: str = ""
    short_names: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    has_status: bool = False
    scale: Scale | None = None
    generation: bool = False
    model: str = ""
    schema: Schema | None = None
    schema_json: Json | None = None
    columns: tuple[Column, ...] = ()
    stored_as: str = ""
    to_storage: Conversion | None = None
    from_storage: Conversion | None = None
    selectable: frozenset[str] = frozenset()
    list_kind_name: str = ""

    @cached_property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    @cached_property
    def resource(self) -> str:
        """``agents.agenthive.dev``: the name of the resource, whatever the version."""
        return resource_name(self.group, self.plural)

    @cached_property
    def storage(self) -> str:
        """The resource in the store."""
        return self.stored_as or self.resource

    @cached_property
    def node(self) -> Node:
        """The type of its objects."""
        if self.schema is not None:
            return self.schema.node
        return builtin_type(self.group, self.kind, self.model)

    @property
    def custom(self) -> bool:
        return self.schema is not None

    @cached_property
    def list_kind(self) -> str:
        return self.list_kind_name or f"{self.kind}List"

    @cached_property
    def singular_name(self) -> str:
        return self.singular or self.kind.lower()

    @cached_property
    def subresources(self) -> tuple[str, ...]:
        found = ["status"] if self.has_status else []
        if self.scale is not None:
            found.append("scale")
        if self.resource == "pods":
            found += ["exec", "log"]
        if self.resource == "serviceaccounts":
            found.append("token")
        return tuple(found)


def event_to_core(event: Json) -> Json:
    """An Event of events.k8s.io in the form of the core group, in which both are stored."""
    found = dict(event) | {"apiVersion": "v1"}
    for new, old in _EVENT_FIELDS.items():
        if new in found:
            found[old] = found.pop(new)
    return found


def event_from_core(event: Json) -> Json:
    """The way back."""
    found = dict(event) | {"apiVersion": "events.k8s.io/v1"}
    for new, old in _EVENT_FIELDS.items():
        if old in found:
            found[new] = found.pop(old)
    return found


_EVENT_FIELDS = {
    "regarding": "involvedObject", "note": "message", "reportingController": "reportingComponent",
    "deprecatedSource": "source", "deprecatedFirstTimestamp": "firstTimestamp",
    "deprecatedLastTimestamp": "lastTimestamp", "deprecatedCount": "count",
}  # fmt: skip

_REPLICAS = Scale("spec.replicas", "status.replicas", "status.selector")


def _core(kind: str, plural: str, *short: str, **more: object) -> Kind:
    return Kind("", "v1", kind, plural, short_names=short, model=f"V1{kind}", **more)  # type: ignore[arg-type]


def _apps(kind: str, plural: str, short: str, *, scale: bool = True) -> Kind:
    return Kind(
        "apps", "v1", kind, plural, short_names=(short,), categories=("all",), model=f"V1{kind}", has_status=True,
        generation=True, scale=_REPLICAS if scale else None,
    )  # fmt: skip


_RBAC = "rbac.authorization.k8s.io"

BUILTIN: tuple[Kind, ...] = (
    _core("Namespace", "namespaces", "ns", namespaced=False, has_status=True),
    _core("Node", "nodes", "no", namespaced=False, has_status=True),
    _core("PersistentVolume", "persistentvolumes", "pv", namespaced=False, has_status=True),
    _core("Pod", "pods", "po", categories=("all",), has_status=True, generation=True),
    _core("Service", "services", "svc", categories=("all",), has_status=True),
    _core("Endpoints", "endpoints", "ep"),
    _core("Secret", "secrets"),
    _core("ConfigMap", "configmaps", "cm"),
    _core("ServiceAccount", "serviceaccounts", "sa"),
    _core("PersistentVolumeClaim", "persistentvolumeclaims", "pvc", has_status=True),
    Kind("", "v1", "Event", "events", short_names=("ev",), model="CoreV1Event"),
    Kind(
        "events.k8s.io", "v1", "Event", "events", short_names=("ev",), model="EventsV1Event", stored_as="events",
        to_storage=event_to_core, from_storage=event_from_core,
    ),
    _apps("Deployment", "deployments", "deploy"),
    _apps("ReplicaSet", "replicasets", "rs"),
    _apps("StatefulSet", "statefulsets", "sts"),
    _apps("DaemonSet", "daemonsets", "ds", scale=False),
    Kind("apps", "v1", "ControllerRevision", "controllerrevisions", model="V1ControllerRevision"),
    Kind(
        "batch", "v1", "Job", "jobs", categories=("all",), has_status=True, generation=True, model="V1Job",
    ),
    Kind("coordination.k8s.io", "v1", "Lease", "leases", model="V1Lease"),
    Kind("discovery.k8s.io", "v1", "EndpointSlice", "endpointslices", model="V1EndpointSlice", generation=True),
    Kind(
        "policy", "v1", "PodDisruptionBudget", "poddisruptionbudgets", short_names=("pdb",), has_status=True,
        generation=True, model="V1PodDisruptionBudget",
    ),
    Kind(
        "networking.k8s.io", "v1", "NetworkPolicy", "networkpolicies", short_names=("netpol",), generation=True,
        model="V1NetworkPolicy",
    ),
    Kind(_RBAC, "v1", "Role", "roles", model="V1Role"),
    Kind(_RBAC, "v1", "RoleBinding", "rolebindings", model="V1RoleBinding"),
    Kind(_RBAC, "v1", "ClusterRole", "clusterroles", namespaced=False, model="V1ClusterRole"),
    Kind(_RBAC, "v1", "ClusterRoleBinding", "clusterrolebindings", namespaced=False, model="V1ClusterRoleBinding"),
    Kind(
        "storage.k8s.io", "v1", "StorageClass", "storageclasses", namespaced=False, short_names=("sc",),
        model="V1StorageClass",
    ),
    Kind(
        "scheduling.k8s.io", "v1", "PriorityClass", "priorityclasses", namespaced=False, short_names=("pc",),
        model="V1PriorityClass", generation=True,
    ),
    Kind(
        "apiextensions.k8s.io", "v1", "CustomResourceDefinition", "customresourcedefinitions", namespaced=False,
        short_names=("crd", "crds"), categories=("api-extensions",), has_status=True, generation=True,
        model="V1CustomResourceDefinition",
    ),
)  # fmt: skip


class Registry:
    """Every kind that is served at the moment."""

    def __init__(self) -> None:
        self._kinds: dict[tuple[str, str, str], Kind] = {}
        self.changes = 0
        for kind in BUILTIN:
            self.add(kind)

    def add(self, kind: Kind) -> None:
        """Serve ``kind``, instead of an earlier one of the same group, version and plural."""
        self._kinds[kind.group, kind.version, kind.plural] = kind
        self.changes += 1

    def remove(self, kind: Kind) -> None:
        self._kinds.pop((kind.group, kind.version, kind.plural), None)
        self.changes += 1

    def find(self, group: str, version: str, plural: str) -> Kind | None:
        return self._kinds.get((group, version, plural))

    def __iter__(self) -> Iterator[Kind]:
        return iter(list(self._kinds.values()))

    def of_resource(self, group: str, plural: str) -> list[Kind]:
        """Every served version of a resource."""
        return [kind for kind in self if (kind.group, kind.plural) == (group, plural)]

    def stored(self) -> dict[str, Kind]:
        """One kind for each resource in the store: the one whose form is stored."""
        return {kind.storage: kind for kind in reversed(list(self)) if not kind.stored_as}

    def versions(self) -> dict[str, list[str]]:
        """Groups and their versions, in the order they are served."""
        found: dict[str, list[str]] = {}
        for kind in self:
            versions = found.setdefault(kind.group, [])
            if kind.version not in versions:
                versions.append(kind.version)
        return found
