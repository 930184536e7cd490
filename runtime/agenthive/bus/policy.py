"""Decisions of the bus that need no Redis: shares of the lanes, delays, what a message's options become."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import quote, unquote

from agenthive.protocol import AgentMessage, MessagePriority
from agenthive.settings import Messaging, PriorityWeights

MAX_RETRY_DELAY_SECONDS = 300.0
FULL_QUEUE_FIRST_DELAY = 0.005
FULL_QUEUE_MAX_DELAY = 0.25
RECONNECT_FIRST_DELAY = 0.05
RECONNECT_MAX_DELAY = 1.0

Quotas = tuple[int, int, int, int]
"""Messages wanted from the lanes CRITICAL, HIGH, MEDIUM, LOW."""


class LaneWheel:
    """Shares claims out among the lanes by weight, exactly over time and also when claims are small.

    The weights make a wheel of slots, the lanes' slots spread evenly over it; a claim of n takes the next n slots.
    """

    def __init__(self, weights: PriorityWeights, start: float = 0.0) -> None:
        """``start`` (0 to 1) is where on the wheel to begin, so that many consumers are not in step."""
        lanes = (weights.critical, weights.high, weights.medium, weights.low)
        self._total = sum(lanes)
        places = [((2 * turn + 1) / (2 * weight), lane) for lane, weight in enumerate(lanes) for turn in range(weight)]
        self._wheel = [lane for _, lane in sorted(places)]
        self._lanes = lanes
        self._position = int(start * self._total) % self._total

    def quotas(self, count: int) -> Quotas:
        """How many of the next ``count`` messages each lane may have; they add up to ``count``."""
        rounds, rest = divmod(count, self._total)
        shares = [rounds * weight for weight in self._lanes]
        for step in range(rest):
            shares[self._wheel[(self._position + step) % self._total]] += 1
        return (shares[0], shares[1], shares[2], shares[3])

    def advance(self, count: int) -> None:
        """``count`` messages were handed out."""
        self._position = (self._position + count) % self._total


def backoff(attempt: int, first: float, most: float, random: Callable[[], float]) -> float:
    """Full jitter: a random part of ``first`` doubled for each attempt after the first (seconds), at most ``most``."""
    return random() * min(most, first * 2.0 ** min(attempt - 1, 60))


def reconnect_delay(failures: int, random: Callable[[], float]) -> float:
    """Seconds to wait before the next try to reach Redis, after ``failures`` (from 1) in a row."""
    return (0.5 + random() / 2) * min(RECONNECT_MAX_DELAY, RECONNECT_FIRST_DELAY * 2.0 ** min(failures - 1, 30))


@dataclass(frozen=True, slots=True)
class Retry:
    """What follows a failure: try again after ``delay`` seconds."""

    delay: float


def after_failure(
    message: AgentMessage,
    attempt: int,
    messaging: Messaging,
    random: Callable[[], float],
    retry_after: float | None = None,
) -> Retry | None:
    """The retry that follows failed attempt number ``attempt``, or None: the message is given up.

    ``retry_after`` (seconds) is what the handler asked for; it counts against the number of retries all the same.
    """
    options = message.delivery_options
    limit = messaging.max_retries if options.max_retries is None else options.max_retries
    if attempt > limit:
        return None
    if retry_after is not None:
        return Retry(max(0.0, retry_after))
    first = messaging.retry_delay_seconds if options.retry_delay is None else options.retry_delay
    return Retry(backoff(attempt, first, max(MAX_RETRY_DELAY_SECONDS, first), random))


def to_ms(seconds: float) -> int:
    """Whole milliseconds, at least 1."""
    return max(1, math.ceil(min(seconds, 1e10) * 1000))


def accepted_form(message: AgentMessage, messaging: Messaging) -> AgentMessage:
    """The message as it is sent: with the hive's ttl where it names none."""
    if "ttl" not in message.model_fields_set and message.ttl != messaging.ttl_seconds:
        return message.model_copy(update={"ttl": float(messaging.ttl_seconds)})
    return message


def document_of(message: AgentMessage, messaging: Messaging) -> bytes:
    """The message's JSON. Raises ValueError if no queue of the hive has room for it, not even an empty one."""
    document = message.to_json()
    most = messaging.queue.max_bytes
    if len(document) > most:
        raise ValueError(
            f"message has {len(document)} bytes as JSON, but a queue of this hive takes {most} (queue.maxBytes); "
            "send less, or raise the bound"
        )
    return document


def arguments_of(message: AgentMessage, messaging: Messaging) -> tuple[int, str, bytes, int, str]:
    """What the functions ``send`` and ``publish`` take of a message. Raises ValueError as ``document_of`` does."""
    return (
        lane_of(message.priority),
        message.message_id,
        document_of(message, messaging),
        to_ms(message.ttl),
        packed_options(message, messaging),
    )


def packed_options(message: AgentMessage, messaging: Messaging | None = None) -> str:
    """Delivery options in the form lua/prelude.lua reads (``options_of``).

    The deduplication key, first if there is one, is only for a message on its way to its queue: where ``messaging``
    gives it a window. Once accepted, a message is not compared again.
    """
    options = message.delivery_options
    words = []
    if options.deduplication_key is not None and messaging is not None:
        words.append(f"d{messaging.deduplication_seconds * 1000}:{encoded_key(options.deduplication_key)}")
    if options.ordering_key is not None:
        words.append(f"o{encoded_key(options.ordering_key)}")
        if options.on_fail == "halt":
            words.append("h1")
    if options.not_before is not None:
        words.append(f"b{max(0, int(options.not_before.timestamp() * 1000))}")
    if options.max_retries is not None:
        words.append(f"r{options.max_retries}")
    if not options.require_ack:
        words.append("k0")
    if message.reply_to is not None and message.reply_to.startswith("@"):
        words.append(f"y{message.reply_to[1:]} l{to_ms(message.ttl)}")
    return " ".join(words)


def encoded_key(key: str) -> str:
    """Any text as one word of ASCII."""
    return quote(key, safe="")


def decoded_key(word: bytes) -> str:
    """What ``encoded_key`` encoded."""
    return unquote(word.decode())


def lane_of(priority: MessagePriority) -> int:
    """Lane (1 to 4) of a priority."""
    return int(priority)
