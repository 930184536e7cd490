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
from agenthive.bus.model import DeadLetter, Delivery, MessageStatus, QueueStats

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
    "QueueFull",
    "QueueStats",
    "RequestFailed",
    "RequestTimeout",
]
