"""Sets of field paths in the form of ``fieldsV1``: which fields a manager owns, and what changed between two objects.

A set is the nested mapping that ``managedFields`` holds: keys ``f:<name>``, ``k:<json of key fields>``,
``v:<json value>``; an empty mapping is a member, ``.`` makes a member of one that also has members below it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import orjson

from .typing_tree import Node

FieldSet = dict[str, Any]

_MISSING = object()


def item_element(item: Any, node: Node) -> str | None:
    """The path element of a list's item, or None where the item lacks its key fields."""
    if node.topology == "set":
        return "v:" + orjson.dumps(item).decode()
    identity = node.identity(item)
    if identity is None:
        return None
    found = dict(zip(node.keys, identity, strict=True))
    return "k:" + orjson.dumps(found, option=orjson.OPT_SORT_KEYS).decode()


def is_member(found: FieldSet) -> bool:
    """Whether the path that led to ``found`` is itself in the set."""
    return not found or "." in found


def _whole(value: Any, node: Node) -> bool:
    """Whether the value is owned as a whole."""
    if isinstance(value, dict):
        return node.atomic or node.shape == "scalar"
    if isinstance(value, list):
        return node.shape != "list" or node.topology == "atomic"
    return True


def field_set(value: Any, node: Node) -> FieldSet:
    """All fields of an applied ``value``.

    A struct is a member only where it is empty, a key of a map always, a list with items of its own never.
    """
    found: FieldSet = {}
    if _whole(value, node):
        return found
    if isinstance(value, dict):
        for key, below in value.items():
            child = node.child(key)
            inner = field_set(below, child)
            if not inner and isinstance(below, list) and not _whole(below, child):
                continue
            if inner and key not in node.fields:
                inner["."] = {}
            found["f:" + key] = inner
        return found
    item_node = node.items()
    for item in value:
        element = item_element(item, node)
        if element is None:
            continue
        inner = {} if node.topology == "set" else field_set(item, item_node)
        if inner:
            inner["."] = {}
        found[element] = inner
    return found


def _added(value: Any, node: Node) -> FieldSet:
    """All fields of a ``value`` that is new, with everything that holds them."""
    found: FieldSet = {}
    if _whole(value, node):
        return found
    if isinstance(value, dict):
        for key, below in value.items():
            found["f:" + key] = _added(below, node.child(key))
    else:
        item_node = node.items()
        for item in value:
            element = item_element(item, node)
            if element is not None:
                found[element] = {} if node.topology == "set" else _added(item, item_node)
    if found:
        found["."] = {}
    return found


def compare(old: Any, new: Any, node: Node) -> tuple[FieldSet, FieldSet]:
    """Fields of ``new`` that are new or have another value than in ``old``, and fields of ``old`` that are gone."""
    changed: FieldSet = {}
    removed: FieldSet = {}
    if not _both_open(old, new, node):
        return changed, removed
    if isinstance(old, dict):
        pairs: Iterable[tuple[str, Any, Any, Node]] = (
            ("f:" + key, old.get(key, _MISSING), new.get(key, _MISSING), node.child(key)) for key in {**old, **new}
        )
    else:
        before = _by_element(old, node)
        after = _by_element(new, node)
        item_node = node.items()
        pairs = (
            (element, before.get(element, _MISSING), after.get(element, _MISSING), item_node)
            for element in {**before, **after}
        )
    for element, was, now, child in pairs:
        if was is now or was == now:
            continue
        if was is _MISSING:
            changed[element] = _added(now, child)
        elif now is _MISSING:
            removed[element] = {}
        elif _both_open(was, now, child):
            inner_changed, inner_removed = compare(was, now, child)
            if inner_changed:
                changed[element] = inner_changed
            if inner_removed:
                removed[element] = inner_removed
        else:
            changed[element] = _added(now, child)
    return changed, removed


def _both_open(old: Any, new: Any, node: Node) -> bool:
    return type(old) is type(new) and not _whole(old, node) and not _whole(new, node)


def _by_element(items: list[Any], node: Node) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for item in items:
        element = item_element(item, node)
        if element is not None:
            found.setdefault(element, item)
    return found


def union(first: FieldSet, second: FieldSet) -> FieldSet:
    """Paths that are in either set."""
    if not second:
        return first if not first or "." in first else first | {".": {}}
    if not first:
        return second if "." in second else second | {".": {}}
    found = dict(first)
    for element, below in second.items():
        found[element] = union(first[element], below) if element in first else below
    return found


def merge_roots(first: FieldSet, second: FieldSet) -> FieldSet:
    """As ``union`` for whole sets, where an empty mapping means an empty set."""
    return union(first, second) if first and second else first or second


def intersect(first: FieldSet, second: FieldSet) -> FieldSet:
    """Members of both sets, as a whole set: an empty mapping is an empty set."""
    found: FieldSet = {}
    for element, below in first.items():
        if element == "." or element not in second:
            continue
        other = second[element]
        inner = intersect(below, other)
        if is_member(below) and is_member(other):
            found[element] = inner | {".": {}} if inner else {}
        elif inner:
            found[element] = inner
    return found


def subtract(first: FieldSet, second: FieldSet) -> FieldSet:
    """Members of ``first`` that are not members of ``second``, as a whole set."""
    found: FieldSet = {}
    for element, below in first.items():
        if element == ".":
            continue
        if element not in second:
            found[element] = below
            continue
        other = second[element]
        inner = subtract(below, other)
        if is_member(below) and not is_member(other):
            found[element] = inner | {".": {}} if inner else {}
        elif inner:
            found[element] = inner
    return found


def without_below(first: FieldSet, gone: FieldSet) -> FieldSet:
    """``first`` without the paths of ``gone`` and everything below them."""
    found: FieldSet = {}
    for element, below in first.items():
        if element == "." or element not in gone:
            found[element] = below
        elif not is_member(gone[element]):
            inner = without_below(below, gone[element])
            if inner and (set(inner) != {"."} or is_member(below)):
                found[element] = {} if set(inner) == {"."} else inner
    return found


def paths(found: FieldSet, prefix: str = "") -> Iterator[str]:
    """Every member as text, for instance ``.spec.containers[name="x"].image``; at each level what is owned first."""
    level = [(prefix + _element_text(element), below) for element, below in sorted(found.items()) if element != "."]
    yield from (here for here, below in level if is_member(below))
    for here, below in level:
        yield from paths(below, here)


def _element_text(element: str) -> str:
    kind, _, rest = element.partition(":")
    if kind == "f":
        return f".{rest}"
    if kind == "v":
        return f"[={rest}]"
    keys: dict[str, Any] = orjson.loads(rest)
    return "[" + ",".join(f"{name}={orjson.dumps(value).decode()}" for name, value in keys.items()) + "]"
