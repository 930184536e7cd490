"""What differs between two objects, field by field, in the words of who writes them. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

#: Of these only the name is shown: people put into them what is long, or what others should not read in a build's log.
UNSHOWN: Final = frozenset({"env", "args", "command", "podTemplate", "data", "binaryData", "stringData", "url"})
#: What the server or kubectl writes beside what a person does.
_SERVERS: Final = frozenset(
    {"creationTimestamp", "generation", "managedFields", "resourceVersion", "selfLink", "uid", "ownerReferences"}
)
_LAST_APPLIED: Final = "kubectl.kubernetes.io/last-applied-configuration"
LONGEST: Final = 40


@dataclass(frozen=True, slots=True)
class Difference:
    """One field, before and after; None where it is absent.

    ``path``: its keys; an item of a list of named things is ``[name]``.
    """

    path: tuple[str, ...]
    before: Any
    after: Any

    @property
    def name(self) -> str:
        """The field as people write it, without the ``spec.`` that nearly all have in common."""
        keys = self.path[1:] if self.path[0] == "spec" and len(self.path) > 1 else self.path
        return ".".join(keys).replace(".[", "[")

    def __str__(self) -> str:
        if UNSHOWN & set(self.path) or not (_short(self.before) and _short(self.after)):
            return self.name
        if self.before is None:
            return f"{self.name} {_text(self.after)} (new)"
        if self.after is None:
            return f"{self.name} (was {_text(self.before)})"
        return f"{self.name} {_text(self.before)} → {_text(self.after)}"


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Difference]:
    """What a person changes by making ``after`` of ``before``: no status, and nothing that the server writes."""
    return list(_of_objects(_written(before), _written(after), ()))


def undone(obj: Mapping[str, Any], difference: Difference) -> dict[str, Any]:
    """``obj`` with that one field as it was before."""
    result: dict[str, Any] = _with(obj, difference.path, difference.before)
    return result


def _written(obj: Mapping[str, Any]) -> dict[str, Any]:
    metadata = {key: value for key, value in (obj.get("metadata") or {}).items() if key not in _SERVERS}
    annotations = {key: text for key, text in (metadata.get("annotations") or {}).items() if key != _LAST_APPLIED}
    metadata = {**metadata, "annotations": annotations} if annotations else _without(metadata, "annotations")
    return {**_without(obj, "status"), "metadata": metadata}


def _without(obj: Mapping[str, Any], field: str) -> dict[str, Any]:
    return {key: value for key, value in obj.items() if key != field}


def _of_objects(before: Mapping[str, Any], after: Mapping[str, Any], path: tuple[str, ...]) -> Iterator[Difference]:
    for key in sorted(before.keys() | after.keys()):
        yield from _of_values(before.get(key), after.get(key), (*path, key))


def _of_values(before: Any, after: Any, path: tuple[str, ...]) -> Iterator[Difference]:
    if before == after:
        return
    if _are_objects(before, after):
        yield from _of_objects(before or {}, after or {}, path)
    elif _are_named(before) and _are_named(after) and (before or after):
        old, new = ({f"[{item['name']}]": item for item in items or ()} for items in (before, after))
        found = [
            Difference((*path, name), old.get(name), new.get(name))
            for name in [*old, *(name for name in new if name not in old)]
            if old.get(name) != new.get(name)
        ]
        yield from found or [Difference(path, before, after)]  # the order alone, which counts in an environment
    else:
        yield Difference(path, before, after)


def _are_objects(*values: Any) -> bool:
    """Whether fields can be told apart: of an object beside nothing, if it has some."""
    return all(isinstance(value, Mapping) or value is None for value in values) and (None not in values or any(values))


def _are_named(value: Any) -> bool:
    if value is None:
        return True
    return isinstance(value, list) and all(isinstance(item, Mapping) and "name" in item for item in value)


def _with(value: Any, path: Sequence[str], new: Any) -> Any:
    if not path:
        return new
    key, rest = path[0], path[1:]
    if key.startswith("[") and isinstance(value, list | None):
        items = list(value or ())
        place = next((i for i, item in enumerate(items) if f"[{item['name']}]" == key), len(items))
        changed = _with(items[place] if place < len(items) else None, rest, new)
        items[place : place + 1] = [] if changed is None else [changed]
        return items or None
    result = dict(value or {})
    changed = _with(result.get(key), rest, new)
    if changed is None:
        result.pop(key, None)
    else:
        result[key] = changed
    return result


def _short(value: Any) -> bool:
    return not isinstance(value, Mapping | list) and len(_text(value)) <= LONGEST


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
