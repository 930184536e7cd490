"""Many callers, one statement: what waits while a batch is in flight makes the next batch.

No timer is involved. A call that finds the batcher idle is flushed at once (with whatever else was submitted in the
same turn of the event loop); calls that come meanwhile wait for the flight to land, and then fly together. Under load
the batches grow by themselves, when idle nobody waits.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from agenthive.store.errors import StoreClosed, StoreError, is_row_error

logger = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")

MAX_BATCH_ITEMS = 1000
MAX_BATCH_BYTES = 8 * 1024 * 1024
MAX_QUEUED = 10_000

#: Does a batch: one result, or the error of that one caller, for each item in order. May raise for all of them.
#: The second argument is when to give up, in the loop's time.
Flush = Callable[[Sequence[Item], float], Awaitable[Sequence[Result | StoreError]]]


@dataclass(slots=True)
class _Entry(Generic[Item, Result]):
    item: Item
    size: int
    since: float
    future: asyncio.Future[Result]


class Batcher(Generic[Item, Result]):
    """Collects items of concurrent callers and hands them to ``flush`` in order, one batch in flight at a time."""

    def __init__(
        self,
        name: str,
        flush: Flush[Item, Result],
        *,
        explain: Callable[[BaseException], StoreError],
        patience: float,
        max_items: int = MAX_BATCH_ITEMS,
        max_bytes: int = MAX_BATCH_BYTES,
        max_queued: int = MAX_QUEUED,
    ) -> None:
        """Args:
        name: for log and error texts.
        flush: see ``Flush``.
        explain: makes what ``flush`` raised an error for its callers.
        patience: seconds an item may take from ``submit`` on before its flush gives up on a lost connection.
        max_items: most items of a batch.
        max_bytes: most bytes of a batch, as counted by ``submit``; a single item may exceed it.
        max_queued: most items that wait; beyond it ``submit`` itself waits.
        """
        self._name = name
        self._flush = flush
        self._explain = explain
        self._patience = patience
        self._max_items = max_items
        self._max_bytes = max_bytes
        self._max_queued = max_queued
        self._queue: deque[_Entry[Item, Result]] = deque()
        self._room: deque[asyncio.Future[None]] = deque()
        self._task: asyncio.Task[None] | None = None
        self._closed = False
        self._loop = asyncio.get_running_loop()

    @property
    def queued(self) -> int:
        """Items that wait for their batch."""
        return len(self._queue)

    async def submit(self, item: Item, size: int = 0) -> Result:
        """Add ``item`` to the next batch and wait for its result.

        A caller that is cancelled before its batch flies takes its item back; afterwards the item is done anyway.

        Args:
            item: for ``flush``.
            size: its bytes.

        Raises:
            StoreClosed: the batcher was closed.
            StoreError: what ``flush`` says about this item.
        """
        while len(self._queue) >= self._max_queued and not self._closed:
            await self._wait_for_room()
        if self._closed:
            raise StoreClosed("the store of this process was closed")
        return await self._add(item, size)

    def offer(self, item: Item, size: int = 0) -> asyncio.Future[Result] | None:
        """As ``submit``, for who does not wait: None if there is no room, or the batcher was closed."""
        return None if self._closed or len(self._queue) >= self._max_queued else self._add(item, size)

    def _add(self, item: Item, size: int) -> asyncio.Future[Result]:
        future: asyncio.Future[Result] = self._loop.create_future()
        self._queue.append(_Entry(item, size, self._loop.time(), future))
        if self._task is None:
            # A context of its own: the batch belongs to no single caller's trace.
            self._task = self._loop.create_task(self._run(), context=contextvars.Context())
        return future

    async def _wait_for_room(self) -> None:
        turn: asyncio.Future[None] = self._loop.create_future()
        self._room.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._make_room(1)  # ours was granted: pass it on
            raise

    def _make_room(self, places: int) -> None:
        while places > 0 and self._room:
            turn = self._room.popleft()
            if not turn.done():
                turn.set_result(None)
                places -= 1

    async def aclose(self, timeout: float) -> None:
        """Take no more items, flush what waits; what is not done after ``timeout`` seconds fails with StoreClosed."""
        self._closed = True
        self._make_room(len(self._room))
        task = self._task
        if task is not None:
            await asyncio.wait({task}, timeout=timeout)
            task.cancel()
            await asyncio.wait({task})
        if self._queue:
            logger.warning("%s: %d items were not written before closing", self._name, len(self._queue))
            _fail(self._queue, StoreClosed("the store of this process was closed before this was written"))
            self._queue.clear()

    async def _run(self) -> None:
        batch: list[_Entry[Item, Result]] = []
        try:
            while batch := self._take():
                self._make_room(len(batch))
                try:
                    await self._fly(batch)
                except Exception as error:  # a defect of a flush function is to hang nobody
                    logger.exception("%s: a batch of %d failed", self._name, len(batch))
                    _fail(batch, self._explain(error))
        except asyncio.CancelledError:
            _fail(batch, StoreClosed("the store of this process was closed while this was being written"))
            raise
        finally:
            self._task = None

    def _take(self) -> list[_Entry[Item, Result]]:
        batch: list[_Entry[Item, Result]] = []
        size = 0
        while self._queue and len(batch) < self._max_items:
            if batch and size + self._queue[0].size > self._max_bytes:
                break
            entry = self._queue.popleft()
            if not entry.future.done():  # done already: its caller was cancelled
                size += entry.size
                batch.append(entry)
        return batch

    async def _fly(self, batch: list[_Entry[Item, Result]]) -> None:
        # The oldest item's patience counts: callers behind an outage give up soon after it, not one outage later each.
        deadline = batch[0].since + self._patience
        try:
            results = await self._flush([entry.item for entry in batch], deadline)
        except Exception as error:  # every caller gets it; this task must live on
            if len(batch) > 1 and is_row_error(error):
                # One bad row spoiled the statement for all: halve until it is alone.
                middle = len(batch) // 2
                await self._fly(batch[:middle])
                await self._fly(batch[middle:])
                return
            failure = self._explain(error)
            if failure is not error:
                failure.__cause__ = error
            _fail(batch, failure)
            return
        for entry, result in zip(batch, results, strict=True):
            if entry.future.done():
                continue
            if isinstance(result, StoreError):
                entry.future.set_exception(result)
            else:
                entry.future.set_result(result)


def _fail(entries: Sequence[_Entry[Item, Result]] | deque[_Entry[Item, Result]], error: StoreError) -> None:
    for entry in entries:
        if not entry.future.done():
            # An instance each: a traceback grows where the same one is raised in many tasks.
            entry.future.set_exception(_copy(error))


def _copy(error: StoreError) -> StoreError:
    try:
        twin = type(error)(*error.args)
    except TypeError:
        return error  # a class with arguments of its own: shared
    twin.__cause__ = error.__cause__
    return twin
