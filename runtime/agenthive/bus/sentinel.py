"""A master that sentinels watch: asked for its address whenever a connection is opened, and heard when it changes."""

from __future__ import annotations

import asyncio
import logging
from typing import Final
from weakref import WeakKeyDictionary

from agenthive.bus.endpoint import Endpoint, Node, shown
from agenthive.bus.errors import BusUnavailable
from agenthive.bus.wire import Connection, ConnectionLost, ReplyError, open_connection

log = logging.getLogger(__name__)

SWITCHED: Final = "+switch-master"
PING_SECONDS: Final = 10.0
"""Silence after which a sentinel is asked whether it is there."""
SENTINEL_SECONDS: Final = 2.0
"""How long one sentinel may take to answer, before another one is asked."""


class Sentinels:
    """The sentinels of one URL, for one event loop.

    After a failover that somebody asked for, the old master serves whoever stays with it for some ten seconds, and what
    it accepts then is lost. So as long as there are connections, one more listens for the word of a new master, upon
    which those to the old one are ended.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self._order = list(endpoint.nodes)
        self._lock = asyncio.Lock()
        self._opened: WeakKeyDictionary[Connection, Node] = WeakKeyDictionary()
        self._listener: asyncio.Task[None] | None = None

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
        self._opened[connection] = node
        if self._listener is None:
            self._listener = asyncio.get_running_loop().create_task(self._listen(), name="agenthive-sentinels")
        return connection

    async def _listen(self) -> None:
        while True:
            try:
                connection = await open_connection(self.endpoint.sentinel_at(self._order[0]))
                try:
                    await self._hear(connection)
                finally:
                    await connection.aclose()
            except (ConnectionLost, BusUnavailable) as error:
                log.warning("cannot hear the sentinel at %s: %s", shown(self._order[0]), error)
                self._order.append(self._order.pop(0))
                await asyncio.sleep(1.0)

    async def _hear(self, connection: Connection) -> None:
        connection.write([("SUBSCRIBE", SWITCHED)])
        (answer,) = await connection.receive(1, SENTINEL_SECONDS)
        if isinstance(answer, ReplyError):
            raise BusUnavailable(f"it refuses to tell of new masters: {answer}")
        self._leave_all_but(await self.master())
        while True:
            said = await connection.receive_push(PING_SECONDS)
            if said is None:
                connection.write([("PING",)])
                if await connection.receive_push(SENTINEL_SECONDS) is None:
                    raise ConnectionLost("no answer to a ping")
            if isinstance(said, list) and said[0] == b"message":
                service, _, _, host, port = said[2].decode().rsplit(" ", 4)
                if service == self.endpoint.service:
                    self._leave_all_but((host, int(port)))

    def _leave_all_but(self, master: Node) -> None:
        for connection, node in list(self._opened.items()):
            if node != master and connection.usable:
                log.warning("%s is master of %s in place of %s", shown(master), self.endpoint.service, shown(node))
                connection.abort()

    async def aclose(self) -> None:
        """Stop listening; connections stay with their owners."""
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.cancel()
            await asyncio.gather(listener, return_exceptions=True)

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
