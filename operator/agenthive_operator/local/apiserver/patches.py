"""The three patch formats that are not server-side apply: JSON patch, merge patch and strategic merge patch."""

from __future__ import annotations

import logging
from typing import Any

from .errors import ApiError, Json, bad_request
from .typing_tree import Node

log = logging.getLogger(__name__)

MAX_OPERATIONS = 10_000
_END = "-"


def merge_patch(target: Any, patch: Any) -> Any:
    """RFC 7386; ``target`` is not changed."""
    if not isinstance(patch, dict):
        return patch
    found = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            found.pop(key, None)
        else:
            found[key] = merge_patch(found.get(key), value)
    return found


def json_patch(target: Json, operations: Any) -> Any:
    """RFC 6902; ``target`` is not changed.

    Raises:
        ApiError: 400 for a patch that is none, 422 for one that does not fit the object (a failed ``test`` too).
    """
    if not isinstance(operations, list) or not all(isinstance(step, dict) for step in operations):
        raise bad_request("error decoding patch: a JSON patch is a list of operations")
    if len(operations) > MAX_OPERATIONS:
        text = f"The allowed maximum operations in a JSON patch is {MAX_OPERATIONS}, got {len(operations)}"
        raise ApiError(413, "RequestEntityTooLarge", text)
    found: Any = target
    for step in operations:
        try:
            found = _operate(found, step)
        except (KeyError, IndexError, ValueError, TypeError) as error:
            log.info("JSON patch refused at %s: %s", step, error)
            # The real server says no more than this.
            text = "the server rejected our request due to an error in our request"
            raise ApiError(422, "Invalid", text, {}) from error
    return found


def _tokens(pointer: str) -> list[str]:
    if pointer == "":
        return []
    if not pointer.startswith("/"):
        raise ValueError(f"{pointer!r} is not a JSON pointer")
    return [token.replace("~1", "/").replace("~0", "~") for token in pointer[1:].split("/")]


def _value_at(target: Any, tokens: list[str]) -> Any:
    for token in tokens:
        target = target[_index(token, len(target) - 1)] if isinstance(target, list) else target[token]
    return target


def _index(token: str, last: int) -> int:
    if not token.isdigit() or int(token) > last:
        raise IndexError(f"no item {token} in the list")
    return int(token)


def _operate(target: Any, step: dict[str, Any]) -> Any:
    operation, tokens = step["op"], _tokens(step["path"])
    match operation:
        case "add":
            return _set(target, tokens, step["value"], add=True)
        case "replace":
            _value_at(target, tokens)
            return _set(target, tokens, step["value"], add=False)
        case "remove":
            return _delete(target, tokens)
        case "test":
            found = _value_at(target, tokens) if tokens == [] or _exists(target, tokens) else None
            if found != step.get("value"):
                raise ValueError(f"testing value {step['path']} failed")
            return target
        case "move":
            source = _tokens(step["from"])
            return _set(_delete(target, source), tokens, _value_at(target, source), add=True)
        case "copy":
            return _set(target, tokens, _value_at(target, _tokens(step["from"])), add=True)
    raise ValueError(f"unknown operation {operation!r}")


def _exists(target: Any, tokens: list[str]) -> bool:
    try:
        _value_at(target, tokens)
    except (KeyError, IndexError, TypeError):
        return False
    return True


def _set(target: Any, tokens: list[str], value: Any, *, add: bool) -> Any:
    if not tokens:
        return value
    token, rest = tokens[0], tokens[1:]
    if isinstance(target, list):
        items = list(target)
        if rest:
            index = _index(token, len(items) - 1)
            items[index] = _set(items[index], rest, value, add=add)
        elif add:
            items.insert(len(items) if token == _END else _index(token, len(items)), value)
        else:
            items[_index(token, len(items) - 1)] = value
        return items
    if not isinstance(target, dict):
        raise ValueError(f"{token!r} is below a value that has no fields")
    if not rest:
        return {**target, token: value}
    return {**target, token: _set(target[token], rest, value, add=add)}


