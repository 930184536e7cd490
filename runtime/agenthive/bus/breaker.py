"""When to stop asking a Redis that does not answer."""

from __future__ import annotations

import time
from collections.abc import Callable

from agenthive.settings import CircuitBreaker


class Breaker:
    """Closed while Redis answers; open after ``failure_threshold`` failures in a row, when callers are refused at once.

    Each connection has a row of its own: one restart of Redis breaks them all at once, and is one failure, not many.

    After ``reset_seconds`` one caller is let through as a probe; its success, or any other, closes the circuit.
    """

    def __init__(self, policy: CircuitBreaker, clock: Callable[[], float] = time.monotonic) -> None:
        self._policy = policy
        self._clock = clock
        self._failures = 0
        self._opened_at: float | None = None
        self.reason = ""
        """Text of the last failure."""

    @property
    def open(self) -> bool:
        """Whether Redis counts as down."""
        return self._opened_at is not None

    def allow(self) -> bool:
        """Whether a caller may try now. In an open circuit that is one probe per ``reset_seconds``."""
        if self._opened_at is None:
            return True
        if self._clock() - self._opened_at < self._policy.reset_seconds:
            return False
        self._opened_at = self._clock()
        return True

    def success(self) -> None:
        """Redis answered."""
        self._failures = 0
        self._opened_at = None

    def failure(self, reason: str, row: int | None = None) -> None:
        """Redis could not be reached or did not answer; ``row`` is how often in a row on one connection.

        Without it, the failures of all who do not count for themselves make one row.
        """
        if row is None:
            self._failures += 1
            row = self._failures
        self.reason = reason
        if row >= self._policy.failure_threshold:
            self._opened_at = self._clock()
