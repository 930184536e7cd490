"""Decisions of the bus that need no Redis."""

from __future__ import annotations

import itertools
from collections import Counter
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agenthive.bus.policy import (
    LaneWheel,
    Retry,
    accepted_form,
    after_failure,
    backoff,
    decoded_key,
    encoded_key,
    lane_of,
    packed_options,
    reconnect_delay,
    to_ms,
)
from agenthive.protocol import AgentMessage, MessagePriority
from agenthive.settings import Messaging, PriorityWeights

WEIGHTS = PriorityWeights()


def make(**fields: Any) -> AgentMessage:
    return AgentMessage(**{"from_agent": "a", "to_agent": "b", "message_type": "t", **fields})


def always_half() -> float:
    return 0.5


@pytest.mark.parametrize(("count", "shares"), [(15, (8, 4, 2, 1)), (30, (16, 8, 4, 2)), (150, (80, 40, 20, 10))])
def test_whole_rounds_follow_the_weights_exactly(count: int, shares: tuple[int, ...]) -> None:
    assert LaneWheel(WEIGHTS).quotas(count) == shares
    assert LaneWheel(WEIGHTS, 0.7).quotas(count) == shares


@pytest.mark.parametrize("size", [1, 2, 3, 7, 10])
def test_small_claims_add_up_to_the_weights(size: int) -> None:
    wheel, got = LaneWheel(WEIGHTS, 0.3), Counter[int]()
    for _ in range(15 * 20):
        for lane, share in enumerate(wheel.quotas(size)):
            got[lane] += share
        wheel.advance(size)
    assert [got[lane] for lane in range(4)] == [8 * 20 * size, 4 * 20 * size, 2 * 20 * size, 20 * size]


def test_the_lowest_lane_never_waits_longer_than_one_round() -> None:
    wheel = LaneWheel(WEIGHTS)
    turns = []
    for turn in range(60):
        if wheel.quotas(1)[3]:
            turns.append(turn)
        wheel.advance(1)
    assert [b - a for a, b in itertools.pairwise(turns)] == [15, 15, 15]


@given(
    count=st.integers(0, 1000),
    start=st.floats(0, 1),
    weights=st.tuples(*[st.integers(1, 100)] * 4),
)
def test_quotas_add_up(count: int, start: float, weights: tuple[int, int, int, int]) -> None:
    critical, high, medium, low = weights
    wheel = LaneWheel(PriorityWeights(critical=critical, high=high, medium=medium, low=low), start)
    quotas = wheel.quotas(count)
    assert sum(quotas) == count
    assert min(quotas) >= 0


@pytest.mark.parametrize(
    ("attempt", "delay"), [(1, 1.0), (2, 2.0), (3, 4.0), (7, 64.0), (9, 150.0), (50, 150.0), (100_000, 150.0)]
)
def test_backoff_doubles_up_to_its_limit(attempt: int, delay: float) -> None:
    assert backoff(attempt, 2.0, 300.0, always_half) == delay


def test_backoff_has_full_jitter() -> None:
    assert backoff(3, 2.0, 300.0, lambda: 0.0) == 0.0
    assert backoff(3, 2.0, 300.0, lambda: 1.0) == 8.0


def test_reconnecting_starts_soon_and_never_waits_long() -> None:
    delays = [reconnect_delay(failures, always_half) for failures in (1, 2, 3, 10, 10_000)]
    assert delays == pytest.approx([0.0375, 0.075, 0.15, 0.75, 0.75])


@pytest.mark.parametrize(
    ("options", "attempt", "retry_after", "expected"),
    [
        ({}, 1, None, Retry(1.0)),
        ({}, 3, None, Retry(4.0)),
        ({}, 4, None, None),
        ({}, 1, 7.5, Retry(7.5)),
        ({}, 1, -3, Retry(0.0)),
        ({}, 4, 7.5, None),
        ({"max_retries": 0}, 1, None, None),
        ({"max_retries": 9}, 9, 0, Retry(0.0)),
        ({"max_retries": 9}, 10, 0, None),
        ({"retry_delay": 0}, 2, None, Retry(0.0)),
        ({"retry_delay": 600}, 3, None, Retry(300.0)),
    ],
)
def test_what_follows_a_failure(options: Any, attempt: int, retry_after: float | None, expected: Retry | None) -> None:
    assert after_failure(make(delivery_options=options), attempt, Messaging(), always_half, retry_after) == expected


@pytest.mark.parametrize(("seconds", "ms"), [(1, 1000), (0.0001, 1), (0.0015, 2), (1e300, 10_000_000_000_000)])
def test_milliseconds(seconds: float, ms: int) -> None:
    assert to_ms(seconds) == ms


def test_a_message_without_ttl_takes_the_hives() -> None:
    messaging = Messaging(ttl_seconds=60)
    assert accepted_form(make(), messaging).ttl == 60
    assert accepted_form(make(ttl=3600), messaging).ttl == 3600
    default = make()
    assert accepted_form(default, Messaging()) is default


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, ""),
        ({"delivery_options": {"max_retries": 0}}, "r0"),
        ({"delivery_options": {"require_ack": False}}, "k0"),
        ({"delivery_options": {"not_before": datetime(2026, 1, 1, tzinfo=UTC)}}, "b1767225600000"),
        ({"delivery_options": {"ordering_key": "a b"}}, "oa%20b"),
        ({"delivery_options": {"ordering_key": "k", "on_fail": "halt", "max_retries": 1}}, "ok h1 r1"),
        ({"reply_to": "@abc", "ttl": 2.5}, "yabc l2500"),
        ({"reply_to": "some-agent"}, ""),
        (
            {"reply_to": "@abc", "ttl": 1, "delivery_options": {"max_retries": 2, "require_ack": False}},
            "r2 k0 yabc l1000",
        ),
    ],
)
def test_options_as_the_functions_read_them(fields: dict[str, Any], words: str) -> None:
    assert packed_options(make(**fields)) == words


def test_a_deduplication_key_is_one_word_before_all_others_and_only_on_the_way_to_the_queue() -> None:
    message = make(delivery_options={"deduplication_key": "a b\n%é:", "max_retries": 1})
    assert packed_options(message, Messaging(deduplication_seconds=2)) == "d2000:a%20b%0A%25%C3%A9%3A r1"
    assert packed_options(message) == "r1"


@pytest.mark.parametrize("key", ["a", "a b o", "\n\t\x00%", "ключ", "日" * 256, "o/:;[{"])
def test_any_text_is_a_key(key: str) -> None:
    word = encoded_key(key)
    assert word.isascii()
    assert word.split() == [word]
    assert decoded_key(word.encode()) == key


def test_lanes_are_priorities() -> None:
    assert [lane_of(priority) for priority in MessagePriority] == [1, 2, 3, 4]
