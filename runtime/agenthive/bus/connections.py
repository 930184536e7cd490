"""How the bus reaches Redis: lanes, each a connection of its own for one task, and a bounded pool for the rest."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from agenthive.bus.breaker import Breaker
from agenthive.bus.cluster import Cluster, routed
from agenthive.bus.endpoint import Endpoint, Node, shown
from agenthive.bus.errors import AccessDenied, BusUnavailable, FunctionsMissing
from agenthive.bus.lanes import ClusterLane, Lane, Opener, confirm, run
from agenthive.bus.library import library
from agenthive.bus.sentinel import Sentinels
from agenthive.bus.wire import Command, Connection, ConnectionLost, ReplyError, open_connection
from agenthive.settings import RedisPool

log = logging.getLogger(__name__)

OLDEST_REDIS = (7, 0)
RESERVED_CONNECTIONS = 11
"""Of a process's, kept for lanes: sender, replies (2), consumer, wake list, lease, sentinels (2), the cache (3)."""
RESERVED_PER_MASTER = 2
"""Further ones that each further master of a cluster needs: sender and replies."""


class Shard:
    """One master of a cluster, as far as it has a sender and a breaker of its own."""

    def __init__(self, connections: Connections, breaker: Breaker) -> None:
        self.endpoint = connections.endpoint
        self.breaker = breaker
        self.lane = connections.lane
        self._connections = connections

    def check(self) -> None:
        """Raises BusUnavailable while this master counts as down."""
        self._connections.check(self.breaker)


