"""What the watches have told so far: a dictionary of objects with the look-ups that the reconcilers need.

The cache answers "what do I know", never "what is there": an object that is missing here may exist. Whoever acts on
absence asks the API server first. ``compare`` sets the cache against a LIST, which finds what watches missed.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from enum import Enum
from typing import Any, Final, NamedTuple

from agenthive_operator.plan.names import AGENT_LABEL, HIVE_LABEL, MANAGED_BY, MANAGED_BY_LABEL
from agenthive_operator.reconcile.sharing import Sharing

Object = dict[str, Any]

SELECTOR: Final = f"{MANAGED_BY_LABEL}={MANAGED_BY}"
TOMBSTONES: Final = 10_000


class Key(NamedTuple):
    """One object that is reconciled: kind is ``AgentHive`` or ``Agent``."""

    kind: str
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name}"


class Ref(NamedTuple):
    """Any object by kind, namespace and name."""

    kind: str
    namespace: str
    name: str


class Change(Enum):
    """What a report did to the cache."""

    ADDED = "added"
    UPDATED = "updated"
    STATUS = "status"
    """Nothing but status (or managed fields) differs from what was known."""
    REMOVED = "removed"
    NONE = "none"
    """Known already, or older than what is known."""


class ObjectCache:
    """Objects by reference, by owner uid, by hive and by agent."""

    def __init__(self) -> None:
        self._objects: dict[Ref, Object] = {}
        self._index: dict[tuple[str, ...], dict[Ref, None]] = {}
        self._buried: OrderedDict[str, None] = OrderedDict()
        self._sharing = Sharing()

    # ---- what is known

    def get(self, kind: str, namespace: str, name: str) -> Object | None:
        """The object as last seen; None when it was never seen or is gone."""
        return self._objects.get(Ref(kind, namespace, name))

    def all(self, kind: str) -> list[Object]:
        """All known objects of a kind."""
        return self._indexed("kind", kind)

    def owned(self, uid: str) -> list[Object]:
        """Objects whose controller is the object with this uid."""
        return self._indexed("owner", uid)

    def agents_of(self, namespace: str, hive: str) -> list[Object]:
        """Agents that name this hive, whether it exists or not."""
        return self._indexed("agents", namespace, hive)

    def pods_of(self, namespace: str, *, hive: str, agent: str | None = None) -> list[Object]:
        """Pods of an agent, or of a hive's own servers when ``agent`` is None."""
        return self._indexed("pods", namespace, hive, agent or "")

    def agents_with_pods(self, namespace: str, hive: str) -> set[str]:
        """Names of the agents of a hive that have pods, those among them whose Agent is gone already."""
        return {pod["metadata"]["labels"][AGENT_LABEL] for pod in self._indexed("agent pods", namespace, hive)}

    def __len__(self) -> int:
        return len(self._objects)

    # ---- what is told

    def put(self, obj: Object) -> Change:
        """Take in an object as a watch, a list or an answer to a write delivered it."""
        obj = slim(obj)
        ref, uid, version = ref_of(obj), obj["metadata"].get("uid", ""), _version(obj)
        known = self._objects.get(ref)
        if uid in self._buried:
            return Change.NONE
        if known is None:
            self._insert(ref, obj)
            return Change.ADDED
        if known["metadata"].get("uid") == uid:
            if version <= _version(known):
                return Change.NONE
            change = Change.STATUS if _same_wish(known, obj) else Change.UPDATED
        elif version < _version(known):
            return Change.NONE  # a late word about a predecessor of the same name
        else:
            change = Change.ADDED
        self._drop(ref)
        self._insert(ref, obj)
        return change

    def remove(self, obj: Object) -> Change:
        """Take in that an object was deleted."""
        ref, uid = ref_of(obj), obj["metadata"].get("uid", "")
        self._bury(uid)
        known = self._objects.get(ref)
        if known is None or known["metadata"].get("uid") != uid:
            return Change.NONE
        self._drop(ref)
        return Change.REMOVED

    def take_in(self, items: Iterable[Object]) -> list[Object]:
        """Take in a LIST; returns the objects that the watches had missed, new or changed."""
        return [item for item in items if self.put(item) is not Change.NONE]

    def lacking(self, kind: str, namespace: str | None, items: Iterable[Object], version: str) -> list[Object]:
        """The known objects that a LIST (of one namespace, or of all) taken at ``version`` lacks.

        They stay: a list may be wrong, and who confirmed that one is gone calls ``remove``.
        """
        listed = {ref_of(item) for item in items}
        taken = int(version) if version.isdigit() else 0
        return [
            obj
            for obj in self.all(kind)
            if (ref := ref_of(obj)) not in listed
            and namespace in {None, ref.namespace}
            and _version(obj) <= taken  # or else it was made after the list was taken
        ]

    # ---- inside

    def _indexed(self, *key: str) -> list[Object]:
        return [self._objects[ref] for ref in self._index.get(key, ())]

    def _insert(self, ref: Ref, obj: Object) -> None:
        self._objects[ref] = self._sharing.shared(obj)
        for key in _index_keys(obj):
            self._index.setdefault(key, {})[ref] = None

    def _drop(self, ref: Ref) -> None:
        obj = self._objects.pop(ref)
        for key in _index_keys(obj):
            refs = self._index[key]
            del refs[ref]
            if not refs:
                del self._index[key]

    def _bury(self, uid: str) -> None:
        """Remember a deleted uid, so that a list that was under way does not bring it back."""
        self._buried[uid] = None
        while len(self._buried) > TOMBSTONES:
            self._buried.popitem(last=False)


