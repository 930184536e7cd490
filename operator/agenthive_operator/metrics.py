"""Figures of the operator itself, for Prometheus. ``python -m`` this module prints docs/operator-metrics.md.

What happens often is counted as it happens; all else (queues, conditions, what is known) is read when a scrape asks.
Labels take few values, but for the conditions, of which each object has a handful.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, Final

import aiohttp
from prometheus_client import (
    GC_COLLECTOR,
    PLATFORM_COLLECTOR,
    PROCESS_COLLECTOR,
    CollectorRegistry,
    Counter,
    Histogram,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily, Metric

from agenthive_operator.backends.kube import BY_KIND, CUSTOM, Object
from agenthive_operator.backends.reports import Figures

SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
PREFIX: Final = "agenthive_operator_"
_RESOURCES: Final = frozenset(resource.plural for resource in BY_KIND.values()) | {
    "namespaces", "customresourcedefinitions",
}  # fmt: skip
_VERBS: Final = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}


@dataclass(frozen=True, slots=True)
class QueueFigures:
    """One work queue at one moment: keys that are due and wait, keys being handled, and how long (seconds)."""

    waiting: int = 0
    in_flight: int = 0
    oldest_wait: float = 0.0
    oldest_in_flight: float = 0.0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a scrape reads: the queues by name, the objects with conditions, and whether this replica acts.

    ``figures``: what the queues of agents in Redis hold, by namespace and hive, then by agent; only who acts asks.
    """

    queues: Mapping[str, QueueFigures]
    objects: Iterable[Object]
    acting: bool
    synced: bool
    silent: frozenset[str] = frozenset()
    figures: Mapping[tuple[str, str], Mapping[str, Figures]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Description:
    """One metric: its name, kind, labels, and what it says."""

    name: str
    kind: str
    labels: tuple[str, ...]
    help: str


_QUEUE: Final = ("queue",)
_AGENT: Final = ("namespace", "hive", "agent")
_CONDITION: Final = ("namespace", "name", "type", "status", "reason")
DESCRIPTIONS: Final = {
    found.name: found
    for found in (
        Description("reconcile_seconds", "histogram", ("kind",), "Time one look at an object took, seconds."),
        Description(
            "reconcile_errors_total", "counter", ("kind", "error"),
            "Looks at an object that failed and are repeated, by what was raised.",
        ),
        Description(
            "api_requests_total", "counter", ("verb", "resource", "code"),
            "Requests to the API server by verb, resource and HTTP status; code 0: no answer.",
        ),
        Description("api_request_seconds", "histogram", ("verb",), "Time until the API server answered, seconds."),
        Description(
            "watch_restarts_total", "counter", ("resource",),
            "Watches begun again after the first. They end every few minutes by themselves.",
        ),
        Description("queue_depth", "gauge", _QUEUE, "Keys that are due and wait for a worker."),
        Description("queue_in_flight", "gauge", _QUEUE, "Keys that are being handled."),
        Description("queue_oldest_seconds", "gauge", _QUEUE, "How long the longest waiting key has waited, seconds."),
        Description("queue_longest_running_seconds", "gauge", _QUEUE, "How long the longest handling runs, seconds."),
        Description("hive_condition", "gauge", _CONDITION, "1 for the status that a condition of an AgentHive has."),
        Description("agent_condition", "gauge", _CONDITION, "1 for the status that a condition of an Agent has."),
        Description("agent_backlog", "gauge", _AGENT, "Messages that wait in the agent's queue, up to 30 s ago."),
        Description("agent_in_flight", "gauge", _AGENT, "Messages of the agent that are being handled, likewise."),
        Description("agent_dead_letters", "gauge", _AGENT, "Messages of the agent that were given up and are kept."),
        Description(
            "agent_oldest_message_at_seconds", "gauge", _AGENT,
            "Unix time at which the oldest message that waits was accepted. Left out while none waits.",
        ),
        Description("objects", "gauge", ("kind",), "AgentHives and Agents that are known."),
        Description("leading", "gauge", (), "1 where this replica acts, 0 on a standby."),
        Description("synced", "gauge", (), "1 once everything was read after the start."),
        Description("silent_watch", "gauge", ("resource",), "1 for a watch that tells nothing of what lists find."),
    )
}  # fmt: skip


class Metrics:
    """Everything counted in one operator process. ``read`` is set once there is something to read at a scrape."""

    def __init__(self) -> None:
        self.read: Callable[[], Snapshot] | None = None
        self._registry = CollectorRegistry()
        self._reconcile_seconds = self._histogram("reconcile_seconds")
        self._reconcile_errors = self._counter("reconcile_errors_total")
        self._requests = self._counter("api_requests_total")
        self._request_seconds = self._histogram("api_request_seconds")
        self._restarts = self._counter("watch_restarts_total")
        self._watched: set[str] = set()
        self._registry.register(self)
        for collector in (PROCESS_COLLECTOR, PLATFORM_COLLECTOR, GC_COLLECTOR):
            self._registry.register(collector)

    def _histogram(self, name: str) -> Histogram:
        found = DESCRIPTIONS[name]
        return Histogram(PREFIX + name, found.help, found.labels, buckets=SECONDS, registry=self._registry)

    def _counter(self, name: str) -> Counter:
        found = DESCRIPTIONS[name]
        return Counter(PREFIX + name, found.help, found.labels, registry=self._registry)

    # ---- counted as it happens

    def reconciled(self, kind: str, seconds: float, error: BaseException | None) -> None:
        """One look at an object of this kind ended."""
        self._reconcile_seconds.labels(kind).observe(seconds)
        if error is not None:
            self._reconcile_errors.labels(kind, type(error).__name__).inc()

    def tracing(self) -> aiohttp.TraceConfig:
        """What an aiohttp session has to be made with, so that its requests are counted."""
        trace = aiohttp.TraceConfig()

        async def started(_: Any, context: SimpleNamespace, asked: aiohttp.TraceRequestStartParams) -> None:
            context.asked = asked_for(asked.method, asked.url.path, watches="watch" in asked.url.query)
            context.since = time.monotonic()
            verb, resource = context.asked
            if verb == "watch":
                key = asked.url.path
                if key in self._watched:
                    self._restarts.labels(resource).inc()
                self._watched.add(key)

        async def ended(_: Any, context: SimpleNamespace, answer: aiohttp.TraceRequestEndParams) -> None:
            verb, resource = context.asked
            self._requests.labels(verb, resource, str(answer.response.status)).inc()
            self._request_seconds.labels(verb).observe(time.monotonic() - context.since)

        async def failed(_: Any, context: SimpleNamespace, error: aiohttp.TraceRequestExceptionParams) -> None:
            del error
            verb, resource = context.asked
            self._requests.labels(verb, resource, "0").inc()

        trace.on_request_start.append(started)
        trace.on_request_end.append(ended)
        trace.on_request_exception.append(failed)
        return trace

    # ---- read at a scrape

    def collect(self) -> Iterator[Metric]:
        """The metrics that are read rather than counted."""
        if self.read is None:
            return
        seen = self.read()
        queues = {name: _gauge(name) for name in DESCRIPTIONS if name.startswith("queue_")}
        for name, queue in seen.queues.items():
            queues["queue_depth"].add_metric([name], queue.waiting)
            queues["queue_in_flight"].add_metric([name], queue.in_flight)
            queues["queue_oldest_seconds"].add_metric([name], queue.oldest_wait)
            queues["queue_longest_running_seconds"].add_metric([name], queue.oldest_in_flight)
        yield from queues.values()
        conditions = {"AgentHive": _gauge("hive_condition"), "Agent": _gauge("agent_condition")}
        counts = {resource.kind: 0 for resource in CUSTOM}
        for obj in seen.objects:
            counts[obj["kind"]] += 1
            metadata = obj["metadata"]
            for entry in (obj.get("status") or {}).get("conditions") or ():
                labels = [metadata["namespace"], metadata["name"], entry["type"], entry["status"], entry["reason"]]
                conditions[obj["kind"]].add_metric(labels, 1)
        yield from conditions.values()
        yield from _of_agents(seen.figures)
        objects, silent = _gauge("objects"), _gauge("silent_watch")
        for kind, count in counts.items():
            objects.add_metric([kind], count)
        for kind in sorted(seen.silent):
            silent.add_metric([kind], 1)
        yield from (objects, silent)
        for name, value in (("leading", seen.acting), ("synced", seen.synced)):
            gauge = _gauge(name)
            gauge.add_metric([], float(value))
            yield gauge

    def describe(self) -> Iterator[Metric]:
        """Registering reads nothing."""
        yield from ()

    def exposition(self) -> bytes:
        """The answer to a scrape."""
        return generate_latest(self._registry)


def _gauge(name: str) -> GaugeMetricFamily:
    found = DESCRIPTIONS[name]
    return GaugeMetricFamily(PREFIX + name, found.help, labels=found.labels)


def _of_agents(figures: Mapping[tuple[str, str], Mapping[str, Figures]]) -> Iterator[Metric]:
    backlog, in_flight, dead_letters, oldest = (
        _gauge(f"agent_{name}") for name in ("backlog", "in_flight", "dead_letters", "oldest_message_at_seconds")
    )
    for labels, held in (([*hive, name], held) for hive, agents in figures.items() for name, held in agents.items()):
        backlog.add_metric(labels, held.backlog)
        in_flight.add_metric(labels, held.in_flight)
        dead_letters.add_metric(labels, held.dead_letters)
        if held.oldest is not None:
            oldest.add_metric(labels, held.oldest.timestamp())
    yield from (backlog, in_flight, dead_letters, oldest)


def asked_for(method: str, path: str, *, watches: bool) -> tuple[str, str]:
    """Verb and resource (with its subresource) of a request, as RBAC names them. Pure.

    What is no resource of ours (discovery) is ``other``: labels must stay few.
    """
    parts = [part for part in path.split("/") if part]
    rest = parts[2:] if parts[:1] == ["api"] else parts[3:]
    if rest[:1] == ["namespaces"] and len(rest) > 2:
        rest = rest[2:]
    verb = _VERBS.get(method, "")
    if not verb:
        verb = "watch" if watches else "get" if len(rest) > 1 else "list"
    if not rest or rest[0] not in _RESOURCES:
        return verb, "other"
    return verb, "/".join((rest[0], *rest[2:3]))


def documentation() -> str:
    """docs/operator-metrics.md."""
    lines = [
        "<!-- Generated by `make docs`. The source is operator/agenthive_operator/metrics.py. -->",
        "# Metrics of the operator",
        "",
        "Served at `/metrics` of `--probe-address`, with those of the process (`process_*`, `python_*`). Agents have",
        "[metrics of their own](metrics.md). What the queues of agents hold (`agent_backlog` and its like) is told by",
        "the replica that acts, conditions by all. [Alerts and dashboards](monitoring.md) are made of both.",
        "",
        "| metric | kind | labels | |",
        "|---|---|---|---|",
    ]
    for found in DESCRIPTIONS.values():
        labels = ", ".join(f"`{label}`" for label in found.labels)
        lines.append(f"| `{PREFIX}{found.name}` | {found.kind} | {labels} | {found.help} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(documentation())