def _delete(target: Any, tokens: list[str]) -> Any:
    if not tokens:
        raise ValueError("the whole object cannot be removed")
    token, rest = tokens[0], tokens[1:]
    if isinstance(target, list):
        index = _index(token, len(target) - 1)
        items = list(target)
        if rest:
            items[index] = _delete(items[index], rest)
        else:
            del items[index]
        return items
    if rest:
        return {**target, token: _delete(target[token], rest)}
    if token not in target:
        raise KeyError(f"Unable to remove nonexistent key: {token}")
    return {key: value for key, value in target.items() if key != token}


_DIRECTIVES = ("$patch", "$retainKeys", "$setElementOrder/", "$deleteFromPrimitiveList/")


def strategic_merge(target: Any, patch: Any, node: Node) -> Any:
    """Kubernetes' strategic merge patch for built-in kinds; ``target`` is not changed.

    Honours ``$patch: replace | delete | merge``, ``$retainKeys``, ``$setElementOrder/…`` and
    ``$deleteFromPrimitiveList/…``.

    Raises:
        ApiError: 400 for directives that make no sense.
    """
    if not isinstance(patch, dict):
        return patch
    directive = patch.get("$patch")
    if directive == "replace":
        return {key: value for key, value in patch.items() if not key.startswith(_DIRECTIVES)}
    if directive == "delete":
        return {}
    if directive not in (None, "merge"):
        raise bad_request(f"Unknown patch type found: {directive}")
    found: dict[str, Any] = dict(target) if isinstance(target, dict) else {}
    if (kept := patch.get("$retainKeys")) is not None:
        found = {key: value for key, value in found.items() if key in kept}
    for key, value in patch.items():
        if key.startswith("$deleteFromPrimitiveList/"):
            name = key.partition("/")[2]
            found[name] = [item for item in found.get(name, []) if item not in value]
    for key, value in patch.items():
        if key.startswith(_DIRECTIVES):
            continue
        child = node.child(key)
        if value is None:
            found.pop(key, None)
        elif isinstance(value, list) and child.patch_merge:
            found[key] = _merge_items(found.get(key) or [], value, child)
        elif isinstance(value, dict):
            if value.get("$patch") == "delete":
                found.pop(key, None)
            else:
                found[key] = strategic_merge(found.get(key), value, child)
        else:
            found[key] = value
    for key, order in patch.items():
        if key.startswith("$setElementOrder/"):
            name = key.partition("/")[2]
            if isinstance(found.get(name), list):
                before = target.get(name) if isinstance(target, dict) else None
                found[name] = _ordered(found[name], order, node.child(name), before or [])
    return found


def _merge_items(live: list[Any], patch: list[Any], node: Node) -> list[Any]:
    key = node.patch_key
    if key is None:
        return _ordered(live + [item for item in patch if item not in live], patch, node, live)
    if any(isinstance(item, dict) and item.get("$patch") == "replace" for item in patch):
        return [item for item in patch if "$patch" not in item]
    found = list(live)
    for item in patch:
        if not isinstance(item, dict) or key not in item:
            raise bad_request(f"map: {item} does not contain declared merge key: {key}")
        index = next((i for i, existing in enumerate(found) if existing.get(key) == item[key]), None)
        if item.get("$patch") == "delete":
            if index is not None:
                del found[index]
        elif index is None:
            found.append(strategic_merge({}, item, node.items()))
        else:
            found[index] = strategic_merge(found[index], item, node.items())
    named = [item for item in patch if item.get("$patch") != "delete"]
    return _ordered(found, named, node, live)


def _ordered(items: list[Any], order: list[Any], node: Node, live: list[Any]) -> list[Any]:
    """``items`` in the order the patch names them; the others go where they stood relative to those in ``live``."""
    key = node.patch_key

    def identity(item: Any) -> Any:
        return item.get(key) if key is not None and isinstance(item, dict) else item

    places = [identity(item) for item in live]
    wanted = [identity(item) for item in order]
    named = sorted((item for item in items if identity(item) in wanted), key=lambda item: wanted.index(identity(item)))
    rest = [item for item in items if identity(item) not in wanted]

    def precedes(first: Any, second: Any) -> bool:
        left, right = identity(first), identity(second)
        return left in places and right in places and places.index(left) < places.index(right)

    found: list[Any] = []
    while named and rest:
        found.append(rest.pop(0) if precedes(rest[0], named[0]) else named.pop(0))
    return found + named + rest
