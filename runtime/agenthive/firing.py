"""Fires the schedules of an agent: every replica computes the slots, Redis sees to it that each is fired once."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING

from agenthive.bus import BusError
from agenthive.bus.model import Firing
from agenthive.outage import FIRST_DELAY, LONGEST_DELAY, Outage

if TYPE_CHECKING:
    from agenthive.bus import Bus
    from agenthive.schedule import Schedule
    from agenthive.telemetry import Telemetry

log = logging.getLogger(__name__)

#: How long after its time a slot may be fired: a restart or a short outage costs none.
MOST_LATE_SECONDS = 60.0
#: Longest wait before the server's clock is asked again.
RESYNC_SECONDS = 300.0

_COUNTED = {Firing.FIRED: "fired", Firing.LATE: "late", Firing.OVERLAP: "overlap"}


class Scheduler:
    """Fires ``schedules`` while the agent's process serves.

    Args:
        agent: the name whose queue the messages go to.
        schedules: what to fire.
        bus: where to.
        figures: where it is counted.
        stop: ends everything.
    """

    def __init__(
        self, agent: str, schedules: Iterable[Schedule], bus: Bus, figures: Telemetry, stop: asyncio.Event
    ) -> None:
        self._agent = agent
        self._schedules = tuple(schedules)
        self._bus = bus
        self._figures = figures
        self._stop = stop
        self._outage = Outage("Redis", figures.bus_errors, stop)
        self._loop = asyncio.get_running_loop()
        #: The server's time (ms), and the loop's when it was told.
        self._clock: tuple[int, float] | None = None

    async def run(self) -> None:
        """Fire until ``stop`` is set."""
        await asyncio.gather(*(self._keep_following(schedule) for schedule in self._schedules))

    async def _keep_following(self, schedule: Schedule) -> None:
        while not self._stop.is_set():
            try:
                await self._follow(schedule)
            except Exception:
                log.exception("schedule %s failed; it goes on", schedule.name)
                await self._wait(LONGEST_DELAY)

    async def _follow(self, schedule: Schedule) -> None:
        slots = schedule.slots
        first, due, delay = True, 0, FIRST_DELAY
        while not self._stop.is_set():
            try:
                # After a stall, the last slot of those that came: there is no making up for more.
                slot = max(due, slots.latest(await self._now()))
                outcome, now = await self._bus.fire(
                    schedule.name,
                    slot,
                    schedule.message(slot, self._agent),
                    most_late=None if schedule.catch_up else MOST_LATE_SECONDS,
                    first=first,
                    overlap=schedule.overlap,
                )
            except BusError as error:
                delay = await self._outage.wait("schedule", error, delay)
                continue
            self._outage.over()
            self._clock = (now, self._loop.time())
            self._note(schedule, slot, outcome)
            first, delay = False, FIRST_DELAY
            due = slots.after(now if outcome is Firing.EARLY else slot)
            await self._wait(min(RESYNC_SECONDS, (due - now + 1) / 1000))

    async def _now(self) -> int:
        """The server's time, as far as it is known here; the server itself has the last word on each slot."""
        if self._clock is None:
            self._clock = (await self._bus.clock(self._agent), self._loop.time())
        told, at = self._clock
        return told + int((self._loop.time() - at) * 1000)

    def _note(self, schedule: Schedule, slot: int, outcome: Firing) -> None:
        counted = _COUNTED.get(outcome)
        if counted is not None:
            self._figures.firings[schedule.name, counted] += 1
        if outcome is Firing.FIRED:
            log.debug("schedule %s fired %s", schedule.name, schedule.message(slot, self._agent).message_id)
        elif outcome is Firing.LATE:
            log.warning("schedule %s: nobody ran at its last slot, which is not made up for", schedule.name)
        elif outcome is Firing.OVERLAP:
            log.info("schedule %s: a slot is skipped, the message of an earlier one is not finished", schedule.name)

    async def _wait(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, seconds)):
                await self._stop.wait()
