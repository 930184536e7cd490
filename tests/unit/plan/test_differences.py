"""What differs between two objects, in words, and one difference undone."""

from __future__ import annotations

from typing import Any

import pytest

from agenthive_operator.plan.differences import differences, undone

CASES: list[tuple[dict[str, Any], dict[str, Any], list[str]]] = [
    ({"replicas": 1}, {"replicas": 3}, ["replicas 1 → 3"]),
    ({}, {"image": "a:1"}, ["image a:1 (new)"]),
    ({"image": "a:1"}, {}, ["image (was a:1)"]),
    ({"suspend": False}, {"suspend": True}, ["suspend false → true"]),
    ({"image": "a" * 50}, {"image": "b"}, ["image"]),
    ({"topics": ["a"]}, {"topics": ["a", "b"]}, ["topics"]),
    ({"redis": {"pool": {"maxConnections": 5}}}, {"redis": {"pool": {}}}, ["redis.pool.maxConnections (was 5)"]),
    # Not the values of variables, nor of what else is long or not for everybody.
    ({"env": [{"name": "A", "value": "1"}]}, {"env": [{"name": "A", "value": "2"}]}, ["env[A]"]),
    ({"env": [{"name": "A"}]}, {"env": [{"name": "A"}, {"name": "B"}]}, ["env[B]"]),
    ({"env": [{"name": "A"}, {"name": "B"}]}, {"env": [{"name": "B"}, {"name": "A"}]}, ["env"]),
    ({"env": [{"name": "A"}]}, {}, ["env[A]"]),
    ({"podTemplate": {"spec": {"x": 1}}}, {"podTemplate": {"spec": {"x": 2}}}, ["podTemplate.spec.x"]),
    ({}, {"redis": {"external": {"url": "x"}, "pool": {"size": 1}}}, ["redis.external.url", "redis.pool.size 1 (new)"]),
    ({}, {"env": []}, ["env"]),
    ({}, {"podTemplate": {}}, ["podTemplate"]),
]


@pytest.mark.parametrize(("before", "after", "expected"), CASES)
def test_differences_of_specs_in_words(before: dict[str, Any], after: dict[str, Any], expected: list[str]) -> None:
    found = differences({"spec": before}, {"spec": after})
    assert [str(difference) for difference in found] == expected


@pytest.mark.parametrize(("before", "after", "expected"), [case for case in CASES if len(case[2]) == 1])
def test_the_one_difference_undone_makes_the_one_of_the_other(
    before: dict[str, Any], after: dict[str, Any], expected: list[str]
) -> None:
    (difference,) = differences({"spec": before}, {"spec": after})
    made = undone({"spec": after}, difference)
    assert differences({"spec": before}, made) == []
    assert [str(d) for d in differences(made, {"spec": after})] == expected


def test_what_servers_and_kubectl_write_is_no_difference() -> None:
    last = {"kubectl.kubernetes.io/last-applied-configuration": "{}"}
    before = {"metadata": {"name": "a", "uid": "1", "generation": 1, "annotations": {}}, "status": {"x": 1}}
    after = {"metadata": {"name": "a", "uid": "1", "generation": 2, "managedFields": [{}], "annotations": last}}
    assert differences(before, after) == []
    after["metadata"]["labels"] = {"team": "red"}
    assert [str(found) for found in differences(before, after)] == ["metadata.labels.team red (new)"]
