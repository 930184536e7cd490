"""A Redis Cluster: which master owns a key, and how commands follow it when it moves."""

from __future__ import annotations

import asyncio
import logging
import random
from binascii import crc_hqx
from bisect import bisect_right
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from agenthive.bus.endpoint import Endpoint, Node, shown
from agenthive.bus.errors import BusUnavailable
from agenthive.bus.wire import Command, ConnectionLost, ReplyError, open_connection

log = logging.getLogger(__name__)

SLOTS: Final = 16_384
REDIRECTIONS: Final = 5
"""How often a command follows its key within one call; then the caller tries again later."""
REFRESH_SECONDS: Final = 0.05
"""A slot map younger than this is not fetched again."""
SEED_SECONDS: Final = 2.0
"""How long one node may take to tell the slot map, before another one is asked."""
SLOT_BUSY: Final = frozenset({"MOVED", "ASK", "TRYAGAIN", "CLUSTERDOWN"})
"""Answers of a cluster that has not executed a command, because its slot is on the move or without a master."""

_KEYLESS: Final = frozenset({
    "AUTH", "CLIENT", "CLUSTER", "COMMAND", "CONFIG", "DBSIZE", "ECHO", "FLUSHALL", "FLUSHDB", "FUNCTION", "INFO",
    "PING", "PSUBSCRIBE", "PUBLISH", "PUBSUB", "ROLE", "SCAN", "SCRIPT", "SUBSCRIBE", "TIME", "WAIT",
})  # fmt: skip
_SECOND: Final = frozenset({"MEMORY", "OBJECT", "XGROUP", "XINFO"})
_NUMBERED: Final = frozenset({"EVAL", "EVAL_RO", "EVALSHA", "EVALSHA_RO", "FCALL", "FCALL_RO"})


def slot_of(key: str | bytes) -> int:
    """The hash slot of a key. Pure."""
    name = key.encode() if isinstance(key, str) else key
    start = name.find(b"{")
    if start >= 0:
        end = name.find(b"}", start + 1)
        if end > start + 1:
            name = name[start + 1 : end]
    return crc_hqx(name, 0) % SLOTS


def key_of(command: Command) -> str | bytes | None:
    """The first key of a command; None for one without keys. Pure."""
    name = str(command[0]).upper()
    if name in _KEYLESS:
        return None
    if name in {"XREAD", "XREADGROUP"}:
        at = next(n for n, word in enumerate(command) if isinstance(word, str) and word.upper() == "STREAMS") + 1
    elif name in _NUMBERED:
        if not int(command[2]):
            return None
        at = 3
    else:
        at = 2 if name in _SECOND else 1
    key = command[at]
    return str(key) if isinstance(key, int) else key


@dataclass(frozen=True, slots=True)
class SlotMap:
    """Which master owns which slots."""

    starts: tuple[int, ...] = ()
    ends: tuple[int, ...] = ()
    owners: tuple[Node, ...] = ()

    @classmethod
    def of(cls, ranges: Sequence[Sequence[Any]], told_by: Node) -> SlotMap:
        """What CLUSTER SLOTS answered; an endpoint without a host is that of the node that ``told`` it. Pure."""
        rows = sorted((int(entry[0]), int(entry[1]), _node(entry[2], told_by)) for entry in ranges)
        return cls(tuple(row[0] for row in rows), tuple(row[1] for row in rows), tuple(row[2] for row in rows))

    def owner(self, slot: int) -> Node | None:
        """The master of a slot, if there is one."""
        at = bisect_right(self.starts, slot) - 1
        return self.owners[at] if at >= 0 and slot <= self.ends[at] else None

    @property
    def masters(self) -> tuple[Node, ...]:
        """Every master that owns a slot."""
        return tuple(dict.fromkeys(self.owners))


def _node(entry: Sequence[Any], told_by: Node) -> Node:
    host = entry[0].decode() if entry[0] else ""
    return (told_by[0] if host in {"", "?"} else host, int(entry[1]))


def redirection(error: ReplyError, asked: Node) -> Node:
    """Where ``MOVED slot host:port`` or ``ASK …`` points. Pure."""
    host, _, port = str(error).split()[2].rpartition(":")
    return (host.strip("[]") or asked[0], int(port))


