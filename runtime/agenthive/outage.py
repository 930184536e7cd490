"""How a process rides out a server that is away: one back-off, one log line at its start and one at its end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections import Counter

log = logging.getLogger(__name__)

FIRST_DELAY = 0.05
LONGEST_DELAY = 2.0
#: A lasting outage is logged again this often, seconds.
REMIND_SECONDS = 30.0


class Outage:
    """The state of one server as its callers see it.

    Args:
        server: its name in the log.
        errors: where each failure is counted, by operation.
        stop: ends every wait.
    """

    def __init__(self, server: str, errors: Counter[str], stop: asyncio.Event) -> None:
        self._server = server
        self._errors = errors
        self._stop = stop
        self._since: float | None = None
        self._reminded = 0.0
        #: Why the server cannot be used; empty while it can.
        self.reason = ""

    async def wait(self, operation: str, error: Exception, delay: float) -> float:
        """Note a failure and wait about ``delay`` seconds (less if the process stops); the delay for the next one."""
        self.failed(operation, error)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(delay * random.uniform(0.5, 1.0)):  # noqa: S311 - spreads pods, hides nothing
                await self._stop.wait()
        return min(delay * 2, LONGEST_DELAY)

    def failed(self, operation: str, error: BaseException) -> None:
        """Note a failure."""
        self._errors[operation] += 1
        self.reason = f"{type(error).__name__}: {error}"
        now = time.monotonic()
        if self._since is None:
            self._since = self._reminded = now
            log.warning("%s is not available (%s): %s", self._server, operation, self.reason)
        elif now - self._reminded >= REMIND_SECONDS:
            self._reminded = now
            log.warning("%s is not available for %.0f s now: %s", self._server, now - self._since, self.reason)

    def over(self) -> None:
        """Note that it answers again."""
        if self._since is not None:
            log.info("%s is available again after %.1f s", self._server, time.monotonic() - self._since)
            self._since = None
            self.reason = ""
