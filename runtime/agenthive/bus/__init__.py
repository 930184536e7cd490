"""The message bus over Redis Streams."""

from agenthive.bus.bus import Bus
from agenthive.bus.consumer import Consumer
from agenthive.bus.errors import (
    BusError,
    BusUnavailable,
    ConsumerStopped,
    HiveMoving,
    LeaseLost,
    QueueFull,
    RequestFailed,
    RequestTimeout,
)
from agenthive.bus.model import (
    CancelResult,
    DeadLetter,
    DeadLetters,
    Delivery,
    Firing,
    GivenUp,
    HaltedKey,
    LetterFilter,
    LetterProblem,
    LetterReport,
    MessageStatus,
    PendingState,
    QueueStats,
)
from agenthive.bus.topics import TopicStats

__all__ = [
    "Bus",
    "BusError",
    "BusUnavailable",
    "CancelResult",
    "Consumer",
    "ConsumerStopped",
    "DeadLetter",
    "DeadLetters",
    "Delivery",
    "Firing",
    "GivenUp",
    "HaltedKey",
    "HiveMoving",
    "LeaseLost",
    "LetterFilter",
    "LetterProblem",
    "LetterReport",
    "MessageStatus",
    "PendingState",
    "QueueFull",
    "QueueStats",
    "RequestFailed",
    "RequestTimeout",
    "TopicStats",
]
