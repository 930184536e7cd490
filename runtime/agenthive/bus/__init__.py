"""The message bus over Redis Streams."""

from agenthive.bus.bus import Bus
from agenthive.bus.consumer import Consumer
from agenthive.bus.errors import (
    BusError,
    BusUnavailable,
    ConsumerStopped,
    LeaseLost,
    QueueFull,
    RequestFailed,
    RequestTimeout,
)
from agenthive.bus.model import DeadLetter, Delivery, MessageStatus, PendingState, QueueStats

__all__ = [
    "Bus",
    "BusError",
    "BusUnavailable",
    "Consumer",
    "ConsumerStopped",
    "DeadLetter",
    "Delivery",
    "LeaseLost",
    "MessageStatus",
    "PendingState",
    "QueueFull",
    "QueueStats",
    "RequestFailed",
    "RequestTimeout",
]