def ref_of(obj: Object) -> Ref:
    """The reference of an object."""
    metadata = obj["metadata"]
    return Ref(obj["kind"], metadata.get("namespace", ""), metadata["name"])


def keys_of(obj: Object) -> list[Key]:
    """Which reconciled objects an event about ``obj`` concerns."""
    metadata = obj["metadata"]
    namespace = metadata.get("namespace", "")
    if obj["kind"] in {"AgentHive", "Agent"}:
        return [Key(obj["kind"], namespace, metadata["name"])]
    labels = metadata.get("labels") or {}
    for owner in metadata.get("ownerReferences") or ():
        if owner["kind"] in {"AgentHive", "Agent"}:
            return [Key(owner["kind"], namespace, owner["name"])]
    if agent := labels.get(AGENT_LABEL):
        return [Key("Agent", namespace, agent)]
    if hive := labels.get(HIVE_LABEL):
        return [Key("AgentHive", namespace, hive)]
    return []


def controller_of(obj: Object) -> Object | None:
    """The ownerReference with ``controller: true``, if any."""
    owners: list[Object] = obj["metadata"].get("ownerReferences") or []
    return next((owner for owner in owners if owner.get("controller")), None)


def slim(obj: Object) -> Object:
    """``obj`` without what no reconciler reads: managed fields everywhere, all but names and status of pods."""
    metadata = {key: value for key, value in obj["metadata"].items() if key != "managedFields"}
    if obj["kind"] != "Pod":
        return {**obj, "metadata": metadata}
    kept = ("name", "namespace", "uid", "resourceVersion", "labels", "ownerReferences", "deletionTimestamp",
            "deletionGracePeriodSeconds", "creationTimestamp")  # fmt: skip
    status = obj.get("status") or {}
    return {
        "apiVersion": obj.get("apiVersion", "v1"),
        "kind": "Pod",
        "metadata": {key: metadata[key] for key in kept if key in metadata},
        "status": {key: status[key] for key in _POD_STATUS if key in status},
    }


_POD_STATUS: Final = ("phase", "reason", "message", "conditions", "containerStatuses", "initContainerStatuses")


def _index_keys(obj: Object) -> list[tuple[str, ...]]:
    metadata = obj["metadata"]
    namespace, labels = metadata.get("namespace", ""), metadata.get("labels") or {}
    keys: list[tuple[str, ...]] = [("kind", obj["kind"])]
    if (owner := controller_of(obj)) is not None:
        keys.append(("owner", owner["uid"]))
    if obj["kind"] == "Agent":
        keys.append(("agents", namespace, ((obj.get("spec") or {}).get("hiveRef") or {}).get("name", "")))
    if obj["kind"] == "Pod":
        keys.append(("pods", namespace, labels.get(HIVE_LABEL, ""), labels.get(AGENT_LABEL, "")))
        if AGENT_LABEL in labels:
            keys.append(("agent pods", namespace, labels.get(HIVE_LABEL, "")))
    return keys


def _version(obj: Object) -> int:
    """The resourceVersion as a number; they are comparable for one kind since Kubernetes 1.35 says so officially."""
    version = str(obj["metadata"].get("resourceVersion", ""))
    return int(version) if version.isdigit() else 0


def wish_of(obj: Object | None) -> tuple[Any, ...]:
    """What tells whether somebody wants something else of an object that is reconciled."""
    metadata = (obj or {}).get("metadata") or {}
    return tuple(metadata.get(field) for field in ("uid", "generation", "annotations", "deletionTimestamp"))


def _same_wish(known: Object, new: Object) -> bool:
    """Whether nothing that somebody *wants* differs: generation, labels, annotations, deletion, finalizers, owners."""
    before, after = known["metadata"], new["metadata"]
    if "generation" not in after:
        return False  # kinds without generation (Secrets, Services …) have no status to tell apart
    fields = ("generation", "labels", "annotations", "deletionTimestamp", "finalizers", "ownerReferences")
    return all(before.get(field) == after.get(field) for field in fields)
