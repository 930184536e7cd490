"""Figures of one agent process. Counting is an addition on the event loop; Prometheus is spoken only when it asks."""

from __future__ import annotations

import sys
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prometheus_client.core import Metric

    from agenthive.cache import Figures

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

#: What can become of a transaction.
COMMITTED, ROLLED_BACK, ALREADY_HANDLED, IN_DOUBT = TRANSACTION_RESULTS = (
    "committed",
    "rolled_back",
    "already_handled",
    "in_doubt",
)

#: The ``type`` label of messages nobody handles: what a stranger sends must not make a label of its own.
UNKNOWN_TYPE = "(unknown)"

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


COUNTER, GAUGE, HISTOGRAM = "counter", "gauge", "histogram"


@dataclass(frozen=True, slots=True)
class Description:
    """One metric as Prometheus sees it; every one has the labels ``hive`` and ``agent`` besides its own."""

    name: str
    kind: str
    help: str
    labels: tuple[str, ...] = ()


#: Every metric of an agent process. ``python -m agenthive.telemetry`` prints docs/metrics.md from it.
#: Labels take few values: message types and schedules are those of the agent's code, all else is listed here.
METRICS = {
    description.name: description
    for description in (
        Description(
            "agenthive_messages_handled_total", COUNTER, f"Handlings finished, by result: {', '.join(RESULTS)}.",
            ("type", "result"),
        ),
        Description("agenthive_handler_seconds", HISTOGRAM, "Time handlers took, seconds.", ("type",)),
        Description("agenthive_in_flight", GAUGE, "Handlers running now."),
        Description("agenthive_concurrency", GAUGE, "Handlers that may run at a time."),
        Description("agenthive_claims_total", COUNTER, "Claims that brought messages."),
        Description("agenthive_claimed_messages_total", COUNTER, "Messages claimed."),
        Description("agenthive_replies_dropped_total", COUNTER, "Replies whose asker was gone."),
        Description(
            "agenthive_messages_given_up_total", COUNTER,
            "Messages put into the dead letters without a handler's word, by reason: expired, crashed, malformed.",
            ("reason",),
        ),
        Description(
            "agenthive_bus_errors_total", COUNTER,
            "Calls to Redis that failed, by operation: connect, start, claim, settle, schedule, outbox, "
            "handler.",
            ("operation",),
        ),
        Description(
            "agenthive_store_errors_total", COUNTER,
            "Calls to PostgreSQL that failed, by operation: connect, check, message_log, outbox, handler.",
            ("operation",),
        ),
        Description(
            "agenthive_schedule_slots_total", COUNTER,
            "Slots of schedules this process dealt with: fired, late (nobody ran in time), overlap (skipped).",
            ("schedule", "result"),
        ),
        Description(
            "agenthive_topic_copies_total", COUNTER, "Messages this process copied from a topic into the queue.",
            ("topic",),
        ),
        Description(
            "agenthive_topic_missed_total", COUNTER,
            "Messages that a topic dropped before this process could copy them.", ("topic",),
        ),
        Description(
            "agenthive_message_log_dropped_total", COUNTER,
            "Rows of the message log that were lost: PostgreSQL did not keep up or refused them.",
        ),
        Description(
            "agenthive_audit_rows_total", COUNTER,
            "Rows of the audit trail: written, dropped (of the runtime's own, lost as those of the message log).",
            ("result",),
        ),
        Description(
            "agenthive_transactions_total", COUNTER,
            "Transactions of handlers and hooks, by result: committed, rolled_back, already_handled (the message's "
            "effects were committed before), in_doubt (PostgreSQL was lost during the commit).",
            ("result",),
        ),
        Description("agenthive_outbox_sent_total", COUNTER, "Messages of committed transactions that Redis has taken."),
        Description(
            "agenthive_outbox_waiting", GAUGE,
            "Messages of committed transactions, in the care of this process, that have no final status yet.",
        ),
        Description(
            "agenthive_cache_requests_total", COUNTER,
            "Reads by kind (state, call) and result: hit, negative_hit (known to be absent, or None), miss, bypass.",
            ("kind", "result"),
        ),
        Description(
            "agenthive_cache_errors_total", COUNTER,
            "Calls of the cache to Redis that failed, by operation: read, write, recover.", ("operation",),
        ),
        Description(
            "agenthive_cache_refused_total", COUNTER,
            "Values that were not kept, by reason: max_bytes (of the hive's cache), memory (of Redis).", ("reason",),
        ),
        Description("agenthive_started_at_seconds", GAUGE, "Unix time this process started."),
        Description("agenthive_info", GAUGE, "Always 1.", ("version",)),
    )
}  # fmt: skip


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

    def cumulated(self) -> list[tuple[str, float]]:
        """The buckets as a histogram has them: each with all below it."""
        return list(zip((*map(str, BUCKETS), "+Inf"), accumulate(self.buckets), strict=True))


