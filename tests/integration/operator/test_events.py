"""Events: told once, counted afterwards, across restarts; and never in the way."""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta

import pytest

from agenthive_operator.backends.events import REPEAT_SECONDS, EventRecorder

from .conftest import Cluster


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = datetime(2026, 1, 1, tzinfo=UTC)
        self.seconds = 0.0

    def __call__(self) -> datetime:
        return self.now

    def monotonic(self) -> float:
        return self.seconds

    def later(self) -> None:
        self.now -= timedelta(days=1)  # somebody sets the wall clock back, too
        self.seconds += REPEAT_SECONDS + 1


async def test_repetitions_raise_a_count_and_are_written_seldom(cluster: Cluster) -> None:
    about = await cluster.create("AgentHive", "demo")
    clock = Clock()
    recorder = EventRecorder(cluster.kube, clock=clock, monotonic=clock.monotonic)
    for _ in range(5):
        await recorder.emit(about, "Warning", "Unreachable", "no answer")
    (event,) = await cluster.list("Event")
    assert (event["count"], event["reason"], event["involvedObject"]["uid"]) == (
        1, "Unreachable", about["metadata"]["uid"],
    )  # fmt: skip
    clock.later()
    await recorder.emit(about, "Warning", "Unreachable", "no answer")
    (event,) = await cluster.list("Event")
    assert event["count"] == 6, "those in between count"
    clock.later()
    await EventRecorder(cluster.kube, clock=clock, monotonic=clock.monotonic).emit(
        about, "Warning", "Unreachable", "no answer"
    )
    (event,) = await cluster.list("Event")
    assert event["count"] == 7, "a restarted operator counts on"
    await recorder.emit(about, "Warning", "Unreachable", "another text")
    assert len(await cluster.list("Event")) == 2


async def test_an_event_that_can_not_be_written_is_logged_and_stops_nothing(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    about = await cluster.create("AgentHive", "demo")
    elsewhere = {**about, "metadata": {**about["metadata"], "namespace": f"{cluster.namespace}-none"}}
    with caplog.at_level(logging.WARNING):
        await EventRecorder(cluster.kube).emit(elsewhere, "Warning", "Gone", "what was left")
    assert "what was left" in caplog.text
