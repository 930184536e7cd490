"""What the probes answer, and the verdicts behind them."""

from __future__ import annotations

import socket
import time
from datetime import UTC, datetime
from pathlib import Path

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from agenthive_operator import probes
from agenthive_operator.backends.reports import Figures
from agenthive_operator.metrics import Metrics, QueueFigures, Snapshot, asked_for, documentation
from agenthive_operator.probes import figures, serving, split_address, troubles
from agenthive_operator.reconcile.controller import Health

HEALTHY = Health(beat=100.0, synced=True, depth=2, oldest_wait=1.0, oldest_in_flight=0.5, last_event=90.0, objects=7)


def test_a_healthy_controller_answers_with_figures() -> None:
    assert troubles(HEALTHY, 101.0) == []
    assert figures(HEALTHY, 101.0) == {
        "queue": 2, "oldestWaitSeconds": 1.0, "oldestInFlightSeconds": 0.5, "secondsSinceEvent": 11.0, "objects": 7,
        "leads": False, "synced": True,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("seen", "now", "words"),
    [
        (HEALTHY, 100 + probes.STALLED_SECONDS + 1, "has not turned"),
        (Health(beat=100, synced=True, oldest_wait=probes.STUCK_SECONDS + 1), 100, "a key has waited"),
        (Health(beat=100, synced=True, oldest_in_flight=probes.STUCK_SECONDS + 1), 100, "has been handled"),
        (Health(beat=100, synced=True, silent=frozenset({"pods"})), 100, "the watch of pods is silent"),
    ],
)
def test_a_stuck_controller_fails_the_probe(seen: Health, now: float, words: str) -> None:
    (trouble,) = troubles(seen, now)
    assert words in trouble


def test_a_controller_that_still_waits_for_its_api_server_is_not_killed() -> None:
    assert troubles(Health(beat=0.0), 10_000) == []


@pytest.mark.parametrize(
    ("address", "expected"),
    [("127.0.0.1:80", ("127.0.0.1", 80)), ("[::1]:8080", ("::1", 8080)), (":8080", ("", 8080))],
)
def test_addresses(address: str, expected: tuple[str, int]) -> None:
    assert split_address(address) == expected


@pytest.mark.parametrize("address", ["", "8080", "host", "host:", "host:x", "host:70000"])
def test_what_is_no_address_is_told(address: str) -> None:
    with pytest.raises(ValueError, match="write host:port"):
        split_address(address)


async def test_alive_is_not_yet_ready() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    health = Health(beat=time.monotonic())
    async with serving(address, lambda: health, Metrics()), aiohttp.ClientSession() as session:

        async def ask(path: str) -> tuple[int, list[str]]:
            async with session.get(f"http://{address}{path}") as answer:
                return answer.status, (await answer.json())["wrong"]

        assert await ask("/healthz") == (200, [])
        assert await ask("/readyz") == (503, ["not everything was read yet"])
        health = Health(beat=time.monotonic(), synced=True, silent=frozenset({"pods"}))
        status, wrong = await ask("/healthz")
        assert status == 503
        assert "silent" in wrong[0]


@pytest.mark.parametrize(
    ("method", "path", "watches", "expected"),
    [
        ("GET", "/api/v1/namespaces/a/secrets/b", False, ("get", "secrets")),
        ("GET", "/api/v1/secrets", False, ("list", "secrets")),
        ("GET", "/api/v1/namespaces/a/secrets", True, ("watch", "secrets")),
        ("GET", "/api/v1/namespaces", False, ("list", "namespaces")),
        ("PATCH", "/apis/agenthive.dev/v1alpha1/namespaces/a/agents/b/status", False, ("patch", "agents/status")),
        ("POST", "/api/v1/namespaces/a/events", False, ("create", "events")),
        ("DELETE", "/apis/apps/v1/namespaces/a/deployments/b", False, ("delete", "deployments")),
        ("GET", "/apis/apps", False, ("list", "other")),
        ("GET", "/version", False, ("list", "other")),
        ("GET", "/api/v1/namespaces/a/secret-of-a-stranger", False, ("list", "other")),
    ],
)
def test_requests_are_counted_under_few_labels(
    method: str, path: str, watches: bool, expected: tuple[str, str]
) -> None:
    assert asked_for(method, path, watches=watches) == expected


def test_conditions_and_queues_are_read_when_a_scrape_asks() -> None:
    condition = {"type": "Ready", "status": "False", "reason": "RedisNotReady"}
    hive = {
        "kind": "AgentHive", "metadata": {"namespace": "a", "name": "demo"}, "status": {"conditions": [condition]},
    }  # fmt: skip
    metrics = Metrics()
    assert b"leading" not in metrics.exposition(), "nothing to read yet"
    queues = {"reconcile": QueueFigures(3, 1, 2.5, 0.5)}
    held = {("a", "demo"): {"busy": Figures(7, 2, 1, datetime(2026, 1, 1, tzinfo=UTC)), "idle": Figures()}}
    metrics.read = lambda: Snapshot(
        queues, [hive], acting=True, synced=True, silent=frozenset({"pods"}), figures=held
    )  # fmt: skip
    metrics.reconciled("Agent", 0.02, None)
    metrics.reconciled("Agent", 0.02, ValueError())
    samples = {
        (sample.name.removeprefix("agenthive_operator_"), *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(metrics.exposition().decode())
        for sample in family.samples
    }
    assert samples[("hive_condition", "False", "Ready", "RedisNotReady", "a", "demo")] == 1
    assert samples[("queue_depth", "reconcile")] == 3
    assert samples[("queue_oldest_seconds", "reconcile")] == 2.5
    assert [samples[(f"agent_{name}", "a", "busy", "demo")] for name in ("backlog", "in_flight", "dead_letters")] == [
        7, 2, 1,
    ]  # fmt: skip
    assert samples[("agent_oldest_message_at_seconds", "a", "busy", "demo")] == 1767225600
    assert samples[("agent_backlog", "a", "demo", "idle")] == 0
    assert ("agent_oldest_message_at_seconds", "a", "demo", "idle") not in samples
    assert samples[("leading",)] == 1
    assert samples[("silent_watch", "pods")] == 1
    assert samples[("objects", "AgentHive")] == 1
    assert samples[("reconcile_seconds_count", "Agent")] == 2
    assert samples[("reconcile_errors_total", "Agent", "ValueError")] == 1


def test_the_docs_are_of_the_code() -> None:
    file = Path(__file__).parents[2] / "docs" / "operator-metrics.md"
    assert file.read_text(encoding="utf-8") == documentation(), "run `make docs`"
