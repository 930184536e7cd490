"""Sends what transactions have committed, and looks after it until it has a final status.

Every message is sent by its id as one that may have been sent before, so that whoever sends it again, this process
after an error or another one after a crash, adds nothing. Rows are deleted when their messages are final: what Redis
forgets before that is sent again.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
import logging
import random
import uuid
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from agenthive.bus import BusError, QueueFull
from agenthive.outage import FIRST_DELAY, LONGEST_DELAY, Outage
from agenthive.outbox_lanes import Item, Lanes
from agenthive.protocol import AgentMessage
from agenthive.store.errors import StoreError
from agenthive.store.outbox import DUE_SECONDS, REPLY, TOPIC, Outbox, OutboxRow

if TYPE_CHECKING:
    from agenthive.bus import Bus
    from agenthive.bus.model import MessageStatus
    from agenthive.telemetry import Telemetry

log = logging.getLogger(__name__)

#: Most messages whose final status this process waits for; the sweep looks after the rest.
MOST_WATCHED = 100_000
#: When the status of a message is asked first, after Redis has taken it, and at most how often then, seconds.
FIRST_LOOK = 0.25
LONGEST_LOOK = 60.0
#: Messages that are due so much later are asked about in the same call, seconds.
TOGETHER = 0.05
LOOKS = 5000
#: Seconds between two sweeps; rows of one step of it; rows deleted by one statement.
SWEEP_SECONDS = 30.0
SWEEP_ROWS = 1000
DELETED_ROWS = 1000
#: A reply whose message Redis does not know any more is kept so long, seconds: the message may be sent again.
REPLY_SECONDS = 3600.0
CLOSE_SECONDS = 5.0


@dataclass(slots=True, eq=False)
class Watched:
    """A message that Redis has taken and that has no final status yet."""

    row: OutboxRow
    interval: float


class Relay:
    """One per process of an agent that has a store.

    Args:
        agent: whose outbox it is.
        bus: where to.
        outbox: where from.
        figures: where it is counted.
        sweep_seconds: between two sweeps.
    """

    def __init__(
        self, agent: str, bus: Bus, outbox: Outbox, figures: Telemetry, *, sweep_seconds: float = SWEEP_SECONDS
    ) -> None:
        self._agent = agent
        self._bus = bus
        self._outbox = outbox
        self._figures = figures
        self._sweep_seconds = sweep_seconds
        # A status is kept for a while only: it has to be seen before it is gone.
        self._longest_look = max(FIRST_LOOK, min(LONGEST_LOOK, bus.messaging.status_seconds / 4))
        self._watched: dict[uuid.UUID, Watched] = {}
        self._looks: list[tuple[float, int, Watched]] = []
        self._sequence = itertools.count()
        #: Rows to delete.
        self._gone: deque[uuid.UUID] = deque()
        self._work = asyncio.Event()
        never = asyncio.Event()  # a wait is ended by cancelling it
        self._redis = Outage("Redis", figures.bus_errors, never)
        self._postgres = Outage("PostgreSQL", figures.store_errors, never)
        self._lanes = Lanes(bus, outbox, self._accepted, self._redis, self._postgres)
        #: See Lanes.room.
        self.room = self._lanes.room
        self._tasks: list[asyncio.Task[None]] = []
        self._loop = asyncio.get_running_loop()
        figures.outbox_waiting = lambda: len(self._lanes.waiting) + len(self._watched)

    def start(self) -> None:
        """Begin to watch and to sweep; the first sweep takes what processes that are gone have left."""
        self._tasks = [
            asyncio.create_task(self._keep_watching(), name="outbox-watch"),
            asyncio.create_task(self._keep_sweeping(), name="outbox-sweep"),
        ]

    # What comes in

    def hand_over(self, items: Iterable[tuple[OutboxRow, AgentMessage]]) -> None:
        """Send what a transaction of this process has committed."""
        for row, message in items:
            self._lanes.put(Item(row, message))

    def recover(self, rows: Iterable[OutboxRow]) -> None:
        """Send rows that are left over, unless this process has them in its care."""
        for row in rows:
            if row.id not in self._lanes.waiting and row.id not in self._watched:
                self._lanes.put(Item(row, None))

    def done(self, row_id: uuid.UUID) -> None:
        """A row is of no use any more: delete it soon."""
        self._gone.append(row_id)
        self._work.set()

    def _accepted(self, item: Item, accepted: str) -> None:
        self._figures.outbox_sent += 1
        row, message = item.row, item.message
        if row.kind == TOPIC or accepted != row.message_id:  # the queue has an earlier one of its deduplication key
            self.done(row.id)
            return
        assert message is not None
        due = message.delivery_options.not_before
        delayed = 0.0 if due is None else max(0.0, (due - datetime.now(UTC)).total_seconds())
        self._watch(row, FIRST_LOOK, delayed + FIRST_LOOK)

    # Watching

    def _watch(self, row: OutboxRow, interval: float, after: float) -> None:
        if row.id in self._watched or len(self._watched) >= MOST_WATCHED:
            return
        watched = self._watched[row.id] = Watched(row, interval)
        self._look_in(after, watched)

    def _look_in(self, seconds: float, watched: Watched) -> None:
        when = self._loop.time() + seconds
        if not self._looks or when < self._looks[0][0]:
            self._work.set()
        heapq.heappush(self._looks, (when, next(self._sequence), watched))

    async def _keep_watching(self) -> None:
        delay = FIRST_DELAY
        while True:
            if not self._gone:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout_at(self._looks[0][0] if self._looks else None):
                        await self._work.wait()
            self._work.clear()
            try:
                await self._look(self._loop.time() + TOGETHER)
                await self._delete()
                delay = FIRST_DELAY
            except BusError as error:
                delay = await self._redis.wait("outbox", error, delay)
            except StoreError as error:
                delay = await self._postgres.wait("outbox", error, delay)
            except Exception:
                log.exception("looking after the outbox failed; going on")
                await asyncio.sleep(LONGEST_DELAY)

    async def _look(self, until: float) -> None:
        """Ask for the statuses of what is to be looked at ``until`` then (loop time)."""
        due: list[Watched] = []
        while self._looks and self._looks[0][0] <= until and len(due) < LOOKS:
            due.append(heapq.heappop(self._looks)[2])
        if not due:
            return
        try:
            found = await self._statuses([watched.row for watched in due])
        except BaseException:
            for watched in due:
                self._look_in(watched.interval, watched)
            raise
        lost = []
        for watched in due:
            status = found[watched.row.id]
            if status is not None and not status.final:
                watched.interval = min(watched.interval * 2, self._longest_look)
                self._look_in(watched.interval, watched)
                continue
            del self._watched[watched.row.id]
            if status is not None:
                self._gone.append(watched.row.id)
            else:
                lost.append(watched.row)
        if lost:
            log.warning("Redis does not know %d messages of transactions any more: they are sent again", len(lost))
            self.recover(sorted(lost, key=lambda row: (row.created_at, row.id)))

    async def _statuses(self, rows: list[OutboxRow]) -> dict[uuid.UUID, MessageStatus | None]:
        """By row, the status that tells whether it is still of use: its message's, or that of the one it answers."""
        wanted: dict[str, dict[uuid.UUID, str]] = {}
        for row in rows:
            if row.kind == REPLY:
                wanted.setdefault(self._agent, {})[row.id] = row.cause or ""
            else:
                wanted.setdefault(row.recipient, {})[row.id] = row.message_id
        answers = await asyncio.gather(*(self._bus.statuses(agent, ids.values()) for agent, ids in wanted.items()))
        self._redis.over()
        return {
            row_id: statuses[message_id]
            for ids, statuses in zip(wanted.values(), answers, strict=True)
            for row_id, message_id in ids.items()
        }

    async def _delete(self) -> None:
        while self._gone:
            ids = [self._gone.popleft() for _ in range(min(DELETED_ROWS, len(self._gone)))]
            try:
                await self._outbox.delete(ids)
            except BaseException:
                self._gone.extendleft(ids)
                raise
            self._postgres.over()

    # What others have left

    async def _keep_sweeping(self) -> None:
        within, delay = DUE_SECONDS, FIRST_DELAY
        while True:
            try:
                await self.sweep(within)
                within, delay = 0.0, FIRST_DELAY
                await asyncio.sleep(self._sweep_seconds * random.uniform(0.75, 1.25))  # noqa: S311 - spreads pods
            except BusError as error:
                delay = await self._redis.wait("outbox", error, delay)
            except StoreError as error:
                delay = await self._postgres.wait("outbox", error, delay)
            except Exception:
                log.exception("a sweep of the outbox failed; going on")
                await asyncio.sleep(self._sweep_seconds)

    async def sweep(self, within: float = 0.0) -> int:
        """Look after the rows that are due, or will be ``within`` seconds; how many they were.

        Raises:
            BusUnavailable, StoreUnavailable: it goes on with the next sweep.
        """
        total, stuck = 0, set[tuple[str, str]]()
        while rows := await self._outbox.take(SWEEP_ROWS, within):
            total += len(rows)
            strangers = [row for row in rows if row.id not in self._lanes.waiting and row.id not in self._watched]
            for row in await self._sort(strangers):
                place = (row.kind, row.recipient)
                try:
                    if place not in stuck:
                        await self.room([place])
                        self.recover([row])
                except QueueFull:
                    stuck.add(place)  # the rest of its messages is due again later
            if len(rows) < SWEEP_ROWS:
                break
        return total

    async def _sort(self, rows: list[OutboxRow]) -> list[OutboxRow]:
        """See to what is final or pending; returns what is to be sent."""
        found = await self._statuses([row for row in rows if row.kind != TOPIC])
        unknown = []
        for row in rows:
            status = found.get(row.id)
            if status is not None and status.final:
                self.done(row.id)
            elif row.kind == REPLY:
                # The acknowledgement of its message carries it; without one it is of no use.
                if status is None and (datetime.now(UTC) - row.created_at).total_seconds() > REPLY_SECONDS:
                    self.done(row.id)
            elif status is None:
                unknown.append(row)
            else:
                self._watch(row, 1.0, 1.0)
        if unknown:
            log.info("sending %d messages of transactions that were left over", len(unknown))
        return unknown

    # The end

    async def aclose(self, timeout: float = CLOSE_SECONDS) -> None:
        """Send what waits, for at most ``timeout`` seconds; what is left another process, or the next, sends."""
        try:
            async with asyncio.timeout(timeout):
                while sending := self._lanes.tasks:
                    await asyncio.wait(sending)
                await self._end(self._tasks)
                await self._look(float("inf"))
                await self._delete()
        except (TimeoutError, BusError, StoreError) as error:
            log.warning("%d messages of transactions are left in the outbox: %s",
                        len(self._lanes.waiting), str(error) or "they could not be sent in time")  # fmt: skip
        await self._end([*self._tasks, *self._lanes.tasks])

    @staticmethod
    async def _end(tasks: list[asyncio.Task[None]]) -> None:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
