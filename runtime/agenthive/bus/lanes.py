"""Lanes: a connection of its own for one task, to whichever server has what the task is about."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

from agenthive.bus.breaker import Breaker
from agenthive.bus.cluster import SLOT_BUSY, Cluster, key_of, routed
from agenthive.bus.endpoint import Endpoint, Node
from agenthive.bus.errors import BusUnavailable, FunctionsMissing, NotReplicated
from agenthive.bus.library import MISSING, library
from agenthive.bus.policy import reconnect_delay
from agenthive.bus.sentinel import Sentinels
from agenthive.bus.wire import Command, Connection, ConnectionLost, ReplyError, open_connection
from agenthive.settings import CircuitBreaker

Opener = Callable[[], Awaitable[Connection]]
_PASSING = frozenset({"LOADING", "MASTERDOWN", "READONLY", "BUSY", "UNBLOCKED"})
"""Errors of a server that is starting, failing over or busy: asking again later, perhaps elsewhere, helps."""


async def run(
    connection: Connection, commands: Sequence[Command], timeout: float, meanwhile: Callable[[], None] | None = None
) -> list[Any]:
    """Execute ``commands``; load the function library and repeat those that missed it.

    Raises ConnectionLost for a server that cannot serve now; other errors are answers (ReplyError).
    """
    answers = await connection.execute(commands, timeout, meanwhile)
    missing = [n for n, answer in enumerate(answers) if isinstance(answer, ReplyError) and MISSING in str(answer)]
    if missing:
        try:
            await library().load(connection, timeout)
        except FunctionsMissing as error:  # who may load them is about to
            connection.abort()
            raise ConnectionLost(str(error)) from error
        except ReplyError as error:
            if error.code in _PASSING:
                connection.abort()
                raise ConnectionLost(str(error)) from error
            raise BusUnavailable(f"Redis does not take the bus's functions: {error}") from error
        again = await connection.execute([commands[n] for n in missing], timeout)
        for n, answer in zip(missing, again, strict=True):
            answers[n] = answer
    for answer in answers:
        if isinstance(answer, ReplyError) and answer.code in _PASSING:
            connection.abort()
            raise ConnectionLost(str(answer))
    return answers


async def confirm(connection: Connection, commands: Sequence[Command], answers: Sequence[Any], timeout: float) -> None:
    """Wait until a replica has what ``commands`` wrote, those of them that were not refused; one WAIT for all.

    What an earlier connection wrote counts, too: WAIT only knows its own, so a write goes before it.
    Raises NotReplicated and ConnectionLost.
    """
    done = (c for c, answer in zip(commands, answers, strict=True) if not isinstance(answer, ReplyError))
    key = next((key for command in done if (key := key_of(command)) is not None), None)
    if key is None:
        return
    gate = key.decode() if isinstance(key, bytes) else key
    patience = max(1, int(timeout * 500))  # ms: half of the time that an answer may take
    touched, replicas = await run(connection, [library().call("touch", gate), ("WAIT", 1, patience)], timeout)
    for answer in (touched, replicas):
        if isinstance(answer, ReplyError):
            if answer.code in SLOT_BUSY:
                raise ConnectionLost(str(answer))
            raise NotReplicated(f"Redis does not tell whether a replica has the message: {answer}")
    if replicas < 1:
        raise NotReplicated(
            f"no replica confirmed the message within {patience / 1000:g} s; it may have been accepted: send it again "
            "under the same message_id. spec.messaging.durability is replicated: see that the master has a replica "
            "that is in reach and up to date, or set durability to default"
        )


class Lane:
    """A connection that one task owns, opened when first needed and again after it was lost."""

    def __init__(
        self, endpoint: Endpoint, breaker: Breaker, open_: Opener | None = None, *, durable: bool = False
    ) -> None:
        """``durable``: every exchange ends once a replica has what it wrote, or raises NotReplicated."""
        self.endpoint = endpoint
        self._breaker = breaker
        self._open = open_ or partial(open_connection, endpoint)
        self._durable = durable
        self._connection: Connection | None = None
        self._failures = 0

    @property
    def lost(self) -> bool:
        """Whether the connection ended while nobody looked: the next exchange uses another one."""
        return self._connection is not None and not self._connection.usable

    async def connection(self) -> Connection:
        """The open connection. Raises ConnectionLost or BusUnavailable."""
        if self._connection is None or not self._connection.usable:
            self._connection = None
            self._connection = await self._open()
        return self._connection

    async def execute(
        self,
        commands: Sequence[Command],
        timeout: float | None = None,
        meanwhile: Callable[[], None] | None = None,
    ) -> list[Any]:
        """One exchange, told to the breaker. ``timeout`` (seconds) defaults to the pool's socket timeout.

        ``meanwhile`` is called while Redis works; not if the commands could not be sent.

        Raises ConnectionLost or BusUnavailable; what was asked may have been done all the same.
        """
        try:
            connection = await self.connection()
            limit = self.endpoint.socket_timeout if timeout is None else timeout
            answers = await run(connection, commands, limit, meanwhile)
            if self._durable:
                await confirm(connection, commands, answers, limit)
        except NotReplicated:  # the server is there
            self.succeeded()
            raise
        except (ConnectionLost, BusUnavailable) as error:
            self.failed(error)
            raise
        self.succeeded()
        return answers

    def failed(self, error: Exception) -> None:
        """Count a failure, here and in the breaker."""
        self._failures += 1
        self._breaker.failure(str(error), self._failures)

    def succeeded(self) -> None:
        """Redis answered."""
        self._failures = 0
        self._breaker.success()

    async def pause(self) -> None:
        """Wait before the next try: longer with each failure in a row."""
        await asyncio.sleep(reconnect_delay(max(1, self._failures), random.random))

    async def aclose(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            await self._connection.aclose()
            self._connection = None


class ClusterLane(Lane):
    """A lane in a cluster: a connection to the master that owns ``key``, wherever it goes, or one to each master that
    the keys of the commands lead to.
    """

    def __init__(
        self,
        cluster: Cluster,
        breaker: Breaker,
        breaker_of: Callable[[Node], Breaker],
        key: str | None = None,
        *,
        durable: bool = False,
    ) -> None:
        super().__init__(cluster.endpoint, breaker, durable=durable)
        self._cluster = cluster
        self._breaker_of = breaker_of
        self._key = key
        self._lanes: dict[Node, Lane] = {}

    @property
    def lost(self) -> bool:
        """As of any lane; also when the key has another master by now."""
        node = self._cluster.guess(self._key) if self._key is not None else None
        lane = self._lanes.get(node) if node is not None else None
        return bool(self._lanes) and (lane is None or lane.lost)

    async def connection(self) -> Connection:
        """The open connection to the master that owns the lane's key. Raises ConnectionLost or BusUnavailable."""
        try:
            lane = await self._lane_to(await self._cluster.owner(self._key))
            return await lane.connection()
        except ConnectionLost:
            self._cluster.outdated()
            raise

    async def execute(
        self,
        commands: Sequence[Command],
        timeout: float | None = None,
        meanwhile: Callable[[], None] | None = None,
    ) -> list[Any]:
        """As of any lane; what a master refuses because its slot is on the move is asked of the next one.

        With a key, ConnectionLost is also raised while its slot has no master that can serve it. Without, each such
        command is answered by a ReplyError (see ``SLOT_BUSY``), and by one of code UNREACHABLE if its master was lost
        while others answered: then it may have been executed.
        """
        asked = False

        async def exchange(node: Node, some: list[Command], asking: bool) -> list[Any]:
            nonlocal asked, meanwhile
            lane, now, asked, meanwhile = await self._lane_to(node), meanwhile, True, None
            if asking:
                some = [word for command in some for word in (("ASKING",), command)]
            answers = await lane.execute(some, timeout, now)
            return answers[1::2] if asking else answers

        try:
            answers = await routed(self._cluster, commands, exchange, self._key)
            if self._key is not None:
                for answer in answers:
                    if isinstance(answer, ReplyError) and answer.code in SLOT_BUSY:
                        raise ConnectionLost(str(answer))
        except NotReplicated:
            self.succeeded()
            raise
        except (ConnectionLost, BusUnavailable) as error:
            if asked:  # the node's own breaker counts what goes wrong there
                self._failures += 1
            else:
                self.failed(error)
            raise
        self.succeeded()
        return answers

    async def _lane_to(self, node: Node) -> Lane:
        lane = self._lanes.get(node)
        if lane is None:
            masters = self._cluster.masters
            for gone in [other for other in self._lanes if other not in masters]:
                await self._lanes.pop(gone).aclose()
            lane = self._lanes.get(node) or Lane(self.endpoint.at(node), self._breaker_of(node), durable=self._durable)
            self._lanes[node] = lane
        return lane

    async def aclose(self) -> None:
        """Close the connections."""
        while self._lanes:
            _, lane = self._lanes.popitem()
            await lane.aclose()


class _LaneApart(Lane):
    """Behind sentinels that nobody else asks."""

    def __init__(self, endpoint: Endpoint, breaker: Breaker) -> None:
        self._sentinels = Sentinels(endpoint)
        super().__init__(endpoint, breaker, self._sentinels.open)

    async def aclose(self) -> None:
        await self._sentinels.aclose()
        await super().aclose()


def lane_apart(endpoint: Endpoint, key: str) -> Lane:
    """A lane to the master that owns ``key`` that shares nothing with others: for a thread with a loop of its own."""
    policy = CircuitBreaker()
    if endpoint.kind == "cluster":
        return ClusterLane(Cluster(endpoint), Breaker(policy), lambda _: Breaker(policy), key)
    return (_LaneApart if endpoint.kind == "sentinel" else Lane)(endpoint, Breaker(policy))
