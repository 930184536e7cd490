"""Sending in a cluster: one sender per master, so that one that fails over delays only what goes to it."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from agenthive.bus.cluster import Cluster
from agenthive.bus.connections import Connections
from agenthive.bus.endpoint import Node
from agenthive.bus.errors import BusError, BusUnavailable
from agenthive.bus.sender import Arguments, Sender, TopicLog
from agenthive.bus.wire import ConnectionLost
from agenthive.settings import QueuePolicy


@dataclass(slots=True)
class _Shard:
    sender: Sender
    callers: int = 0


class ShardedSender:
    """Takes a :class:`Sender`'s place in a cluster.

    Which master a message is sent by decides about batches and waiting only: should the agent's slot have moved by
    then, the sender follows it.
    """

    def __init__(
        self,
        connections: Connections,
        cluster: Cluster,
        queue: QueuePolicy,
        *,
        durable: bool = False,
        inside: bool = False,
    ) -> None:
        self._connections = connections
        self._cluster = cluster
        self._queue = queue
        self._durable = durable
        self._inside = inside
        self._shards: dict[Node, _Shard] = {}

    async def send(self, gate: str, arguments: Arguments, wait: float, *, topic: TopicLog | None = None) -> str:
        """As ``Sender.send``: the accepted id. Raises QueueFull or BusUnavailable after ``wait`` seconds."""
        async with self._sender_of(gate) as sender:
            return await sender.send(gate, arguments, wait, topic=topic)

    async def send_row(
        self, gate: str, row: Sequence[Arguments], wait: float, *, again: bool, topic: TopicLog | None = None
    ) -> list[str | BusError]:
        """As ``Sender.send_row``."""
        async with self._sender_of(gate) as sender:
            return await sender.send_row(gate, row, wait, again=again, topic=topic)

    @contextlib.asynccontextmanager
    async def _sender_of(self, gate: str) -> AsyncIterator[Sender]:
        self._connections.check()
        shard = await self._shard(await self._master_of(gate))
        shard.callers += 1
        try:
            yield shard.sender
        finally:
            shard.callers -= 1

    async def _master_of(self, gate: str) -> Node:
        try:
            return await self._cluster.owner(gate)
        except ConnectionLost as error:
            known = self._cluster.guess(gate)
            if known is None:
                raise BusUnavailable(f"Redis at {self._connections.endpoint} cannot be reached: {error}") from error
            return known  # its sender has the patience to wait for a new master

    async def _shard(self, node: Node) -> _Shard:
        shard = self._shards.get(node)
        if shard is None:
            masters = self._cluster.masters
            shard = self._shards[node] = _Shard(
                Sender(self._connections.shard(node), self._queue, durable=self._durable, inside=self._inside)
            )
            unused = [other for other, one in self._shards.items() if other not in masters and not one.callers]
            for gone in unused:
                if gone != node:
                    await self._shards.pop(gone).sender.aclose()
        return shard

    async def aclose(self) -> None:
        """Stop. Whoever still waits gets BusUnavailable."""
        while self._shards:
            _, shard = self._shards.popitem()
            await shard.sender.aclose()


def sender_for(
    connections: Connections, queue: QueuePolicy, *, durable: bool = False, inside: bool = False
) -> Sender | ShardedSender:
    """The sender of a process."""
    if connections.cluster is None:
        return Sender(connections, queue, durable=durable, inside=inside)
    return ShardedSender(connections, connections.cluster, queue, durable=durable, inside=inside)
