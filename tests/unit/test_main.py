"""The operator's wiring: what kopf is told, and when the probe fails."""

from __future__ import annotations

import itertools
from typing import Any

import kopf
import pytest
from click.testing import CliRunner

from agenthive_operator import main
from agenthive_operator.main import EndlessBackoffs, judge, settings, wire
from agenthive_operator.reconcile.controller import Health

HEALTHY = Health(beat=100.0, synced=True, depth=2, oldest_wait=1.0, oldest_in_flight=0.5, last_event=90.0, objects=7)


def test_backoffs_never_end_and_stay_bounded() -> None:
    delays = list(itertools.islice(EndlessBackoffs(), 5000))
    assert len(delays) == 5000
    assert min(delays) >= 0.1
    assert max(delays) <= 30
    assert len(set(delays)) > 4000, "jittered"
    assert not hasattr(EndlessBackoffs(), "__len__"), "kopf counts attempts of what has a length"


def test_kopf_is_told_to_write_nothing_and_to_select_children_on_the_server() -> None:
    chosen = settings()
    assert chosen.posting.enabled is False
    assert chosen.peering.standalone is True
    assert chosen.persistence.finalizer != "agenthive.dev/cleanup", "kopf would strip the reconciler's finalizer"
    selected = {selector.plural or selector.any_name for selector in chosen.watching.label_selectors}
    assert selected == {
        "deployments",
        "statefulsets",
        "services",
        "secrets",
        "configmaps",
        "poddisruptionbudgets",
        "pods",
    }


async def test_every_watched_kind_hands_its_events_over() -> None:
    seen: list[tuple[str | None, dict[str, Any]]] = []
    registry = wire(lambda kind, obj: seen.append((kind, obj)), lambda: HEALTHY)
    handlers = list(registry._watching.get_all_handlers())
    assert len(handlers) == 9
    for handler in handlers:
        await handler.fn(event={"type": "ADDED", "object": {"metadata": {"name": "x"}}})  # type: ignore[call-arg, misc]
    assert {obj["kind"] for _, obj in seen} == {
        "AgentHive", "Agent", "Deployment", "StatefulSet", "Service", "Secret", "ConfigMap", "Pod",
        "PodDisruptionBudget",
    }  # fmt: skip


def test_a_healthy_controller_answers_with_figures() -> None:
    figures = judge(HEALTHY, 101.0)
    assert figures == {
        "queue": 2.0, "oldestWaitSeconds": 1.0, "oldestInFlightSeconds": 0.5, "secondsSinceEvent": 11.0, "objects": 7.0,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("seen", "now", "words"),
    [
        (HEALTHY, 100 + main.STALLED_SECONDS + 1, "has not turned"),
        (Health(beat=100, synced=True, oldest_wait=main.STUCK_SECONDS + 1), 100, "queue is stuck"),
    ],
)
def test_a_stuck_controller_fails_the_probe(seen: Health, now: float, words: str) -> None:
    with pytest.raises(kopf.PermanentError, match=words):
        judge(seen, now)


def test_a_controller_that_still_waits_for_its_api_server_is_not_killed() -> None:
    assert judge(Health(beat=0.0), 10_000)["objects"] == 0


def test_help_names_every_flag() -> None:
    result = CliRunner().invoke(main.main, ["--help"])
    assert result.exit_code == 0
    for flag in ("--namespace", "--resolve-services", "--runtime-image", "--probe-address"):
        assert flag in result.output
