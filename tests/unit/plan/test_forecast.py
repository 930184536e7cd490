"""How long rolls take, by table."""

from __future__ import annotations

from typing import Any

import pytest

from agenthive_operator.plan.forecast import Roll, Span, Startup, drain_of, rounds, span_of, span_of_all, startup_of

TWO = Startup(2.0, 1, "echo")


@pytest.mark.parametrize(("pods", "expected"), [(0, 0), (1, 1), (4, 4), (5, 3), (8, 4), (100, 4)])
def test_a_quarter_of_the_pods_more_makes_about_four_rounds(pods: int, expected: int) -> None:
    assert rounds(pods) == expected


def test_one_agent_takes_its_rounds_and_the_last_pods_their_drain() -> None:
    assert span_of(Roll(8, 45.0, TWO)) == Span(8.0, 53.0)
    assert span_of(Roll(8, 45.0, None)) is None


@pytest.mark.parametrize(
    ("rolls", "agents", "expected"),
    [
        ([], 3, Span(0.0, 0.0)),
        ([Roll(1, 45.0, TWO)] * 5, 5, Span(2.0, 47.0)),
        ([Roll(1, 45.0, TWO)] * 6, 6, Span(4.0, 49.0)),
        ([Roll(1, 45.0, TWO)] * 100, 100, Span(20.0, 65.0)),
        # Of what does not work all pods may be replaced at once.
        ([Roll(1, 45.0, TWO, waits=False)] * 100, 100, Span(2.0, 47.0)),
        ([Roll(1, 45.0, TWO), Roll(1, 10.0, None)], 2, None),
    ],
)
def test_of_the_agents_of_a_hive_some_roll_at_once(rolls: list[Roll], agents: int, expected: Span | None) -> None:
    assert span_of_all(rolls, agents) == expected


@pytest.mark.parametrize(("grace", "drain", "expected"), [(45, 30, 45.0), (10, 30, 10.0), (None, 30, 45.0)])
def test_a_pod_goes_on_no_longer_than_the_kubelet_lets_it(grace: int | None, drain: int, expected: float) -> None:
    spec = {} if grace is None else {"terminationGracePeriodSeconds": grace}
    assert drain_of({"spec": spec}, drain) == expected


def pod(ready: str | None, *, restarts: int = 0) -> dict[str, Any]:
    conditions = [] if ready is None else [{"type": "Ready", "status": "True", "lastTransitionTime": ready}]
    return {
        "metadata": {"creationTimestamp": "2026-11-29T10:00:00Z"},
        "status": {"conditions": conditions, "containerStatuses": [{"restartCount": restarts}]},
    }


def test_a_start_is_reckoned_by_the_pods_that_are_ready_and_were_never_restarted() -> None:
    pods = [
        pod("2026-11-29T10:00:02Z"), pod("2026-11-29T10:00:04Z"), pod("2026-11-29T10:00:30Z"),
        pod("2026-11-29T11:00:00Z", restarts=1), pod(None),
    ]  # fmt: skip
    assert startup_of(pods, "echo") == Startup(4.0, 3, "echo")
    assert startup_of([pod(None)], "echo") is None
    assert startup_of([pod("2026-11-29T10:00:00Z")], "echo") == Startup(1.0, 1, "echo")  # stamps are whole seconds
