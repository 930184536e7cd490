"""Desired objects into the cluster: apply what differs, refuse what is somebody else's, prune what is left over.

Whether an object needs an apply is decided without a request: it does when the plan changed since the last apply (an
annotation holds the plan's hash) or when a planned field differs from the live one. Fields that others set are
neither compared nor touched.
"""

from __future__ import annotations

import base64
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import Decimal, InvalidOperation
from typing import Any, Final

from agenthive_operator.backends.kube import BY_KIND, ApiError, Kube, Object
from agenthive_operator.plan.checksum import digest
from agenthive_operator.plan.names import FIELD_MANAGER, HIVE_LABEL, MANAGED_BY, MANAGED_BY_LABEL
from agenthive_operator.reconcile.cache import ObjectCache, Ref, controller_of, ref_of
from agenthive_operator.reconcile.conditions import Problem
from agenthive_operator.reconcile.refusals import is_refusal, refusal

logger = logging.getLogger(__name__)

APPLIED: Final = "agenthive.dev/applied"
PRUNED: Final = frozenset({"StatefulSet", "Service", "Secret", "ConfigMap", "PodDisruptionBudget", "NetworkPolicy"})
"""Kinds of which an owner may come to plan fewer. An Agent always plans its Deployment."""
ABSENT_SECONDS: Final = 0.5
"""How long the API server's word that an object is absent may be used once more. The object may be made meanwhile, as
it may between any question and the write that follows."""


