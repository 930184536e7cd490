"""Create, update and patch: what happens between the body of a request and a new version in the store.

All of it is synchronous: between reading an object and storing its successor nothing else runs, so that a write never
works on an old version.
"""

from __future__ import annotations

import secrets
import uuid
from dataclasses import dataclass, field
from typing import Any

import orjson

from . import apply as ssa
from . import errors, patches
from .admission import Admission
from .builtin_defaults import empty_object, owned_at_creation
from .decode import now
from .errors import ApiError, Json
from .kinds import Kind
from .schema_checks import decode_object, validate_object
from .store import Entry, Key, Store

MERGE, JSON = "merge-patch", "json-patch"

_SUFFIX = "bcdfghjklmnpqrstvwxz2456789"
MAX_BODY = 3 * 1024 * 1024


@dataclass(slots=True)
class Options:
    """Options of a write.

    Attributes:
        manager: Field manager: the parameter, or the client's name.
        explicit_manager: The parameter was given.
        dry_run: Do everything but store.
        validation: What unknown fields are: ``Strict`` an error, ``Warn`` a warning, ``Ignore`` nothing.
        force: Take fields over from other managers (apply only); None when the parameter was not given.
        warnings: Filled on the way; they become Warning headers.
    """

    manager: str = "unknown"
    explicit_manager: bool = False
    dry_run: bool = False
    validation: str = "Warn"
    force: bool | None = None
    warnings: list[str] = field(default_factory=list)


def _spec(obj: Json) -> Json:
    return {key: value for key, value in obj.items() if key not in ("metadata", "status", "apiVersion", "kind")}


