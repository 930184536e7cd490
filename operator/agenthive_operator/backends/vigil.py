"""Who notices at once that a Redis was restarted: a connection to each of its servers, which breaks with it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable
from typing import Final

from agenthive.bus import BusUnavailable
from agenthive.bus.endpoint import Endpoint, Node
from agenthive.bus.errors import AccessDenied
from agenthive.bus.wire import Connection, ConnectionLost, open_connection

RETRY_SECONDS: Final = 0.5
REFUSED_SECONDS: Final = 5.0
"""A server that refuses the login is not asked as often."""
PING_SECONDS: Final = 10.0
ANSWER_SECONDS: Final = 5.0


class Vigil:
    """Watches the servers of one Redis; ``on_change`` is told when one is lost, and when it is there again."""

    def __init__(self, on_change: Callable[[], None]) -> None:
        self._on_change = on_change
        self._endpoint: Endpoint | None = None
        self._tasks: dict[Node, asyncio.Task[None]] = {}

    def keep(self, endpoint: Endpoint, nodes: Iterable[Node]) -> None:
        """From now on watch these servers, by user and password of ``endpoint``, and no others."""
        wanted = set(nodes)
        for node in list(self._tasks):
            if node not in wanted or not same_login(endpoint, self._endpoint):
                self._tasks.pop(node).cancel()
        self._endpoint = endpoint
        for node in wanted - self._tasks.keys():
            self._tasks[node] = asyncio.create_task(self._watch(endpoint.at(node)), name="vigil")

    @property
    def idle(self) -> bool:
        """Whether nothing is watched."""
        return not self._tasks

    async def aclose(self) -> None:
        """Watch nothing any more."""
        tasks, self._tasks = list(self._tasks.values()), {}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _watch(self, endpoint: Endpoint) -> None:
        lost = False
        while True:
            try:
                connection = await open_connection(endpoint)
            except (ConnectionLost, BusUnavailable) as error:
                lost = True
                pause = REFUSED_SECONDS if isinstance(error, AccessDenied) else RETRY_SECONDS
                await asyncio.sleep(pause * random.uniform(0.5, 1))  # noqa: S311 - jitter
                continue
            try:
                if lost:
                    self._on_change()
                await _until_lost(connection)
            finally:
                await connection.aclose()
            lost = True
            self._on_change()


def same_login(one: Endpoint, other: Endpoint | None) -> bool:
    """Whether both let in the same way. Pure."""
    return other is not None and (one.username, one.password, one.tls is None) == (
        other.username, other.password, other.tls is None,
    )  # fmt: skip


async def _until_lost(connection: Connection) -> None:
    try:
        while True:
            if await connection.receive_push(PING_SECONDS) is None:
                connection.write([("PING",)])
                if await connection.receive_push(ANSWER_SECONDS) is None:
                    return
    except ConnectionLost:
        return
