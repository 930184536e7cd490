"""Figures and logs of an agent process."""

from __future__ import annotations

import io
import json
import logging
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from prometheus_client.parser import text_string_to_metric_families

import agenthive
from agenthive import logs
from agenthive.cache import Figures
from agenthive.context import current
from agenthive.telemetry import DELIVERED, FAILED, METRICS, Telemetry, documentation

DOCUMENT = Path(__file__).parents[2] / "docs" / "metrics.md"


def samples(figures: Telemetry) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    families = text_string_to_metric_families(figures.exposition().decode())
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


def test_everything_counted_is_exposed() -> None:
    figures = Telemetry("a", hive="h", in_flight=lambda: 4, concurrency=10)
    of_type = figures.for_type("x")
    assert figures.for_type("x") is of_type
    of_type.results[DELIVERED] += 3
    of_type.results[FAILED] += 1
    for seconds in (0.0005, 0.001, 0.02, 1000):
        of_type.observe(seconds)
    figures.claims, figures.claimed = 2, 4
    figures.bus_errors["claim"] += 5
    figures.given_up["expired"] += 6
    figures.replies_dropped = lambda: 7
    figures.topic_copies["news"] += 8
    figures.topic_missed["news"] += 9
    figures.firings["sweep", "fired"] += 2
    figures.message_log_dropped = lambda: 3
    figures.audit_rows = lambda: (5, 1)
    figures.cache = Figures(Counter({("state", "hit"): 3}), Counter(read=4), Counter(max_bytes=5))
    found = {
        (name, tuple(label for label in labels if label != ("hive", "h"))): value
        for (name, labels), value in samples(figures).items()
        if ("hive", "h") in labels or not name.startswith("agenthive_")
    }
    agent, kind = ("agent", "a"), ("type", "x")
    assert found["agenthive_messages_handled_total", (agent, ("result", "delivered"), kind)] == 3
    assert found["agenthive_messages_handled_total", (agent, ("result", "failed"), kind)] == 1
    assert found["agenthive_handler_seconds_count", (agent, kind)] == 4
    assert found["agenthive_cache_requests_total", (agent, ("kind", "state"), ("result", "hit"))] == 3
    assert found["agenthive_cache_errors_total", (agent, ("operation", "read"))] == 4
    assert found["agenthive_cache_refused_total", (agent, ("reason", "max_bytes"))] == 5
    assert found["agenthive_handler_seconds_sum", (agent, kind)] == pytest.approx(1000.0215)
    assert found["agenthive_handler_seconds_bucket", (agent, ("le", "0.001"), kind)] == 2
    assert found["agenthive_handler_seconds_bucket", (agent, ("le", "300.0"), kind)] == 3
    assert found["agenthive_handler_seconds_bucket", (agent, ("le", "+Inf"), kind)] == 4
    assert found["agenthive_in_flight", (agent,)] == 4
    assert found["agenthive_concurrency", (agent,)] == 10
    assert found["agenthive_claims_total", (agent,)] == 2
    assert found["agenthive_claimed_messages_total", (agent,)] == 4
    assert found["agenthive_bus_errors_total", (agent, ("operation", "claim"))] == 5
    assert found["agenthive_messages_given_up_total", (agent, ("reason", "expired"))] == 6
    assert found["agenthive_replies_dropped_total", (agent,)] == 7
    assert found["agenthive_schedule_slots_total", (agent, ("result", "fired"), ("schedule", "sweep"))] == 2
    assert found["agenthive_message_log_dropped_total", (agent,)] == 3
    assert found["agenthive_audit_rows_total", (agent, ("result", "written"))] == 5
    assert found["agenthive_audit_rows_total", (agent, ("result", "dropped"))] == 1
    assert found["agenthive_info", (agent, ("version", agenthive.__version__))] == 1
    assert found["agenthive_topic_copies_total", (agent, ("topic", "news"))] == 8
    assert found["agenthive_topic_missed_total", (agent, ("topic", "news"))] == 9
    assert ("process_resident_memory_bytes", ()) in found, "what the process itself registers is there too"


def test_every_metric_is_described_in_one_place_and_named_as_is_the_custom() -> None:
    assert documentation() == DOCUMENT.read_text(), "run: python -m agenthive.telemetry > docs/metrics.md"
    figures = Telemetry("a")
    assert list(figures._samples()) == list(METRICS)
    for name, found in METRICS.items():
        assert re.fullmatch(r"agenthive_[a-z_]+", name)
        assert name.endswith("_total") == (found.kind == "counter"), name
        assert len(set(found.labels)) == len(found.labels)
        assert found.help.endswith(".")


@pytest.fixture
def root_logger() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.mark.usefixtures("root_logger")
def test_a_log_line_is_json_with_the_ids_of_the_message_in_hand() -> None:
    stream = io.StringIO()
    logs.configure("info", "json", {"agent": "a", "pod": "p"}, stream)
    logger = logging.getLogger("agent.a")
    logger.debug("unseen")
    logger.info("plain %d", 1)
    token = current.set(
        SimpleNamespace(message=SimpleNamespace(message_id="m1", message_type="x"), attempt=2)  # type: ignore[arg-type]
    )
    try:
        raise ValueError("wrong")
    except ValueError:
        logger.exception("broken", extra={"topic": "bees", "odd": object()})
    finally:
        current.reset(token)
    plain, broken = (json.loads(line) for line in stream.getvalue().splitlines())
    assert plain.pop("time").endswith("+00:00")
    assert plain == {"level": "info", "logger": "agent.a", "message": "plain 1", "agent": "a", "pod": "p"}
    assert (broken["message_id"], broken["message_type"], broken["attempt"]) == ("m1", "x", 2)
    assert broken["topic"] == "bees"
    assert broken["exception"].endswith("ValueError: wrong")


@pytest.mark.usefixtures("root_logger")
def test_a_terminal_gets_text_and_anything_else_json() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal, file = Terminal(), io.StringIO()
    token = current.set(
        SimpleNamespace(message=SimpleNamespace(message_id="m1", message_type="x"), attempt=1)  # type: ignore[arg-type]
    )
    try:
        for stream in (terminal, file):
            logs.configure("INFO", "auto", {}, stream)
            logging.getLogger("agent.a").info("hello")
    finally:
        current.reset(token)
    assert terminal.getvalue().rstrip().endswith("agent.a  hello  [x m1]")
    assert json.loads(file.getvalue())["message"] == "hello"


def test_logging_needs_no_context(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "agenthive.context")
    assert logs.current_message() is None
