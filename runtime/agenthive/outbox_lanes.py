"""What waits to be sent to Redis for transactions: a lane for each recipient, in the order of the commits."""

from __future__ import annotations

import asyncio
import itertools
import logging
import uuid
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from agenthive.bus import BusError, QueueFull
from agenthive.outage import FIRST_DELAY, LONGEST_DELAY, Outage
from agenthive.protocol import AgentMessage, MessageError
from agenthive.store.errors import StoreError
from agenthive.store.outbox import TOPIC, Outbox, OutboxRow

if TYPE_CHECKING:
    from agenthive.bus import Bus

log = logging.getLogger(__name__)

#: Most messages to one recipient, and bytes of them, that are under way to Redis at a time.
BATCH = 300
BATCH_BYTES = 4 * 1024 * 1024
#: Most messages to one recipient, and bytes, that wait here; then transactions that send to it wait before they commit,
#: and after a while fail as a sender does.
MOST_WAITING = 10_000
MOST_WAITING_BYTES = 64 * 1024 * 1024
ROOM_SECONDS = 10.0
#: How long one try waits for a full queue, seconds.
TRY_SECONDS = 5.0


@dataclass(slots=True, eq=False)
class Item:
    """A row on its way; ``message`` is None while its document is in PostgreSQL only."""

    row: OutboxRow
    message: AgentMessage | None


@dataclass(slots=True, eq=False)
class Lane:
    """What waits for one recipient, in order."""

    recipient: str
    topic: str | None
    items: deque[Item] = field(default_factory=deque)
    bytes: int = 0
    full: bool = False
    """Its queue has refused something."""
    room: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None

    @property
    def crowded(self) -> bool:
        return len(self.items) >= MOST_WAITING or self.bytes >= MOST_WAITING_BYTES


class Lanes:
    """Sends rows, each recipient's in order; a recipient that does not take them holds up no other.

    Args:
        bus: where to.
        outbox: where the documents of rows are that come without.
        accepted: called with each item that Redis has taken, and the id of the message that was accepted: another one
            where the queue has an earlier one of its deduplication key.
        redis: the state of Redis as the relay sees it.
        postgres: that of PostgreSQL.
    """

    def __init__(
        self, bus: Bus, outbox: Outbox, accepted: Callable[[Item, str], None], redis: Outage, postgres: Outage
    ) -> None:
        self._bus = bus
        self._outbox = outbox
        self._accepted = accepted
        self._redis = redis
        self._postgres = postgres
        self._lanes: dict[tuple[str | None, str], Lane] = {}
        #: Ids of the rows that wait here.
        self.waiting: set[uuid.UUID] = set()

    @property
    def tasks(self) -> list[asyncio.Task[None]]:
        """One for each lane that is not empty."""
        return [lane.task for lane in self._lanes.values() if lane.task is not None]

    def put(self, item: Item) -> None:
        """Send ``item`` behind what waits for its recipient."""
        recipient = item.row.recipient
        topic = recipient if item.row.kind == TOPIC else None
        lane = self._lanes.get((topic, recipient))
        if lane is None:
            lane = self._lanes[topic, recipient] = Lane(recipient, topic)
        lane.items.append(item)
        lane.bytes += item.row.size
        self.waiting.add(item.row.id)
        if lane.task is None:
            lane.task = asyncio.get_running_loop().create_task(self._empty(lane), name=f"outbox-{recipient}")

    async def room(self, recipients: Iterable[tuple[str, str]]) -> None:
        """Return when there is room for more messages to all of ``recipients`` (kind and name).

        Raises:
            QueueFull: there was none for 10 s.
        """
        for kind, recipient in recipients:
            lane = self._lanes.get((recipient if kind == TOPIC else None, recipient))
            if lane is None or not lane.crowded:
                continue
            try:
                async with asyncio.timeout(ROOM_SECONDS):
                    while lane.crowded:
                        lane.room.clear()
                        await lane.room.wait()
            except TimeoutError:
                raise QueueFull(
                    f"{len(lane.items)} messages of committed transactions wait to be sent to {recipient}: its queue "
                    "is full, or Redis does not answer; the transaction was rolled back"
                ) from None

    async def _empty(self, lane: Lane) -> None:
        delay = FIRST_DELAY
        while lane.items:
            try:
                batch = await self._load(lane)
                if batch:
                    await self._send(lane, batch)
                delay = FIRST_DELAY
            except QueueFull as error:
                if not lane.full:
                    log.warning("%d messages of transactions wait for %s: %s", len(lane.items), lane.recipient, error)
                lane.full = True
            except BusError as error:
                delay = await self._redis.wait("outbox", error, delay)
            except StoreError as error:
                delay = await self._postgres.wait("outbox", error, delay)
            except Exception:
                log.exception("sending messages of transactions to %s failed; going on", lane.recipient)
                await asyncio.sleep(LONGEST_DELAY)
        if lane.full:
            log.info("no message of a transaction waits for %s any more", lane.recipient)
        del self._lanes[lane.topic, lane.recipient]

    async def _load(self, lane: Lane) -> list[Item]:
        """The next messages of a lane, which stay in it until Redis has them. What cannot be sent leaves it."""
        batch: list[Item] = []
        size = 0
        for item in itertools.islice(lane.items, BATCH):
            if batch and size + item.row.size > BATCH_BYTES:
                break
            batch.append(item)
            size += item.row.size
        missing = {item.row.id for item in batch if item.message is None}
        documents = await self._outbox.documents(missing) if missing else {}
        for item in batch:
            if item.message is not None:
                continue
            if item.row.id not in documents:  # another process has seen its end
                self._leave(lane, item)
                continue
            try:
                item.message = self._bus.checked(AgentMessage.from_json(documents[item.row.id]), lane.topic)
            except (MessageError, ValueError) as error:
                self._give_up(lane, item, error)
        return [item for item in batch if item.message is not None]

    async def _send(self, lane: Lane, batch: list[Item]) -> None:
        """Send ``batch``; raises the error of the first message that Redis did not take."""
        messages = [item.message for item in batch if item.message is not None]
        try:
            results = await self._bus.send_in_order(messages, topic=lane.topic, wait=TRY_SECONDS)
        except ValueError:  # the hive's limits are lower than they were
            if not self._drop_unfit(lane, batch):
                raise
            return
        for item, result in zip(batch, results, strict=True):
            if isinstance(result, BusError):
                raise result
            self._leave(lane, item)
            self._accepted(item, result)
        self._redis.over()

    def _drop_unfit(self, lane: Lane, batch: list[Item]) -> bool:
        """Give up what the bus refuses to send; whether there was anything."""
        unfit = False
        for item in batch:
            assert item.message is not None
            try:
                self._bus.checked(item.message, lane.topic)
            except ValueError as error:
                self._give_up(lane, item, error)
                unfit = True
        return unfit

    def _give_up(self, lane: Lane, item: Item, error: Exception) -> None:
        row = item.row
        log.error(
            "message %s of a transaction cannot be sent to %s and stays in the outbox, row %s: %s",
            row.message_id, row.recipient, row.id, error,
        )  # fmt: skip
        self._leave(lane, item)

    def _leave(self, lane: Lane, item: Item) -> None:
        if lane.items[0] is item:
            lane.items.popleft()
        else:
            lane.items.remove(item)
        lane.bytes -= item.row.size
        self.waiting.discard(item.row.id)
        if not lane.crowded:
            lane.room.set()