class Connections:
    """The process's access to one Redis: a server, the master that sentinels name, or a cluster.

    Args:
        endpoint: Where it is.
        policy: How many connections, how long to wait, when to stop asking.
        durable: What is sent counts as accepted once a replica has it.
    """

    def __init__(self, endpoint: Endpoint, policy: RedisPool, *, durable: bool = False) -> None:
        self.endpoint = endpoint
        self.durable = durable
        self.breaker = Breaker(policy.circuit_breaker)
        self.cluster = Cluster(endpoint) if endpoint.kind == "cluster" else None
        self._policy = policy
        self._sentinels = Sentinels(endpoint) if endpoint.kind == "sentinel" else None
        self._open: Opener = self._sentinels.open if self._sentinels else partial(open_connection, endpoint)
        self._breakers: dict[Node, Breaker] = {}
        self._idle: deque[tuple[Node | None, Connection]] = deque()
        self._limit = max(1, policy.max_connections - RESERVED_CONNECTIONS)
        self._slots = asyncio.Semaphore(self._limit)
        self._opened = 0
        self._tasks: set[asyncio.Task[list[Any]]] = set()
        self._closed = False

    def lane(self, key: str | None = None, *, durable: bool = False) -> Lane:
        """A lane of its own for one task.

        Args:
            key: A key of the slot that all its commands are about; None: the commands' own keys tell.
            durable: Every exchange waits until a replica has what it wrote, and raises NotReplicated if none has.
        """
        if self.cluster is not None:
            return ClusterLane(self.cluster, self.breaker, self.breaker_of, key, durable=durable)
        return Lane(self.endpoint, self.breaker, self._open, durable=durable)

    def breaker_of(self, node: Node) -> Breaker:
        """The breaker of one master of a cluster."""
        breaker = self._breakers.get(node)
        if breaker is None:
            masters = self.cluster.masters if self.cluster else ()
            self._breakers = {other: kept for other, kept in self._breakers.items() if other in masters}
            breaker = self._breakers[node] = Breaker(self._policy.circuit_breaker)
        return breaker

    def shard(self, node: Node) -> Shard:
        """Access by way of one master of a cluster."""
        return Shard(self, self.breaker_of(node))

    @property
    def available(self) -> bool:
        """Whether Redis, and every master of a cluster, answered when it was last asked."""
        masters = self.cluster.masters if self.cluster else ()
        return not self.breaker.open and not any(self.breaker_of(node).open for node in masters)

    @property
    def trouble(self) -> str:
        """Why Redis, or a master of a cluster, does not count as available; empty while it does."""
        masters = self.cluster.masters if self.cluster else ()
        breakers = (self.breaker, *(self.breaker_of(node) for node in masters))
        return next((breaker.reason for breaker in breakers if breaker.open), "")

    def check(self, breaker: Breaker | None = None) -> None:
        """Raises BusUnavailable while the circuit is open: that of all, or of ``breaker``."""
        if self._closed:
            raise BusUnavailable("the bus is closed")
        circuit = breaker or self.breaker
        if not circuit.allow():
            if self.cluster is not None:  # by now another one may be master in its place
                self.cluster.outdated()
            raise BusUnavailable(f"Redis at {self.endpoint} is down: {circuit.reason}")

    async def execute(self, commands: Sequence[Command], *, at: Node | None = None, sends: bool = False) -> list[Any]:
        """Run ``commands`` on a connection of the pool; who comes first is served first.

        In a cluster each command goes to the master that owns its key, or all to the one named by ``at``. What only
        reads is tried a second time when its connection is lost; anything else may have been done then.
        ``sends`` says that they put messages into queues, which is to be as durable as the hive wants it.
        A cancelled caller stops waiting, the exchange itself is finished by its own task.
        Raises BusUnavailable: Redis is down, or refuses a command.
        """
        self.check()
        task = asyncio.create_task(self._exchange(commands, at, durable=sends and self.durable))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return await asyncio.shield(task)

    async def _exchange(self, commands: Sequence[Command], at: Node | None, *, durable: bool) -> list[Any]:
        repeat = library().only_reads(commands)
        while True:
            try:
                if self.cluster is None or at is not None:
                    answers = await self._run_at(at, commands, durable=durable)
                else:
                    answers = await routed(self.cluster, commands, partial(self._run_guarded, durable=durable))
                break
            except ConnectionLost as error:
                if self.cluster is None:
                    self.breaker.failure(str(error))
                if not repeat:
                    raise BusUnavailable(f"Redis at {self.endpoint} cannot be reached: {error}") from error
                repeat = False
        self.breaker.success()
        for answer in answers:
            if isinstance(answer, ReplyError):
                raise BusUnavailable(f"Redis at {self.endpoint} refused a command: {answer}") from answer
        return answers

    async def _run_at(self, node: Node | None, commands: Sequence[Command], *, durable: bool) -> list[Any]:
        async with self._borrow(node) as connection:
            answers = await run(connection, commands, self.endpoint.socket_timeout)
            if durable:
                await confirm(connection, commands, answers, self.endpoint.socket_timeout)
            return answers

    async def _run_guarded(self, node: Node, commands: Sequence[Command], asking: bool, *, durable: bool) -> list[Any]:
        breaker = self.breaker_of(node)
        self.check(breaker)
        if asking:
            commands = [word for command in commands for word in (("ASKING",), command)]
        try:
            answers = await self._run_at(node, commands, durable=durable)
        except ConnectionLost as error:
            breaker.failure(str(error))
            raise
        breaker.success()
        return answers[1::2] if asking else answers

    @contextlib.asynccontextmanager
    async def _borrow(self, node: Node | None) -> AsyncIterator[Connection]:
        async with self._slots:
            connection = await self._idle_connection(node)
            if connection is None:
                connection = await (self._open() if node is None else open_connection(self.endpoint.at(node)))
                self._opened += 1
            try:
                yield connection
            finally:
                if connection.usable and not self._closed:
                    self._idle.append((node, connection))
                else:
                    self._opened -= 1
                    await connection.aclose()

    async def _idle_connection(self, node: Node | None) -> Connection | None:
        """The one that was used last, if there is any; else there is room for another one afterwards."""
        for entry in [entry for entry in self._idle if not entry[1].usable]:
            self._idle.remove(entry)
            self._opened -= 1
        for entry in reversed(self._idle):
            if entry[0] == node:
                self._idle.remove(entry)
                return entry[1]
        while self._idle and self._opened >= self._limit:
            self._opened -= 1
            await self._idle.popleft()[1].aclose()
        return None

    async def masters(self) -> Sequence[Node | None]:
        """Where ``execute`` can be sent to: (None,) unless it is a cluster. Raises BusUnavailable."""
        if self.cluster is None:
            return (None,)
        try:
            return (await self.cluster.current()).masters
        except ConnectionLost as error:
            raise BusUnavailable(f"Redis at {self.endpoint} cannot be reached: {error}") from error

    async def prepare(self) -> list[dict[str, str]]:
        """Check that every master is there and new enough, and load the functions; what they say of themselves.

        Raises BusUnavailable.
        """
        masters = await self.masters()
        reserved = RESERVED_CONNECTIONS + RESERVED_PER_MASTER * (len(masters) - 1)
        self._limit = max(1, self._policy.max_connections - reserved)
        self._slots = asyncio.Semaphore(self._limit)
        return list(await asyncio.gather(*(self._prepare(node) for node in masters)))

    async def _prepare(self, node: Node | None) -> dict[str, str]:
        try:
            async with self._borrow(node) as connection:
                about = await self._look_at(connection)
                try:
                    await library().load(connection, self.endpoint.socket_timeout)
                except FunctionsMissing as error:
                    raise FunctionsMissing(f"Redis at {self.endpoint} cannot be used yet: {error}") from error
                except ReplyError as error:
                    raise AccessDenied(
                        f"Redis at {self.endpoint} does not take the bus's functions: {error}; the user of the URL "
                        "needs the commands FUNCTION and FCALL"
                    ) from error
                return about
        except ConnectionLost as error:
            place = f" ({shown(node)})" if node else ""
            raise BusUnavailable(f"Redis at {self.endpoint}{place} cannot be reached: {error}") from error

    async def ask(self, commands: Sequence[Command], *, at: Node | None) -> list[Any]:
        """Run ``commands`` as they are in one round trip at one of ``masters``, for a probe that loads nothing.

        What is refused is a ReplyError among the answers. Raises BusUnavailable.
        """
        try:
            async with self._borrow(at) as connection:
                return list(await connection.execute(commands, self.endpoint.socket_timeout))
        except ConnectionLost as error:
            raise BusUnavailable(f"Redis at {self.endpoint} cannot be reached: {error}") from error

    async def _look_at(self, connection: Connection) -> dict[str, str]:
        (info,) = await connection.execute([("INFO", "server")], self.endpoint.socket_timeout)
        if isinstance(info, ReplyError):  # not allowed to ask: the functions will tell
            log.debug("cannot read the version of Redis: %s", info)
            return {}
        about = info_fields(info)
        if (problem := unfit(about, self.endpoint)) is not None:
            raise BusUnavailable(f"Redis at {self.endpoint} {problem}")
        return about

    async def aclose(self) -> None:
        """Finish what runs and close every connection of the pool."""
        self._closed = True
        if self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)
        while self._idle:
            await self._idle.pop()[1].aclose()
        if self._sentinels is not None:
            await self._sentinels.aclose()


def info_fields(answer: bytes) -> dict[str, str]:
    """The answer to INFO. Pure."""
    lines: Iterable[str] = answer.decode(errors="replace").splitlines()
    return dict(line.split(":", 1) for line in lines if ":" in line)


def unfit(about: dict[str, str], endpoint: Endpoint) -> str | None:
    """Why the bus cannot use a server that says this of itself; None if it can. Pure."""
    version = about.get("redis_version", "")
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if numbers and numbers < OLDEST_REDIS:
        return f"is version {version}; the bus needs Redis 7.0 or Valkey 7.2 or newer"
    return wrong_kind(about, endpoint)


def wrong_kind(about: Mapping[str, str], endpoint: Endpoint) -> str | None:
    """Why a URL of this form leads nowhere at a server that says this of itself; None if it does. Pure."""
    if endpoint.kind != "cluster" and about.get("redis_mode", about.get("server_mode")) == "cluster":
        return "is a node of a Cluster; write redis+cluster:// or rediss+cluster://, with some of its nodes"
    return None
