"""Results of handlings on their way to Redis: collected, sent in batches, settled by the server's answer."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeVar

from agenthive.bus.errors import BusError, LeaseLost
from agenthive.bus.model import Delivery

BATCH = 500
"""Most acknowledgements, and most other endings, of one call."""
Argument = str | bytes | int
T = TypeVar("T")
Done = asyncio.Future[None]
ROBBED = "the message was taken over by another consumer; its result was refused"


@dataclass(slots=True, eq=False)
class Batch:
    """What one call carries."""

    acknowledgements: list[tuple[Delivery, Done]]
    endings: list[tuple[tuple[Argument, ...], Done]]

    def __bool__(self) -> bool:
        return bool(self.acknowledgements or self.endings)

    def arguments(self, now: int) -> list[Argument]:
        """As lua/finish.lua reads them; ``now`` is the server's time (ms), as far as it is known here."""
        lanes: tuple[list[Delivery], ...] = ([], [], [], [])
        for delivery, _ in self.acknowledgements:
            lanes[4 - delivery.lane].append(delivery)
        deliveries = [delivery for lane in lanes for delivery in lane]
        arguments: list[Argument] = [len(lane) for lane in lanes]
        tried = [tries_field(delivery) for delivery in deliveries if delivery.attempt > 1]
        arguments.append(len(tried))
        arguments += [delivery.entry for delivery in deliveries]
        arguments += tried
        arguments += [delivery.key for delivery in deliveries]
        for delivery in deliveries:
            arguments.append(delivery.key)
            arguments.append(f"d {now} {delivery.claimed} {delivery.attempt} {accepted_ms(delivery)}")
        self.acknowledgements.sort(key=lambda pair: -pair[0].lane)  # the order of the lists above, kept within a lane
        for ending, _ in self.endings:
            arguments += ending
        return arguments

    def settle(self, refused_acknowledgements: bytes, refused_endings: bytes) -> None:
        """Tell the callers; the arguments are the numbers of what the server refused."""
        _settle([done for _, done in self.acknowledgements], refused_acknowledgements)
        _settle([done for _, done in self.endings], refused_endings)

    def places(self) -> Iterable[tuple[int, bytes]]:
        """Lane and entry of each message that is completed."""
        yield from ((delivery.lane, delivery.entry) for delivery, _ in self.acknowledgements)
        for (code, *details), _ in self.endings:
            if code != "p":
                lane, entry = details[:2]
                assert isinstance(lane, int)
                assert isinstance(entry, bytes)
                yield lane, entry

    def fail(self, error: BusError) -> None:
        """Tell every caller that it went wrong."""
        for done in self.futures():
            if not done.done():
                done.set_exception(error)

    def futures(self) -> Iterable[Done]:
        """Whoever waits."""
        yield from (done for _, done in self.acknowledgements)
        yield from (done for _, done in self.endings)


class Completions:
    """What waits to be sent."""

    def __init__(self) -> None:
        self._acknowledgements: deque[tuple[Delivery, Done]] = deque()
        self._endings: deque[tuple[tuple[Argument, ...], Done]] = deque()

    def __len__(self) -> int:
        return len(self._acknowledgements) + len(self._endings)

    def acknowledge(self, delivery: Delivery, done: Done) -> None:
        """The handling succeeded."""
        self._acknowledgements.append((delivery, done))

    def end(self, ending: tuple[Argument, ...], done: Done) -> None:
        """Any other operation of ``finish`` (lua/finish.lua)."""
        self._endings.append((ending, done))

    def take(self) -> Batch:
        """The next batch, oldest first."""
        return Batch(_take(self._acknowledgements), _take(self._endings))


def _take(queue: deque[T]) -> list[T]:
    return [queue.popleft() for _ in range(min(BATCH, len(queue)))]


def _settle(futures: list[Done], refused: bytes) -> None:
    lost = {int(number) for number in refused.split()} if refused else ()
    for number, done in enumerate(futures):
        if done.done():
            continue
        if number in lost:
            done.set_exception(LeaseLost(ROBBED))
        else:
            done.set_result(None)


def tries_field(delivery: Delivery) -> str:
    """Field of the hash ``tries`` that counts a message's attempts."""
    return f"{delivery.lane} {delivery.entry.decode()}"


def accepted_ms(delivery: Delivery) -> str:
    """When the queue took the message: its entry's time, for all but delayed ones a matter of a millisecond."""
    return delivery.entry.partition(b"-")[0].decode()
