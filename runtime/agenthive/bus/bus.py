"""The bus of a process: send, ask, look at queues, and make consumers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Self

from agenthive.bus.connections import Connections
from agenthive.bus.consumer import Consumer
from agenthive.bus.endpoint import Endpoint
from agenthive.bus.errors import BusError, RequestTimeout
from agenthive.bus.keys import REPLY_MARK, AgentKeys, TopicKeys, agents_key
from agenthive.bus.letters import Letters, batches
from agenthive.bus.library import library
from agenthive.bus.model import (
    CancelResult,
    DeadLetter,
    DeadLetters,
    Firing,
    HaltedKey,
    LetterFilter,
    LetterReport,
    MessageStatus,
    QueueStats,
    parse_stats,
    parse_status,
)
from agenthive.bus.policy import (
    accepted_form,
    arguments_of,
    decoded_key,
    encoded_key,
    lane_of,
    packed_options,
    to_ms,
)
from agenthive.bus.pump import Pump, TopicStart
from agenthive.bus.replies import ReplyReader
from agenthive.bus.shards import sender_for
from agenthive.bus.topics import Topics, TopicStats, published_form
from agenthive.bus.watches import Watches
from agenthive.protocol import AgentMessage
from agenthive.settings import HiveScope, Messaging, RedisPool

SEND_WAIT_SECONDS = 10.0
"""How long ``send`` waits for a full queue to shrink, unless it is told otherwise."""
STATUS_WAIT_SECONDS = 2.0
MAX_REQUEST_SECONDS = 365 * 86_400
BATCH_STATUSES = 500
"""Most statuses of one function call."""
MAX_REASON_LENGTH = 2000
_CANCELLED = {
    b"c": CancelResult.CANCELLED,
    b"r": CancelResult.RUNNING,
    b"f": CancelResult.FINISHED,
    b"u": CancelResult.UNKNOWN,
}


class Bus:
    """One per process; owns its connections. Made by :meth:`connect`."""

    def __init__(
        self, connections: Connections, scope: HiveScope, messaging: Messaging, *, inside: bool = False
    ) -> None:
        self.scope = scope
        self.messaging = messaging
        #: Told of each message that was accepted: sent, asked, published or fired by this process.
        self.on_sent: Callable[[AgentMessage], None] | None = None
        self._connections = connections
        self._sender = sender_for(
            connections, messaging.queue, durable=messaging.durability == "replicated", inside=inside
        )
        self._replies = ReplyReader(connections, scope)
        self._letters = Letters(connections, self._of)
        self._watches = Watches(self._statuses, self._unknown)
        self._keys: dict[str, AgentKeys] = {}
        self._topics = Topics(connections, scope, messaging, self._sender)

    @classmethod
    async def connect(
        cls,
        url: str,
        scope: HiveScope,
        *,
        messaging: Messaging | None = None,
        pool: RedisPool | None = None,
        client_name: str = "agenthive",
        inside: bool = False,
    ) -> Self:
        """Connect to Redis and load the bus's functions.

        ``inside``: this process is an agent of the hive. While the hive moves to another Redis, what it sends still
        gets through, for it belongs to what was accepted; what others send is refused with HiveMoving.
        Raises BusUnavailable (unreachable, wrong password, too old; the text says which) and ValueError for a URL
        that is none.
        """
        pool = pool or RedisPool()
        endpoint = Endpoint.parse(
            url,
            client_name=client_name,
            connect_timeout=pool.connect_timeout_seconds,
            socket_timeout=pool.socket_timeout_seconds,
        )
        messaging = messaging or Messaging()
        connections = Connections(endpoint, pool, durable=messaging.durability == "replicated")
        try:
            await connections.prepare()
        except BaseException:
            await connections.aclose()
            raise
        return cls(connections, scope, messaging, inside=inside)

    def _of(self, agent: str) -> AgentKeys:
        keys = self._keys.get(agent)
        if keys is None:
            keys = self._keys[agent] = AgentKeys.of(self.scope, agent)
        return keys

    @property
    def available(self) -> bool:
        """Whether Redis (every master of a cluster) answered when last asked; false while a circuit is open."""
        return self._connections.available

    @property
    def trouble(self) -> str:
        """Why it did not, or cannot be used; empty while ``available``."""
        return self._connections.trouble

    async def send(self, message: AgentMessage, *, wait: float = SEND_WAIT_SECONDS) -> str:
        """Put ``message`` into its recipient's queue and return its id, once Redis has it.

        A message that is not finished is never there twice. Sending it again, in the same process, after an error or
        a timeout is safe beyond that: one that was accepted and handled by then is not accepted again, as long as its
        status is kept.
        Of messages with one ``deduplication_key`` the queue takes the first, and for ``deduplicationSeconds`` after it
        no other: sending another then returns the id of the first.
        A full queue is waited for at most ``wait`` seconds. Raises QueueFull, BusUnavailable, and ValueError for a
        recipient or an option that cannot be, or a message larger than the whole queue may be.
        """
        message = accepted_form(message, self.messaging)
        message_id = await self._sender.send(
            self._of(message.to_agent).gate, arguments_of(message, self.messaging), wait
        )
        if self.on_sent is not None and message_id == message.message_id:  # not if another of its key was there
            self.on_sent(message)
        return message_id

    def checked(self, message: AgentMessage, topic: str | None = None) -> AgentMessage:
        """The message in the form in which ``send``, or ``publish`` to ``topic``, would send it; nothing is sent.

        Raises ValueError for all that those refuse at once.
        """
        if topic is None:
            self._of(message.to_agent)
        else:
            TopicKeys.of(self.scope, topic)
            message = published_form(message, topic, self.messaging)
        message = accepted_form(message, self.messaging)
        arguments_of(message, self.messaging)
        return message

    async def send_in_order(
        self, messages: Sequence[AgentMessage], *, topic: str | None = None, wait: float = SEND_WAIT_SECONDS
    ) -> list[str | BusError]:
        """Send messages to one agent, or publish them to ``topic``, that may have been sent before, by any process.

        They are accepted in this order: behind one that is not, no other is sent. One that is pending, or whose final
        status is kept, is not accepted again. Returns for each what ``send`` returns or raises. Raises BusUnavailable
        and ValueError as ``send`` does; then nothing was sent.
        """
        if topic is not None:
            return await self._topics.publish_in_order(topic, messages, wait)
        (agent,) = {message.to_agent for message in messages}
        row = [arguments_of(accepted_form(message, self.messaging), self.messaging) for message in messages]
        results = await self._sender.send_row(self._of(agent).gate, row, wait, again=True)
        if self.on_sent is not None:
            for message, result in zip(messages, results, strict=True):
                if result == message.message_id:
                    self.on_sent(message)
        return results

    async def publish(self, topic: str, message: AgentMessage, *, wait: float = SEND_WAIT_SECONDS) -> str:
        """Put ``message`` into ``topic`` and return its id, once Redis has it. Nobody has to be subscribed.

        Each subscribed agent gets a copy, whose ``to_agent`` is ``#topic``. Publishing one id again, even after an
        error, never makes two copies for an agent (as long as the status of its copy is kept). ``wait`` (seconds) is
        how long a Redis that is away is waited for. Raises BusUnavailable, and ValueError for a topic or an option that
        cannot be.
        """
        message_id = await self._topics.publish(topic, message, wait)
        if self.on_sent is not None:
            self.on_sent(message)
        return message_id

    async def topics(self) -> list[TopicStats]:
        """Figures of the hive's topics, sorted: those that hold anything and those that agents are subscribed to.

        Raises BusUnavailable.
        """
        return await self._topics.stats({agent: self._of(agent).cursors for agent in await self.agents()})

    async def request(self, message: AgentMessage, timeout: float) -> AgentMessage:
        """Send ``message`` and return the reply to it: a message of type ``reply`` whose body is ``{"result": …}``.

        The request expires when ``timeout`` (seconds) has passed, if not before. Raises RequestTimeout (with the
        request's status), RequestFailed (given up by the recipient, with the reason), ValueError (a timeout that is
        none, or an id for whose reply this process waits already) and what ``send`` raises.
        """
        if not 0 < timeout <= MAX_REQUEST_SECONDS:
            raise ValueError(
                f"timeout is {timeout}; it must be greater than 0 seconds, and at most {MAX_REQUEST_SECONDS} (a year)"
            )
        if message.delivery_options.deduplication_key is not None:
            raise ValueError(
                "a request cannot have a deduplication_key, for the reply goes to whoever sent the first message of "
                "that key; leave it out, or use send"
            )
        ttl = min(float(timeout), message.ttl if "ttl" in message.model_fields_set else self.messaging.ttl_seconds)
        asked = message.model_copy(update={"ttl": ttl, "reply_to": REPLY_MARK + self._replies.process})
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        reply = self._replies.expect(asked.message_id, self._of(asked.to_agent).gate)
        try:
            async with asyncio.timeout_at(deadline):
                await self.send(asked, wait=timeout)
                return await reply
        except TimeoutError:
            status = await self._status_for_timeout(asked)
            where = f"it is {status.summary}" if status else "its status is unknown"
            raise RequestTimeout(
                f"{asked.to_agent} did not reply to {asked.message_type} within {timeout:g} s; {where}", status
            ) from None
        finally:
            self._replies.forget(asked.message_id)

    async def _status_for_timeout(self, message: AgentMessage) -> MessageStatus | None:
        try:
            async with asyncio.timeout(STATUS_WAIT_SECONDS):
                return await self.find(message.to_agent, message.message_id)
        except (BusError, TimeoutError):
            return None

    async def find(self, agent: str, message_id: str) -> MessageStatus | None:
        """Where a message to ``agent`` stands; None if Redis does not know it (any more). Raises BusUnavailable."""
        return (await self.statuses(agent, [message_id]))[message_id]

    async def status(self, agent: str, message_id: str) -> MessageStatus:
        """Where a message to ``agent`` stands. Raises LookupError for one that Redis does not know (any more)."""
        found = await self.find(agent, message_id)
        if found is None:
            raise LookupError(self._unknown(agent, message_id))
        return found

    def _unknown(self, agent: str, message_id: str) -> str:
        return (
            f"agent {agent} has no message {message_id}; the status of a finished message is kept for "
            f"{self.messaging.status_seconds} s"
        )

    async def statuses(self, agent: str, message_ids: Iterable[str]) -> dict[str, MessageStatus | None]:
        """Where several messages to ``agent`` stand, in one round trip; None for those Redis does not know (any more).

        Raises BusUnavailable.
        """
        return (await self._statuses({agent: message_ids}))[agent]

    async def _statuses(self, wanted: Mapping[str, Iterable[str]]) -> dict[str, dict[str, MessageStatus | None]]:
        asked = [
            (agent, ids)
            for agent, message_ids in wanted.items()
            for ids in batches(dict.fromkeys(message_ids), BATCH_STATUSES)
        ]
        found: dict[str, dict[str, MessageStatus | None]] = {agent: {} for agent in wanted}
        commands = [library().call("status", self._of(agent).gate, *ids) for agent, ids in asked]
        answers = await self._connections.execute(commands) if commands else []
        for (agent, ids), answer in zip(asked, answers, strict=True):
            found[agent].update(
                (message_id, parse_status(message_id, *one)) for message_id, one in zip(ids, answer, strict=True)
            )
        return found

    def watch(self, agent: str, message_id: str, timeout: float | None = None) -> AsyncIterator[MessageStatus]:
        """The status of a message to ``agent``: as it is now, at each change, and at last the final one.

        Redis is asked again 20 ms after a change, then less and less often up to every 500 ms, in one call for all
        watches of the process; so a state that does not last that long may be left out, the final one never is.
        An outage of Redis is waited for.

        Raises LookupError for a message Redis does not know (any more), TimeoutError when it is not final after
        ``timeout`` seconds, and BusUnavailable when Redis cannot be asked even once.
        """
        self._of(agent)
        return self._watches.watch(agent, message_id, timeout)

    async def cancel(self, agent: str, message_id: str, reason: str = "") -> CancelResult:
        """Take a message to ``agent`` that waits, is delayed or is to be retried out of the queue.

        It is ``failed`` then, with the error ``cancelled`` and the ``reason``; whoever asked gets RequestFailed at
        once, and there is no dead letter. One that a consumer has is left alone, see CancelResult. Raises
        BusUnavailable.
        """
        why = f"cancelled: {reason}" if reason else "cancelled"
        command = library().call(
            "cancel", self._of(agent).gate, message_id, why[:MAX_REASON_LENGTH], to_ms(self.messaging.status_seconds)
        )
        (answer,) = await self._connections.execute([command])
        return _CANCELLED[answer]

    async def queue(self, agent: str) -> QueueStats:
        """Figures of one queue; all zero for an agent nobody ever wrote to. Raises BusUnavailable."""
        return (await self.queues([agent]))[agent]

    async def queues(self, agents: Iterable[str]) -> dict[str, QueueStats]:
        """Figures of several queues in one round trip. Raises BusUnavailable."""
        names = list(dict.fromkeys(agents))
        if not names:
            return {}
        answers = await self._connections.execute([library().call("stats", self._of(name).gate) for name in names])
        return {name: parse_stats(name, answer) for name, answer in zip(names, answers, strict=True)}

    async def halted(self, agent: str) -> list[HaltedKey]:
        """The ordering keys of ``agent`` that are halted (``on_fail: halt``), sorted. Raises BusUnavailable."""
        found: dict[str, HaltedKey] = {}
        cursor = b"0"
        while True:
            ((cursor, page),) = await self._connections.execute([library().call("halts", self._of(agent).gate, cursor)])
            for key, letter, waiting in page:
                name = decoded_key(key)
                found[name] = HaltedKey(name, letter.decode(), waiting)
            if cursor == b"0":
                return [found[name] for name in sorted(found)]

    async def resume(self, agent: str, ordering_key: str) -> bool:
        """Let a halted ordering key go on with the message that waits next; the dead letter stays where it is.

        Returns False for a key that is not halted. Raises BusUnavailable.
        """
        command = library().call("resume", self._of(agent).gate, encoded_key(ordering_key))
        (resumed,) = await self._connections.execute([command])
        return bool(resumed)

    async def agents(self) -> list[str]:
        """Names of the agents that ever had a consumer in this hive, sorted. Raises BusUnavailable."""
        (names,) = await self._connections.execute([("SMEMBERS", agents_key(self.scope))])
        return sorted(name.decode() for name in names)

    async def dead_letters(
        self,
        agent: str,
        *,
        limit: int = 50,
        after: str | None = None,
        newest_first: bool = False,
        message_type: str | None = None,
        from_agent: str | None = None,
        reason: str | None = None,
        error: str | None = None,
        message_id: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
    ) -> DeadLetters:
        """Dead letters of ``agent`` that fit the filters (see LetterFilter), oldest first unless told otherwise.

        One call looks at no more than 10,000 letters, so that a page may be short, or empty, although more follow:
        ``next`` of the page is the ``after`` to go on with, None at the end. Raises BusUnavailable, and ValueError
        for an ``after`` or a moment that cannot be.
        """
        where = LetterFilter(message_type, from_agent, reason, error, message_id, since, until)
        return await self._letters.page(agent, where, limit=limit, after=after, newest_first=newest_first)

    async def dead_letter(self, agent: str, letter_id: str) -> DeadLetter:
        """One dead letter, by its own id or by that of its message (then the newest of them).

        Raises LookupError if there is none, and BusUnavailable.
        """
        found = await self._letters.find(agent, letter_id)
        if found is None:
            raise LookupError(f"agent {agent} has no dead letter, and none of a message, of id {letter_id}")
        return found

    async def redrive(
        self,
        agent: str,
        chosen: str | Iterable[str] | LetterFilter,
        *,
        rate: float | None = None,
        to: str | None = None,
        ttl: float | None = None,
        progress: Callable[[LetterReport], None] | None = None,
    ) -> LetterReport:
        """Put dead letters of ``agent`` back into its queue: by their ids, their messages' ids, or a filter.

        Each is pending again under its old id, with its priority, all of its attempts and its time to live (or
        ``ttl`` seconds) from now; a full queue takes it too. It leaves the dead letters in the same call, so who is
        killed meanwhile neither loses nor doubles one and may just begin again. ``to`` puts them into another
        agent's queue: then in two calls, and one that was left between them is known when it is redriven again.

        ``rate`` is how many a second at most. ``progress`` gets the report after each step. A filter means the
        letters there are when it begins. What is no message, is pending already or is not there is refused, each
        with its reason in the report; the others go on. Raises BusUnavailable, and ValueError.
        """
        return await self._letters.redrive(agent, chosen, rate=rate, to=to, ttl=ttl, progress=progress)

    async def purge(
        self,
        agent: str,
        chosen: str | Iterable[str] | LetterFilter,
        *,
        progress: Callable[[LetterReport], None] | None = None,
    ) -> LetterReport:
        """Throw dead letters of ``agent`` away, chosen as for ``redrive``; ``LetterFilter()`` means all.

        The final status of their messages stays until its retention ends. Raises BusUnavailable, and ValueError.
        """
        return await self._letters.purge(agent, chosen, progress)

    async def clock(self, agent: str) -> int:
        """The time of the server that has ``agent``'s queue, ms since 1970. Raises BusUnavailable."""
        (now,) = await self._connections.execute([library().call("clock", self._of(agent).gate)])
        return int(now)

    async def fire(
        self,
        schedule: str,
        slot: int,
        message: AgentMessage,
        *,
        most_late: float | None = None,
        first: bool = False,
        overlap: bool = True,
    ) -> tuple[Firing, int]:
        """Send the message of one slot of a schedule unless that was done before, in one atomic step.

        Slots of one schedule only go forward. The queue's bound does not hold for such a message.

        Args:
            schedule: its name, unique in the agent the message is for.
            slot: ms since 1970.
            most_late: seconds after the slot until which it may be sent; None means whenever.
            first: the caller has just started: a schedule that was never fired begins with the slot after this one.
            overlap: False skips the slot while the message of an earlier one is pending.

        Returns:
            What became of it, and the server's time in ms.

        Raises:
            BusUnavailable: Redis does not answer; asking again is safe.
        """
        message = accepted_form(message, self.messaging)
        command = library().call(
            "fire",
            self._of(message.to_agent).gate,
            schedule,
            slot,
            -1 if most_late is None else int(most_late * 1000),
            "1" if first else "0",
            "0" if overlap else "1",
            lane_of(message.priority),
            message.message_id,
            message.to_json(),
            to_ms(message.ttl),
            f"{packed_options(message, self.messaging)} f1".lstrip(),
        )
        ((outcome, now),) = await self._connections.execute([command], sends=True)
        if self.on_sent is not None and Firing(outcome) is Firing.FIRED:
            self.on_sent(message)
        return Firing(outcome), now

    def consumer(
        self, agent: str, *, pod: str, topics: Sequence[str] = (), topic_start: TopicStart = "now"
    ) -> Consumer:
        """A consumer of ``agent``'s queue for this process.

        ``pod`` is the name the process keeps over restarts, ``topics`` those the agent is subscribed to, and
        ``topic_start`` where a new subscription begins: with what is published once the consumer has started, or
        with all that the topic holds. Raises ValueError for names that cannot be.
        """
        if not pod or len(pod.split()) != 1 or pod != pod.strip():
            raise ValueError(f"pod is {pod!r}; give the name of the pod, without spaces")
        pump = Pump(
            self._connections,
            self.scope,
            agent,
            pod=pod,
            topics=topics,
            start=topic_start,
            messaging=self.messaging,
        )
        return Consumer(self._connections, self.scope, agent, pod=pod, messaging=self.messaging, pump=pump)

    async def aclose(self) -> None:
        """Close every connection. Consumers are closed by their own ``aclose``, before."""
        await self._watches.aclose()
        await self._replies.aclose()
        await self._sender.aclose()
        await self._connections.aclose()
