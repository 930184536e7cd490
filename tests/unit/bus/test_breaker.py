"""The circuit breaker, with a clock of the test's own."""

from __future__ import annotations

from agenthive.bus.breaker import Breaker
from agenthive.settings import CircuitBreaker


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def broken(clock: Clock) -> Breaker:
    breaker = Breaker(CircuitBreaker(failure_threshold=3, reset_seconds=10), clock)
    for n in range(3):
        assert breaker.allow()
        breaker.failure(f"refused {n}")
    return breaker


def test_opens_after_failures_in_a_row() -> None:
    breaker = broken(Clock())
    assert breaker.open
    assert not breaker.allow()
    assert breaker.reason == "refused 2"


def test_connections_that_break_together_do_not_open_it() -> None:
    breaker = Breaker(CircuitBreaker(failure_threshold=3), Clock())
    for _ in range(20):
        breaker.failure("restart", 1)
        breaker.failure("restart", 2)
    assert not breaker.open
    breaker.failure("still away", 3)
    assert breaker.open


def test_a_success_in_between_starts_the_count_again() -> None:
    breaker = Breaker(CircuitBreaker(failure_threshold=2), Clock())
    for _ in range(5):
        breaker.failure("x")
        breaker.success()
    assert not breaker.open


def test_lets_one_probe_through_and_closes_when_it_succeeds() -> None:
    clock = Clock()
    breaker = broken(clock)
    clock.now += 9.9
    assert not breaker.allow()
    clock.now += 0.2
    assert breaker.allow()
    assert not breaker.allow(), "a second caller while the probe is out"
    breaker.success()
    assert breaker.allow()
    assert not breaker.open


def test_a_failed_probe_keeps_it_open_for_another_period() -> None:
    clock = Clock()
    breaker = broken(clock)
    clock.now += 11
    assert breaker.allow()
    breaker.failure("still down")
    clock.now += 9
    assert not breaker.allow()
    clock.now += 2
    assert breaker.allow()
