"""Reading what Redis holds."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from agenthive.bus.model import MessageStatus, PendingState, parse_dead_letter, parse_stats, parse_status
from agenthive.protocol import AgentMessage, MessageDeliveryStatus, MessagePriority

PLACE = b"2 1767225600000-3 1767225600000"


def test_the_status_of_a_message_that_is_being_handled() -> None:
    status = parse_status("m", PLACE, b"", 1, b"i", 1767225601500, -1, 1767225600500)
    assert status is not None
    assert status.status is MessageDeliveryStatus.PENDING
    assert status.attempts == 2
    assert status.accepted_at == datetime(2026, 1, 1, tzinfo=UTC)
    assert status.claimed_at == datetime(2026, 1, 1, 0, 0, 1, 500_000, tzinfo=UTC)
    assert status.finished_at is None
    assert status.first_claimed_at == datetime(2026, 1, 1, 0, 0, 0, 500_000, tzinfo=UTC)
    assert status.detail is PendingState.IN_FLIGHT
    assert not status.final


@pytest.mark.parametrize(
    ("how", "detail"), [(b"d", PendingState.DELAYED), (b"r", PendingState.RETRYING), (b"w", PendingState.WAITING)]
)
def test_the_status_of_a_message_that_is_due_later(how: bytes, detail: PendingState) -> None:
    status = parse_status("m", PLACE, b"", 1, how, -1, 1767225602000, -1)
    assert status is not None
    assert (status.detail, status.attempts) == (detail, 1)
    assert status.due_at == datetime(2026, 1, 1, 0, 0, 2, tzinfo=UTC)


def test_the_status_of_a_message_that_waits() -> None:
    status = parse_status("m", PLACE, b"", 0, b"w", -1, -1, -1)
    assert status is not None
    assert (status.attempts, status.claimed_at) == (0, None)


@pytest.mark.parametrize(
    ("final", "expected", "error"),
    [
        (b"d 1767225602000 1767225601500 2 1767225600000", MessageDeliveryStatus.DELIVERED, None),
        (b"f 1767225602000 1767225601500 2 1767225600000 failed: at 7", MessageDeliveryStatus.FAILED, "failed: at 7"),
        (b"e 1767225602000 1767225601500 2 1767225600000 expired", MessageDeliveryStatus.EXPIRED, "expired"),
    ],
)
def test_final_statuses(final: bytes, expected: MessageDeliveryStatus, error: str | None) -> None:
    status = parse_status("m", b"", final, 0, b"", -1, -1, -1)
    assert status is not None
    assert (status.status, status.error, status.attempts) == (expected, error, 2)
    assert status.claimed_at == datetime(2026, 1, 1, 0, 0, 1, 500_000, tzinfo=UTC)
    assert status.finished_at == datetime(2026, 1, 1, 0, 0, 2, tzinfo=UTC)


def test_a_final_status_tells_the_first_claim_if_it_was_another() -> None:
    status = parse_status(
        "m", b"", b"d 1767225602000 1767225601500 2 1767225600000-3,1767225600500", 0, b"", -1, -1, -1
    )
    assert status is not None
    assert status.accepted_at == datetime(2026, 1, 1, tzinfo=UTC)
    assert status.first_claimed_at == datetime(2026, 1, 1, 0, 0, 0, 500_000, tzinfo=UTC)
    status = parse_status("m", b"", b"d 1767225602000 1767225601500 1 1767225600000", 0, b"", -1, -1, -1)
    assert status is not None
    assert status.first_claimed_at == status.claimed_at


def test_a_message_that_expired_unhandled_has_no_time_of_claim() -> None:
    status = parse_status("m", b"", b"e 1767225602000 0 0 1767225600000 expired: late", 0, b"", -1, -1, -1)
    assert status is not None
    assert status.claimed_at is None


def test_a_message_redis_does_not_know_has_no_status() -> None:
    assert parse_status("m", b"", b"", 0, b"", -1, -1, -1) is None


def test_a_status_in_words() -> None:
    pending = MessageStatus("m", MessageDeliveryStatus.PENDING, 1, detail=PendingState.IN_FLIGHT)
    failed = MessageStatus("m", MessageDeliveryStatus.FAILED, 2, "failed: no")
    assert pending.summary == "pending (in flight) after 1 attempt"
    assert failed.summary == "failed after 2 attempts, the last error: failed: no"


def test_figures() -> None:
    stats = parse_stats("a", [1, 2, 3, 4, 5, 6, 7, 1767225600000, 8, 9, 10, 11, 12, 15, 14, 13])
    assert (stats.dead_letters_dropped, stats.replies_dropped, stats.bytes) == (8, 9, 10)
    assert (stats.blocked, stats.halted) == (11, 12)
    assert (stats.arrived, stats.finished, stats.given_up) == (15, 14, 13)
    unknown = parse_stats("a", [0, 0, 0, 0, 0, 0, 0, -1, 0, 0, 0, 0, 0, -1, -1, -1])
    assert (unknown.arrived, unknown.finished, unknown.given_up) == (None, None, None)
    assert stats.backlog == 10
    assert stats.backlog_by_priority[MessagePriority.CRITICAL] == 4
    assert (stats.in_flight, stats.delayed, stats.dead_letters) == (5, 6, 7)
    assert stats.oldest == datetime(2026, 1, 1, tzinfo=UTC)
    assert parse_stats("a", [0, 0, 0, 0, 0, 0, 0, -1, 0, 0, 0, 0, 0, -1, -1, 0]).oldest is None


def test_dead_letters_keep_what_is_no_message() -> None:
    message = AgentMessage(from_agent="a", to_agent="b", message_type="t")
    fields = [b"i", b"x", b"m", message.to_json(), b"reason", b"failed", b"error", b"it broke", b"attempts", b"4"]
    letter = parse_dead_letter(b"1767225600000-0", fields)
    assert (letter.message, letter.reason, letter.error, letter.attempts) == (message, "failed", "it broke", 4)
    assert letter.died_at == datetime(2026, 1, 1, tzinfo=UTC)
    raw = parse_dead_letter(b"1-0", [b"m", b"\xff nonsense"])
    assert raw.message is None
    assert raw.raw == b"\xff nonsense"
