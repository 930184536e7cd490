"""A master that sentinels watch: asked for its address whenever a connection is opened."""

from __future__ import annotations

import asyncio
from typing import Final

from agenthive.bus.endpoint import Endpoint, Node, shown
from agenthive.bus.errors import BusUnavailable
from agenthive.bus.wire import Connection, ConnectionLost, ReplyError, open_connection

SENTINEL_SECONDS: Final = 2.0
"""How long one sentinel may take to answer, before another one is asked."""


class Sentinels:
    """The sentinels of one URL, for one event loop."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self._order = list(endpoint.nodes)
        self._lock = asyncio.Lock()

    async def open(self) -> Connection:
        """A connection to the master. Raises ConnectionLost (no sentinel answers, a failover is under way), and
        BusUnavailable where trying again will not help.
        """
        node = await self.master()
        connection = await open_connection(self.endpoint.at(node))
        try:
            (role,) = await connection.execute([("ROLE",)], self.endpoint.socket_timeout)
            if isinstance(role, list) and role[0] != b"master":
                # The sentinels learn of a failover one after the other, and the old master may be back before.
                raise ConnectionLost(f"Redis at {shown(node)} is no master: it fails over")
        except BaseException:
            await connection.aclose()
            raise
        return connection

    async def master(self) -> Node:
        """Where the master is. Raises like ``open``."""
        problems: list[str] = []
        strangers = 0
        async with (
            self._lock
        ):  # many connections break at once: they ask one after the other, the first finds who answers
            for sentinel in list(self._order):
                try:
                    node = await self._ask(sentinel)
                except (ConnectionLost, TimeoutError) as error:
                    problems.append(f"{shown(sentinel)}: {error or f'no answer within {SENTINEL_SECONDS:g} s'}")
                    continue
                if node is None:
                    problems.append(f"{shown(sentinel)}: it knows no service {self.endpoint.service!r}")
                    strangers += 1
                    continue
                self._order.remove(sentinel)
                self._order.insert(0, sentinel)
                return node
        text = "; ".join(problems)
        if strangers == len(self._order):
            raise BusUnavailable(f"no sentinel knows the master; write its name behind the hosts of the URL: {text}")
        raise ConnectionLost(f"no sentinel tells the master: {text}")

    async def _ask(self, sentinel: Node) -> Node | None:
        async with asyncio.timeout(SENTINEL_SECONDS):
            connection = await open_connection(self.endpoint.sentinel_at(sentinel))
            try:
                command = ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.endpoint.service)
                (answer,) = await connection.execute([command], SENTINEL_SECONDS)
            finally:
                await connection.aclose()
        if isinstance(answer, ReplyError):
            if "unknown command" in str(answer):
                raise BusUnavailable(f"{shown(sentinel)} is no sentinel but a Redis; write redis:// or its sentinels")
            raise BusUnavailable(f"the sentinel at {shown(sentinel)} does not tell the master: {answer}")
        return None if answer is None else (answer[0].decode(), int(answer[1]))
