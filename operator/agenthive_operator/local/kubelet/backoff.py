"""When a container that ended may start again."""

from __future__ import annotations

import os
from dataclasses import dataclass

#: Seconds of the first back-off, for tests and the impatient; the real kubelet's 10 without it.
BASE_VARIABLE = "AGENTHIVE_LOCAL_BACKOFF_SECONDS"
MAX_SECONDS = 300.0
RESET_SECONDS = 600.0


def base_seconds() -> float:
    """The configured base.

    Raises:
        ValueError: the variable is no number above zero.
    """
    text = os.environ.get(BASE_VARIABLE, "10")
    try:
        base = float(text)
    except ValueError:
        base = -1.0
    if base <= 0:
        raise ValueError(f"{BASE_VARIABLE} is {text!r}: write a number of seconds above zero")
    return base


@dataclass(slots=True)
class CrashLoop:
    """The back-off of one container: none, then ``base`` seconds doubling up to 5 minutes; 10 good ones forget it."""

    base: float = 10.0
    _next: float = 0.0

    def after_exit(self, ran_seconds: float) -> float:
        """Seconds to wait before the start that follows an exit after ``ran_seconds``."""
        if ran_seconds >= RESET_SECONDS:
            self._next = 0.0
        delay = self._next
        self._next = min(MAX_SECONDS, delay * 2) if delay else self.base
        return delay


def restarts(policy: str, exit_code: int) -> bool:
    """Whether a container that exited is started again under ``restartPolicy``."""
    return policy == "Always" or (policy == "OnFailure" and exit_code != 0)
