"""When housekeeping is due, by a table of moments."""

from __future__ import annotations

import random

import pytest

from agenthive_operator.backends.upkeep import DAY_SECONDS, FIRST_SECONDS, RETRY_SECONDS, Upkeep


class Drawn(random.Random):
    """Draws the same share of every range."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def uniform(self, a: float, b: float) -> float:
        return a + self.share * (b - a)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_due_soon_after_the_first_look_then_daily(share: float) -> None:
    upkeep, first = Upkeep(Drawn(share)), 1000 + share * FIRST_SECONDS
    assert upkeep.is_due("a", 1000) is (share == 0)
    assert upkeep.is_due("a", first)
    upkeep.done("a", first)
    pause = DAY_SECONDS * (0.75 + share / 4)
    assert not upkeep.is_due("a", first + pause - 1)
    assert upkeep.is_due("a", first + pause)
    assert pause <= DAY_SECONDS


def test_a_failure_is_tried_again_soon_and_another_target_starts_over() -> None:
    upkeep = Upkeep(Drawn(1.0))
    assert not upkeep.is_due("a", 0)
    upkeep.failed("a", 600)
    assert not upkeep.is_due("a", 600 + RETRY_SECONDS - 1)
    assert upkeep.is_due("a", 600 + RETRY_SECONDS)
    assert not upkeep.is_due("b", 600 + RETRY_SECONDS)
    assert upkeep.is_due("b", 600 + RETRY_SECONDS + FIRST_SECONDS)


def test_hives_spread() -> None:
    due = set()
    for seed in range(20):
        upkeep = Upkeep(random.Random(seed))
        upkeep.done("a", 0)
        due.add(next(hour for hour in range(25) if upkeep.is_due("a", hour * 3600)))
    assert len(due) > 3
