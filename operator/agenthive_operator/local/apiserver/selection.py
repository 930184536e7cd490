"""Label and field selectors: parsed once, matched against objects."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from .errors import ApiError, bad_request

Matcher = Callable[[Mapping[str, Any]], bool]

_SET = re.compile(r"^(\S+)\s+(in|notin)\s*\(([^()]*)\)$")
_EQUALITY = re.compile(r"^([^=!\s]+)\s*(==|=|!=)\s*(\S*)$")
_KEY = re.compile(r"^([A-Za-z0-9]([-A-Za-z0-9.]*[A-Za-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$")

# Fields a selector may name besides metadata.name and metadata.namespace, by resource.
FIELD_LABELS: dict[str, frozenset[str]] = {
    "pods": frozenset({
        "spec.nodeName", "spec.restartPolicy", "spec.schedulerName", "spec.serviceAccountName", "spec.hostNetwork",
        "status.phase", "status.podIP", "status.nominatedNodeName",
    }),
    "events": frozenset({
        "involvedObject.kind", "involvedObject.namespace", "involvedObject.name", "involvedObject.uid",
        "involvedObject.apiVersion", "involvedObject.resourceVersion", "involvedObject.fieldPath", "reason",
        "reportingComponent", "source", "type",
    }),
    "events.events.k8s.io": frozenset({
        "regarding.kind", "regarding.namespace", "regarding.name", "regarding.uid", "reason", "reportingController",
        "type",
    }),
    "namespaces": frozenset({"status.phase", "name"}),
    "secrets": frozenset({"type"}),
    "services": frozenset({"spec.clusterIP", "spec.type"}),
    "nodes": frozenset({"spec.unschedulable"}),
    "replicasets.apps": frozenset({"status.replicas"}),
}  # fmt: skip


def split_terms(text: str) -> list[str]:
    """Split at the commas that stand outside parentheses."""
    return [term.strip() for term in re.split(r",(?![^(]*\))", text) if term.strip()]


def _label_term(term: str) -> Matcher:
    if found := _SET.match(term):
        key, operator, listed = found.groups()
        _check_key(key, term)
        values = {value.strip() for value in listed.split(",")}
        if operator == "in":
            return lambda labels: labels.get(key) in values
        return lambda labels: labels.get(key) not in values
    if found := _EQUALITY.match(term):
        key, operator, value = found.groups()
        _check_key(key, term)
        if operator == "!=":
            return lambda labels: labels.get(key) != value
        return lambda labels: labels.get(key) == value
    if term.startswith("!"):
        absent = term[1:].strip()
        _check_key(absent, term)
        return lambda labels: absent not in labels
    _check_key(term, term)
    return lambda labels: term in labels


def _check_key(key: str, term: str) -> None:
    if not _KEY.match(key):
        raise bad_request(f"unable to parse requirement: {term!r} is not a label selector")


def label_matcher(text: str) -> Matcher | None:
    """What ``labelSelector=text`` means; None selects everything.

    Raises:
        ApiError: 400 for text that is no selector.
    """
    tests = [_label_term(term) for term in split_terms(text)]
    if not tests:
        return None

    def matches(obj: Mapping[str, Any]) -> bool:
        labels = obj["metadata"].get("labels") or {}
        return all(test(labels) for test in tests)

    return matches


def _value_at(obj: Mapping[str, Any], path: str) -> str:
    found: Any = obj
    for part in path.split("."):
        if not isinstance(found, Mapping) or part not in found:
            return ""
        found = found[part]
    if isinstance(found, bool):
        return "true" if found else "false"
    return str(found)


def field_matcher(text: str, resource: str, extra: frozenset[str] = frozenset()) -> Matcher | None:
    """What ``fieldSelector=text`` means for ``resource``; None selects everything.

    Args:
        text: Terms joined by commas.
        resource: ``pods``, ``replicasets.apps`` …
        extra: Further fields, without the leading dot (a CRD's ``selectableFields``).

    Raises:
        ApiError: 400 for a field that cannot be selected by.
    """
    tests: list[tuple[str, bool, str]] = []
    for term in split_terms(text):
        found = _EQUALITY.match(term)
        if found is None:
            raise bad_request(f"invalid selector: {term!r}; can't understand {term!r}")
        path, operator, value = found.groups()
        known = {"metadata.name", "metadata.namespace"} | FIELD_LABELS.get(resource, frozenset()) | extra
        if path not in known:
            raise _unknown_field(path)
        tests.append((path, operator != "!=", value))
    if not tests:
        return None
    return lambda obj: all((_value_at(obj, path) == value) is wanted for path, wanted, value in tests)


def _unknown_field(path: str) -> ApiError:
    return bad_request(f"field label not supported: {path}")


def both(first: Matcher | None, second: Matcher | None) -> Matcher | None:
    """An object must match both; None matches everything."""
    if first is None or second is None:
        return first or second
    return lambda obj: first(obj) and second(obj)
