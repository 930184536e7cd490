"""The scale subresource: how many replicas are wanted and are there, in one form for every kind that has them."""

from __future__ import annotations

from typing import Any

from . import errors
from .errors import FieldError, Json
from .kinds import Kind
from .store import Entry


def _at(obj: Json, path: str) -> Any:
    found: Any = obj
    for name in path.split("."):
        found = found.get(name) if isinstance(found, dict) else None
    return found


def _selector_text(value: Any) -> str:
    """A selector as text; custom resources keep it so already."""
    if not isinstance(value, dict):
        return str(value or "")
    terms = [f"{key}={wanted}" for key, wanted in value.get("matchLabels", {}).items()]
    for term in value.get("matchExpressions", ()):
        key, operator, listed = term["key"], term["operator"], ",".join(term.get("values", ()))
        terms.append({"Exists": key, "DoesNotExist": f"!{key}"}.get(operator, f"{key} {operator.lower()} ({listed})"))
    return ",".join(terms)


def scale_of(kind: Kind, entry: Entry) -> Json:
    """The Scale of an object."""
    assert kind.scale is not None
    obj = entry.obj
    meta = obj["metadata"]
    if kind.custom:
        selector = _at(obj, kind.scale.selector) if kind.scale.selector else None
    else:
        selector = _at(obj, "spec.selector")
    status: Json = {"replicas": _at(obj, kind.scale.status) or 0}
    if text := _selector_text(selector):
        status["selector"] = text
    shown = ("name", "namespace", "uid", "resourceVersion", "creationTimestamp")
    return {
        "kind": "Scale", "apiVersion": "autoscaling/v1",
        "metadata": {key: meta[key] for key in shown if key in meta},
        "spec": {"replicas": _at(obj, kind.scale.spec) or 0}, "status": status,
    }  # fmt: skip


def scale_problems(kind: Kind, obj: Json) -> list[FieldError]:
    """What the scale subresource of a custom resource has against an object."""
    if kind.scale is None:
        return []
    wanted = _at(obj, kind.scale.spec)
    path = f".{kind.scale.spec}"
    if wanted is None:
        return []
    if isinstance(wanted, bool) or not isinstance(wanted, int):
        sent = {str: "string", bool: "bool", float: "float64", dict: "map[string]interface {}"}.get(type(wanted), "[]")
        return [errors.invalid(path, 0, f"{path} accessor error: {wanted} is of the type {sent}, expected int64")]
    return [errors.invalid(path, wanted, "should be a non-negative integer")] if wanted < 0 else []


def scaled(kind: Kind, obj: Json, scale: Json, name: str) -> Json:
    """``obj`` with the replicas that ``scale`` asks for.

    Raises:
        ApiError: 400 or 422 for a Scale that is none.
    """
    assert kind.scale is not None
    if scale.get("kind") != "Scale":
        raise errors.bad_request(f"the kind in the data ({scale.get('kind')}) does not match the expected kind (Scale)")
    replicas = (scale.get("spec") or {}).get("replicas", 0)
    if isinstance(replicas, bool) or not isinstance(replicas, int):
        raise errors.bad_request("Scale: .spec.replicas must be a whole number")
    if replicas < 0:
        problem = errors.invalid("spec.replicas", replicas, "must be greater than or equal to 0")
        raise errors.unprocessable("autoscaling", "Scale", name, [problem])
    version = (scale.get("metadata") or {}).get("resourceVersion")
    found = _set(obj, kind.scale.spec.split("."), replicas)
    meta = {**obj["metadata"], "resourceVersion": version or obj["metadata"]["resourceVersion"]}
    return {**found, "metadata": meta}


def _set(obj: Any, path: list[str], value: Any) -> Any:
    inner = obj if isinstance(obj, dict) else {}
    if len(path) == 1:
        return {**inner, path[0]: value}
    return {**inner, path[0]: _set(inner.get(path[0]), path[1:], value)}
