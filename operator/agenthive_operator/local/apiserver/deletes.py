"""Deletion: finalizers, grace periods, preconditions, propagation, collections, namespaces and CRDs."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from . import errors
from .admission import CRD_FINALIZER, Admission
from .decode import timestamp
from .errors import Json
from .kinds import Kind
from .selection import Matcher
from .store import Entry, Key, Store
from .writes import Writer

FOREGROUND = "foregroundDeletion"
ORPHAN = "orphan"
DEFAULT_GRACE = 30


@dataclass(slots=True)
class DeleteOptions:
    """The body, or the parameters, of a delete.

    Attributes:
        grace: Seconds; None takes the object's own.
        propagation: ``Background``, ``Foreground`` or ``Orphan``; empty: Background, Orphan of Jobs.
        uid: Refuse unless the object has it.
        version: Refuse unless the object has this resourceVersion.
        dry_run: Change nothing.
    """

    grace: int | None = None
    propagation: str = ""
    uid: str = ""
    version: str = ""
    dry_run: bool = False


def read_options(body: Json, query: Json) -> DeleteOptions:
    """Options from the body, or where it lacks them from the parameters.

    Raises:
        ApiError: 400 or 422 for values that are none.
    """
    grace = body.get("gracePeriodSeconds", query.get("gracePeriodSeconds"))
    orphan = body.get("orphanDependents", query.get("orphanDependents"))
    propagation = body.get("propagationPolicy") or query.get("propagationPolicy") or ""
    if orphan is not None and not propagation:
        propagation = ORPHAN.title() if str(orphan).lower() == "true" else "Background"
    if propagation not in ("", "Background", "Foreground", "Orphan"):
        problem = errors.not_supported("propagationPolicy", propagation, ("Foreground", "Background", "Orphan", "nil"))
        raise errors.unprocessable("meta.k8s.io", "DeleteOptions", "", [problem])
    try:
        seconds = None if grace is None else int(grace)
    except ValueError as error:
        raise errors.bad_request(f"gracePeriodSeconds: {grace!r} is not a number of seconds") from error
    dry_run = body.get("dryRun") or ([query["dryRun"]] if "dryRun" in query else [])
    if dry_run not in ([], ["All"]):
        raise errors.bad_request(f"dryRun: Unsupported value: {dry_run}: supported values: All")
    wanted = body.get("preconditions") or {}
    return DeleteOptions(
        seconds, propagation, wanted.get("uid", ""), str(wanted.get("resourceVersion", "")), bool(dry_run)
    )


class Deleter:
    """Deletes objects, or marks them for deletion.

    Args:
        store: The state.
        admission: Told what is gone.
        writer: Stores the marks.
    """

    def __init__(self, store: Store, admission: Admission, writer: Writer) -> None:
        self.store = store
        self.admission = admission
        self.writer = writer

    def delete(self, kind: Kind, key: Key, options: DeleteOptions) -> tuple[Entry, bool]:
        """Delete one object; returns its last state and whether it is gone already.

        Raises:
            ApiError: 404, or 409 where a precondition does not hold, or 403 for a namespace that must stay.
        """
        live = self.writer.existing(kind, key)
        meta = live.obj["metadata"]
        for name, wanted, have in (
            ("UID", options.uid, meta["uid"]),
            ("ResourceVersion", options.version, meta["resourceVersion"]),
        ):
            if wanted and wanted != have:
                why = (
                    f"the {name} in the precondition ({wanted}) does not match the {name} in record ({have}). "
                    "The object might have been deleted and then recreated"
                )
                raise errors.precondition_failed(kind.group, kind.kind, key[1], why)
        self.admission.may_delete(kind, key)
        if options.dry_run:
            return live, True
        finalizers = self._finalizers(kind, meta, options)
        grace = _grace(kind, live.obj, options)
        pending = bool(finalizers) or grace > 0 or kind.resource == "namespaces"
        if not pending:
            last = self._marked(kind, live.obj, [], 0) if kind.resource == "pods" else None
            return self.admission.removed(kind, self.store.remove(kind.storage, key, last)), True
        marked = self._mark(kind, key, live, finalizers, grace)
        self._consequences(kind, key)
        return marked, self.store.get(kind.storage, key) is None

    def _finalizers(self, kind: Kind, meta: Json, options: DeleteOptions) -> list[str]:
        found = list(meta.get("finalizers", ()))
        if "deletionTimestamp" not in meta or options.propagation:
            # Of Jobs alone the children stay where nothing is said about them.
            propagation = options.propagation or ("Orphan" if kind.resource == "jobs.batch" else "")
            wanted = {"Foreground": FOREGROUND, "Orphan": ORPHAN}.get(propagation)
            if options.propagation:
                found = [name for name in found if name not in (FOREGROUND, ORPHAN)]
            if wanted:
                found.append(wanted)
        has_objects = kind.resource.startswith("customresourcedefinitions.")
        if has_objects and self.store.resource(meta["name"]).objects and CRD_FINALIZER not in found:
            found.append(CRD_FINALIZER)
        return found

    def _mark(self, kind: Kind, key: Key, live: Entry, finalizers: list[str], grace: int) -> Entry:
        obj = self._marked(kind, live.obj, finalizers, grace)
        return live if obj == live.obj else self.writer.rewrite(kind, key, obj)

    @staticmethod
    def _marked(kind: Kind, live: Json, finalizers: list[str], grace: int) -> Json:
        obj = dict(live)
        meta = obj["metadata"] = dict(obj["metadata"])
        sooner = grace < meta.get("deletionGracePeriodSeconds", grace + 1)
        first = "deletionTimestamp" not in meta
        if first or (kind.resource == "pods" and sooner):
            meta["deletionTimestamp"] = timestamp(datetime.now(UTC) + timedelta(seconds=grace))
            meta["deletionGracePeriodSeconds"] = grace
            if first and "generation" in meta:
                meta["generation"] += 1
        meta["finalizers"] = finalizers
        if not finalizers:
            del meta["finalizers"]
        if kind.resource == "namespaces":
            obj["status"] = {**obj.get("status", {}), "phase": "Terminating"}
        return obj

    def _consequences(self, kind: Kind, key: Key) -> None:
        """Delete what is in a namespace, or of a CRD, that is being deleted."""
        if kind.resource == "namespaces":
            for stored in self.admission.registry.stored().values():
                if stored.namespaced:
                    self._delete_all(stored, key[1])
            self.admission.finish_deletion(kind, key)
        elif kind.resource.startswith("customresourcedefinitions."):
            stored_kind = self.admission.registry.stored().get(key[1])
            if stored_kind is not None:
                self._delete_all(stored_kind, None)
            self.admission.finish_deletion(kind, key)

    def _delete_all(self, kind: Kind, namespace: str | None) -> None:
        for entry in self.store.resource(kind.storage).listed(namespace):
            meta = entry.obj["metadata"]
            self.delete(kind, (meta.get("namespace", ""), meta["name"]), DeleteOptions())

    def delete_collection(
        self, kind: Kind, namespace: str | None, matches: Matcher | None, options: DeleteOptions
    ) -> list[Entry]:
        """Delete every object that matches; returns their last states."""
        found = []
        for entry in self.store.resource(kind.storage).listed(namespace):
            if matches is None or matches(entry.obj):
                meta = entry.obj["metadata"]
                found.append(self.delete(kind, (meta.get("namespace", ""), meta["name"]), options)[0])
        return found


def _grace(kind: Kind, obj: Json, options: DeleteOptions) -> int:
    """Seconds a pod has to end; nothing else has any."""
    if kind.resource != "pods":
        return 0
    spec, status = obj.get("spec", {}), obj.get("status", {})
    if not spec.get("nodeName") or status.get("phase") in ("Succeeded", "Failed"):
        return 0
    own = int(spec.get("terminationGracePeriodSeconds", DEFAULT_GRACE))
    wanted = own if options.grace is None else max(options.grace, 0)
    if "deletionTimestamp" in obj["metadata"]:
        # A second delete can only shorten what is left.
        return min(wanted, int(obj["metadata"].get("deletionGracePeriodSeconds", wanted)))
    return wanted
