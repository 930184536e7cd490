"""What the bus hands out: deliveries, statuses, figures and dead letters, and how they are read from Redis."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime

from agenthive.protocol import AgentMessage, MessageDeliveryStatus, MessageError, MessagePriority


@dataclass(slots=True, eq=False)
class Delivery:
    """A message this process holds under its lease, until it says how the handling ended.

    ``attempt`` counts from 1; attempts that ended by a crash count, handed-back ones do not.
    """

    message: AgentMessage
    attempt: int
    key: bytes = field(repr=False)
    """The message's id in Redis."""
    record: bytes = field(repr=False)
    """The claim as Redis holds it (lane, entry, claim token …); what differs from it there is no longer ours."""
    acknowledged: bool = field(default=False, repr=False)
    """Acknowledged when claimed (``require_ack: false``): no ack, retry or hand-back exists for it."""


@dataclass(frozen=True, slots=True)
class MessageStatus:
    """Where a message stands; ``None`` for what is not known (yet)."""

    message_id: str
    status: MessageDeliveryStatus
    attempts: int
    error: str | None = None
    accepted_at: datetime | None = None
    claimed_at: datetime | None = None
    finished_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class QueueStats:
    """Figures of one agent's queue at one moment."""

    agent: str
    backlog: int
    """Messages that wait to be claimed; delayed ones are not among them."""
    backlog_by_priority: dict[MessagePriority, int]
    in_flight: int
    """Claimed and not yet finished."""
    delayed: int
    """Retries and messages with ``not_before`` whose time has not come."""
    dead_letters: int
    oldest: datetime | None
    """When the oldest message of the backlog was accepted."""


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A message that was given up: ``message``, or ``raw`` where it is none."""

    id: str
    message: AgentMessage | None
    raw: bytes
    reason: str
    """``failed``, ``rejected``, ``expired``, ``crashed`` or ``malformed``."""
    error: str
    attempts: int
    died_at: datetime


@dataclass(frozen=True, slots=True)
class Record:
    """A message's bookkeeping line in Redis: ``expiry lane accepted entry attempts token claimed`` (times in ms)."""

    expiry: int
    lane: int
    accepted: int
    entry: str
    attempts: int
    token: str
    claimed: int

    @classmethod
    def parse(cls, line: bytes) -> Record:
        """Read the line. Raises ValueError if it is none."""
        expiry, lane, accepted, entry, attempts, token, claimed = line.decode().split(" ")
        return cls(int(expiry), int(lane), int(accepted), entry, int(attempts), token, int(claimed))

    @property
    def accepted_at(self) -> datetime:
        """When the queue took the message."""
        return _moment(self.accepted)

    @property
    def claimed_at(self) -> datetime | None:
        """When it was last claimed."""
        return _moment(self.claimed) if self.claimed else None


_FINAL = {
    b"d": MessageDeliveryStatus.DELIVERED,
    b"f": MessageDeliveryStatus.FAILED,
    b"e": MessageDeliveryStatus.EXPIRED,
}
_RECORD_WORDS = 7


def _moment(milliseconds: float) -> datetime:
    return datetime.fromtimestamp(milliseconds / 1000, UTC)


def parse_status(message_id: str, record: bytes, final: bytes) -> MessageStatus | None:
    """What the function ``status`` returned; None: Redis does not know the message (any more)."""
    if record:
        line = Record.parse(record)
        return MessageStatus(
            message_id,
            MessageDeliveryStatus.PENDING,
            line.attempts,
            accepted_at=line.accepted_at,
            claimed_at=line.claimed_at,
        )
    if not final:
        return None
    code, finished, *words = final.split(b" ", _RECORD_WORDS + 2)
    line = Record.parse(b" ".join(words[:_RECORD_WORDS]))
    error = words[_RECORD_WORDS].decode(errors="replace") if len(words) > _RECORD_WORDS else None
    return MessageStatus(
        message_id,
        _FINAL[code],
        line.attempts,
        error,
        line.accepted_at,
        line.claimed_at,
        _moment(int(finished)),
    )


def parse_stats(agent: str, figures: list[int]) -> QueueStats:
    """What the function ``stats`` returned."""
    by_priority = {priority: figures[priority - 1] for priority in MessagePriority}
    in_flight, delayed, dead, oldest = figures[4:]
    return QueueStats(
        agent,
        sum(by_priority.values()),
        by_priority,
        in_flight,
        delayed,
        dead,
        _moment(oldest) if oldest >= 0 else None,
    )


def parse_dead_letter(entry: bytes, fields: list[bytes]) -> DeadLetter:
    """An entry of the stream of dead letters."""
    values = dict(zip(fields[::2], fields[1::2], strict=True))
    raw = values.get(b"m", b"")
    message: AgentMessage | None
    try:
        message = AgentMessage.from_json(raw)
    except MessageError:
        message = None
    return DeadLetter(
        entry.decode(),
        message,
        raw,
        values.get(b"reason", b"").decode(errors="replace"),
        values.get(b"error", b"").decode(errors="replace"),
        int(values.get(b"attempts", b"0")),
        _moment(int(entry.partition(b"-")[0])),
    )
