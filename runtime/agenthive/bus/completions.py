"""Results of handlings on their way to Redis: collected, sent in batches, settled by the server's answer."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

from agenthive.bus.errors import BusError, LeaseLost
from agenthive.bus.model import Delivery

log = logging.getLogger(__name__)

BATCH = 500
"""Most acknowledgements, and most other endings, of one call."""
Argument = str | bytes | int
T = TypeVar("T")
Done = asyncio.Future[None]
Told = Callable[[BusError | None], None]
ROBBED = "the message was taken over by another consumer; its result was refused"


@dataclass(slots=True, eq=False)
class Batch:
    """What one call carries."""

    acknowledgements: list[tuple[Delivery, Told]]
    endings: list[tuple[tuple[Argument, ...], Done]]
    settled: bool = False
    """The callers know."""

    def __bool__(self) -> bool:
        return bool(self.acknowledgements or self.endings)

    def arguments(self, now: int) -> list[Argument]:
        """As lua/finish.lua reads them; ``now`` is the server's time (ms), as far as it is known here."""
        if self.acknowledgements:
            self.acknowledgements.sort(key=_lane_downwards)  # the order of the answer, too
        deliveries = [delivery for delivery, _ in self.acknowledgements]
        lanes = [delivery.lane for delivery in deliveries]
        tried = [tries_field(delivery) for delivery in deliveries if delivery.attempt > 1]
        heads = _heads(deliveries, now)
        counts = (lanes.count(4), lanes.count(3), lanes.count(2), lanes.count(1))
        size = sum([delivery.size for delivery in deliveries])
        arguments: list[Argument] = [*counts, len(tried), len(heads) // 3, size]
        arguments += [delivery.entry for delivery in deliveries]
        arguments += tried
        arguments += [delivery.key for delivery in deliveries]
        arguments += heads
        for ending, _ in self.endings:
            arguments += ending
        for delivery in deliveries:
            if delivery.ordering:  # in the same call: whoever dies after it leaves no key without its next message
                arguments += ("o", delivery.lane, delivery.entry, delivery.ordering)
        return arguments

    def settle(self, refused_acknowledgements: bytes, refused_endings: bytes) -> None:
        """Tell the callers; the arguments are the numbers of what the server refused."""
        self.settled = True
        lost = _numbers(refused_acknowledgements)
        for number, (_, told) in enumerate(self.acknowledgements):
            told(LeaseLost(ROBBED) if number in lost else None)
        lost = _numbers(refused_endings)
        for number, (_, done) in enumerate(self.endings):
            if done.done():
                continue
            if number in lost:
                done.set_exception(LeaseLost(ROBBED))
            else:
                done.set_result(None)

    def places(self) -> Iterable[tuple[int, list[bytes]]]:
        """The entries of the messages that are completed, by lane."""
        lanes: dict[int, list[bytes]] = {}
        for delivery, _ in self.acknowledgements:
            lanes.setdefault(delivery.lane, []).append(delivery.entry)
        for (code, *details), _ in self.endings:
            if code != "p":
                lane, entry = details[:2]
                assert isinstance(lane, int)
                assert isinstance(entry, bytes)
                lanes.setdefault(lane, []).append(entry)
        return lanes.items()

    def fail(self, error: BusError) -> None:
        """Tell every caller that it went wrong, unless they know how it went."""
        if self.settled:
            return
        self.settled = True
        for _, told in self.acknowledgements:
            told(error)
        for _, done in self.endings:
            if not done.done():
                done.set_exception(error)


class Completions:
    """What waits to be sent."""

    def __init__(self) -> None:
        self._acknowledgements: deque[tuple[Delivery, Told]] = deque()
        self._endings: deque[tuple[tuple[Argument, ...], Done]] = deque()

    def __len__(self) -> int:
        return len(self._acknowledgements) + len(self._endings)

    def acknowledge(self, delivery: Delivery, told: Told) -> None:
        """The handling succeeded. ``told`` hears, once, that Redis knows, or why not."""
        self._acknowledgements.append((delivery, told))

    def end(self, ending: tuple[Argument, ...], done: Done) -> None:
        """Any other operation of ``finish`` (lua/finish.lua)."""
        self._endings.append((ending, done))

    def take(self) -> Batch:
        """The next batch, oldest first."""
        return Batch(_take(self._acknowledgements), _take(self._endings))


def _take(queue: deque[T]) -> list[T]:
    return [queue.popleft() for _ in range(min(BATCH, len(queue)))]


def _numbers(text: bytes) -> frozenset[int]:
    return frozenset(map(int, text.split())) if text else frozenset()


def tries_field(delivery: Delivery) -> str:
    """Field of the hash ``tries`` that counts a message's attempts."""
    return f"{delivery.lane} {delivery.entry.decode()}"


def _heads(deliveries: list[Delivery], now: int) -> list[Argument]:
    """Final statuses but for the end of each: (of how many messages, beginning, when accepted), most share one."""
    heads: list[Argument] = []
    count, last = 0, (-1, -1, b"")
    for delivery in deliveries:
        this = (delivery.claimed, delivery.attempt, delivery.accepted)
        if this != last:
            if count:
                heads += (count, f"d {now} {last[0]} {last[1]} ", last[2])
            count, last = 0, this
        count += 1
    if count:
        heads += (count, f"d {now} {last[0]} {last[1]} ", last[2])
    return heads


def _lane_downwards(pair: tuple[Delivery, Told]) -> int:
    return -pair[0].lane


def refused(delivery: Delivery) -> LeaseLost:
    """What cannot be ours any more, or was completed before."""
    return LeaseLost("the message was completed before" if delivery.completed else ROBBED)


def resolve(done: asyncio.Future[None], error: BusError | None) -> None:
    """End a future as Redis has told."""
    if done.done():
        return
    if error is None:
        done.set_result(None)
    else:
        done.set_exception(error)


def well_ended() -> Done:
    """A future that has ended well."""
    ended: Done = asyncio.get_running_loop().create_future()
    ended.set_result(None)
    return ended


def ignore(done: asyncio.Future[None]) -> None:
    """A result that nobody waits for; the error, if any, means that somebody else has the message."""
    if not done.cancelled() and (error := done.exception()) is not None:
        log.debug("hand-back: %s", error)
