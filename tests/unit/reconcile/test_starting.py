"""When a managed server that does not answer counts as starting."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from agenthive_operator.backends.reports import StoreReport
from agenthive_operator.reconcile.stores import REACHABLE_SECONDS, while_starting

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
DOWN = StoreReport(False, "Unreachable", "connection refused", "h:1")


def pod(ready_for: float | None, *, ending: bool = False, **status: Any) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "Ready", "status": "False" if ready_for is None else "True"}
    if ready_for is not None:
        entry["lastTransitionTime"] = (NOW - timedelta(seconds=ready_for)).strftime("%Y-%m-%dT%H:%M:%SZ")
    metadata = {"name": "demo-redis-0"} | ({"deletionTimestamp": "x"} if ending else {})
    return {"metadata": metadata, "status": {"conditions": [entry], **status}}


@pytest.mark.parametrize(
    ("report", "pods", "reason", "again"),
    [
        (DOWN, [], "Starting", None),
        (DOWN, [pod(None)], "Starting", None),
        (DOWN, [pod(3600, ending=True)], "Starting", None),
        (DOWN, [pod(0)], "Starting", REACHABLE_SECONDS),
        (DOWN, [pod(REACHABLE_SECONDS - 1)], "Starting", 1),
        (DOWN, [pod(REACHABLE_SECONDS)], "Unreachable", None),
        (DOWN, [pod(3600)], "Unreachable", None),
        (DOWN, [pod(3600, ending=True), pod(5)], "Starting", REACHABLE_SECONDS - 5),
        (StoreReport(False, "AuthenticationFailed", "x"), [], "AuthenticationFailed", None),
        (StoreReport(False, "Loading", "x"), [pod(1)], "Loading", None),
    ],
)
def test_while_starting(report: StoreReport, pods: list[dict[str, Any]], reason: str, again: float | None) -> None:
    judged, wait = while_starting(report, pods, NOW)
    assert (judged.reason, wait) == (reason, again)
    assert judged.endpoint == report.endpoint
    assert not judged.ok


@pytest.mark.parametrize(("clock_behind", "seen_for", "reason"), [(7200, 0, "Starting"), (7200, 31, "Unreachable")])
def test_clocks_that_differ_do_not_prolong_it(clock_behind: float, seen_for: float, reason: str) -> None:
    judged, wait = while_starting(DOWN, [pod(-clock_behind)], NOW, seen_for=seen_for)
    assert judged.reason == reason
    assert wait is None or wait <= REACHABLE_SECONDS


def test_a_ready_pod_without_a_time_has_been_ready_for_long() -> None:
    bare = {"metadata": {"name": "p"}, "status": {"conditions": [{"type": "Ready", "status": "True"}]}}
    assert while_starting(DOWN, [bare], NOW) == (DOWN, None)


def test_what_keeps_the_pod_from_running_is_told() -> None:
    waiting = {"name": "redis", "state": {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}}
    judged, _ = while_starting(DOWN, [pod(None, containerStatuses=[waiting])], NOW)
    assert judged.reason == "Starting"
    assert "no such image" in judged.message