class Writer:
    """Turns requests into stored objects.

    Args:
        store: Where they go.
        admission: What is checked and done besides the kind's own schema.
    """

    def __init__(self, store: Store, admission: Admission) -> None:
        self.store = store
        self.admission = admission

    def existing(self, kind: Kind, key: Key) -> Entry:
        """The stored object.

        Raises:
            ApiError: 404.
        """
        entry = self.store.get(kind.storage, key)
        if entry is None:
            raise errors.not_found(kind.group, kind.plural, key[1])
        return entry

    def create(self, kind: Kind, namespace: str, body: Json, options: Options) -> Entry:
        """Create an object.

        Raises:
            ApiError: It exists, is invalid, or its namespace is missing or terminating.
        """
        obj = decode_object(kind, body, options)
        meta = obj["metadata"]
        _check_namespace(kind, meta, namespace)
        if meta.get("resourceVersion"):
            raise ApiError(500, "", "resourceVersion should not be set on objects to be created")
        if not meta.get("name") and meta.get("generateName"):
            meta["name"] = meta["generateName"][:58] + "".join(secrets.choice(_SUFFIX) for _ in range(5))
        return self._insert(kind, obj, options, tracked=None)

    def _insert(self, kind: Kind, obj: Json, options: Options, *, tracked: list[Json] | None) -> Entry:
        """Store an object that does not exist yet; ``tracked`` is its managedFields where apply made them."""
        meta = obj["metadata"]
        key = (meta.get("namespace", ""), meta.get("name", ""))
        self.admission.namespace_accepts(kind, key)
        if key[1] and self.store.get(kind.storage, key) is not None:
            raise errors.already_exists(kind.group, kind.plural, key[1])
        for name in ("deletionTimestamp", "deletionGracePeriodSeconds", "selfLink", "generation"):
            meta.pop(name, None)
        given = meta.pop("managedFields", None)
        meta["uid"] = str(uuid.uuid4())
        meta["creationTimestamp"] = now()
        if kind.generation or kind.custom:
            meta["generation"] = 1
        if kind.has_status:
            obj.pop("status", None)
        obj = validate_object(kind, obj, None, self.admission)
        if tracked is None:
            owners = ssa.read_managed(given)
            ssa.track_update(
                None, obj, owners, _manager(kind, options, "Update", ""), kind.node, now(),
                empty=empty_object(kind), tracked=owned_at_creation(kind, obj),
            )  # fmt: skip
        elif tracked:
            obj["metadata"]["managedFields"] = tracked
        return self._store(kind, key, obj, None, options)

    def update(self, kind: Kind, key: Key, sub: str, body: Json, options: Options) -> Entry:
        """Replace an object (PUT), or its status where ``sub`` is ``status``.

        Raises:
            ApiError: It is not there, was modified since, or is invalid.
        """
        live = self.existing(kind, key)
        obj = decode_object(kind, body, options)
        _check_namespace(kind, obj["metadata"], key[0])
        _check_name(obj["metadata"], key[1])
        if kind.custom and not obj["metadata"].get("resourceVersion"):
            problem = errors.invalid("metadata.resourceVersion", 0, "must be specified for an update")
            raise errors.unprocessable(kind.group, kind.plural, key[1], [problem])
        return self._replace(kind, key, live, obj, sub, options, tracked=None)

    def patch(self, kind: Kind, key: Key, sub: str, form: str, body: Any, options: Options) -> Entry:
        """Apply one of the three patch formats that are not server-side apply.

        Raises:
            ApiError: The object is not there, or the patch or its result is invalid.
        """
        live = self.existing(kind, key)
        target = kind.from_storage(live.obj) if kind.from_storage else live.obj
        if form == JSON:
            patched = patches.json_patch(target, body)
        elif form == MERGE:
            patched = patches.merge_patch(target, _mapping(body))
        else:
            patched = patches.strategic_merge(target, _mapping(body), kind.node)
        if not isinstance(patched, dict) or not isinstance(patched.get("metadata"), dict):
            raise errors.bad_request("the patch leaves no object")
        obj = decode_object(kind, patched, options)
        _check_namespace(kind, obj["metadata"], key[0])
        _check_name(obj["metadata"], key[1])
        return self._replace(kind, key, live, obj, sub, options, tracked=None)

    def apply(self, kind: Kind, key: Key, sub: str, body: Json, options: Options) -> tuple[Entry, bool]:
        """Server-side apply; returns the object and whether it was created.

        Raises:
            ApiError: Conflicts (409), an invalid configuration or result.
        """
        _check_apply(options)
        if body.get("metadata", {}).get("managedFields"):
            raise errors.bad_request("metadata.managedFields must be nil")
        config = decode_object(kind, body, options, applied=True)
        meta = config["metadata"]
        meta.setdefault("name", key[1])
        _check_namespace(kind, meta, key[0])
        _check_name(meta, key[1])
        if sub == "status":
            config = {name: config[name] for name in ("apiVersion", "kind", "metadata", "status") if name in config}
            config["metadata"] = {name: meta[name] for name in ("name", "namespace", "uid") if name in meta}
        elif kind.has_status:
            config.pop("status", None)
        live = self.store.get(kind.storage, key)
        wanted_uid = meta.get("uid")
        if live is None and wanted_uid:
            why = f"uid mismatch: the provided object specified uid {wanted_uid}, and no existing object was found"
            raise errors.conflict(kind.group, kind.plural, key[1], why)
        manager = _manager(kind, options, "Apply", sub)
        if live is None:
            if sub:
                raise errors.not_found(kind.group, kind.plural, key[1])
            obj = ssa.apply(None, config, manager, kind.node, now(), force=bool(options.force))
            tracked = obj["metadata"].pop("managedFields", [])
            fresh = decode_object(kind, obj, Options(validation="Ignore"))
            fresh["metadata"].pop("resourceVersion", None)
            return self._insert(kind, fresh, options, tracked=tracked), True
        _check_version(kind, key, live, meta)
        merged = ssa.apply(live.obj, config, manager, kind.node, now(), force=bool(options.force))
        if merged == live.obj:
            return live, False
        tracked = merged["metadata"].pop("managedFields", [])
        obj = decode_object(kind, merged, Options(validation="Ignore"))
        return self._replace(kind, key, live, obj, sub, options, tracked=tracked), False

    def _replace(
        self, kind: Kind, key: Key, live: Entry, obj: Json, sub: str, options: Options, *, tracked: list[Json] | None
    ) -> Entry:
        old = live.obj
        meta = obj["metadata"]
        _check_version(kind, key, live, meta)
        given = meta.pop("managedFields", None)
        if sub == "status":
            obj = _with_status(old, obj)
        else:
            if kind.has_status:
                _copy_field(old, obj, "status")
            obj["metadata"] = _kept_metadata(old["metadata"], meta)
        obj["metadata"].pop("managedFields", None)
        obj["metadata"]["resourceVersion"] = old["metadata"]["resourceVersion"]
        obj = validate_object(kind, obj, old, self.admission, sub=sub)
        if (kind.generation or kind.custom) and sub != "status" and self._counts(kind, old, obj):
            obj["metadata"]["generation"] = old["metadata"].get("generation", 0) + 1
        if tracked is None:
            reset = given is not None and (given in ([], [{}]) and "managedFields" in old["metadata"])
            owners = [] if reset else ssa.read_managed(given or old["metadata"].get("managedFields"))
            ssa.track_update(old, obj, owners, _manager(kind, options, "Update", sub), kind.node, now())
        elif tracked:
            obj["metadata"]["managedFields"] = tracked
        if obj == old:
            return live
        return self._store(kind, key, obj, live, options)

    @staticmethod
    def _counts(kind: Kind, old: Json, new: Json) -> bool:
        if kind.custom and not kind.has_status:
            return {**_spec(old), "status": old.get("status")} != {**_spec(new), "status": new.get("status")}
        return _spec(old) != _spec(new)

    def rewrite(self, kind: Kind, key: Key, obj: Json) -> Entry:
        """Store a change the server makes itself: finalizers, deletionTimestamp, conditions."""
        entry = self.store.put(kind.storage, key, obj)
        self.admission.stored(kind, entry)
        return entry

    def _store(self, kind: Kind, key: Key, obj: Json, live: Entry | None, options: Options) -> Entry:
        if len(raw := orjson.dumps(obj)) > MAX_BODY // 2:
            raise ApiError(413, "RequestEntityTooLarge", f"etcdserver: request is too large ({len(raw)} bytes)")
        if options.dry_run:
            return Entry(obj, raw, live.version if live else 0)
        if live is not None and _deletion_is_due(obj):
            self.store.put(kind.storage, key, obj)
            return self.admission.removed(kind, self.store.remove(kind.storage, key))
        entry = self.store.put(kind.storage, key, obj)
        self.admission.stored(kind, entry)
        return entry


