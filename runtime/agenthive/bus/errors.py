"""What can go wrong on the bus, one class per thing a caller may want to treat differently."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agenthive.bus.model import MessageStatus


class BusError(Exception):
    """Base of every error of the bus."""


class BusUnavailable(BusError):  # noqa: N818 - reads as what it is
    """Redis cannot be used: unreachable, wrong password, too old, out of memory. The text says which."""


class AccessDenied(BusUnavailable):
    """Redis refuses the user, the password or a command this user needs."""


class FunctionsMissing(BusUnavailable):
    """Redis lacks the functions of this version, and this user may not load them: somebody else is to do so."""


class HiveMoving(BusUnavailable):
    """The hive moves to another Redis and takes nothing new meanwhile; the message was not accepted. Send it later."""


class NotReplicated(BusUnavailable):
    """No replica confirmed what was sent (``durability: replicated``); the message may have been accepted."""


class QueueFull(BusError):  # noqa: N818
    """The recipient's queue stayed at its bound until the sender's deadline; the message was not accepted."""


class LeaseLost(BusError):  # noqa: N818
    """The message no longer belongs to this process: its lease ran out and another one has it. Drop the result."""


class ConsumerStopped(BusError):  # noqa: N818
    """``claim`` was called on, or interrupted by, a consumer that was stopped."""


class RequestTimeout(BusError, TimeoutError):  # noqa: N818
    """No reply came in time. ``status`` is where the request stands, as far as Redis could be asked."""

    def __init__(self, text: str, status: MessageStatus | None) -> None:
        super().__init__(text)
        self.status = status


class RequestFailed(BusError):  # noqa: N818
    """The request was given up: retries used up, rejected or expired. ``error`` is the recipient's reason."""

    def __init__(self, error: str) -> None:
        super().__init__(error)
        self.error = error