class Children:
    """The objects that hives and agents own."""

    def __init__(self, kube: Kube, cache: ObjectCache, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._kube = kube
        self._cache = cache
        self._clock = clock
        self._absent: dict[Ref, float] = {}

    async def live(self, kind: str, namespace: str, name: str) -> Object | None:
        """The object: as watched, else as the API server has it; None only if the server says so.

        What it said was absent a moment ago is believed once more: a look that reads a Secret goes on to apply it.
        """
        known = self._cache.get(kind, namespace, name)
        if known is not None:
            return known
        asked = self._absent.pop(Ref(kind, namespace, name), None)
        if asked is not None and self._clock() - asked < ABSENT_SECONDS:
            return None
        # rbac: core/secrets get
        # rbac: core/configmaps get
        # rbac: core/services get
        # rbac: apps/statefulsets get
        # rbac: apps/deployments get
        # rbac: policy/poddisruptionbudgets get
        # rbac: networking.k8s.io/networkpolicies get
        found = await self._kube.get(BY_KIND[kind], namespace, name)
        if found is not None and is_labelled(found):
            self._cache.put(found)
        if found is None:
            self._note_absent(Ref(kind, namespace, name))
        return found

    def _note_absent(self, ref: Ref) -> None:
        now = self._clock()
        self._absent[ref] = now
        while now - self._absent[oldest := next(iter(self._absent))] >= ABSENT_SECONDS:
            del self._absent[oldest]

    async def apply(self, planned: Sequence[Object]) -> Problem | None:
        """Bring planned objects about, in order. The first that cannot be is told and the rest is not tried.

        Raises ``ApiError`` for what trying again may cure.
        """
        for plan in planned:
            body = prepare(plan)
            live = await self.live(*ref_of(body))
            if live is not None and not is_ours(live, body):
                return Problem("NameConflict", conflict_text(live))
            if live is not None and not needs_apply(body, live):
                continue
            if live is not None:
                await self._check_heir(live, body)
            try:
                # rbac: core/secrets create,patch
                # rbac: core/configmaps create,patch
                # rbac: core/services create,patch
                # rbac: apps/statefulsets create,patch
                # rbac: apps/deployments create,patch
                # rbac: policy/poddisruptionbudgets create,patch
                # rbac: networking.k8s.io/networkpolicies create,patch
                answer = await self._kube.apply(body)
            except ApiError as error:
                if error.of_ending_namespace:
                    return Problem(
                        "NamespaceTerminating", f"namespace {body['metadata']['namespace']} is being deleted"
                    )
                if is_refusal(error):
                    return refusal(error, f"{body['kind']} {body['metadata']['name']}")
                raise
            self._cache.put(answer)
            logger.info("applied %s %s/%s", *ref_of(body))
        return None

    async def _check_heir(self, live: Object, body: Object) -> None:
        """Before an object changes hands: the API server has to say that its heir is alive, and the holder is not.

        What the watches told may be old. An object that a living owner loses to a dead one is garbage collected.
        Raises ``ApiError`` when it is not so.
        """
        holder, heir = controller_of(live), controller_of(body)
        if heir is None or (holder is not None and holder["uid"] == heir["uid"]):
            return
        namespace = body["metadata"]["namespace"]
        # rbac: agenthive.dev/agenthives get
        # rbac: agenthive.dev/agents get
        owner = await self._kube.get(BY_KIND[heir["kind"]], namespace, heir["name"])
        if owner is None or owner["metadata"]["uid"] != heir["uid"]:
            kind, _, name = ref_of(live)
            text = f"{kind} {name} is not taken over: its heir {heir['kind']} {heir['name']} is gone or another by now"
            raise ApiError(409, "Conflict", text)

    async def apply_existing(self, planned: Sequence[Object], manager: str = FIELD_MANAGER) -> Problem | None:
        """Apply to objects that somebody else made and keeps, where they exist and differ.

        What ``manager`` applied before and ``planned`` lacks is taken away, as far as annotations go.
        """
        for body in planned:
            kind, namespace, name = ref_of(body)
            # rbac: core/persistentvolumeclaims get
            live = await self._kube.get(BY_KIND[kind], namespace, name)
            if live is None or not (needs_apply(body, live) or has_leftovers(body, live, manager)):
                continue
            try:
                # rbac: core/persistentvolumeclaims patch
                await self._kube.apply(body, manager=manager)
            except ApiError as error:
                if is_refusal(error):
                    return refusal(error, f"{kind} {name}")
                raise
        return None

    async def prune(self, owner_uid: str, planned: Iterable[Object]) -> None:
        """Delete what the object with this uid controls and no longer plans."""
        kept = {ref_of(plan) for plan in planned}
        for obj in self._cache.owned(owner_uid):
            ref = ref_of(obj)
            if ref in kept or ref.kind not in PRUNED or not is_labelled(obj) or "deletionTimestamp" in obj["metadata"]:
                continue
            # rbac: core/secrets delete
            # rbac: core/configmaps delete
            # rbac: core/services delete
            # rbac: apps/statefulsets delete
            # rbac: policy/poddisruptionbudgets delete
            # rbac: networking.k8s.io/networkpolicies delete
            await self._kube.delete(BY_KIND[ref.kind], ref.namespace, ref.name, uid=obj["metadata"]["uid"])
            logger.info("pruned %s %s/%s", *ref)


# ---- pure


def prepare(plan: Mapping[str, Any]) -> Object:
    """The body to apply for a planned object: Secret values encoded, the plan's hash as an annotation."""
    body = dict(plan)
    strings = body.pop("stringData", None)
    if strings:
        encoded = {key: base64.b64encode(value.encode()).decode() for key, value in strings.items()}
        body["data"] = {**(body.get("data") or {}), **encoded}
    metadata = dict(body["metadata"])
    metadata["annotations"] = {**(metadata.get("annotations") or {}), APPLIED: digest(body)}
    return {**body, "metadata": metadata}


def needs_apply(body: Mapping[str, Any], live: Mapping[str, Any]) -> bool:
    """Whether ``live`` differs from ``body`` in a field that ``body`` sets (its hash annotation among them)."""
    return not covers(live, body)


def has_leftovers(body: Mapping[str, Any], live: Mapping[str, Any], manager: str) -> bool:
    """Whether ``live`` carries annotations that ``manager`` applied and ``body`` lacks."""
    wanted = {f"f:{key}" for key in body["metadata"].get("annotations") or ()}
    return any(
        set(((entry.get("fieldsV1") or {}).get("f:metadata") or {}).get("f:annotations") or ()) - wanted - {"."}
        for entry in live["metadata"].get("managedFields") or ()
        if entry.get("manager") == manager and entry.get("operation") == "Apply"
    )


def covers(live: Any, wanted: Any, *, quantity: bool = False) -> bool:
    """Whether everything in ``wanted`` is in ``live``, which may hold more.

    What a server leaves out when it stores it (empty lists and strings, false, zero) may be missing. Lists of named
    things are compared by name, other lists place by place. Quantities are compared by amount.
    """
    if isinstance(wanted, Mapping):
        if not isinstance(live, Mapping):
            return not wanted and live is None
        return all(
            covers(live.get(key), value, quantity=quantity or key in {"limits", "requests", "sizeLimit"})
            for key, value in wanted.items()
        )
    if isinstance(wanted, Sequence) and not isinstance(wanted, str):
        return _covers_list(live, wanted, quantity)
    if live is None:
        return not wanted
    if quantity and isinstance(wanted, str | int | float):
        return amount(str(wanted)) == amount(str(live))
    return bool(live == wanted)


_LIST_KEYS: Final = ("name", "uid", "mountPath", "containerPort")


def _covers_list(live: Any, wanted: Sequence[Any], quantity: bool) -> bool:
    if not isinstance(live, Sequence) or isinstance(live, str):
        return not wanted and live is None
    for key in _LIST_KEYS:
        if wanted and all(isinstance(item, Mapping) and key in item for item in wanted):
            named = {item.get(key): item for item in live if isinstance(item, Mapping)}
            return all(item[key] in named and covers(named[item[key]], item, quantity=quantity) for item in wanted)
    if len(live) != len(wanted):
        return False
    return all(covers(mine, theirs, quantity=quantity) for mine, theirs in zip(live, wanted, strict=True))


_SUFFIXES: Final = {
    "n": Decimal("1e-9"), "u": Decimal("1e-6"), "m": Decimal("1e-3"), "": Decimal(1),
    "k": Decimal(10**3), "M": Decimal(10**6), "G": Decimal(10**9), "T": Decimal(10**12), "P": Decimal(10**15),
    "E": Decimal(10**18), "Ki": Decimal(2**10), "Mi": Decimal(2**20), "Gi": Decimal(2**30), "Ti": Decimal(2**40),
    "Pi": Decimal(2**50), "Ei": Decimal(2**60),
}  # fmt: skip


def amount(text: str) -> Decimal | str:
    """The number a Kubernetes quantity stands for; the text itself when it is none."""
    digits = text.rstrip("numkKMGTPEi")
    try:
        return Decimal(digits) * _SUFFIXES[text[len(digits) :]]
    except (InvalidOperation, KeyError):
        return text


def is_labelled(obj: Mapping[str, Any]) -> bool:
    """Whether an object carries this operator's label."""
    return (obj["metadata"].get("labels") or {}).get(MANAGED_BY_LABEL) == MANAGED_BY


def is_ours(live: Object, body: Object) -> bool:
    """Whether ``live`` may be applied over: it is ours, or an orphan of a predecessor of the same name.

    Ours: our label, the same hive and the same controller. Orphan: our label, the same hive, and no controller at all
    (kept by deletionPolicy Retain) or one of the same kind and name with another uid, which therefore is dead.
    """
    labels, wanted = live["metadata"].get("labels") or {}, body["metadata"].get("labels") or {}
    if not is_labelled(live) or labels.get(HIVE_LABEL) != wanted.get(HIVE_LABEL):
        return False
    holder, heir = controller_of(live), controller_of(body)
    if holder is None:
        return True
    if heir is None:
        # The plan lets go of the owner (deletionPolicy became Retain): the label and the hive say that it is ours.
        return holder["kind"] in {"AgentHive", "Agent"}
    return bool(holder["uid"] == heir["uid"] or (holder["kind"], holder["name"]) == (heir["kind"], heir["name"]))


def conflict_text(live: Object) -> str:
    """What a person reads when an object of a needed name belongs to somebody else."""
    kind, _, name = ref_of(live)
    holder = controller_of(live)
    whose = f"is controlled by {holder['kind']} {holder['name']}" if holder else "was not made by this operator"
    return f"{kind} {name} exists and {whose}; rename or delete it, or choose another name for this object"
