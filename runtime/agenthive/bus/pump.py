"""The pump: copies what is published to an agent's topics into the agent's queue."""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from agenthive.bus.connections import Connections
from agenthive.bus.errors import BusUnavailable
from agenthive.bus.keys import AgentKeys, TopicKeys
from agenthive.bus.lanes import Lane
from agenthive.bus.library import library
from agenthive.bus.policy import FULL_QUEUE_FIRST_DELAY, FULL_QUEUE_MAX_DELAY, reconnect_delay
from agenthive.bus.topics import BEGINNING, FIRST_ENTRIES, LogEntry, entries_to_ask, log_entry
from agenthive.bus.wire import Command, ConnectionLost, ReplyError
from agenthive.settings import HiveScope, Messaging

log = logging.getLogger(__name__)

TopicStart = Literal["now", "beginning"]

LEASE_SECONDS = 5.0
"""How long a topic stays with a pump that says nothing; shorter than a consumer's: a pump without it does no harm."""
RENEWALS_PER_LEASE = 3
BLOCK_SECONDS = 5.0
"""How long one read waits for something to be published."""
CEDE_SECONDS = 1.0
"""How long a pump that stops takes to say so; its lease runs out anyway."""
NO_LEASE, NO_CURSOR = b"", b"-"
"""Answers of the function ``lead``."""


