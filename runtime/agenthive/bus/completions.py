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
        if self.acknowledgements:
            self.acknowledgements.sort(key=_lane_downwards)  # the order of the answer, too
        deliveries = [delivery for delivery, _ in self.acknowledgements]
        lanes = [delivery.lane for delivery in deliveries]
        tried = [tries_field(delivery) for delivery in deliveries if delivery.attempt > 1]
        arguments: list[Argument] = [lanes.count(4), lanes.count(3), lanes.count(2), lanes.count(1), len(tried)]
        arguments += [delivery.entry for delivery in deliveries]
        arguments += tried
        arguments += [delivery.key for delivery in deliveries]
        claimed, attempt, head = -1, -1, b""  # most of a batch share them
        for delivery in deliveries:
            if delivery.claimed != claimed or delivery.attempt != attempt:
                claimed, attempt = delivery.claimed, delivery.attempt
                head = b"d %d %d %d " % (now, claimed, attempt)
            arguments.append(delivery.key)
            arguments.append(head + delivery.accepted)
        for ending, _ in self.endings:
            arguments += ending
        return arguments

    def settle(self, refused_acknowledgements: bytes, refused_endings: bytes) -> None:
        """Tell the callers; the arguments are the numbers of what the server refused."""
        _settle([done for _, done in self.acknowledgements], refused_acknowledgements)
        _settle([done for _, done in self.endings], refused_endings)

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


def accepted_in(head: bytes) -> bytes | None:
    """When a message was accepted (ms), where the first line of its entry says so: it was delayed since."""
    for word in head.split(b" ")[1:]:
        if word.startswith(b"a"):
            return word[1:]
    return None


def _lane_downwards(pair: tuple[Delivery, Done]) -> int:
    return -pair[0].lane
