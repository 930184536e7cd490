"""The read-through cache in Redis: for agent state, and for what ``@cached`` functions return.

Why no reader sees a value older than the newest write that had returned before it began, as long as the writer reaches
Redis. Each entry is one string; whoever finds none may lease it, which leaves a marker with a token used once:

1. An entry comes to be only by a fill: the lease first, then the read of PostgreSQL, then the fill, which is refused
   unless the marker with its token is still there.
2. A write returns only after ``changed``, which follows its commit. That removes a marker, a "no such document" and any
   entry that it does not know. It replaces the entry of the version that the write itself replaced, and leaves alone an
   entry of the write's own version. It never makes an entry.
3. So once ``changed`` of a write has run, no entry is older than the write, and none comes to be: a fill whose lease is
   younger read after the commit; one whose lease is older finds its marker gone; and ``changed`` of an earlier write,
   however late, only replaces an entry that is older still, of which by induction there is none. (Versions of a key
   are never used again, not even after it was deleted: the version before names one state and no other. That they grow
   is not relied on: the first of a key that is made again is the time at which its write began, which may then have
   waited for others. An entry that was evicted is just not there, and no late ``changed`` makes it again.)

In one process, a reader joins another one's read only if its own look at Redis found the very marker under which that
read began: what was changed in between would have removed it.

A writer that cannot reach Redis: an entry ends at most ``STATE_SECONDS`` after its *lease*, by the clock of Redis and
whatever replaced it meanwhile, hence as long after any write that it does not know. The same bounds what a Redis that
loses its last second, or a replica that takes over, may bring back. The writer itself reads from PostgreSQL until it
has delivered what it owes.

When Redis does not answer, readers go to PostgreSQL (cache_link.py). All that is said to Redis may be said twice: a
marker and an entry tell whose they are.
"""

from __future__ import annotations

import asyncio
import random
import secrets
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any, Final

from agenthive.bus.library import library
from agenthive.bus.wire import Command, ReplyError
from agenthive.cache_entries import (
    MARKER,
    NOTHING,
    STATE_SECONDS,
    VALUE,
    Change,
    Loaded,
    document_of,
    form_of,
    life_of,
    told,
)
from agenthive.cache_link import PATIENCE_SECONDS, READING, RETRY_SECONDS, WRITING, Link
from agenthive.settings import HiveScope

if TYPE_CHECKING:
    from agenthive.store.batch import Batcher

#: How long a reader of state waits for another process to fill an entry, seconds.
FOLLOW_SECONDS: Final = 0.03
#: How long a call may take before its lease is prolonged, and then how often that is done, seconds.
RENEW_SECONDS: Final = 2.0
MAX_READS: Final = 250
"""Of one command: MGET keeps Redis busy as long as it takes."""

STATE, CALL = "state", "call"
HIT, NEGATIVE_HIT, MISS, BYPASS = "hit", "negative_hit", "miss", "bypass"

Load = Callable[[], Awaitable[Loaded]]


class _Away(Enum):
    AWAY = "away"


AWAY: Final = _Away.AWAY
"""Redis does not answer, or not in time."""


@dataclass(frozen=True, slots=True)
class _Lease:
    name: str


@dataclass(frozen=True, slots=True)
class _Fill:
    arguments: tuple[str, str, int, str, str]
    """name, token, life (ms), kind and version, document"""


@dataclass(frozen=True, slots=True)
class _Renewal:
    arguments: tuple[str, str]
    """name, token"""


_Operation = _Lease | _Fill | _Renewal | Sequence[Change]


@dataclass(slots=True)
class Figures:
    """What was counted since the process started.

    Attributes:
        requests: reads, by kind (state, call) and result (hit, negative_hit, miss, bypass).
        errors: calls to Redis that failed, by operation.
        refused: entries that were not kept, by reason: max_bytes, memory.
    """

    requests: Counter[tuple[str, str]] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)

    @property
    def hit_ratio(self) -> float:
        """Share of the reads that Redis answered, negative hits among them; 0 where there were none."""
        hits = sum(count for (_, result), count in self.requests.items() if result in {HIT, NEGATIVE_HIT})
        return hits / max(1, self.requests.total())


