"""Few lines of many failures."""

from __future__ import annotations

import logging
import sys

import pytest

from agenthive_operator.log import FewLines, Sparing


def test_of_many_lines_a_few_are_told_and_the_others_counted(caplog: pytest.LogCaptureFixture) -> None:
    now, logger = [0.0], logging.getLogger("some")
    sparing = Sparing(burst=2, seconds=30, clock=lambda: now[0])
    with caplog.at_level(logging.INFO):
        for number in range(5):
            sparing.log(logger, logging.INFO, "topic", "line %d", number)
        sparing.log(logger, logging.INFO, "another", "else")
        now[0] = 31
        sparing.log(logger, logging.INFO, "topic", "line %d", 9)
    assert [record.getMessage() for record in caplog.records] == [
        "line 0", "line 1", "else", "line 9 (and 3 lines like this before)",
    ]  # fmt: skip


def record(text: str, name: str = "kopf.x") -> logging.LogRecord:
    try:
        raise ValueError
    except ValueError:
        return logging.LogRecord(name, logging.ERROR, "", 0, text, None, sys.exc_info())


def test_kopf_tells_each_kind_of_failure_a_few_times_and_shows_no_traceback() -> None:
    few = FewLines()
    refusals = [record(f"Request attempt #{n} failed; will retry: GET /{n} -> APIServerError('x')") for n in range(9)]
    assert [few.filter(each) for each in refusals] == [True, True, *[False] * 7]
    assert refusals[0].exc_info is None
    assert few.filter(record("Request attempt #1 failed; will retry: GET / -> TimeoutError()"))
    ours = record("ours", "agenthive_operator.x")
    assert all(few.filter(ours) for _ in range(9))
    assert ours.exc_info
