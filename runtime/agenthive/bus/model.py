"""What the bus hands out: deliveries, statuses, figures and dead letters, and how they are read from Redis."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import Enum, StrEnum

from agenthive.protocol import AgentMessage, MessageDeliveryStatus, MessageError, MessagePriority


@dataclass(slots=True, eq=False)
class Delivery:
    """A message this process holds under its lease, until it says how the handling ended.

    ``attempt`` counts from 1; attempts that ended by a crash count, handed-back ones do not.
    """

    message: AgentMessage
    attempt: int
    owner: str = field(repr=False)
    """Name under which the consumer claimed it: the claim token. It is dead once the consumer was robbed."""
    lane: int = field(repr=False)
    entry: bytes = field(repr=False)
    key: bytes = field(repr=False)
    """The message's id in Redis."""
    claimed: int = field(repr=False)
    """When it was claimed, ms of the server's clock."""
    accepted: bytes = field(repr=False)
    """When the queue took it, ms of the server's clock; empty where the entry tells."""
    acknowledged: bool = field(default=False, repr=False)
    """Acknowledged when claimed (``require_ack: false``): no ack, retry or hand-back exists for it."""
    completed: bool = field(default=False, repr=False)
    """Its owner has said how the handling ended."""
    size: int = field(default=0, repr=False)
    """Bytes of its document."""
    ordering: bytes = field(default=b"", repr=False)
    """Its ordering key as Redis has it, empty if it has none."""


class PendingState(StrEnum):
    """What a message that is pending is doing."""

    WAITING = "waiting"
    """It may be claimed at any time."""
    DELAYED = "delayed"
    """Its ``not_before`` has not come."""
    IN_FLIGHT = "in_flight"
    """A consumer has it."""
    RETRYING = "retrying"
    """An attempt failed, and the time of the next one has not come."""
    BLOCKED = "blocked"
    """Another message of its ordering key comes first."""


@dataclass(frozen=True, slots=True)
class MessageStatus:
    """Where a message stands; ``None`` for what is not known (yet)."""

    message_id: str
    status: MessageDeliveryStatus
    attempts: int
    """Attempts so far; one that runs counts."""
    error: str | None = None
    accepted_at: datetime | None = None
    claimed_at: datetime | None = None
    """When the last attempt began."""
    finished_at: datetime | None = None
    detail: PendingState | None = None
    """What it is doing while it is pending; None once it is final."""
    first_claimed_at: datetime | None = None
    """When the first attempt began."""
    due_at: datetime | None = None
    """When the delay (``delayed``), or the pause before the next attempt (``retrying``), ends."""

    @property
    def summary(self) -> str:
        """In a few words, as in "pending (retrying) after 2 attempts"."""
        detail = f" ({self.detail.replace('_', ' ')})" if self.detail else ""
        error = f", the last error: {self.error}" if self.error else ""
        return f"{self.status}{detail} after {self.attempts} attempt{'' if self.attempts == 1 else 's'}{error}"

    @property
    def final(self) -> bool:
        """Whether it is delivered, failed or expired. Only a redrive makes such a message pending again."""
        return self.status is not MessageDeliveryStatus.PENDING


class CancelResult(StrEnum):
    """What came of cancelling a message."""

    CANCELLED = "cancelled"
    """It was taken out of the queue and is final now."""
    RUNNING = "running"
    """A consumer has it: nothing was done."""
    FINISHED = "finished"
    """It was final already."""
    UNKNOWN = "unknown"
    """Redis does not know it (any more)."""


class Firing(Enum):
    """What became of one slot of a schedule."""

    FIRED = b"f"
    DONE = b"d"
    """It, or a later one, was dealt with before, by this process or another one."""
    EARLY = b"e"
    """By the server's clock it is still to come."""
    LATE = b"l"
    OVERLAP = b"o"
    """Skipped: the message of an earlier slot is not finished."""
    NOTED = b"n"
    """Nobody ever fired this schedule: it begins with the next slot."""


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
    dead_letters_dropped: int = 0
    """Dead letters that their bound has pushed out so far, the oldest first."""
    replies_dropped: int = 0
    """Replies so far that came when their asker was gone, and that it never fetched."""
    bytes: int = 0
    """Size of the documents of all messages that are not finished: waiting, in flight and delayed."""
    blocked: int = 0
    """Those of the backlog that wait behind another message of their ordering key."""
    halted: int = 0
    """Ordering keys that a message with ``on_fail: halt``, given up, has halted."""
    arrived: int | None = None
    """Messages that became ready to be claimed, since ever; a retry does not count again. None: not to be known."""
    finished: int | None = None
    """Those of them that are not in the queue any more: delivered, given up or cancelled."""
    given_up: int | None = None
    """Dead letters, since ever."""


@dataclass(frozen=True, slots=True)
class HaltedKey:
    """An ordering key of which nothing is handled until its dead letter is redriven or purged, or it is resumed."""

    key: str
    letter: str
    """Id of the dead letter of the message that halted it."""
    waiting: int
    """Messages that wait behind it."""


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
    message_id: str = ""
    """Id of the message; empty where it has none."""


@dataclass(frozen=True, slots=True)
class GivenUp:
    """A message that went to the dead letters without a handler's word; ``message`` is None where it is none, or was
    left out for its size."""

    message_id: str
    message: AgentMessage | None
    reason: str
    """``expired``, ``crashed`` or ``malformed``."""
    error: str
    attempts: int


class DeadLetters(list[DeadLetter]):
    """A page of dead letters. ``next`` is the ``after`` of the page that follows, which may be empty; None: the end."""

    next: str | None = None


