"""Server-side apply: an applied configuration merged into the live object, field by field, with an owner for each.

``managedFields`` says who owns what: an Apply entry holds the fields its manager applied last, an Update entry the
fields its manager changed by other means. A field that a manager stops applying goes, unless somebody else owns it too;
a field that another manager owns with another value is a conflict, unless forced.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from . import fieldsets
from .errors import ApiError, Json, bad_request
from .fieldsets import FieldSet
from .typing_tree import Node

# Fields that belong to the server and to nobody's set.
_SERVER_FIELDS = (
    "name", "namespace", "uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds", "generation",
    "resourceVersion", "managedFields", "selfLink",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Manager:
    """Who makes a change.

    Attributes:
        name: The field manager.
        operation: ``Apply`` or ``Update``.
        subresource: ``status``, ``scale`` or empty.
        api_version: Version the change is written in.
    """

    name: str
    operation: str
    subresource: str
    api_version: str


@dataclass(slots=True)
class Owned:
    """One entry of managedFields."""

    manager: Manager
    fields: FieldSet
    time: str | None


def read_managed(entries: list[Json] | None) -> list[Owned]:
    """``metadata.managedFields`` as owners; a list of one empty entry, which asks for a reset, reads as none.

    Raises:
        ApiError: 400 for entries that are none.
    """
    found = []
    for entry in entries or []:
        if not entry:
            continue
        if entry.get("fieldsType") != "FieldsV1" or entry.get("operation") not in ("Apply", "Update"):
            raise bad_request(
                "metadata.managedFields is invalid: fieldsType must be FieldsV1, operation Apply or Update"
            )
        manager = Manager(
            entry.get("manager", ""), entry["operation"], entry.get("subresource", ""), entry.get("apiVersion", "")
        )
        found.append(Owned(manager, entry.get("fieldsV1") or {}, entry.get("time")))
    return found


def _order(owned: Owned) -> tuple[str, ...]:
    manager = owned.manager
    time = "" if manager.subresource == "scale" else owned.time or ""
    return (manager.operation, time, manager.name, manager.api_version, manager.subresource)


def write_managed(owners: list[Owned]) -> list[Json]:
    """Owners as ``metadata.managedFields``; owners of nothing are left out."""
    entries: list[Json] = []
    for owned in sorted(owners, key=_order):
        if not owned.fields:
            continue
        entry: Json = {
            "manager": owned.manager.name,
            "operation": owned.manager.operation,
            "apiVersion": owned.manager.api_version,
        }
        # As in Kubernetes, what the scale subresource writes has no time.
        if owned.time and owned.manager.subresource != "scale":
            entry["time"] = owned.time
        entry |= {"fieldsType": "FieldsV1", "fieldsV1": owned.fields}
        if owned.manager.subresource:
            entry["subresource"] = owned.manager.subresource
        entries.append(entry)
    return entries


def _owned_fields(obj: Json) -> Json:
    """The object without what the server owns."""
    rest = {key: value for key, value in obj.items() if key not in ("apiVersion", "kind")}
    meta = {key: value for key, value in obj.get("metadata", {}).items() if key not in _SERVER_FIELDS}
    if meta:
        rest["metadata"] = meta
    else:
        rest.pop("metadata", None)
    return rest


def track_update(
    old: Json | None,
    new: Json,
    owners: list[Owned],
    manager: Manager,
    node: Node,
    now: str,
    *,
    empty: Json | None = None,
    tracked: Json | None = None,
) -> None:
    """Write into ``new`` who owns its fields after ``manager`` changed ``old`` to it by create, update or patch.

    Args:
        old: The object before; None when it is new.
        new: The object now; its managedFields are set.
        owners: Who owned what.
        manager: Who makes the change.
        node: The kind's type.
        now: Time of a changed entry.
        empty: What an object of the kind holds from the start, which nobody owns for having created it.
        tracked: The part of ``new`` that is owned, where the server has filled in some of it.
    """
    fresh = _owned_fields(tracked if tracked is not None else new)
    removed: FieldSet = {}
    if old is None:
        changed, _ = fieldsets.compare(empty or {}, fresh, node)
    else:
        changed, removed = fieldsets.compare(_owned_fields(old), fresh, node)
    new["metadata"]["managedFields"] = write_managed(_claim(owners, manager, changed, removed, now))
    if not new["metadata"]["managedFields"]:
        del new["metadata"]["managedFields"]


def _claim(owners: list[Owned], manager: Manager, changed: FieldSet, removed: FieldSet, now: str) -> list[Owned]:
    if not changed and not removed:
        return owners
    found: list[Owned] = []
    mine = FieldSet()
    time = now
    for owned in owners:
        fields = fieldsets.without_below(owned.fields, removed) if removed else owned.fields
        if owned.manager == manager:
            mine = fields
            time = owned.time or now if fields == owned.fields and not changed else now
            continue
        fields = fieldsets.subtract(fields, changed)
        found.append(Owned(owned.manager, fields, owned.time))
    fields = fieldsets.merge_roots(mine, changed)
    if fields:
        found.append(Owned(manager, fields, time))
    return found


def apply(live: Json | None, config: Json, manager: Manager, node: Node, now: str, *, force: bool) -> Json:
    """The object after ``manager`` applied ``config``.

    Args:
        live: The object as it is; None when it does not exist.
        config: What the manager sent, decoded.
        manager: Who applies.
        node: The kind's type.
        now: Time of a changed entry.
        force: Take over fields that others own.

    Returns:
        A new object, with managedFields; parts of it are shared with ``live`` and ``config``.

    Raises:
        ApiError: 409 naming each conflict and its owner.
    """
    wanted = strip_nulls(config)
    owners = read_managed((live or {}).get("metadata", {}).get("managedFields"))
    mine = next((owned for owned in owners if owned.manager == manager), None)
    # The version an entry was written in does not make another manager of it.
    if mine is None:
        mine = next(
            (
                owned
                for owned in owners
                if (owned.manager.name, owned.manager.operation, owned.manager.subresource)
                == (manager.name, manager.operation, manager.subresource)
            ),
            None,
        )
    others = [owned for owned in owners if owned is not mine]
    applied = _owned_fields(wanted)
    fields = fieldsets.field_set(applied, node)
    if live is None:
        merged = wanted
    else:
        merged = merge(live, {**wanted, "metadata": _without_server_fields(wanted.get("metadata", {}))}, node)
        changed, _ = fieldsets.compare(_owned_fields(live), _owned_fields(merged), node)
        others = _settle_conflicts(others, changed, force=force)
        if mine is not None and mine.fields != fields:
            keep = [owned.fields for owned in others]
            merged = _remove(merged, node, mine.fields, fields, keep)
    same = mine is not None and mine.fields == fields and mine.manager == manager
    time = mine.time if mine is not None and same else now
    meta = dict(merged.get("metadata", {}))
    meta["managedFields"] = write_managed([*others, Owned(manager, fields, time)])
    if not meta["managedFields"]:
        del meta["managedFields"]
    return {**merged, "metadata": meta}


def _without_server_fields(meta: Json) -> Json:
    return {key: value for key, value in meta.items() if key not in _SERVER_FIELDS}


def strip_nulls(value: Any) -> Any:
    """Null means absent in an applied configuration."""
    if isinstance(value, dict):
        return {key: strip_nulls(below) for key, below in value.items() if below is not None}
    if isinstance(value, list):
        return [strip_nulls(item) for item in value]
    return value


def _settle_conflicts(others: list[Owned], changed: FieldSet, *, force: bool) -> list[Owned]:
    conflicts: list[tuple[Owned, list[str]]] = []
    settled = []
    for owned in others:
        clash = fieldsets.intersect(owned.fields, changed)
        if not clash:
            settled.append(owned)
            continue
        conflicts.append((owned, list(fieldsets.paths(clash))))
        settled.append(Owned(owned.manager, fieldsets.subtract(owned.fields, clash), owned.time))
    if conflicts and not force:
        raise _conflict_error(conflicts)
    return settled


def _conflict_error(conflicts: list[tuple[Owned, list[str]]]) -> ApiError:
    causes = []
    lines = []
    for owned, paths in sorted(conflicts, key=lambda pair: pair[0].manager.name):
        who = _owner_text(owned)
        causes += [
            {"reason": "FieldManagerConflict", "message": f"conflict with {who}", "field": path} for path in paths
        ]
        lines.append(f"conflicts with {who}:")
        lines += [f"- {path}" for path in paths]
    if len(causes) == 1:
        text = f"Apply failed with 1 conflict: {causes[0]['message']}: {causes[0]['field']}"
    else:
        text = f"Apply failed with {len(causes)} conflicts: " + "\n".join(lines)
    return ApiError(409, "Conflict", text, {"causes": causes})


def _owner_text(owned: Owned) -> str:
    text = f'"{owned.manager.name}"'
    if owned.manager.subresource:
        text += f' with subresource "{owned.manager.subresource}"'
    if owned.manager.operation == "Update":
        text += f" using {owned.manager.api_version}"
        if owned.time:
            text += f" at {owned.time}"
    return text


def merge(live: Any, wanted: Any, node: Node) -> Any:
    """``live`` with the fields of ``wanted`` set; neither is changed."""
    if isinstance(wanted, dict) and isinstance(live, dict) and not node.atomic:
        found = dict(live)
        for key, value in wanted.items():
            found[key] = merge(live[key], value, node.child(key)) if key in live else value
        return found
    if isinstance(wanted, list) and isinstance(live, list) and node.shape == "list" and node.topology != "atomic":
        return _merge_list(live, wanted, node)
    return wanted


def _merge_list(live: list[Any], wanted: list[Any], node: Node) -> list[Any]:
    """Items by key: the order of ``wanted``, and items only ``live`` has stay before what followed them."""
    before = {fieldsets.item_element(item, node): item for item in live}
    applied = {fieldsets.item_element(item, node) for item in wanted}
    positions = {element: index for index, element in enumerate(before)}
    rest = [(positions[element], item) for element, item in before.items() if element not in applied]
    item_node = node.items()
    found: list[Any] = []
    for item in wanted:
        element = fieldsets.item_element(item, node)
        if element not in before:
            found.append(item)
            continue
        while rest and rest[0][0] < positions[element]:
            found.append(rest.pop(0)[1])
        found.append(merge(before[element], item, item_node))
    return found + [item for _, item in rest]


def _remove(value: Any, node: Node, last: FieldSet, now: FieldSet, others: list[FieldSet]) -> Any:
    """``value`` without the fields that are in ``last``, not in ``now``, and in no other manager's set."""
    if isinstance(value, dict):
        found = dict(value)
        for element, below in last.items():
            if not element.startswith("f:"):
                continue
            key = element[2:]
            if key not in found:
                continue
            kept = _remove_one(found[key], node.child(key), element, below, now, others)
            if kept is _GONE:
                del found[key]
            else:
                found[key] = kept
        return found
    if isinstance(value, list) and node.shape == "list" and node.topology != "atomic":
        items = []
        for item in value:
            element = fieldsets.item_element(item, node) or ""
            if element in last:
                # An item that stays because of others keeps what identifies it.
                below = {key: found for key, found in last[element].items() if key[2:] not in node.keys}
                below = {} if not last[element] else below
                kept = _remove_one(item, node.items(), element, below, now, others)
                if kept is _GONE:
                    continue
                items.append(kept)
            else:
                items.append(item)
        return items
    return value


_GONE = object()


def _remove_one(value: Any, node: Node, element: str, below: FieldSet, now: FieldSet, others: list[FieldSet]) -> Any:
    shared = [fields[element] for fields in others if element in fields]
    if element in now:
        # Still applied, perhaps with fewer fields below.
        inner = {key: found for key, found in below.items() if key != "."}
        return _remove(value, node, inner, now[element], shared) if inner and now[element] != below else value
    # What is no longer applied at all goes with everything in it, the defaults too, unless others own some of it.
    return _remove(value, node, below, {}, shared) if shared else _GONE