class Cluster:
    """The slot map of one event loop, fetched when first needed and again when it proved wrong."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self._map = SlotMap()
        self._stale = True
        self._fetched = float("-inf")
        self._prefer: Node | None = None
        self._lock = asyncio.Lock()

    @property
    def masters(self) -> tuple[Node, ...]:
        """The masters, as last heard."""
        return self._map.masters

    def outdated(self, prefer: Node | None = None) -> None:
        """The map proved wrong; ``prefer`` is a node that knows better."""
        self._stale = True
        self._prefer = prefer or self._prefer

    async def current(self) -> SlotMap:
        """The slot map. Raises ConnectionLost and BusUnavailable."""
        if self._stale:
            async with self._lock:
                if self._stale:
                    await self._fetch()
        return self._map

    async def owner(self, key: str | bytes | None) -> Node:
        """The master to ask about ``key``; any for None. Raises ConnectionLost and BusUnavailable."""
        slots = await self.current()
        node = random.choice(slots.owners) if key is None and slots.owners else None  # noqa: S311 - to spread load
        node = node or slots.owner(slot_of(key or b""))
        if node is None:
            self.outdated()
            raise ConnectionLost(f"no master of the cluster serves slot {slot_of(key or b'')}")
        return node

    def guess(self, key: str) -> Node | None:
        """The owner as last heard, without asking."""
        return self._map.owner(slot_of(key))

    async def _fetch(self) -> None:
        """The map as the first node that answers tells it: one that knows better, else any, else those of the URL."""
        loop = asyncio.get_running_loop()
        await asyncio.sleep(max(0.0, self._fetched + REFRESH_SECONDS - loop.time()))
        known = list(self._map.masters)
        random.shuffle(known)
        prefer, self._prefer = self._prefer, None
        candidates = dict.fromkeys([*([prefer] if prefer else []), *known, *self.endpoint.nodes])
        problems = []
        for node in candidates:
            try:
                found = await self._ask(node)
            except (ConnectionLost, TimeoutError) as error:
                problems.append(f"{shown(node)}: {error or f'no answer within {SEED_SECONDS:g} s'}")
                continue
            finally:
                self._fetched = loop.time()
            if found.owners:
                self._map, self._stale = found, False
                return
            problems.append(f"{shown(node)}: it knows no owner of any slot")
        raise ConnectionLost("no node of the cluster tells the slot map: " + "; ".join(problems))

    async def _ask(self, node: Node) -> SlotMap:
        async with asyncio.timeout(SEED_SECONDS):
            connection = await open_connection(self.endpoint.at(node))
            try:
                (answer,) = await connection.execute([("CLUSTER", "SLOTS")], SEED_SECONDS)
            finally:
                await connection.aclose()
        if isinstance(answer, ReplyError):
            if "cluster support disabled" in str(answer):
                raise BusUnavailable(f"Redis at {shown(node)} is no node of a Cluster; write redis:// or rediss://")
            raise BusUnavailable(f"Redis at {shown(node)} does not tell the slots of the Cluster: {answer}")
        return SlotMap.of(answer, node)


Exchange = Callable[[Node, list[Command], bool], Awaitable[list[Any]]]
"""Runs commands on one node; the flag says that each of them is to be let in by ASKING."""


async def routed(
    cluster: Cluster, commands: Sequence[Command], exchange: Exchange, key: str | None = None
) -> list[Any]:
    """Run each command on the master that owns its key (``key``, where one is given), and follow keys that move.

    A command whose slot cannot serve it now is answered by a ReplyError whose code is in SLOT_BUSY: it was not
    executed. A function is among them while its slot migrates: it needs all keys of its agent, and they are on
    two servers then. Raises ConnectionLost and BusUnavailable, after what runs on the other nodes has ended.
    """
    answers: list[Any] = [None] * len(commands)
    left = list(range(len(commands)))
    targets: dict[int, Node] = {}
    for _ in range(REDIRECTIONS):
        groups: dict[tuple[Node, bool], list[int]] = {}
        for n in left:
            node = targets.get(n) or await cluster.owner(key or key_of(commands[n]))
            groups.setdefault((node, n in targets), []).append(n)
        left, targets = [], {}
        for (node, _), numbers, results in await _run_groups(cluster, commands, groups, exchange):
            for n, answer in zip(numbers, results, strict=True):
                answers[n] = answer
                if not isinstance(answer, ReplyError) or answer.code not in {"MOVED", "ASK"}:
                    continue
                if answer.code == "MOVED":
                    cluster.outdated(redirection(answer, node))
                elif str(commands[n][0]).upper() in _NUMBERED:
                    continue
                else:
                    targets[n] = redirection(answer, node)
                left.append(n)
        if not left:
            break
    if any(isinstance(answer, ReplyError) and answer.code == "CLUSTERDOWN" for answer in answers):
        cluster.outdated()
    return answers


async def _run_groups(
    cluster: Cluster, commands: Sequence[Command], groups: dict[tuple[Node, bool], list[int]], exchange: Exchange
) -> list[tuple[tuple[Node, bool], list[int], list[Any]]]:
    tasks = [exchange(node, [commands[n] for n in numbers], asking) for (node, asking), numbers in groups.items()]
    if len(tasks) == 1:
        try:
            results: list[Any] = [await tasks[0]]
        except ConnectionLost:
            cluster.outdated()
            raise
    else:
        results = await asyncio.gather(*tasks, return_exceptions=True)
    failures = [result for result in results if isinstance(result, BaseException)]
    if failures:
        cluster.outdated()
        if len(failures) == len(results) or not all(isinstance(error, ConnectionLost) for error in failures):
            raise failures[0]
    return [
        (place, numbers, [ReplyError(f"UNREACHABLE {result}")] * len(numbers))
        if isinstance(result, BaseException)
        else (place, numbers, result)
        for (place, numbers), result in zip(groups.items(), results, strict=True)
    ]