class Telemetry:
    """Everything counted in one process.

    Args:
        agent: value of the ``agent`` label.
        hive: value of the ``hive`` label.
        in_flight: read at each scrape: handlers running now.
        concurrency: handlers that may run at a time.
    """

    def __init__(
        self, agent: str, *, hive: str = "default", in_flight: Callable[[], int] = lambda: 0, concurrency: int = 0
    ) -> None:
        self.agent = agent
        self.hive = hive
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
        #: Messages this process copied into the queue, by topic, and those a topic had dropped before.
        self.topic_copies: Counter[str] = Counter()
        self.topic_missed: Counter[str] = Counter()
        #: Read at each scrape: rows of the message log that were lost; audit rows (written, lost).
        self.message_log_dropped: Callable[[], int] = lambda: 0
        self.audit_rows: Callable[[], tuple[int, int]] = lambda: (0, 0)
        self.transactions: Counter[str] = Counter()
        self.outbox_sent = 0
        #: Read at each scrape: messages of transactions that have no final status yet.
        self.outbox_waiting: Callable[[], int] = lambda: 0
        #: What the cache counts; None without one.
        self.cache: Figures | None = None
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

        families = {COUNTER: CounterMetricFamily, GAUGE: GaugeMetricFamily, HISTOGRAM: HistogramMetricFamily}
        for name, samples in self._samples().items():
            found = METRICS[name]
            family = families[found.kind](found.name, found.help, labels=("hive", "agent", *found.labels))
            for labels, *value in samples:
                family.add_metric((self.hive, self.agent, *labels), *value)
            yield family

    def _samples(self) -> dict[str, list[tuple[Any, ...]]]:
        """By metric: the values of its own labels, and its value (of a histogram: the buckets and the sum)."""
        from agenthive import __version__  # noqa: PLC0415 - 30 ms, as above

        types = list(self.types.items())
        cache = self.cache
        return {
            "agenthive_messages_handled_total": [
                ((name, result), count) for name, figures in types for result, count in figures.results.items()
            ],
            "agenthive_handler_seconds": [((name,), figures.cumulated(), figures.seconds) for name, figures in types],
            "agenthive_in_flight": [((), self.in_flight())],
            "agenthive_concurrency": [((), self.concurrency)],
            "agenthive_claims_total": [((), self.claims)],
            "agenthive_claimed_messages_total": [((), self.claimed)],
            "agenthive_replies_dropped_total": [((), self.replies_dropped())],
            "agenthive_messages_given_up_total": [((reason,), count) for reason, count in self.given_up.items()],
            "agenthive_bus_errors_total": [((name,), count) for name, count in self.bus_errors.items()],
            "agenthive_store_errors_total": [((name,), count) for name, count in self.store_errors.items()],
            "agenthive_schedule_slots_total": list(self.firings.items()),
            "agenthive_topic_copies_total": [((topic,), count) for topic, count in self.topic_copies.items()],
            "agenthive_topic_missed_total": [((topic,), count) for topic, count in self.topic_missed.items()],
            "agenthive_message_log_dropped_total": [((), self.message_log_dropped())],
            "agenthive_audit_rows_total": list(zip((("written",), ("dropped",)), self.audit_rows(), strict=True)),
            "agenthive_transactions_total": [((result,), count) for result, count in self.transactions.items()],
            "agenthive_outbox_sent_total": [((), self.outbox_sent)],
            "agenthive_outbox_waiting": [((), self.outbox_waiting())],
            "agenthive_cache_requests_total": list(cache.requests.items()) if cache else [],
            "agenthive_cache_errors_total": [((name,), count) for name, count in cache.errors.items()] if cache else [],
            "agenthive_cache_refused_total": [((why,), count) for why, count in cache.refused.items()] if cache else [],
            "agenthive_started_at_seconds": [((), self.started_at)],
            "agenthive_info": [((__version__,), 1)],
        }

    def exposition(self) -> bytes:
        """The answer to a scrape: our figures, then what the process and the agent's own code registered."""
        from prometheus_client import REGISTRY, CollectorRegistry, generate_latest  # noqa: PLC0415 - as above

        ours = CollectorRegistry()
        ours.register(self)
        return generate_latest(ours) + generate_latest(REGISTRY)


def documentation() -> str:
    """docs/metrics.md."""
    lines = [
        "# Metrics of an agent's process",
        "",
        "Served at `/metrics` of port 8080, with those that the process itself (`process_*`, `python_*`) and the",
        "agent's own code register with `prometheus_client`. Each has the labels `hive` and `agent` besides its own. A",
        f"message type that no handler is for counts as `{UNKNOWN_TYPE}`: what a stranger sends makes no label.",
        "",
        "| metric | kind | own labels | |",
        "|---|---|---|---|",
    ]
    for found in METRICS.values():
        labels = ", ".join(f"`{label}`" for label in found.labels)
        lines.append(f"| `{found.name}` | {found.kind} | {labels} | {found.help} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(documentation())