@dataclass(frozen=True, slots=True)
class LetterFilter:
    """Which dead letters are meant: those that fit all that is given; by default, all.

    Raises ValueError for a moment without time zone.
    """

    message_type: str | None = None
    from_agent: str | None = None
    reason: str | None = None
    """See ``DeadLetter.reason``."""
    error: str | None = None
    """A text in the error, upper or lower case."""
    message_id: str | None = None
    since: datetime | None = None
    """Given up then or later."""
    until: datetime | None = None
    """Given up then or earlier."""

    def __post_init__(self) -> None:
        for name in ("since", "until"):
            moment = getattr(self, name)
            if moment is not None and moment.utcoffset() is None:
                raise ValueError(f"{name} is {moment.isoformat()}, which has no time zone; add one: datetime.now(UTC)")

    @property
    def reads_documents(self) -> bool:
        """Whether messages have to be read to tell."""
        return self.message_type is not None or self.from_agent is not None

    def accepts(self, message: AgentMessage | None) -> bool:
        """What only who reads the message can tell."""
        if not self.reads_documents:
            return True
        return (
            message is not None
            and self.message_type in {None, message.message_type}
            and self.from_agent in {None, message.from_agent}
        )


@dataclass(frozen=True, slots=True)
class LetterProblem:
    """Why something was not done with one dead letter."""

    id: str
    """Of the letter, or what the caller named it by."""
    error: str


@dataclass(slots=True)
class LetterReport:
    """How far a redrive or a purge has come."""

    total: int
    """Letters to look at; of a filter, all there are."""
    looked: int = 0
    done: int = 0
    """Letters redriven, or purged."""
    refused: int = 0
    problems: list[LetterProblem] = field(default_factory=list)
    """Why, of the first thousand that were refused."""

    def refuse(self, letter: str, error: str) -> None:
        """Count a letter with which nothing was done."""
        self.refused += 1
        if len(self.problems) < MOST_PROBLEMS:
            self.problems.append(LetterProblem(letter, error))


MOST_PROBLEMS = 1000
_FINAL = {
    b"d": MessageDeliveryStatus.DELIVERED,
    b"f": MessageDeliveryStatus.FAILED,
    b"e": MessageDeliveryStatus.EXPIRED,
}


def _moment(milliseconds: float) -> datetime:
    return datetime.fromtimestamp(milliseconds / 1000, UTC)


def _moment_or_none(milliseconds: int) -> datetime | None:
    return _moment(milliseconds) if milliseconds > 0 else None


_PENDING = {
    b"w": PendingState.WAITING,
    b"d": PendingState.DELAYED,
    b"i": PendingState.IN_FLIGHT,
    b"r": PendingState.RETRYING,
    b"o": PendingState.BLOCKED,
}


def _accepted(text: bytes) -> int:
    """ms, alone or at the beginning of an entry's id."""
    return int(text.partition(b"-")[0])


def parse_status(
    message_id: str, place: bytes, final: bytes, tries: int, how: bytes, claimed: int, due: int, first: int
) -> MessageStatus | None:
    """What the function ``status`` returned; None: Redis does not know the message (any more)."""
    if place:
        accepted = _accepted(place.rpartition(b" ")[2])
        return MessageStatus(
            message_id,
            MessageDeliveryStatus.PENDING,
            tries + (how == b"i"),
            accepted_at=_moment(accepted),
            claimed_at=_moment_or_none(claimed),
            detail=_PENDING[how],
            due_at=_moment_or_none(due),
            first_claimed_at=_moment_or_none(first),
        )
    if not final:
        return None
    code, finished, last_claimed, attempts, when, *error = final.split(b" ", 5)
    accepted_at, _, first_claimed = when.partition(b",")
    return MessageStatus(
        message_id,
        _FINAL[code],
        int(attempts),
        error[0].decode(errors="replace") if error else None,
        _moment(_accepted(accepted_at)),
        _moment_or_none(int(last_claimed)),
        _moment(int(finished)),
        first_claimed_at=_moment_or_none(int(first_claimed or last_claimed)),
    )


def parse_stats(agent: str, figures: list[int]) -> QueueStats:
    """What the function ``stats`` returned."""
    by_priority = {priority: figures[priority - 1] for priority in MessagePriority}
    in_flight, delayed, dead, oldest, dropped, unheard, size, blocked, halted = figures[4:13]
    arrived, finished, given_up = (figure if figure >= 0 else None for figure in figures[13:])
    return QueueStats(
        agent,
        sum(by_priority.values()),
        by_priority,
        in_flight,
        delayed,
        dead,
        _moment(oldest) if oldest >= 0 else None,
        dropped,
        unheard,
        size,
        blocked,
        halted,
        arrived,
        finished,
        given_up,
    )


def parse_given_up(message_id: bytes, document: bytes, reason: bytes, error: bytes, attempts: bytes | int) -> GivenUp:
    """A letter among the notes of a turn."""
    return GivenUp(
        message_id.decode(errors="replace"),
        _message_or_none(document),
        reason.decode(errors="replace"),
        error.decode(errors="replace"),
        int(attempts),
    )


def _message_or_none(document: bytes) -> AgentMessage | None:
    try:
        return AgentMessage.from_json(document)
    except MessageError:
        return None


def parse_dead_letter(entry: bytes, fields: list[bytes]) -> DeadLetter:
    """An entry of the stream of dead letters."""
    values = dict(zip(fields[::2], fields[1::2], strict=True))
    raw = values.get(b"m", b"")
    return DeadLetter(
        entry.decode(),
        _message_or_none(raw),
        raw,
        values.get(b"reason", b"").decode(errors="replace"),
        values.get(b"error", b"").decode(errors="replace"),
        int(values.get(b"attempts", b"0")),
        _moment(int(entry.partition(b"-")[0])),
        values.get(b"i", b"").decode(errors="replace"),
    )
