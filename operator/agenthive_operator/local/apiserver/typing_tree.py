"""What the server knows of a kind's fields: one tree of nodes for built-in and custom kinds alike.

Decoding, pruning, strategic merge patch and server-side apply all walk an object along this tree.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Shape = Literal["scalar", "struct", "map", "list", "any"]


@dataclass(slots=True, eq=False)
class Node:
    """The type of one field.

    Attributes:
        shape: ``struct`` has declared fields, ``map`` free keys with values of one type, ``any`` holds whatever is
            sent (a custom resource's ``x-kubernetes-preserve-unknown-fields``).
        scalar: Of a scalar: ``str``, ``int``, ``bool``, ``float``, ``datetime``, ``bytes``, ``object`` (number or
            text), ``quantity``.
        fields: Of a struct: its declared fields.
        preserve: Of a struct: undeclared fields are kept.
        required: Of a struct: fields that must be there.
        item: Of a list or map: the type of its values.
        atomic: Server-side apply owns it as a whole (structs and maps; lists say so in ``topology``).
        topology: Of a list, in server-side apply.
        keys: Of a ``map`` list: the fields that identify an item.
        key_defaults: Values of key fields that an item leaves out.
        patch_key: Strategic merge patch: the field that identifies a list's items.
        patch_merge: Strategic merge patch: the list is merged and not replaced.
    """

    shape: Shape
    scalar: str = ""
    fields: Mapping[str, Node] = field(default_factory=dict)
    preserve: bool = False
    required: tuple[str, ...] = ()
    item: Node | None = None
    atomic: bool = False
    topology: Literal["atomic", "set", "map"] = "atomic"
    keys: tuple[str, ...] = ()
    key_defaults: Mapping[str, Any] = field(default_factory=dict)
    patch_key: str | None = None
    patch_merge: bool = False

    def child(self, name: str) -> Node:
        """The type of field or key ``name``; undeclared ones can hold anything."""
        found = self.fields.get(name)
        if found is not None:
            return found
        return self.item if self.shape == "map" and self.item is not None else ANY

    def items(self) -> Node:
        """The type of a list's items."""
        return self.item if self.item is not None else ANY

    def identity(self, item: Any) -> tuple[Any, ...] | None:
        """The key of a ``map`` list's item; None where the item has none."""
        if not isinstance(item, dict):
            return None
        found = []
        for key in self.keys:
            value = item.get(key, self.key_defaults.get(key))
            if value is None:
                return None
            found.append(value)
        return tuple(found)


ANY = Node("any")
