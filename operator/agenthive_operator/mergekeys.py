"""How lists and maps of the built-in kinds merge, as Kubernetes' own OpenAPI says (1.36).

One table for three users: the merge of ``spec.podTemplate`` into an agent's pod template, and the strategic merge patch
and server-side apply of the embedded API server. The two patch formats do not always agree: the ports of a container
merge by ``containerPort`` in a strategic merge patch, and by ``containerPort`` and ``protocol`` in server-side apply.

A path holds the field names from the root of the object; list items and map keys add nothing to it:
``("spec", "template", "spec", "containers", "env")``. What the table does not name is a list that is
replaced as a whole or an object that merges field by field.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

Path = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class MergeRule:
    """How the value of one field merges.

    Attributes:
        topology: Server-side apply: ``map`` (list of objects owned item by item), ``set`` (list of scalars owned item
            by item), ``atomic`` (list or object owned as a whole), ``granular`` (object owned field by field).
        keys: Server-side apply: the fields that together identify an item of a ``map`` list.
        key_defaults: Value of a key field that an item leaves out.
        patch_key: Strategic merge patch: the field that identifies an item; None where the list is not merged by key.
        patch_merge: Strategic merge patch: the list is merged and not replaced.
        retain_keys: Strategic merge patch: the object, or each item, accepts ``$retainKeys``.
    """

    topology: Literal["map", "set", "atomic", "granular"]
    keys: Path = ()
    key_defaults: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    patch_key: str | None = None
    patch_merge: bool = False
    retain_keys: bool = False

    def identity(self, item: Mapping[str, object]) -> tuple[object, ...]:
        """The key of ``item`` in a ``map`` list, defaults filled in.

        Raises:
            KeyError: The item lacks a key field that has no default; the argument is the field's name.
        """
        return tuple(item[key] if key in item else self.key_defaults[key] for key in self.keys)


Table = Mapping[Path, MergeRule]

ATOMIC = MergeRule("atomic")
MERGED_SET = MergeRule("set", patch_merge=True)


def keyed(key: str, *more: str, retain_keys: bool = False, **defaults: str) -> MergeRule:
    """A list of objects known by ``key`` in strategic merge patches, and by ``key`` and ``more`` in apply."""
    return MergeRule(
        "map", (key, *more), MappingProxyType(defaults), patch_key=key, patch_merge=True, retain_keys=retain_keys
    )


def under(prefix: str | Path, table: Table) -> dict[Path, MergeRule]:
    """``table`` with every path moved below ``prefix`` (``"spec.template"`` or a tuple)."""
    start = tuple(prefix.split(".")) if isinstance(prefix, str) else prefix
    return {start + path: rule for path, rule in table.items()}


def rules(rule: MergeRule, paths: Iterable[str]) -> dict[Path, MergeRule]:
    """The same ``rule`` for each dotted path."""
    return {tuple(path.split(".")): rule for path in paths}


CONDITIONS: Table = {("conditions",): keyed("type")}
# Objects that Kubernetes owns as a whole in apply, although strategic merge patches merge into them.
SELECTOR: Table = {("selector",): ATOMIC}

METADATA: Table = {
    ("finalizers",): MERGED_SET,
    ("ownerReferences",): keyed("uid"),
    ("managedFields",): ATOMIC,
}

ENV: Table = {
    (): keyed("name"),
    **rules(
        ATOMIC,
        (
            "valueFrom.configMapKeyRef",
            "valueFrom.secretKeyRef",
            "valueFrom.fieldRef",
            "valueFrom.resourceFieldRef",
            "valueFrom.fileKeyRef",
        ),
    ),
}

CONTAINER: Table = {
    ("ports",): keyed("containerPort", "protocol", protocol="TCP"),
    **under("env", ENV),
    ("volumeMounts",): keyed("mountPath"),
    ("volumeDevices",): keyed("devicePath"),
    ("resources", "claims"): MergeRule("map", ("name",)),
}

POD_SPEC: Table = {
    **{(name,): keyed("name") for name in ("containers", "initContainers", "ephemeralContainers")},
    **under("containers", CONTAINER),
    **under("initContainers", CONTAINER),
    **under("ephemeralContainers", CONTAINER),
    ("volumes",): keyed("name", retain_keys=True),
    **rules(
        ATOMIC,
        (
            "volumes.ephemeral.volumeClaimTemplate.spec.selector",
            "volumes.ephemeral.volumeClaimTemplate.spec.dataSource",
            "volumes.projected.sources",
            "volumes.cephfs.secretRef",
            "volumes.cinder.secretRef",
            "volumes.csi.nodePublishSecretRef",
            "volumes.flexVolume.secretRef",
            "volumes.iscsi.secretRef",
            "volumes.rbd.secretRef",
            "volumes.scaleIO.secretRef",
            "volumes.storageos.secretRef",
            "volumes.downwardAPI.items",
            "nodeSelector",
            "affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution",
            "tolerations",
            "readinessGates",
            "topologySpreadConstraints.labelSelector",
        ),
    ),
    **under("volumes.ephemeral.volumeClaimTemplate.metadata", METADATA),
    ("resources", "claims"): MergeRule("map", ("name",)),
    ("imagePullSecrets",): keyed("name"),
    ("hostAliases",): keyed("ip"),
    ("resourceClaims",): keyed("name", retain_keys=True),
    ("schedulingGates",): keyed("name"),
    ("topologySpreadConstraints",): MergeRule(
        "map", ("topologyKey", "whenUnsatisfiable"), patch_key="topologyKey", patch_merge=True
    ),
}

POD_STATUS: Table = {
    **CONDITIONS,
    ("podIPs",): keyed("ip"),
    ("resources", "claims"): MergeRule("map", ("name",)),
    ("hostIPs",): MergeRule("atomic", patch_key="ip", patch_merge=True),
    ("resourceClaimStatuses",): keyed("name", retain_keys=True),
}

POD_TEMPLATE: Table = {**under("metadata", METADATA), **under("spec", POD_SPEC)}

WORKLOAD: Table = {
    **under("spec", SELECTOR),
    **under("spec.template", POD_TEMPLATE),
    **under("status", CONDITIONS),
}

STATUS_CONDITIONS: Table = under("status", CONDITIONS)

CRD_VALIDATIONS = keyed("rule")

_KINDS: Mapping[tuple[str, str], Table] = {
    ("", "Pod"): {**under("spec", POD_SPEC), **under("status", POD_STATUS)},
    ("", "PodTemplate"): under("template", POD_TEMPLATE),
    ("", "Service"): {
        ("spec", "ports"): keyed("port", "protocol", protocol="TCP"),
        **under("spec", SELECTOR),
        **STATUS_CONDITIONS,
    },
    ("", "ServiceAccount"): {("secrets",): keyed("name")},
    ("", "PersistentVolumeClaim"): {
        **under("spec", SELECTOR),
        ("spec", "dataSource"): ATOMIC,
        **STATUS_CONDITIONS,
    },
    ("", "Node"): {
        ("spec", "podCIDRs"): MERGED_SET,
        ("status", "addresses"): keyed("type"),
        **STATUS_CONDITIONS,
    },
    ("", "Namespace"): STATUS_CONDITIONS,
    ("", "Event"): {("involvedObject",): ATOMIC, ("related",): ATOMIC},
    ("events.k8s.io", "Event"): {("regarding",): ATOMIC, ("related",): ATOMIC},
    ("apps", "Deployment"): {
        **WORKLOAD,
        # The union of rollingUpdate and type: a patch that names the one drops the other.
        ("spec", "strategy"): MergeRule("granular", retain_keys=True),
    },
    ("apps", "ReplicaSet"): WORKLOAD,
    ("apps", "StatefulSet"): WORKLOAD,
    ("apps", "DaemonSet"): WORKLOAD,
    ("batch", "Job"): WORKLOAD,
    ("policy", "PodDisruptionBudget"): {**under("spec", SELECTOR), **STATUS_CONDITIONS},
    ("networking.k8s.io", "NetworkPolicy"): {("spec", "podSelector"): ATOMIC},
    ("rbac.authorization.k8s.io", "RoleBinding"): {("roleRef",): ATOMIC},
    ("rbac.authorization.k8s.io", "ClusterRoleBinding"): {("roleRef",): ATOMIC},
    ("apiextensions.k8s.io", "CustomResourceDefinition"): {
        ("status", "conditions"): MergeRule("map", ("type",)),
    },
}

_METADATA_AT_ROOT = under("metadata", METADATA)


def merge_rule(group: str, kind: str, path: Path) -> MergeRule | None:
    """How the field at ``path`` of a built-in kind merges.

    Args:
        group: API group, empty for the core group.
        kind: For instance ``Deployment``. Custom resources have their rules in their CRD's schema, except metadata.
        path: Field names from the root; list items and map keys add nothing.

    Returns:
        The rule, or None: a list that is replaced, an object that merges field by field.
    """
    if path in _METADATA_AT_ROOT:
        return _METADATA_AT_ROOT[path]
    # A CRD's schema is recursive, the list of its rules is the one keyed list in it.
    if kind == "CustomResourceDefinition" and path[-1:] == ("x-kubernetes-validations",):
        return CRD_VALIDATIONS
    return _KINDS.get((group, kind), {}).get(path)


def pod_template_rule(path: Path) -> MergeRule | None:
    """As ``merge_rule``, for a PodTemplateSpec: ``path`` starts at ``metadata`` or ``spec``."""
    return POD_TEMPLATE.get(path)