class Cache:
    """One process's access to its hive's cache. It connects when it is first used.

    Attributes:
        figures: what was counted.
    """

    def __init__(
        self, url: str, scope: HiveScope, *, max_bytes: int | None = None, client_name: str = "agenthive:cache"
    ) -> None:
        """Args:
        url: a Redis, in any form the bus takes.
        scope: the hive, all of whose processes share the entries.
        max_bytes: most bytes that the entries of the hive may take, with what Redis needs to keep them; None: any.
        client_name: what CLIENT LIST shows.

        Raises:
            ValueError: the URL is none.
        """
        self.figures = Figures()
        self._gate = f"{scope.hive_prefix}gate"
        self._prefix = f"{scope.hive_prefix}c:"
        self._bound = max_bytes or 0
        self._link = Link(
            url,
            self._gate,
            client_name=client_name,
            errors=self.figures.errors,
            forget=lambda names: self._call_change([Change(name) for name in names]),
        )
        self._own = f"L{secrets.token_hex(6)}-".encode()
        self._leases = 0
        self._reads: Batcher[str, bytes | _Away | None]
        self._operations: Batcher[_Operation, Any]
        self._flights: dict[tuple[str, bytes], asyncio.Future[str | bytes | None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._full_until: float | None = None
        self._started = self._closed = False

    @property
    def available(self) -> bool:
        """Whether Redis answered when it was last asked, and was told all that there was to tell."""
        return not self._link.away

    async def read(
        self, kind: str, name: str, load: Load, *, seconds: float = STATE_SECONDS, patience: float = FOLLOW_SECONDS
    ) -> str | bytes | None:
        """The JSON text under ``name``; None: there is none. Where Redis has none, ``load`` tells it, and is kept.

        Args:
            kind: STATE or CALL, for the figures.
            name: see ``entry_name``.
            load: reads it where the truth is; called once for callers of this process that come meanwhile.
            seconds: the longest that an entry may live, counted from before ``load``.
            patience: how long to wait for another process that is reading the same, seconds.

        Raises:
            Exception: what ``load`` raises. Redis itself is never a reason.
        """
        answer = await self._look(name)
        if isinstance(answer, bytes):
            form = answer[0]
            if form == VALUE:
                data = document_of(answer)
                self.figures.requests[kind, NEGATIVE_HIT if kind == CALL and data == b"null" else HIT] += 1
                return data
            if form == NOTHING:
                self.figures.requests[kind, NEGATIVE_HIT] += 1
                return None
            if form == MARKER:
                self.figures.requests[kind, MISS] += 1
                return await self._join(kind, name, answer, load, seconds, patience)
        self.figures.requests[kind, BYPASS] += 1
        return (await load()).data

    async def changed(self, changes: Sequence[Change]) -> None:
        """Tell the cache what was committed, before anybody learns that it was; one exchange for all.

        Never raises for Redis: what cannot be told now is told later. A caller that is cancelled leaves it under way.
        """
        if not changes or self._closed:
            return
        if not self._started:
            self._start()
        size = sum(len(change.data or "") for change in changes)
        try:
            done = not self._link.away and await self._operations.submit(changes, size) is not AWAY
        except asyncio.CancelledError:  # which may have taken it back
            self._spawn(self.changed(changes))
            raise
        if not done:
            self._link.owe(change.name for change in changes)

    async def forget(self, names: Sequence[str]) -> None:
        """Remove what is kept under ``names``; as ``changed``."""
        await self.changed([Change(name) for name in names])

    async def aclose(self) -> None:
        """Tell Redis what is still owed, if it answers, and close the connections."""
        self._closed = True
        if not self._started:
            return
        tasks = list(self._tasks)
        if tasks:
            await asyncio.wait(tasks, timeout=PATIENCE_SECONDS)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(self._reads.aclose(PATIENCE_SECONDS), self._operations.aclose(PATIENCE_SECONDS))
        await self._link.aclose()

    # What is in Redis

    def _start(self) -> None:
        from agenthive.store.batch import Batcher  # noqa: PLC0415 - brings asyncpg, which not every agent loads
        from agenthive.store.errors import StoreError  # noqa: PLC0415 - as above

        def explain(error: BaseException) -> StoreError:
            return StoreError(f"the cache failed: {error!r}")

        self._started = True
        self._reads = Batcher(
            "cache reads", self._flush_reads, explain=explain, patience=PATIENCE_SECONDS, max_items=MAX_READS
        )
        self._operations = Batcher("cache", self._flush_operations, explain=explain, patience=PATIENCE_SECONDS)

    async def _look(self, name: str) -> bytes | _Away:
        """What is under ``name``: an entry or a marker, which is a new one of this process where nothing was."""
        if self._closed or not self._link.trusted:
            return AWAY
        if not self._started:
            self._start()
        answer = await self._reads.submit(self._prefix + name)
        if answer is not None:
            return answer
        if self._full_until is not None:
            if asyncio.get_running_loop().time() < self._full_until:
                return AWAY
            self._full_until = None
        found: bytes | _Away = await self._operations.submit(_Lease(name))
        return found

    async def _flush_reads(self, keys: Sequence[str], deadline: float) -> list[bytes | _Away | None]:
        unique = dict.fromkeys(keys)
        answers = await self._link.exchange(READING, [("MGET", *unique)])
        if answers is None or isinstance(answers[0], ReplyError):
            return [AWAY] * len(keys)
        found = dict(zip(unique, answers[0], strict=True))
        return [found[key] for key in keys]

    async def _flush_operations(self, operations: Sequence[_Operation], deadline: float) -> list[Any]:
        """For a lease the marker, or what is there; for the others None. AWAY for what may not have been done."""
        names = dict.fromkeys(one.name for one in operations if isinstance(one, _Lease))
        fills = [one for one in operations if isinstance(one, _Fill)]
        renewals = [word for one in operations if isinstance(one, _Renewal) for word in one.arguments]
        changes = [change for one in operations if not isinstance(one, _Lease | _Fill | _Renewal) for change in one]
        self._leases += 1
        marker = b"%b%x" % (self._own, self._leases)
        commands: list[Command] = []
        if changes:
            commands.append(self._call_change(_once_each(changes)))
        if renewals:
            commands.append(library().call("cache_renew", self._gate, *renewals))
        if fills:
            filled = [word for one in fills for word in one.arguments]
            commands.append(library().call("cache_fill", self._gate, self._bound, *filled))
        if names:
            commands.append(library().call("cache_lease", self._gate, marker[1:], *names))
        answers = await self._link.exchange(WRITING, commands)
        if answers is None:
            return [AWAY] * len(operations)
        if fills:
            self._note_refused(answers[-2] if names else answers[-1], len(fills))
        leased: dict[str, Any] = {}
        if names:
            refused = isinstance(answers[-1], ReplyError)
            leased = dict(zip(names, [AWAY] * len(names) if refused else answers[-1], strict=True))
        return [
            (marker if leased[one.name] is None else leased[one.name]) if isinstance(one, _Lease) else None
            for one in operations
        ]

    def _call_change(self, changes: Sequence[Change]) -> Command:
        return library().call("cache_change", self._gate, self._bound, *told(changes))

    def _note_refused(self, answer: Any, fills: int) -> None:
        if isinstance(answer, ReplyError):
            self.figures.refused["memory"] += fills
        elif b"2" in answer:
            self.figures.refused["max_bytes"] += answer.count(b"2")
        else:
            return
        self._full_until = asyncio.get_running_loop().time() + RETRY_SECONDS

    # Misses

    async def _join(
        self, kind: str, name: str, marker: bytes, load: Load, seconds: float, patience: float
    ) -> str | bytes | None:
        """The read that began under ``marker``: another caller's, or a new one."""
        flight = self._flights.get((name, marker))
        if flight is None:
            flight = self._flights[name, marker] = asyncio.get_running_loop().create_future()
            self._spawn(self._fly(kind, name, marker, flight, load, seconds, patience))
        return await asyncio.shield(flight)

    async def _fly(
        self,
        kind: str,
        name: str,
        marker: bytes,
        flight: asyncio.Future[str | bytes | None],
        load: Load,
        seconds: float,
        patience: float,
    ) -> None:
        own, life, loaded = marker.startswith(self._own), 0, Loaded(None)
        try:
            entry = None if own else await self._follow(name, marker, patience)
            if entry is not None:
                flight.set_result(document_of(entry) if entry[0] == VALUE else None)
                return
            held = 0.0
            if kind == CALL and own:
                loaded, held = await self._load_slowly(name, marker, load)
            else:
                loaded = await load()
            life = life_of(loaded, seconds - held, random.random())  # noqa: S311 - spreads expiries, hides nothing
            flight.set_result(loaded.data)
        except asyncio.CancelledError:
            flight.cancel()
            raise
        except BaseException as error:  # AlreadyHandled is none of the ordinary ones, and nobody is to wait for ever
            flight.set_exception(error)
            flight.exception()  # every caller may have gone by now
            if isinstance(error, KeyboardInterrupt | SystemExit):
                raise
        finally:
            try:
                if own and not self._closed:
                    form, document = form_of(loaded) if life else ("", "")
                    fill = _Fill((name, marker[1:].decode(), life, form, document))
                    await self._operations.submit(fill, len(document))
            finally:
                del self._flights[name, marker]

    async def _load_slowly(self, name: str, marker: bytes, load: Load) -> tuple[Loaded, float]:
        """``load``, its lease prolonged meanwhile; and for how long it was, seconds."""
        loop = asyncio.get_running_loop()
        begun = renewed = loop.time()
        task = asyncio.ensure_future(load())
        try:
            while True:
                await asyncio.wait((task,), timeout=RENEW_SECONDS)
                if task.done():
                    return task.result(), renewed - begun
                renewed = loop.time()
                await self._operations.submit(_Renewal((name, marker[1:].decode())))
        finally:
            task.cancel()

    async def _follow(self, name: str, marker: bytes, patience: float) -> bytes | None:
        """The entry that another process is filling; None if it does not come, or is none that can be used."""
        loop = asyncio.get_running_loop()
        give_up, delay = loop.time() + patience, 0.002
        while loop.time() + delay <= give_up:
            await asyncio.sleep(delay)
            answer = await self._reads.submit(self._prefix + name)
            if answer != marker:
                return answer if isinstance(answer, bytes) and answer[0] in (VALUE, NOTHING) else None
            delay = min(2 * delay, 0.1)
        return None

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _once_each(changes: Sequence[Change]) -> Sequence[Change]:
    """``changes``, or where some are of one name, one that forgets it in their place."""
    found = {change.name: change for change in changes}
    if len(found) == len(changes):
        return changes
    often = Counter(change.name for change in changes)
    return [change if often[name] == 1 else Change(name) for name, change in found.items()]
