"""Which objects need an apply, which are ours, and what counts as the same."""

from __future__ import annotations

from typing import Any

import pytest

from agenthive_operator.reconcile.children import (
    APPLIED,
    amount,
    conflict_text,
    covers,
    is_ours,
    needs_apply,
    prepare,
)

LABELS = {"app.kubernetes.io/managed-by": "agenthive-operator", "agenthive.dev/hive": "demo"}


@pytest.mark.parametrize(
    ("live", "wanted", "expected"),
    [
        ({"a": 1, "b": 2}, {"a": 1}, True),
        ({"a": 1}, {"a": 2}, False),
        ({}, {"a": 1}, False),
        ({}, {"a": 0, "b": "", "c": [], "d": {}, "e": False}, True),
        ({"a": None}, {"a": {"b": 1}}, False),
        ({"a": "text"}, {"a": {"b": 1}}, False),
        ({"env": [{"name": "A", "value": "1"}, {"name": "Z"}]}, {"env": [{"name": "A", "value": "1"}]}, True),
        ({"env": [{"name": "Z"}, {"name": "A", "value": "1"}]}, {"env": [{"name": "A", "value": "2"}]}, False),
        ({"env": [{"name": "Z"}]}, {"env": [{"name": "A"}]}, False),
        ({"args": ["a", "b"]}, {"args": ["a"]}, False),
        ({"args": ["a", "b"]}, {"args": ["a", "b"]}, True),
        ({}, {"args": ["a"]}, False),
        ({"args": "a"}, {"args": ["a"]}, False),
        ({"limits": {"cpu": "1"}}, {"limits": {"cpu": "1000m"}}, True),
        ({"limits": {"cpu": "2"}}, {"limits": {"cpu": "1000m"}}, False),
        ({"requests": {"storage": "1Gi"}}, {"requests": {"storage": "1024Mi"}}, True),
        ({"value": "1"}, {"value": "1000m"}, False),
        ({"ports": [{"containerPort": 80, "protocol": "TCP"}]}, {"ports": [{"containerPort": 80}]}, True),
        ({"refs": [{"uid": "a"}, {"uid": "b"}]}, {"refs": [{"uid": "b"}]}, True),
        ({"x": [[1], [2]]}, {"x": [[1], [2]]}, True),
    ],
)
def test_covers(live: dict[str, Any], wanted: dict[str, Any], expected: bool) -> None:
    assert covers(live, wanted) is expected


@pytest.mark.parametrize(
    ("left", "right", "same"),
    [("1", "1000m", True), ("0.5", "500m", True), ("1Ki", "1024", True), ("1M", "1Mi", False), ("1e3", "1k", True)],
)
def test_amounts(left: str, right: str, same: bool) -> None:
    assert (amount(left) == amount(right)) is same


def test_what_is_no_quantity_is_itself() -> None:
    assert amount("lots") == "lots"


def test_prepare_encodes_strings_and_marks_the_plan() -> None:
    plan = {"kind": "Secret", "metadata": {"name": "s", "annotations": {"a": "b"}}, "stringData": {"k": "v"}}
    body = prepare(plan)
    assert body["data"] == {"k": "dg=="}
    assert "stringData" not in body
    assert body["metadata"]["annotations"]["a"] == "b"
    assert APPLIED not in plan["metadata"]["annotations"], "the plan itself is left alone"


def test_a_field_that_left_the_plan_needs_an_apply_although_all_planned_ones_are_live() -> None:
    before = prepare({"kind": "X", "metadata": {"name": "x"}, "spec": {"a": 1, "b": 2}})
    after = prepare({"kind": "X", "metadata": {"name": "x"}, "spec": {"a": 1}})
    assert not needs_apply(before, before)
    assert needs_apply(after, before)


def test_drift_needs_an_apply_and_a_foreign_field_does_not() -> None:
    body = prepare({"kind": "X", "metadata": {"name": "x"}, "spec": {"a": 1}})
    assert needs_apply(body, {**body, "spec": {"a": 3}})
    assert not needs_apply(body, {**body, "spec": {"a": 1, "foreign": 1}, "status": {}})


def obj(owner: dict[str, Any] | None = None, labels: dict[str, str] | None = None) -> dict[str, Any]:
    metadata: dict[str, Any] = {"name": "x", "namespace": "ns", "labels": LABELS if labels is None else labels}
    if owner:
        metadata["ownerReferences"] = [{"controller": True, **owner}]
    return {"kind": "Secret", "metadata": metadata}


HIVE = {"kind": "AgentHive", "name": "demo", "uid": "1"}


@pytest.mark.parametrize(
    ("live", "body", "expected"),
    [
        (obj(HIVE), obj(HIVE), True),
        (obj(HIVE, {}), obj(HIVE), False),
        (obj(None, {}), obj(HIVE), False),
        (obj(None), obj(HIVE), True),
        (obj({**HIVE, "uid": "dead"}), obj(HIVE), True),
        (obj({**HIVE, "name": "other", "uid": "2"}), obj(HIVE), False),
        (obj({"kind": "Deployment", "name": "d", "uid": "3"}), obj(HIVE), False),
        (obj(HIVE), obj(None), True),
        (obj({"kind": "Deployment", "name": "d", "uid": "3"}), obj(None), False),
        (obj(HIVE, {**LABELS, "agenthive.dev/hive": "other"}), obj(HIVE), False),
        (obj(HIVE, {**LABELS, "app.kubernetes.io/managed-by": "Helm"}), obj(HIVE), False),
    ],
)
def test_whose_an_object_is(live: dict[str, Any], body: dict[str, Any], expected: bool) -> None:
    assert is_ours(live, body) is expected


def test_the_conflict_names_the_holder() -> None:
    assert "controlled by AgentHive demo" in conflict_text(obj(HIVE))
    assert "not made by this operator" in conflict_text(obj(None, {}))
