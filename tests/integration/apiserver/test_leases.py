"""Leases: what two replicas of a controller rely on, answered alike by both servers."""

from __future__ import annotations

from typing import Any

import pytest

from .conftest import MERGE, Http


@pytest.fixture
def leases(core: str) -> str:
    return f"{core.replace('/api/v1', '/apis/coordination.k8s.io/v1')}/leases"


def lease(**spec: Any) -> dict[str, Any]:
    return {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "a"}, "spec": spec}


def test_of_two_who_know_the_same_version_one_wins(http_api: Http, leases: str) -> None:
    made = http_api.ok("POST", leases, lease(holderIdentity="x", renewTime="2026-11-28T12:00:00.000005Z"))
    assert made["spec"] == {"holderIdentity": "x", "renewTime": "2026-11-28T12:00:00.000005Z"}
    assert "generation" not in made["metadata"]
    known = {"resourceVersion": made["metadata"]["resourceVersion"], "uid": made["metadata"]["uid"]}
    first = http_api("PATCH", f"{leases}/a", {"metadata": known, "spec": {"holderIdentity": "y"}}, media=MERGE)
    second = http_api("PATCH", f"{leases}/a", {"metadata": known, "spec": {"holderIdentity": "z"}}, media=MERGE)
    assert (first.code, second.code, second.body["reason"]) == (200, 409, "Conflict")
    let_go = http_api.ok("PATCH", f"{leases}/a", {"spec": {"holderIdentity": ""}}, media=MERGE)
    assert let_go["spec"]["holderIdentity"] == ""


@pytest.mark.parametrize(
    ("spec", "code", "text"),
    [
        ({"leaseDurationSeconds": 0}, 422, "spec.leaseDurationSeconds: Invalid value: 0: must be greater than 0"),
        (
            {"leaseTransitions": -1}, 422,
            "spec.leaseTransitions: Invalid value: -1: must be greater than or equal to 0",
        ),
        ({"renewTime": "at noon"}, 400, "at noon"),
    ],
)  # fmt: skip
def test_what_cannot_be(http_api: Http, leases: str, spec: dict[str, Any], code: int, text: str) -> None:
    answer = http_api("POST", leases, lease(**spec))
    assert answer.code == code
    assert text in answer.message
