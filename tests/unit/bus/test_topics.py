"""What is decided about topics without Redis."""

from __future__ import annotations

import pytest

from agenthive.bus.topics import BATCH_BYTES, TopicStats, behind, entries_to_ask, log_entry, published_form, stats_of
from agenthive.protocol import AgentMessage
from agenthive.settings import Messaging, TopicPolicy


@pytest.mark.parametrize(
    ("asked", "largest", "next_"),
    [
        (16, 100, 64),
        (64, 0, 256),
        (256, 100, 500),
        (500, 100, 500),
        (500, BATCH_BYTES // 4, 4),
        (4, 2 * BATCH_BYTES, 1),
        (1, 100, 4),
    ],
)
def test_reads_grow_while_entries_are_small(asked: int, largest: int, next_: int) -> None:
    assert entries_to_ask(asked, largest) == next_


@pytest.mark.parametrize(
    ("length", "last", "cursor", "expected"),
    [
        (0, None, b"0-0 5", 0),
        (3, b"9-3", b"0-0 5", 3),
        (3, b"9-3", b"9-3 5", 0),
        (3, b"9-3", b"9-2 5", 1),
        (100, b"9-1000", b"5-1 5", 100),
        (100, b"9-1000", b"5-990 5", 10),
        (2, b"9-2", b"5-700 5", 2),
        (0, b"9-1000", b"5-990 5", 0),
        (2, b"9-2", b"9-3 5", 0),
    ],
)
def test_how_far_an_agent_is_behind(length: int, last: bytes | None, cursor: bytes, expected: int) -> None:
    assert behind(length, last, cursor) == expected


def test_figures_by_topic() -> None:
    cursors = {"b": {"news": b"1-1 5"}, "a": {"news": b"1-3 5", "alerts": b"0-0 5"}}
    assert stats_of({"news": 3, "alerts": 0}, {"news": b"1-3", "alerts": None}, cursors) == [
        TopicStats("alerts", 0, {"a": 0}),
        TopicStats("news", 3, {"a": 0, "b": 2}),
    ]


def test_an_entry_of_the_log() -> None:
    assert log_entry(b"1-1", [b"l", b"4", b"m", b"text"]) == (b"1-1", b"4", b"text")
    assert log_entry(b"1-1", [b"l", b"5", b"m", b"text"]) == (b"1-1", b"2", b"l 5 m text")
    assert log_entry(b"1-1", [b"m", b"text"]) == (b"1-1", b"2", b"m text")


def test_the_form_that_is_published() -> None:
    messaging = Messaging(ttl_seconds=60, topics=TopicPolicy(retention_seconds=7200))
    message = AgentMessage(from_agent="a", to_agent="b", message_type="t")
    form = published_form(message, "news", messaging)
    assert (form.to_agent, form.ttl, form.message_id) == ("#news", 7200, message.message_id)
    assert published_form(form, "news", messaging) is form
    assert published_form(message.model_copy(update={"ttl": 5.0}), "news", messaging).ttl == 5
    with pytest.raises(ValueError, match="has no reply"):
        published_form(message.model_copy(update={"reply_to": "c"}), "news", messaging)
