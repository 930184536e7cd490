"""Repeated looks at servers outside of Kubernetes, away from the reconcilers.

A reconciler asks for the latest result and never waits: a server that does not answer must not hold a worker that
other hives need. When a result changes, the owner of the look is told.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from agenthive_operator.backends.kube import ApiError
from agenthive_operator.reconcile.cache import Key
from agenthive_operator.reconcile.queue import Backoff, KeyedQueue, RetryLater

R = TypeVar("R")

STEADY_SECONDS: Final = 15.0
JITTER: Final = 0.2
RETRY: Final = Backoff(base=0.5, cap=10.0, floor=0.2)


@dataclass(slots=True, eq=False)
class _Look(Generic[R]):
    fingerprint: object
    check: Callable[[], Awaitable[R]]
    result: R | None = None
    bad: int = 0


class Monitor(Generic[R]):
    """Keeps the latest result of one check per key.

    ``good`` tells whether a result needs no hurry: the next look is then ``steady`` seconds (jittered) away, which
    may depend on the result and is STEADY_SECONDS where nothing is said; otherwise it comes with a backoff of at most
    ten seconds. ``on_change`` is told a key whose result differs from the one before. A check that raises is logged
    and repeated with backoff; its result stays what it was. ``permit`` is asked before each check, whose work only
    one replica may do: it raises ``ApiError`` where this one may not.
    """

    def __init__(
        self,
        name: str,
        on_change: Callable[[Key], None],
        *,
        good: Callable[[R], bool] = lambda result: True,
        steady: float | Callable[[R], float] | None = None,
        workers: int = 8,
        timeout: float = 60.0,
        permit: Callable[[], None] = lambda: None,
    ) -> None:
        self._on_change = on_change
        self._good = good
        self._steady = STEADY_SECONDS if steady is None else steady
        self._permit = permit
        self._looks: dict[Key, _Look[R]] = {}
        self._rng = random.Random()  # noqa: S311 - jitter
        self.queue: KeyedQueue[Key] = KeyedQueue(self._look, name=name, workers=workers, timeout=timeout, backoff=RETRY)

    def watch(self, key: Key, fingerprint: object, check: Callable[[], Awaitable[R]]) -> R | None:
        """Have ``check`` run now and then for ``key``; returns its latest result, None before the first.

        A new ``fingerprint`` means that something else is looked at: what was found before no longer counts.
        """
        look = self._looks.get(key)
        if look is None or look.fingerprint != fingerprint:
            look = self._looks[key] = _Look(fingerprint, check)
            self.queue.add(key)
        return look.result

    def latest(self, key: Key) -> R | None:
        """The latest result for ``key``; None when there is none."""
        look = self._looks.get(key)
        return look.result if look else None

    def results(self) -> dict[Key, R]:
        """The latest result of every key that has one."""
        return {key: look.result for key, look in self._looks.items() if look.result is not None}

    def poke(self, key: Key) -> None:
        """Look again at once: there is reason to believe that something changed."""
        if key in self._looks:
            self.queue.add(key)

    def forget(self, key: Key) -> None:
        """Nobody asks about ``key`` any more."""
        self._looks.pop(key, None)
        self.queue.forget(key)

    @property
    def unanswered(self) -> int:
        """How many of the servers asked about have not been looked at yet."""
        return sum(look.result is None for look in self._looks.values())

    async def run(self) -> None:
        """Look until cancelled."""
        await self.queue.run()

    async def _look(self, key: Key) -> float | None:
        look = self._looks.get(key)
        if look is None:
            return None
        try:
            self._permit()
        except ApiError as error:
            raise RetryLater(str(error)) from error
        result = await look.check()
        if self._looks.get(key) is not look:
            return None  # another server is asked by now, or nobody asks; its own look is queued
        changed, look.result = look.result != result, result
        if changed:
            self._on_change(key)
        if self._good(result):
            look.bad = 0
            steady = self._steady(result) if callable(self._steady) else self._steady
            return steady * self._rng.uniform(1 - JITTER, 1 + JITTER)
        look.bad += 1
        return RETRY.delay(look.bad, self._rng)