def _deletion_is_due(obj: Json) -> bool:
    meta = obj["metadata"]
    return "deletionTimestamp" in meta and not meta.get("finalizers") and not meta.get("deletionGracePeriodSeconds")


def _with_status(old: Json, new: Json) -> Json:
    found = dict(old)
    found["metadata"] = dict(old["metadata"])
    _copy_field(new, found, "status")
    return found


def _copy_field(source: Json, target: Json, name: str) -> None:
    if name in source:
        target[name] = source[name]
    else:
        target.pop(name, None)


_KEPT = (
    "name", "namespace", "uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds", "generation",
    "generateName",
)  # fmt: skip


def _kept_metadata(old: Json, new: Json) -> Json:
    """``new`` with the fields that only the server sets taken from ``old``."""
    found = {key: value for key, value in new.items() if key not in _KEPT and key != "selfLink"}
    found |= {key: old[key] for key in _KEPT if key in old}
    return found


def _manager(kind: Kind, options: Options, operation: str, sub: str) -> ssa.Manager:
    return ssa.Manager(options.manager, operation, sub, kind.api_version)


def _mapping(body: Any) -> Json:
    if not isinstance(body, dict):
        raise errors.bad_request("error decoding patch: a merge patch is an object")
    return body


def _check_apply(options: Options) -> None:
    if not options.explicit_manager:
        problem = errors.required("fieldManager", "is required for apply patch")
        raise errors.unprocessable("meta.k8s.io", "PatchOptions", "", [problem])


def _check_namespace(kind: Kind, meta: Json, namespace: str) -> None:
    if not kind.namespaced:
        meta.pop("namespace", None)
        return
    if meta.get("namespace") not in (None, "", namespace):
        raise errors.bad_request(
            "the namespace of the provided object does not match the namespace sent on the request"
        )
    meta["namespace"] = namespace


def _check_name(meta: Json, name: str) -> None:
    given = meta.get("name")
    if given != name:
        raise errors.bad_request(f"the name of the object ({given}) does not match the name on the URL ({name})")


def _check_version(kind: Kind, key: Key, live: Entry, meta: Json) -> None:
    uid, have = meta.get("uid"), live.obj["metadata"]["uid"]
    if uid and uid != have:
        why = f"Precondition failed: UID in precondition: {uid}, UID in object meta: {have}"
        raise errors.conflict(kind.group, kind.plural, key[1], why)
    version = meta.get("resourceVersion")
    if version and version != live.obj["metadata"]["resourceVersion"]:
        raise errors.conflict(kind.group, kind.plural, key[1], errors.MODIFIED)
