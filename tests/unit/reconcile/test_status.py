"""Status building: conditions with their times, figures at their pace, patches of what differs."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from agenthive_operator.backends.reports import Figures, StoreReport
from agenthive_operator.reconcile import status
from agenthive_operator.reconcile.conditions import Rollout, Verdict
from agenthive_operator.reconcile.controller import figures_pause
from agenthive_operator.reconcile.monitor import JITTER

EARLY = datetime(2026, 1, 1, tzinfo=UTC)
LATE = EARLY + timedelta(hours=1)


def test_times_are_utc_with_seconds() -> None:
    assert status.timestamp(datetime(2026, 1, 1, 2, tzinfo=timezone(timedelta(hours=2)))) == "2026-01-01T00:00:00Z"


def test_the_transition_time_moves_only_with_the_status() -> None:
    first = status.merge_conditions([], {"Ready": Verdict("False", "Starting", "a")}, 1, EARLY)
    assert first[0]["lastTransitionTime"] == "2026-01-01T00:00:00Z"
    second = status.merge_conditions(first, {"Ready": Verdict("False", "Other", "b")}, 2, LATE)
    assert second[0] == {
        "type": "Ready", "status": "False", "reason": "Other", "message": "b",
        "observedGeneration": 2, "lastTransitionTime": "2026-01-01T00:00:00Z",
    }  # fmt: skip
    third = status.merge_conditions(second, {"Ready": Verdict("True", "AllReady", "c")}, 2, LATE)
    assert third[0]["lastTransitionTime"] == "2026-01-01T01:00:00Z"


def test_conditions_that_nobody_decides_any_more_go() -> None:
    before = [{"type": "Old", "status": "True"}]
    merged = status.merge_conditions(before, {"Ready": Verdict("True", "AllReady", "")}, 1, EARLY)
    assert [entry["type"] for entry in merged] == ["Ready"]


@pytest.mark.parametrize(
    ("entry", "generation", "expected"),
    [
        ({"type": "Ready", "status": "True", "observedGeneration": 2}, 2, True),
        ({"type": "Ready", "status": "True", "observedGeneration": 1}, 2, False),
        ({"type": "Ready", "status": "False", "observedGeneration": 2}, 2, False),
        ({"type": "Other", "status": "True", "observedGeneration": 2}, 2, False),
    ],
)
def test_is_true_wants_the_newest_generation(entry: dict[str, Any], generation: int, expected: bool) -> None:
    assert (
        status.is_true({"metadata": {"generation": generation}, "status": {"conditions": [entry]}}, "Ready") is expected
    )


def test_hive_status_leaves_out_what_is_unknown() -> None:
    redis = StoreReport(True, "Reachable", "", "h:6379", "8.1.0")
    built = status.hive_status(
        conditions=[], generation=3, instance_id="i", agents_total=2, agents_ready=1, redis=redis, postgres=None,
        backlog=None,
    )  # fmt: skip
    assert built == {
        "observedGeneration": 3, "instanceId": "i", "conditions": [], "agents": {"total": 2, "ready": 1},
        "redis": {"endpoint": "h:6379", "version": "8.1.0"},
    }  # fmt: skip
    unversioned = StoreReport(False, "Unreachable", "", "p:5432")
    built = status.hive_status(
        conditions=[], generation=3, instance_id="i", agents_total=0, agents_ready=0, redis=None, postgres=unversioned,
        backlog=7,
    )  # fmt: skip
    assert built["postgres"] == {"endpoint": "p:5432"}
    assert built["backlog"] == 7


def test_agent_status_without_a_deployment_has_zero_replicas() -> None:
    built = status.agent_status(conditions=[], generation=1, selector="a=b", rollout=None, figures={"backlog": 1})
    assert (built["replicas"], built["readyReplicas"], built["backlog"], built["selector"]) == (0, 0, 1, "a=b")
    rolled = status.agent_status(conditions=[], generation=1, selector="", rollout=Rollout(2, 3, 2, 1), figures={})
    assert (rolled["replicas"], rolled["readyReplicas"]) == (3, 1)


def test_figure_fields() -> None:
    assert status.figure_fields(Figures(1, 2, 3)) == {"backlog": 1, "inFlight": 2, "deadLetters": 3}
    assert status.figure_fields(Figures(oldest=EARLY))["oldestMessageTime"] == "2026-01-01T00:00:00Z"


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ({}, {"backlog": 0}, True),
        ({"backlog": 0}, {"backlog": 0}, False),
        ({"backlog": 0}, {"backlog": 1}, True),
        ({"backlog": 5}, {"backlog": 0}, True),
        ({"backlog": 1000}, {"backlog": 1050}, False),
        ({"backlog": 1000}, {"backlog": 1101}, True),
        ({"backlog": 1000}, {"backlog": 880}, True),
        ({"backlog": 3}, {"backlog": 4}, True),
        ({"inFlight": 3}, {"inFlight": 0}, True),
        ({"deadLetters": 0}, {"deadLetters": 2}, True),
        ({"backlog": 4, "oldestMessageTime": "a"}, {"backlog": 4, "oldestMessageTime": "b"}, False),
        ({"backlog": 4}, {}, True),
    ],
)
def test_material(before: dict[str, Any], after: dict[str, Any], expected: bool) -> None:
    assert status.material(before, after) is expected


def test_figures_pass_at_most_every_thirty_seconds() -> None:
    gate = status.FigureGate()
    assert gate.choose({}, {"backlog": 0}, now=99) == ({"backlog": 0}, None), "the first are free"
    assert gate.choose({"backlog": 0}, {"backlog": 5}, now=100) == ({"backlog": 5}, None)
    assert gate.choose({"backlog": 5}, {"backlog": 9}, now=110) == ({"backlog": 5}, 20)
    assert gate.choose({"backlog": 5}, {"backlog": 5}, now=115) == ({"backlog": 5}, None)
    assert gate.choose({"backlog": 5}, {"backlog": 9}, now=130) == ({"backlog": 9}, None)


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ({"backlog": 698, "inFlight": 0}, {"backlog": 0, "inFlight": 0}, True),
        ({"backlog": 0, "inFlight": 3}, {"backlog": 0, "inFlight": 0}, True),
        ({"backlog": 698, "inFlight": 9}, {"backlog": 0, "inFlight": 9}, False),
        ({"backlog": 698, "inFlight": 9}, {"backlog": 1, "inFlight": 0}, False),
        ({"backlog": 0, "inFlight": 0}, {"backlog": 0, "inFlight": 0}, False),
        ({"backlog": 0, "inFlight": 0, "deadLetters": 4}, {"backlog": 0, "inFlight": 0, "deadLetters": 0}, False),
        ({"backlog": 7}, {"backlog": 0}, True),
        ({}, {"backlog": 0}, False),
    ],
)
def test_ran_empty(before: dict[str, Any], after: dict[str, Any], expected: bool) -> None:
    assert status.ran_empty(before, after) is expected


def test_an_empty_queue_is_told_at_once_and_a_rise_every_thirty_seconds() -> None:
    gate, shown = status.FigureGate(), {"backlog": 0, "inFlight": 0}
    # (second, backlog, in flight) as looked at, and the backlog that is shown then
    looks = [(0, 5, 1, 5), (3, 0, 1, 5), (6, 0, 0, 0), (9, 8, 0, 0), (12, 0, 0, 0), (29, 9, 2, 0), (30, 9, 2, 9),
             (33, 698, 9, 9), (36, 0, 0, 0), (59, 3, 0, 0), (60, 3, 0, 3)]  # fmt: skip
    for second, backlog, in_flight, expected in looks:
        shown, again = gate.choose(shown, {"backlog": backlog, "inFlight": in_flight}, now=1000 + second)
        assert shown["backlog"] == expected, f"at second {second}"
        held_back = status.material(shown, {"backlog": backlog, "inFlight": in_flight})
        assert (again is not None) is held_back, f"at second {second}"


@pytest.mark.parametrize(
    ("figures", "longest"),
    [
        ({}, 6.0),
        ({"a": Figures(), "b": Figures(dead_letters=5)}, 6.0),
        ({"a": Figures(), "b": Figures(backlog=1)}, 3.0),
        ({"a": Figures(in_flight=1)}, 3.0),
    ],
)
def test_busy_queues_are_looked_at_every_three_seconds(figures: dict[str, Figures], longest: float) -> None:
    assert figures_pause(figures) * (1 + JITTER) <= longest


def test_figures_in_a_status() -> None:
    assert status.figures_in({"backlog": 1, "replicas": 3}) == {"backlog": 1}


@pytest.mark.parametrize(
    ("before", "after", "patch"),
    [
        ({}, {}, {}),
        ({"a": 1}, {"a": 1}, {}),
        ({"a": 1}, {"a": 2}, {"a": 2}),
        ({"a": 1}, {}, {"a": None}),
        ({"a": {"b": 1, "c": 2}}, {"a": {"b": 1}}, {"a": {"c": None}}),
        ({"a": {"b": 1}}, {"a": {"b": 1}}, {}),
        ({"a": [1, 2]}, {"a": [1]}, {"a": [1]}),
        ({}, {"a": {}}, {"a": {}}),
        ({"a": 0}, {"a": False}, {}),
    ],
)
def test_merge_patch(before: dict[str, Any], after: dict[str, Any], patch: dict[str, Any]) -> None:
    assert status.merge_patch(before, after) == patch
