"""Types of the built-in kinds: the generated table of fields joined with the shared table of merge keys."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import orjson

from ...mergekeys import merge_rule
from .typing_tree import ANY, Node

_TABLE = Path(__file__).with_name("builtin_types.json")

_SCALARS = {
    "str": "str", "int": "int", "bool": "bool", "float": "float", "datetime": "datetime", "bytes": "bytes",
    "object": "object",
}  # fmt: skip

# Fields whose text is a quantity, which the client's models do not tell from other text.
_QUANTITY_MAPS = {
    "limits", "requests", "capacity", "allocatable", "allocatedResources", "hard", "used", "overhead",
    "default", "defaultRequest", "max", "min", "maxLimitRequestRatio",
}  # fmt: skip
_QUANTITIES = {"sizeLimit", "divisor"}

METADATA_MODEL = "V1ObjectMeta"


@cache
def _models() -> dict[str, dict[str, str]]:
    loaded: dict[str, dict[str, str]] = orjson.loads(_TABLE.read_bytes())
    return loaded


class _Builder:
    def __init__(self, group: str, kind: str) -> None:
        self.group = group
        self.kind = kind

    def node(self, declared: str, path: tuple[str, ...], *, quantity: bool = False) -> Node:
        if listed := re.fullmatch(r"List\[(.+)\]", declared):
            return self._list(listed[1], path)
        if mapped := re.fullmatch(r"Dict\[str, (.+)\]", declared):
            rule = merge_rule(self.group, self.kind, path)
            item = self.node(mapped[1], path, quantity=quantity)
            return Node("map", item=item, atomic=rule is not None and rule.topology == "atomic")
        if declared in _SCALARS:
            return Node("scalar", scalar="quantity" if quantity else _SCALARS[declared])
        if declared not in _models():
            return ANY
        return self._struct(declared, path)

    def _struct(self, model: str, path: tuple[str, ...]) -> Node:
        rule = merge_rule(self.group, self.kind, path)
        fields: dict[str, Node] = {}
        must: list[str] = []
        for name, declared in _models()[model].items():
            kind = declared.removesuffix("!")
            if declared.endswith("!"):
                must.append(name)
            quantity = name in _QUANTITIES or (name in _QUANTITY_MAPS and kind == "Dict[str, str]")
            fields[name] = self.node(kind, (*path, name), quantity=quantity)
        atomic = rule is not None and rule.topology == "atomic"
        return Node("struct", fields=fields, required=tuple(must), atomic=atomic)

    def _list(self, declared: str, path: tuple[str, ...]) -> Node:
        rule = merge_rule(self.group, self.kind, path)
        item = self.node(declared, path)
        if item.atomic:
            # The rule at this path is the list's own; its items are reached only through it.
            item = Node("struct", fields=item.fields, required=item.required)
        if rule is None or rule.topology == "granular":
            return Node("list", item=item)
        return Node(
            "list", item=item, topology=rule.topology, keys=rule.keys, key_defaults=rule.key_defaults,
            patch_key=rule.patch_key, patch_merge=rule.patch_merge,
        )  # fmt: skip


@cache
def builtin_type(group: str, kind: str, model: str) -> Node:
    """The tree of a built-in kind.

    Args:
        group: API group, empty for the core group.
        kind: For instance ``Deployment``.
        model: Its name in the generated table, for instance ``V1Deployment``.
    """
    return _Builder(group, kind).node(model, ())


@cache
def metadata_type() -> Node:
    """ObjectMeta, the same for every kind."""
    return _Builder("", "").node(METADATA_MODEL, ("metadata",))
