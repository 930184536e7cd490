"""One heap for the deadlines of everything that runs, instead of a timer per message."""

from __future__ import annotations

import heapq
import itertools
from typing import Generic, Protocol, TypeVar


class Perishable(Protocol):
    """What the heap holds: something that may be over before its deadline is."""

    done: bool


T = TypeVar("T", bound=Perishable)

#: Entries whose item is done stay in the heap until they are at least this many and outnumber the live ones.
SLACK = 64


class Deadlines(Generic[T]):
    """A heap of (deadline, item). Items that finish in time are dropped lazily, at an amortised constant cost."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, T]] = []
        self._sequence = itertools.count()
        self._compact_at = SLACK

    def __len__(self) -> int:
        return len(self._heap)

    def push(self, when: float, item: T) -> bool:
        """Add ``item``; True if its deadline is now the earliest, so the caller's one timer has to move."""
        heap = self._heap
        if len(heap) >= self._compact_at:
            self._compact()
            heap = self._heap
        entry = (when, next(self._sequence), item)
        heapq.heappush(heap, entry)
        return heap[0] is entry

    def next(self) -> float | None:
        """The earliest deadline of an item that is not done."""
        heap = self._heap
        while heap and heap[0][2].done:
            heapq.heappop(heap)
        return heap[0][0] if heap else None

    def due(self, now: float) -> list[T]:
        """Remove and return the items whose deadline has come and that are not done."""
        heap = self._heap
        late: list[T] = []
        while heap and heap[0][0] <= now:
            item = heapq.heappop(heap)[2]
            if not item.done:
                late.append(item)
        return late

    def _compact(self) -> None:
        self._heap = [entry for entry in self._heap if not entry[2].done]
        heapq.heapify(self._heap)
        self._compact_at = max(SLACK, 2 * len(self._heap))
