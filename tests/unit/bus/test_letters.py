"""Which dead letters a call reads, and in which steps."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest

from agenthive.bus.letters import _batch_letters, _cut, _earlier, _lane_ttl_options, _range
from agenthive.bus.model import MOST_PROBLEMS, DeadLetter, LetterFilter, LetterReport
from agenthive.protocol import AgentMessage, MessagePriority

T0 = datetime(2026, 1, 1, tzinfo=UTC)
T0_MS = 1767225600000
HOUR = timedelta(hours=1)
MESSAGE = AgentMessage(from_agent="a", to_agent="b", message_type="t")


@pytest.mark.parametrize(
    ("where", "after", "newest_first", "expected"),
    [
        (LetterFilter(), None, False, ("-", "+")),
        (LetterFilter(), None, True, ("+", "-")),
        (LetterFilter(), "5-1", False, ("(5-1", "+")),
        (LetterFilter(), "5-1", True, ("(5-1", "-")),
        (LetterFilter(since=T0), None, False, (f"{T0_MS}-0", "+")),
        (LetterFilter(since=T0 + timedelta(microseconds=1)), None, False, (f"{T0_MS + 1}-0", "+")),
        (LetterFilter(since=T0), "5-1", False, (f"{T0_MS}-0", "+")),
        (LetterFilter(since=T0), f"{T0_MS}-3", False, (f"({T0_MS}-3", "+")),
        (LetterFilter(since=T0, until=T0 + HOUR), None, True, (f"{T0_MS + 3_600_000}", f"{T0_MS}-0")),
        (LetterFilter(until=T0), f"{T0_MS + 1}-0", True, (f"{T0_MS}", "-")),
        (LetterFilter(until=T0), f"{T0_MS}-0", True, (f"({T0_MS}-0", "-")),
        (LetterFilter(until=T0.astimezone(timezone(HOUR))), None, False, ("-", f"{T0_MS}")),
    ],
)
def test_the_range_that_is_read(
    where: LetterFilter, after: str | None, newest_first: bool, expected: tuple[str, str]
) -> None:
    assert _range(where, after, newest_first) == expected


@pytest.mark.parametrize(
    ("end", "last", "expected"),
    [("+", None, "+"), ("+", "7-1", "7-1"), ("7", "7-1", "7-1"), ("6", "7-1", "6"), ("8", "7-1", "7-1")],
)
def test_what_died_meanwhile_is_not_read(end: str, last: str | None, expected: str) -> None:
    assert _earlier(end, last) == expected


def test_a_filter_wants_a_time_zone() -> None:
    with pytest.raises(ValueError, match="since is 2026-01-01T00:00:00, which has no time zone"):
        LetterFilter(since=T0.replace(tzinfo=None))


@pytest.mark.parametrize(
    ("where", "accepted", "of_no_message"),
    [
        (LetterFilter(), True, True),
        (LetterFilter(reason="failed", error="x"), True, True),  # the server has looked at these
        (LetterFilter(message_type="t"), True, False),
        (LetterFilter(message_type="u"), False, False),
        (LetterFilter(message_type="t", from_agent="a"), True, False),
        (LetterFilter(message_type="t", from_agent="b"), False, False),
    ],
)
def test_what_a_filter_accepts(where: LetterFilter, accepted: bool, of_no_message: bool) -> None:
    assert (where.accepts(MESSAGE), where.accepts(None)) == (accepted, of_no_message)


def test_batches_are_bounded_in_number_and_bytes() -> None:
    letters = [
        DeadLetter(str(n), None, b"x" * size, "", "", 0, T0) for n, size in enumerate([1, 1, 1, 5 << 20, 5 << 20])
    ]
    assert [[letter.id for letter in batch] for batch in _cut(letters, 2)] == [["0", "1"], ["2", "3"], ["4"]]
    assert list(_cut([], 2)) == []
    assert [_batch_letters(rate) for rate in (None, 0.1, 25, 100_000)] == [200, 1, 2, 200]


def test_a_redriven_message_is_due_at_once_and_answers_nobody() -> None:
    message = MESSAGE.model_copy(update={"priority": MessagePriority.HIGH, "ttl": 5.0, "reply_to": "@someone"})
    options = {"not_before": T0, "max_retries": 7, "require_ack": False}
    message = AgentMessage.model_validate({**message.model_dump(), "delivery_options": options})
    assert _lane_ttl_options(message, None) == (3, 5000, "r7 k0")
    assert _lane_ttl_options(message, 60) == (3, 60_000, "r7 k0")


def test_the_reasons_in_a_report_are_bounded() -> None:
    report = LetterReport(5000)
    for n in range(5000):
        report.refuse(str(n), "no")
    assert (report.refused, len(report.problems)) == (5000, MOST_PROBLEMS)
