"""Figures of one agent process. Counting is an addition on the event loop; Prometheus is spoken only when it asks."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prometheus_client.core import Metric

#: Upper bounds of the handler histogram, seconds.
BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)

#: What can become of one handling.
DELIVERED, FAILED, RETRIED, REJECTED, TIMED_OUT, RELEASED, LEASE_LOST = RESULTS = (
    "delivered",
    "failed",
    "retried",
    "rejected",
    "timed_out",
    "released",
    "lease_lost",
)

#: The ``type`` label of messages nobody handles: what a stranger sends must not make a label of its own.
UNKNOWN_TYPE = "(unknown)"

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class TypeFigures:
    """Results and durations of one message type. Only the event loop writes it, so a plain addition is enough."""

    __slots__ = ("buckets", "results", "seconds")

    def __init__(self) -> None:
        self.results: dict[str, int] = dict.fromkeys(RESULTS, 0)
        self.buckets = [0] * (len(BUCKETS) + 1)
        self.seconds = 0.0

    def observe(self, seconds: float) -> None:
        """Count one handling that took ``seconds``."""
        self.buckets[bisect_left(BUCKETS, seconds)] += 1
        self.seconds += seconds


class Telemetry:
    """Everything counted in one process.

    Args:
        agent: value of the ``agent`` label.
        in_flight: read at each scrape: handlers running now.
        concurrency: handlers that may run at a time.
    """

    def __init__(self, agent: str, *, in_flight: Callable[[], int] = lambda: 0, concurrency: int = 0) -> None:
        self.agent = agent
        self.in_flight = in_flight
        self.concurrency = concurrency
        self.types: dict[str, TypeFigures] = {}
        self.claims = 0
        self.claimed = 0
        #: Errors by operation, such as ``claim`` or ``ack``.
        self.bus_errors: Counter[str] = Counter()
        self.store_errors: Counter[str] = Counter()
        #: Messages that Redis gave up while this process claimed, by reason: ``expired``, ``crashed``, ``malformed``.
        self.given_up: Counter[str] = Counter()
        #: Read at each scrape: replies whose asker was gone.
        self.replies_dropped: Callable[[], int] = lambda: 0
        #: Slots of schedules by name and by what this process did with them.
        self.firings: Counter[tuple[str, str]] = Counter()
        self.started_at = time.time()

    def for_type(self, message_type: str) -> TypeFigures:
        """The figures of one type, made once and kept by its caller."""
        return self.types.setdefault(message_type, TypeFigures())

    def collect(self) -> Iterator[Metric]:
        """All figures as Prometheus metrics (the collector interface of prometheus-client)."""
        from prometheus_client.core import (  # noqa: PLC0415 - 100 ms that start-up does not have
            CounterMetricFamily,
            GaugeMetricFamily,
            HistogramMetricFamily,
        )

        handled = CounterMetricFamily(
            "agenthive_messages_handled", "Handlings finished, by result.", labels=("agent", "type", "result")
        )
        seconds = HistogramMetricFamily(
            "agenthive_handler_seconds", "Time handlers took, seconds.", labels=("agent", "type")
        )
        for message_type, figures in list(self.types.items()):
            for result, count in figures.results.items():
                handled.add_metric((self.agent, message_type, result), count)
            total = 0
            buckets: list[tuple[str, float]] = []
            for bound, count in zip((*map(str, BUCKETS), "+Inf"), figures.buckets, strict=True):
                total += count
                buckets.append((bound, total))
            seconds.add_metric((self.agent, message_type), buckets, figures.seconds)
        yield handled
        yield seconds
        yield self._one(
            GaugeMetricFamily("agenthive_in_flight", "Handlers running now.", labels=("agent",)), self.in_flight()
        )
        yield self._one(
            GaugeMetricFamily("agenthive_concurrency", "Handlers that may run at a time.", labels=("agent",)),
            self.concurrency,
        )
        yield self._one(
            CounterMetricFamily("agenthive_claims", "Claims that brought messages.", labels=("agent",)), self.claims
        )
        yield self._one(
            CounterMetricFamily("agenthive_claimed_messages", "Messages claimed.", labels=("agent",)), self.claimed
        )
        yield self._one(
            GaugeMetricFamily("agenthive_started_at_seconds", "Unix time this process started.", labels=("agent",)),
            self.started_at,
        )
        yield self._one(
            CounterMetricFamily("agenthive_replies_dropped", "Replies whose asker was gone.", labels=("agent",)),
            self.replies_dropped(),
        )
        given_up = CounterMetricFamily(
            "agenthive_messages_given_up",
            "Messages put into the dead letters without a handler's word, by reason.",
            labels=("agent", "reason"),
        )
        for reason, count in self.given_up.items():
            given_up.add_metric((self.agent, reason), count)
        yield given_up
        for name, what, errors in (
            ("agenthive_bus_errors", "Calls to Redis that failed, by operation.", self.bus_errors),
            ("agenthive_store_errors", "Calls to PostgreSQL that failed, by operation.", self.store_errors),
        ):
            family = CounterMetricFamily(name, what, labels=("agent", "operation"))
            for operation, count in errors.items():
                family.add_metric((self.agent, operation), count)
            yield family
        firings = CounterMetricFamily(
            "agenthive_schedule_slots",
            "Slots of schedules this process dealt with: fired, late (nobody ran in time), overlap (skipped).",
            labels=("agent", "schedule", "result"),
        )
        for (schedule, result), count in self.firings.items():
            firings.add_metric((self.agent, schedule, result), count)
        yield firings

    def _one(self, family: Metric, value: float) -> Metric:
        family.add_metric((self.agent,), value)  # type: ignore[attr-defined]
        return family

    def exposition(self) -> bytes:
        """The answer to a scrape: our figures, then what the process and the agent's own code registered."""
        from prometheus_client import REGISTRY, CollectorRegistry, generate_latest  # noqa: PLC0415 - as above

        ours = CollectorRegistry()
        ours.register(self)
        return generate_latest(ours) + generate_latest(REGISTRY)
