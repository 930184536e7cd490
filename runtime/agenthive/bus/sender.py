"""Sending: many callers, one task, one connection. What arrives while a batch is under way makes the next batch."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from agenthive.bus.cluster import SLOT_BUSY
from agenthive.bus.connections import Connections, Shard
from agenthive.bus.errors import AccessDenied, BusError, BusUnavailable, HiveMoving, QueueFull
from agenthive.bus.library import library
from agenthive.bus.policy import FULL_QUEUE_FIRST_DELAY, FULL_QUEUE_MAX_DELAY
from agenthive.bus.wire import Command, ConnectionLost, ReplyError
from agenthive.settings import QueuePolicy

log = logging.getLogger(__name__)

FULL, FULL_OF_BYTES, DUPLICATE = b"043"
"""Results of a message, see lua/send.lua."""
CLOSED = "CLOSED"
"""Code of the refusal while the hive moves, see lua/prelude.lua."""
BATCH_MESSAGES = 500
"""Most messages of one function call."""
HALVED_SENDERS = 32
"""From so many waiting senders on their messages go in two halves by turns: while Redis takes one, the senders of the
other are told and make their next messages."""
DOUBTFUL_IDS = 10_000
"""Most ids remembered of messages whose senders were left without a clear answer."""
BATCH_BYTES = 4 * 1024 * 1024
"""Size at which a batch is sent without looking for more."""


TopicLog = tuple[int, int]
"""Messages a topic keeps, and how long (ms)."""

Arguments = tuple[int, str, bytes, int, str]
"""Of one message: lane, id, document, ttl (ms), packed options."""


@dataclass(slots=True, eq=False)
class Row:
    """Messages to one recipient that keep their order: behind one that was not accepted no other is sent."""

    again: bool
    """They may have been accepted, and even handled, before."""
    broken: bool = False


@dataclass(slots=True, eq=False)
class Item:
    """One message on its way."""

    arguments: Arguments
    done: asyncio.Future[str]
    """The id of the message that was accepted: its own, or that of an earlier one with its deduplication key."""
    deadline: float
    """Loop time until which a full queue, or a Redis that is away, is waited for."""
    row: Row | None = None

    @property
    def again(self) -> bool:
        """It may have been accepted before, by whichever process."""
        return self.row is not None and self.row.again


@dataclass(slots=True, eq=False)
class Outbox:
    """What waits for one agent, or for one topic."""

    gate: str
    topic: TopicLog | None
    items: deque[Item] = field(default_factory=deque)
    closed_until: float = 0.0
    """Loop time before which its full queue, or the slot that is on the move, is not asked again."""
    delay: float = 0.0
    moving: str = ""
    """Why no master of a cluster served it last time."""
    full: int = FULL
    """Which bound it has reached."""


class Sender:
    """The sending task of a process. Callers await futures and never touch the connection."""

    def __init__(
        self, connections: Connections | Shard, queue: QueuePolicy, *, durable: bool = False, inside: bool = False
    ) -> None:
        """``durable``: a message counts as accepted once a replica has it. ``inside``: see ``Bus.connect``."""
        self._connections = connections
        self._lane = connections.lane(durable=durable)
        self._queue = queue
        self._bound = f"{queue.max_length} {queue.max_bytes}"
        self._name = secrets.token_hex(6)
        self._mark = "" if inside else " o"
        self._lost = 0
        """Connections lost while Redis had something to answer."""
        self._doubtful: dict[str, None] = {}
        """Ids, oldest first, that may have been accepted though their senders were told an error, or went away."""
        self._outboxes: dict[str, Outbox] = {}
        self._in_flight: list[tuple[Outbox, list[Item]]] = []
        """Whether some of what is taken next may have been accepted before."""
        self._answered: list[tuple[Outbox, list[Item], Any]] = []
        """What Redis has answered and no sender knows yet."""
        self._work = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    async def send(self, gate: str, arguments: Arguments, wait: float, *, topic: TopicLog | None = None) -> str:
        """Return the message's id once it is accepted, or the id of the one that its deduplication key stands for.

        ``topic`` makes it a message for the topic whose gate is ``gate``; a topic is never full.
        Raises QueueFull or BusUnavailable after ``wait`` seconds.
        """
        self._connections.check()
        loop = asyncio.get_running_loop()
        item = Item(arguments, loop.create_future(), loop.time() + wait)
        self._put(gate, topic).append(item)
        return await item.done

    async def send_row(
        self, gate: str, row: Sequence[Arguments], wait: float, *, again: bool, topic: TopicLog | None = None
    ) -> list[str | BusError]:
        """Send several messages in this order; for each what ``send`` returns or raises.

        Behind one that is not accepted no other is sent. ``again``: they may have been accepted before; those whose
        final status Redis keeps are not accepted again.
        """
        self._connections.check()
        loop = asyncio.get_running_loop()
        order, deadline = Row(again), loop.time() + wait
        items = [Item(arguments, loop.create_future(), deadline, order) for arguments in row]
        self._put(gate, topic).extend(items)
        results = await asyncio.gather(*(item.done for item in items), return_exceptions=True)
        return [_result(result) for result in results]

    def _put(self, gate: str, topic: TopicLog | None) -> deque[Item]:
        """Where items for ``gate`` go; the sending task is about to look."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run(), name="agenthive-sender")
        outbox = self._outboxes.get(gate)
        if outbox is None:
            outbox = self._outboxes[gate] = Outbox(gate, topic)
        self._work.set()
        return outbox.items

    async def _run(self) -> None:
        while True:
            await self._work.wait()
            self._work.clear()
            await asyncio.sleep(0)  # whoever is ready to send in this turn of the loop joins the batch
            try:
                while batches := self._take():
                    self._in_flight = batches
                    await self._deliver(batches)
                    if any(_refuses(answer) for _, _, answer in self._answered):
                        self._settle()  # what was refused goes before what came later
                self._settle()
            except Exception as error:
                log.exception("sending failed; going on")
                self._settle()
                self._fail_in_flight(BusUnavailable(f"sending failed: {error!r}"))

    def _take(self) -> list[tuple[Outbox, list[Item]]]:
        """What can be sent now, by agent."""
        now = asyncio.get_running_loop().time()
        batches: list[tuple[Outbox, list[Item]]] = []
        size, room = 0, self._room()
        later: float | None = None
        for gate, outbox in list(self._outboxes.items()):
            if outbox.closed_until > now:
                self._give_up_late(outbox, now)
                later = min(later or outbox.closed_until, outbox.closed_until)
                continue
            batch: list[Item] = []
            while outbox.items and len(batch) < BATCH_MESSAGES and size < BATCH_BYTES and room > 0:
                if batch and outbox.items[0].again != batch[0].again:
                    break  # of a fresh message an earlier one's final status says nothing
                item = outbox.items.popleft()
                if item.row is not None and item.row.broken:
                    _fail([item], BusUnavailable("not sent: a message before it was not accepted"))
                if not item.done.done():  # else its caller was cancelled before it was sent
                    batch.append(item)
                    size += len(item.arguments[2])
                    room -= 1
            if batch:
                batches.append((outbox, batch))
            elif not outbox.items:
                del self._outboxes[gate]
        if later is not None and not batches:
            self._wake_at(later)
        return batches

    def _room(self) -> int:
        """Most messages to send now: all, or half of those whose senders wait for us."""
        answered = sum(len(batch) for _, batch, _ in self._answered)
        waiting = answered + sum(len(outbox.items) for outbox in self._outboxes.values())
        return waiting if waiting < HALVED_SENDERS else (waiting + 1) // 2

    def _fail_in_flight(self, error: BusError) -> None:
        _fail((item for _, batch in self._in_flight for item in batch), error)

    def _wake_at(self, when: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_at(when, self._work.set)

    async def _deliver(self, batches: list[tuple[Outbox, list[Item]]]) -> None:
        doubtful = self._doubtful
        again = bool(doubtful) and any(item.arguments[1] in doubtful for _, batch in batches for item in batch)
        while True:
            commands = [self._command(outbox, batch, again or batch[0].again) for outbox, batch in batches]
            try:
                answers = await self._lane.execute(commands, meanwhile=self._settle)
            except (ConnectionLost, AccessDenied) as error:  # a server that was restarted may get its users a bit later
                self._settle()
                # A batch may be sent twice: queues know the ids they have taken, and copies of a topic go to queues.
                again = True
                self._lost += 1
                self._doubt(item for _, batch in batches for item in batch)
                reason = f"Redis at {self._lane.endpoint} cannot be reached: {error}"
                if self._connections.breaker.open:
                    self._fail_in_flight(BusUnavailable(reason))
                    return
                await self._lane.pause()
                if not self._has_patience(reason):
                    return
            except BusUnavailable as error:
                self._settle()
                self._doubt(item for _, batch in batches for item in batch)
                self._fail_in_flight(error)
                return
            else:
                self._answered = [(*pair, answer) for pair, answer in zip(batches, answers, strict=True)]
                self._in_flight = []
                return

    def _doubt(self, items: Iterable[Item]) -> None:
        """If these are sent again, whoever does it, they may have been accepted and even handled before."""
        for item in items:
            self._doubtful[item.arguments[1]] = None
        while len(self._doubtful) > DOUBTFUL_IDS:
            del self._doubtful[next(iter(self._doubtful))]

    def _has_patience(self, reason: str) -> bool:
        """End the wait of senders whose deadline is over; whether others still wait. A batch is repeated whole."""
        now = asyncio.get_running_loop().time()
        items = [item for _, batch in self._in_flight for item in batch]
        _fail((item for item in items if item.deadline <= now), BusUnavailable(reason))
        return any(not item.done.done() for item in items)

    def _command(self, outbox: Outbox, batch: list[Item], again: bool) -> Command:
        words = f"{int(again)}{self._lost} {self._name}{self._mark}"
        arguments: list[Any] = [words, *(outbox.topic or (self._bound,))]
        for item in batch:
            arguments += item.arguments
        if outbox.topic is None:
            return library().call("send", outbox.gate, *arguments)
        return library().call("publish", outbox.gate, *arguments)

    def _settle(self) -> None:
        """Tell the senders what Redis answered last."""
        answered, self._answered = self._answered, []
        for outbox, batch, answer in answered:
            try:
                self._settle_batch(outbox, batch, answer)
            except Exception as error:
                log.exception("an answer of Redis to a batch of messages cannot be read; going on")
                _fail(batch, BusUnavailable(f"Redis answered what cannot be read: {error!r}"))

    def _settle_batch(self, outbox: Outbox, batch: list[Item], answer: Any) -> None:
        moving = isinstance(answer, ReplyError) and answer.code in SLOT_BUSY
        if isinstance(answer, ReplyError) and not moving:
            kind = HiveMoving if answer.code == CLOSED else BusUnavailable
            _fail(batch, kind(f"Redis at {self._lane.endpoint} did not accept the message: {answer}"))
            return
        full = []
        if moving:  # its master may have been lost after it took them
            self._lost += 1
            self._doubt(batch)
        outbox.moving = str(answer) if moving else ""
        results, *earlier = (bytes([FULL]) * len(batch) if moving else answer).split(b"\n")
        others = iter(earlier)
        for item, result in zip(batch, results, strict=True):
            if result in (FULL, FULL_OF_BYTES):
                full.append(item)
                outbox.full = result
                continue
            accepted = next(others).decode() if result == DUPLICATE else item.arguments[1]
            if not item.done.done():
                item.done.set_result(accepted)
                if self._doubtful:
                    self._doubtful.pop(item.arguments[1], None)
            elif item.done.cancelled():
                self._doubt([item])
        if full:
            loop = asyncio.get_running_loop()
            outbox.items.extendleft(reversed(full))
            outbox.delay = min(FULL_QUEUE_MAX_DELAY, outbox.delay * 2) or FULL_QUEUE_FIRST_DELAY
            outbox.closed_until = loop.time() + outbox.delay
            self._give_up_late(outbox, loop.time())
            self._outboxes.setdefault(outbox.gate, outbox)
        else:
            outbox.delay = 0.0

    def _give_up_late(self, outbox: Outbox, now: float) -> None:
        late = [item for item in outbox.items if item.deadline <= now]
        if late:
            outbox.items = deque(item for item in outbox.items if item.deadline > now)
            if outbox.moving:
                _fail(late, BusUnavailable(f"no master of the cluster serves the recipient now: {outbox.moving}"))
            bound = f"{self._queue.max_length} messages (queue.maxLength)"
            if outbox.full == FULL_OF_BYTES:
                bound = f"{self._queue.max_bytes} bytes (queue.maxBytes)"
            _fail(late, QueueFull(f"the queue holds its {bound} and did not shrink in time; send later"))

    async def aclose(self) -> None:
        """Stop. Whoever still waits gets BusUnavailable: its message may have been accepted or not."""
        if self._timer is not None:
            self._timer.cancel()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        closed = BusUnavailable("the bus was closed before Redis confirmed the message")
        self._settle()
        self._fail_in_flight(closed)
        for outbox in self._outboxes.values():
            _fail(outbox.items, closed)
        self._outboxes.clear()
        await self._lane.aclose()


def _refuses(answer: Any) -> bool:
    return isinstance(answer, ReplyError) or FULL in answer or FULL_OF_BYTES in answer


def _fail(items: Iterable[Item], error: BusError) -> None:
    for item in items:
        if item.row is not None:
            item.row.broken = True
        if not item.done.done():
            item.done.set_exception(error)


def _result(result: str | BaseException) -> str | BusError:
    if isinstance(result, str | BusError):
        return result
    raise result
