"""Topics: publishing to them, their figures, and the decisions about reading their logs."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from agenthive.bus.connections import Connections
from agenthive.bus.errors import BusError
from agenthive.bus.keys import TOPIC_MARK, TopicKeys, topics_key
from agenthive.bus.policy import accepted_form, arguments_of
from agenthive.bus.sender import Arguments, Sender, TopicLog
from agenthive.bus.shards import ShardedSender
from agenthive.bus.wire import Command
from agenthive.protocol import AgentMessage, MessagePriority
from agenthive.settings import HiveScope, Messaging

FIRST_ENTRIES = 16
"""Entries asked for while nothing is known of their size."""
MOST_ENTRIES = 500
BATCH_BYTES = 4 * 1024 * 1024
BEGINNING = b"0-0"
"""Before the first entry of any log."""

REMEMBERED_TOPICS = 10_000
"""Topics a process keeps in mind; programs may make up their names."""

LogEntry = tuple[bytes, bytes, bytes]
"""An entry of a topic's log: id, lane, field ``m``."""


@dataclass(frozen=True, slots=True)
class TopicStats:
    """Figures of one topic at one moment."""

    topic: str
    length: int
    """Messages it keeps."""
    behind: dict[str, int]
    """Of each subscribed agent, how many of them its queue has not got yet."""


class Topics:
    """The topics of a hive, for ``Bus``, whose methods ``publish`` and ``topics`` say what they do."""

    def __init__(
        self, connections: Connections, scope: HiveScope, messaging: Messaging, sender: Sender | ShardedSender
    ) -> None:
        self._connections = connections
        self._scope = scope
        self._messaging = messaging
        self._sender = sender
        self._listed: dict[str, tuple[TopicKeys, float]] = {}
        """By topic, its keys and until when (Unix time) it needs no entry in the list of topics."""

    async def publish(self, topic: str, message: AgentMessage, wait: float) -> str:
        """Put ``message`` into the topic's log and return its id."""
        keys = await self._list(topic)
        return await self._sender.send(keys.gate, self._arguments(topic, message), wait, topic=self._log)

    async def publish_in_order(self, topic: str, messages: Sequence[AgentMessage], wait: float) -> list[str | BusError]:
        """Put ``messages`` into the topic's log in this order; see ``Bus.send_in_order``."""
        keys = await self._list(topic)
        row = [self._arguments(topic, message) for message in messages]
        return await self._sender.send_row(keys.gate, row, wait, again=True, topic=self._log)

    def _arguments(self, topic: str, message: AgentMessage) -> Arguments:
        messaging = self._messaging
        return arguments_of(accepted_form(published_form(message, topic, messaging), messaging), messaging)

    @property
    def _log(self) -> TopicLog:
        policy = self._messaging.topics
        return policy.max_length, policy.retention_seconds * 1000

    async def _list(self, topic: str) -> TopicKeys:
        """Have ``topic`` among those that ``stats`` shows, for as long as it keeps anything; return its keys."""
        now, retention = time.time(), self._messaging.topics.retention_seconds
        keys, until = self._listed.get(topic) or (TopicKeys.of(self._scope, topic), 0.0)
        if until <= now:
            key = topics_key(self._scope)
            gone = int((now + 2 * retention) * 1000)
            await self._connections.execute(
                [("ZADD", key, gone, topic), ("ZREMRANGEBYSCORE", key, "-inf", int(now * 1000))]
            )
            if len(self._listed) >= REMEMBERED_TOPICS:
                self._listed.clear()
            self._listed[topic] = keys, now + retention / 2
        return keys

    async def stats(self, hashes: Mapping[str, str]) -> list[TopicStats]:
        """Figures of each topic; ``hashes`` are the keys of the agents' cursors, by agent."""
        listed, *found = await self._connections.execute(
            [("ZRANGE", topics_key(self._scope), 0, -1), *(("HGETALL", key) for key in hashes.values())]
        )
        cursors: dict[str, dict[str, bytes]] = {
            agent: {topic.decode(): cursor for topic, cursor in zip(pairs[::2], pairs[1::2], strict=True)}
            for agent, pairs in zip(hashes, found, strict=True)
        }
        topics = list({topic.decode() for topic in listed}.union(*cursors.values()))
        if not topics:
            return []
        keys = [TopicKeys.of(self._scope, topic) for topic in topics]
        looks: list[Command] = [look for key in keys for look in (("XLEN", key.log), ("GET", key.last))]
        answers = await self._connections.execute(looks)
        lengths, last = (dict(zip(topics, answers[start::2], strict=True)) for start in (0, 1))
        return stats_of(lengths, last, cursors)


def published_form(message: AgentMessage, topic: str, messaging: Messaging) -> AgentMessage:
    """The message as it is published: to ``#topic``, and with the topic's retention as ttl where it names none.

    Raises ValueError for a message that wants a reply.
    """
    if message.reply_to is not None:
        raise ValueError("what is published to a topic has no reply; leave reply_to out, or send to one agent")
    changes: dict[str, object] = {}
    if message.to_agent != TOPIC_MARK + topic:
        changes["to_agent"] = TOPIC_MARK + topic
    if "ttl" not in message.model_fields_set:
        changes["ttl"] = float(messaging.topics.retention_seconds)
    return message.model_copy(update=changes) if changes else message


def entries_to_ask(asked: int, largest: int) -> int:
    """How many entries to ask for after ``asked``: more, as far as the ``largest`` (bytes) of them allows."""
    return max(1, min(MOST_ENTRIES, asked * 4, BATCH_BYTES // max(1, largest)))


def log_entry(entry: bytes, fields: Sequence[bytes]) -> LogEntry:
    """An entry of the log. What nobody of ours wrote is copied all the same: its claim tells that it is malformed."""
    if len(fields) == 4 and fields[0] == b"l" and fields[2] == b"m" and fields[1] in {b"1", b"2", b"3", b"4"}:
        return entry, fields[1], fields[3]
    return entry, b"%d" % MessagePriority.MEDIUM, b" ".join(field[:4096] for field in fields[:64])


def behind(length: int, last: bytes | None, cursor: bytes) -> int:
    """How many of a log's ``length`` entries, the newest of which is ``last``, come after ``cursor``."""
    position = cursor.partition(b" ")[0]
    if last is None or position == last:
        return 0
    (ms, number), (last_ms, last_number) = _numbers(position), _numbers(last)
    if (ms, number) > (last_ms, last_number):
        return 0
    # A number that went back means that the topic was forgotten in between: all it has is new.
    return min(length, last_number - number) if last_number > number else length


def _numbers(entry: bytes) -> tuple[int, int]:
    ms, _, number = entry.partition(b"-")
    return int(ms), int(number)


def stats_of(
    lengths: Mapping[str, int], last: Mapping[str, bytes | None], cursors: Mapping[str, Mapping[str, bytes]]
) -> list[TopicStats]:
    """Figures by topic, sorted; ``cursors`` are those of each agent by topic."""
    return [
        TopicStats(
            topic,
            lengths[topic],
            {
                agent: behind(lengths[topic], last[topic], positions[topic])
                for agent, positions in sorted(cursors.items())
                if topic in positions
            },
        )
        for topic in sorted(lengths)
    ]