class Pump:
    """One process's share in copying. Of all processes of the agent one at a time copies a topic, the others stand by.

    The cursor of each topic is in the agent's slot and moves in the call that adds the copies, so it does not matter
    who copies, how often it is tried, and who dies: an entry of the log is copied once.
    """

    def __init__(
        self,
        connections: Connections,
        scope: HiveScope,
        agent: str,
        *,
        pod: str,
        topics: Sequence[str],
        start: TopicStart,
        messaging: Messaging,
    ) -> None:
        self.agent = agent
        self.name = f"{pod}/{secrets.token_hex(5)}"
        self.copied: Counter[str] = Counter()
        """Messages this process copied, by topic."""
        self.missed: Counter[str] = Counter()
        """Messages, by topic, that the topic dropped before this process could copy them."""
        self._connections = connections
        self._gate = AgentKeys.of(scope, agent).gate
        self._topics = {topic: TopicKeys.of(scope, topic) for topic in dict.fromkeys(topics)}
        self._start = start
        self._messaging = messaging
        self._task: asyncio.Task[None] | None = None
        self._readers: dict[frozenset[str], asyncio.Task[None]] = {}
        self._full: set[str] = set()

    # --- life

    async def subscribe(self) -> None:
        """Fix where the agent's new subscriptions begin. Raises BusUnavailable.

        What is published once this returned reaches the agent, whenever its processes run again.
        """
        starts: list[bytes | None] = [BEGINNING] * len(self._topics)
        if self._topics and self._start == "now":
            starts = await self._connections.execute([("GET", keys.last) for keys in self._topics.values()])
        arguments: list[str | bytes] = []
        for topic, start in zip(self._topics, starts, strict=True):
            arguments += (topic, start or BEGINNING)
        retention = self._messaging.topics.retention_seconds * 1000
        await self._connections.execute([library().call("subscribe", self._gate, retention, *arguments)])

    def start(self) -> None:
        """Begin to copy, once ``subscribe`` returned. Without topics there is nothing to do and nothing is started."""
        if self._topics and self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run(), name=f"agenthive-pump-{self.agent}")

    async def stop(self) -> None:
        """Stop copying and leave it to another process."""
        if self._task is None:
            return
        task, self._task = self._task, None
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await self._follow({})
        try:
            async with asyncio.timeout(CEDE_SECONDS):
                await self._connections.execute([library().call("cede", self._gate, self.name, *self._topics)])
        except (BusUnavailable, TimeoutError) as error:
            log.debug("the pump of %s could not cede its topics, its lease runs out: %s", self.agent, error)

    # --- who copies

    async def _run(self) -> None:
        trouble = False
        while True:
            led: dict[str, bytes] = {}
            try:
                led = await self._lead()
                await self._follow(led)
                trouble = False
            except BusUnavailable as error:  # readers find out by themselves
                if not trouble:
                    log.warning("the pump of %s is waiting for Redis: %s", self.agent, error)
                trouble = True
            except Exception:
                log.exception("the pump of %s failed; going on", self.agent)
            pause = LEASE_SECONDS / RENEWALS_PER_LEASE
            # Those who stand by do not all ask at once.
            await asyncio.sleep(pause if len(led) == len(self._topics) else pause * random.uniform(0.8, 1.6))  # noqa: S311

    async def _lead(self) -> dict[str, bytes]:
        """The topics that are this process's to copy, and where to go on."""
        lease = int(LEASE_SECONDS * 1000)
        command = library().call("lead", self._gate, self.name, lease, *self._topics)
        (cursors,) = await self._connections.execute([command])
        if NO_CURSOR in cursors:
            log.warning("%s has lost its place in a topic; it begins anew", self.agent)
            await self.subscribe()
            (cursors,) = await self._connections.execute([command])
        return {
            topic: cursor
            for topic, cursor in zip(self._topics, cursors, strict=True)
            if cursor not in {NO_LEASE, NO_CURSOR}
        }

    async def _follow(self, led: dict[str, bytes]) -> None:
        """Have a reader for each group of topics that share a connection, and no other."""
        groups = {frozenset(group) for group in self._groups(led)}
        for group in self._readers.keys() - groups:
            reader = self._readers.pop(group)
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)
        for group in groups:
            if group not in self._readers or self._readers[group].done():
                cursors = {topic: led[topic] for topic in led if topic in group}
                self._readers[group] = asyncio.get_running_loop().create_task(
                    self._read(cursors), name=f"agenthive-topics-{self.agent}"
                )

    def _groups(self, topics: Iterable[str]) -> list[list[str]]:
        """What one read can wait for: every topic, but in a cluster each is in a slot of its own."""
        if self._connections.cluster is not None:
            return [[topic] for topic in topics]
        return [list(topics)] if topics else []

    # --- copying

    async def _read(self, cursors: dict[str, bytes]) -> None:
        """Wait for what is published to the topics of ``cursors`` and copy it."""
        lane = self._connections.lane(self._topics[next(iter(cursors))].log)
        asked, failures = FIRST_ENTRIES, 0
        try:
            while True:
                try:
                    largest = 0
                    for topic, entries in await self._published(lane, cursors, asked):
                        largest = max(largest, *(len(text) for _, _, text in entries))
                        await self._copy(topic, entries, cursors)
                    if largest:
                        asked = entries_to_ask(asked, largest)
                    failures = 0
                    continue
                except (ConnectionLost, BusUnavailable, ReplyError) as error:
                    if not failures:
                        log.warning("the topics of %s have to wait: %s", self.agent, error)
                except Exception:
                    log.exception("copying the topics of %s failed; going on", self.agent)
                failures += 1
                await asyncio.sleep(reconnect_delay(failures, random.random))
        finally:
            await lane.aclose()

    async def _published(self, lane: Lane, cursors: dict[str, bytes], count: int) -> list[tuple[str, list[LogEntry]]]:
        by_log = {self._topics[topic].log: topic for topic in cursors}
        block = int(BLOCK_SECONDS * 1000)
        command: Command = ("XREAD", "COUNT", count, "BLOCK", block, "STREAMS", *by_log, *cursors.values())
        (answer,) = await lane.execute([command], BLOCK_SECONDS + lane.endpoint.socket_timeout)
        if isinstance(answer, ReplyError):
            raise answer
        return [
            (by_log[key.decode()], [log_entry(entry, fields) for entry, fields in entries])
            for key, entries in answer or ()
        ]

    async def _copy(self, topic: str, entries: list[LogEntry], cursors: dict[str, bytes]) -> None:
        """Copy ``entries``; a full queue is waited for as long as it takes: the log keeps them until its retention."""
        delay, waited = 0.0, False
        while entries:
            (answer,) = await self._connections.execute([self._copy_command(topic, entries)])
            cursor, dealt, copies, missed, full = answer
            if not cursor:
                raise BusUnavailable(f"{self.agent} has lost its place in topic {topic}")
            cursors[topic] = cursor
            self.copied[topic] += copies
            if missed:
                self.missed[topic] += missed
                log.warning(
                    "topic %s dropped %d messages (messaging.topics) before %s got its copies",
                    topic, missed, self.agent,
                )  # fmt: skip
            entries = entries[dealt:]
            if full != b"1":
                if topic in self._full and not waited:  # else the queue may well be full again at once
                    self._full.discard(topic)
                    log.info("the queue of %s has room again for topic %s", self.agent, topic)
                delay = 0.0
                continue
            waited = True
            if topic not in self._full:
                self._full.add(topic)
                log.warning("the queue of %s is full; what is published to %s waits in the topic", self.agent, topic)
            delay = FULL_QUEUE_FIRST_DELAY if dealt else min(FULL_QUEUE_MAX_DELAY, delay * 2) or FULL_QUEUE_FIRST_DELAY
            await asyncio.sleep(delay)

    def _copy_command(self, topic: str, entries: list[LogEntry]) -> Command:
        queue = self._messaging.queue
        arguments: list[Any] = [topic, f"{queue.max_length} {queue.max_bytes}"]
        for entry in entries:
            arguments += entry
        return library().call("copy", self._gate, *arguments)
