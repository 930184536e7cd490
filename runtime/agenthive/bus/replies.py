"""Replies: one reader per process for all its outstanding requests.

A reply is kept in the answering agent's slot until its life ends, and its request's id is published on the asking
process's channel. A word lost with a connection is made up for by asking for everything outstanding afterwards.
"""

from __future__ import annotations

import asyncio
import logging
import secrets

from agenthive.bus.connections import Connections
from agenthive.bus.errors import BusUnavailable, RequestFailed
from agenthive.bus.keys import reply_channel
from agenthive.bus.library import library
from agenthive.bus.wire import Connection, ConnectionLost
from agenthive.protocol import AgentMessage, MessageError
from agenthive.settings import HiveScope

log = logging.getLogger(__name__)

PING_SECONDS = 10.0
"""Silence after which the reader asks whether the connection is alive."""
BATCH_REPLIES = 500
FAILED_MARK = b"!"


class ReplyReader:
    """Waits for replies; ``expect`` before the request is sent, ``forget`` in the end."""

    def __init__(self, connections: Connections, scope: HiveScope) -> None:
        self.process = secrets.token_hex(8)
        self._channel = reply_channel(scope, self.process)
        self._listening_lane = connections.lane(self._channel)
        self._fetching_lane = connections.lane()
        self._waiting: dict[bytes, tuple[str, asyncio.Future[AgentMessage]]] = {}
        self._arrived: set[bytes] = set()
        self._work = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    def expect(self, request_id: str, gate: str) -> asyncio.Future[AgentMessage]:
        """The future reply to a request that is going to be sent to the agent whose gate is ``gate``.

        A reply that comes before the reader listens is kept in Redis and found when it does. Raises ValueError for an
        id that is waited for already.
        """
        if request_id.encode() in self._waiting:
            raise ValueError(f"a request of id {request_id} is under way; give each request an id of its own")
        if not self._tasks:
            loop = asyncio.get_running_loop()
            self._tasks = [
                loop.create_task(self._listen(), name="agenthive-replies"),
                loop.create_task(self._fetch(), name="agenthive-reply-fetch"),
            ]
        future: asyncio.Future[AgentMessage] = asyncio.get_running_loop().create_future()
        self._waiting[request_id.encode()] = (gate, future)
        return future

    def forget(self, request_id: str) -> None:
        """Nobody waits for this reply any more."""
        self._waiting.pop(request_id.encode(), None)

    async def _listen(self) -> None:
        while True:
            try:
                connection = await self._listening_lane.connection()
                await self._subscribe(connection)
                self._listening_lane.succeeded()
                await self._hear(connection)
            except (ConnectionLost, BusUnavailable) as error:
                self._listening_lane.failed(error)
                log.warning("waiting for replies: %s", error)
                await self._listening_lane.pause()

    async def _subscribe(self, connection: Connection) -> None:
        connection.write([("SUBSCRIBE", self._channel)])
        (answer,) = await connection.receive(1, self._listening_lane.endpoint.socket_timeout)
        if not isinstance(answer, list):
            raise BusUnavailable(f"Redis refuses the subscription to replies: {answer}")
        self._arrived.update(self._waiting)  # what came before we listened
        self._work.set()

    async def _hear(self, connection: Connection) -> None:
        while True:
            said = await connection.receive_push(PING_SECONDS)
            if said is None:
                connection.write([("PING",)])
                if await connection.receive_push(self._listening_lane.endpoint.socket_timeout) is None:
                    connection.abort()
                    raise ConnectionLost("no answer to a ping")
                # The answer may have been a reply's word that crossed the ping: look at everything.
                self._arrived.update(self._waiting)
                self._work.set()
            elif isinstance(said, list) and said[0] == b"message" and said[2] in self._waiting:
                self._arrived.add(said[2])
                self._work.set()

    async def _fetch(self) -> None:
        while True:
            await self._work.wait()
            self._work.clear()
            await asyncio.sleep(0)
            try:
                while self._arrived:
                    await self._fetch_some()
            except (ConnectionLost, BusUnavailable) as error:
                log.warning("fetching replies: %s", error)
                await self._fetching_lane.pause()
                self._arrived.update(self._waiting)
                self._work.set()

    async def _fetch_some(self) -> None:
        by_gate: dict[str, list[bytes]] = {}
        for request_id in list(self._arrived)[:BATCH_REPLIES]:
            self._arrived.discard(request_id)
            if request_id in self._waiting:
                by_gate.setdefault(self._waiting[request_id][0], []).append(request_id)
        if not by_gate:
            return
        commands = [library().call("replies", gate, *ids) for gate, ids in by_gate.items()]
        problem: BusUnavailable | None = None
        for ids, answer in zip(by_gate.values(), await self._fetching_lane.execute(commands), strict=True):
            if not isinstance(answer, list):
                problem = BusUnavailable(f"Redis does not hand out replies: {answer}")
                continue
            for request_id, payload in zip(ids, answer, strict=True):
                if payload:
                    self._deliver(request_id, payload)
        if problem is not None:
            raise problem

    def _deliver(self, request_id: bytes, payload: bytes) -> None:
        _, future = self._waiting.pop(request_id, ("", None))
        if future is None or future.done():
            return
        if payload.startswith(FAILED_MARK):
            future.set_exception(RequestFailed(payload[1:].decode(errors="replace")))
            return
        try:
            future.set_result(AgentMessage.from_json(payload))
        except MessageError as error:
            future.set_exception(RequestFailed(f"the reply is malformed: {error}"))

    async def aclose(self) -> None:
        """Stop reading; what still waits gets BusUnavailable."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for _, future in self._waiting.values():
            if not future.done():
                future.set_exception(BusUnavailable("the bus was closed while the request waited for its reply"))
        self._waiting.clear()
        await self._listening_lane.aclose()
        await self._fetching_lane.aclose()
