"""When a schedule fires: pure arithmetic on slots, which every replica computes alike from the server's clock.

A slot is a moment in milliseconds since 1970 (UTC).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Protocol

from agenthive.protocol import AgentMessage

#: What a schedule's name must look like: it becomes part of message ids.
NAME_PATTERN = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,62}[A-Za-z0-9])?")
SHORTEST_SECONDS = 0.1
#: Cron fields of other zones are searched for the last slot from so far back: no clock is set further.
_LOOK_BACK_MS = 3 * 3600 * 1000
#: Of the moment from which a cron expression must have a next slot.
_ANY_DAY = 1_767_225_600_000


class Slots(Protocol):
    """The moments at which a schedule fires."""

    def after(self, moment: int) -> int:
        """The first slot after ``moment``."""

    def latest(self, moment: int) -> int:
        """The last slot that is not after ``moment``; 0 if there was none."""


@dataclass(frozen=True, slots=True)
class Interval:
    """Every ``period`` ms, counted from 1970: all processes agree, whenever they started."""

    period: int

    def after(self, moment: int) -> int:
        return (moment // self.period + 1) * self.period

    def latest(self, moment: int) -> int:
        return moment // self.period * self.period


@dataclass(frozen=True, slots=True)
class Cron:
    """A cron expression in a time zone, as Debian's cron reads it (also when the clocks change)."""

    expression: str
    zone: tzinfo

    def after(self, moment: int) -> int:
        from cronsim import CronSim  # noqa: PLC0415 - of use to agents with schedules

        for found in CronSim(self.expression, self._at(moment)):
            slot = _ms(found)
            if slot > moment:  # in the hour that comes twice the search begins with its first coming
                return slot
        raise ValueError(f"{self.expression!r} never comes")

    def latest(self, moment: int) -> int:
        from cronsim import CronSim  # noqa: PLC0415 - as above

        start = self._at((moment // 1000 + 1) * 1000)
        found: datetime | None = next(CronSim(self.expression, start, reverse=True), None)
        if found is None:
            return 0
        slot = min(_ms(found), moment)
        if self._steady(slot) and self._steady(moment):
            return slot
        # Backwards cron is not the mirror of forwards where the clocks change: let one direction decide.
        last = 0
        for found in CronSim(self.expression, self._at(slot - _LOOK_BACK_MS)):
            slot = _ms(found)
            if slot > moment:
                break
            last = max(last, slot)
        return last

    def _steady(self, moment: int) -> bool:
        """Whether the zone's clocks do not change around ``moment``."""
        before, after = self._at(moment - _LOOK_BACK_MS), self._at(moment + _LOOK_BACK_MS)
        return before.utcoffset() == after.utcoffset()

    def _at(self, moment: int) -> datetime:
        # Whole seconds: cron knows no others.
        return datetime.fromtimestamp(moment // 1000, self.zone)


def _ms(moment: datetime) -> int:
    return int(moment.timestamp()) * 1000


def slots_of(when: str | float | timedelta, timezone: str = "UTC") -> Slots:
    """The slots of ``when``: a cron expression of five fields (six: seconds first), seconds, or a timedelta.

    Raises:
        ValueError: no cron expression, one that never comes, no time zone of that name, or less than 0.1 s.
        TypeError: none of the three.
    """
    if isinstance(when, str):
        return _cron(when, timezone)
    if isinstance(when, timedelta):
        when = when.total_seconds()
    if isinstance(when, bool) or not isinstance(when, int | float):
        raise TypeError(f"every({when!r}): write a cron expression such as '*/5 * * * *', seconds, or a timedelta")
    if not SHORTEST_SECONDS <= when <= 1e9:
        raise ValueError(f"every({when!r}): seconds must be at least {SHORTEST_SECONDS}")
    if timezone != "UTC":
        raise ValueError(f"every({when!r}, timezone={timezone!r}): only cron expressions have a time zone")
    return Interval(round(when * 1000))


def _cron(expression: str, timezone: str) -> Cron:
    from zoneinfo import ZoneInfo  # noqa: PLC0415 - as above

    from cronsim import CronSim, CronSimError  # noqa: PLC0415 - as above

    try:
        zone: tzinfo = UTC if timezone == "UTC" else ZoneInfo(timezone)
    except (KeyError, ValueError, OSError) as error:
        raise ValueError(
            f"every({expression!r}, timezone={timezone!r}): no such time zone here; "
            "write one such as 'Europe/Berlin'; where the system has none, install the package tzdata"
        ) from error
    slots = Cron(" ".join(expression.split()), zone)
    try:
        CronSim(slots.expression, datetime.now(UTC))
        slots.after(_ANY_DAY)
    except (CronSimError, ValueError) as error:
        raise ValueError(
            f"every({expression!r}): {error}; write five fields: minute, hour, day of the month, month, day of the week"
        ) from error
    return slots


@dataclass(frozen=True, slots=True)
class Schedule:
    """One ``agent.every``: when it fires, and the message it then sends to its own agent."""

    name: str
    slots: Slots
    #: What is sent, but for its id, time and address.
    template: AgentMessage
    #: Fire the last slot that came while nobody ran, however long ago.
    catch_up: bool
    #: Fire also while the message of an earlier slot is not finished.
    overlap: bool

    def message(self, slot: int, agent: str) -> AgentMessage:
        """The message of a slot, the same in every process; ``timestamp`` is the slot."""
        moment = datetime.fromtimestamp(slot / 1000, UTC)
        text = moment.isoformat(timespec="milliseconds" if slot % 1000 else "seconds").replace("+00:00", "Z")
        changes = {
            "message_id": f"every:{self.name}:{text}",
            "timestamp": moment,
            "from_agent": agent,
            "to_agent": agent,
        }
        return self.template.model_copy(update=changes)
