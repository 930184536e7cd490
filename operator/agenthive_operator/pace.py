"""The pace at which kopf asks: it begins a watch that broke off again at once, and again, as fast as it is refused.

kopf makes its requests with a session of ours, whose trace is told each before it leaves: there it is held back. The
trace also learns that a watch began with a new list, after which deletions have to be found by comparison.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, Final

import aiohttp

from agenthive_operator.backends.kube import CHILDREN, CUSTOM, Resource

FIRST_SECONDS: Final = 0.5
LONGEST_SECONDS: Final = 5.0
FORGOTTEN_SECONDS: Final = 30.0
"""A request that was not made for so long is made at once."""


class Pace:
    """Holds back requests for the same collection. ``relisted`` is told each list that was answered."""

    def __init__(
        self, relisted: Callable[[Resource, str | None], None], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._relisted = relisted
        self._clock = clock
        self._last: dict[tuple[str, bool], tuple[float, float]] = {}

    def wait(self, path: str, *, watches: bool) -> float:
        """Seconds to hold back a request that is about to be made."""
        now = self._clock()
        last, pause = self._last.get((path, watches), (now - FORGOTTEN_SECONDS, FIRST_SECONDS))
        if now - last >= FORGOTTEN_SECONDS:
            self._last[(path, watches)] = now, FIRST_SECONDS
            return 0.0
        seconds = max(0.0, last + pause * random.uniform(0.7, 1.0) - now)  # noqa: S311 - jitter
        self._last[(path, watches)] = now + seconds, min(LONGEST_SECONDS, pause * 2)
        return seconds

    def tracing(self) -> aiohttp.TraceConfig:
        """What kopf's session has to be made with."""
        trace = aiohttp.TraceConfig()

        async def started(_: Any, context: SimpleNamespace, asked: aiohttp.TraceRequestStartParams) -> None:
            del context
            if "continue" not in asked.url.query:
                await asyncio.sleep(self.wait(asked.url.path, watches="watch" in asked.url.query))

        async def ended(_: Any, context: SimpleNamespace, answer: aiohttp.TraceRequestEndParams) -> None:
            del context
            query = answer.url.query
            collection = collection_of(answer.url.path)
            if answer.response.status == 200 and collection and not {"watch", "continue"} & query.keys():
                self._relisted(*collection)

        trace.on_request_start.append(started)
        trace.on_request_end.append(ended)
        return trace


def collection_of(path: str) -> tuple[Resource, str | None] | None:
    """The kind and the namespace (None: all) that a URL path lists; None where it is none that we watch. Pure."""
    parts = path.strip("/").split("/")
    namespace = parts[-2] if len(parts) > 2 and parts[-3] == "namespaces" else None
    for resource in (*CUSTOM, *CHILDREN):
        if path.rstrip("/").endswith(resource.path(namespace)):
            return resource, namespace
    return None
