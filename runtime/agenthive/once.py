"""How far one handling is with its transaction. What the worker asks of every handling, so it loads nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from uuid import UUID

    from agenthive.protocol import AgentMessage


class AlreadyHandled(BaseException):
    """The message's effects were committed before: nothing is to be done again.

    Raised where a transaction is entered and caught by the worker alone, which acknowledges the message. No
    ``Exception``, so that a handler's ``except Exception`` lets it pass.
    """


class Progress:
    """What the transactions of one handling have come to."""

    __slots__ = ("again", "committed", "open", "reply", "reply_row")

    def __init__(self) -> None:
        #: A transaction is open now.
        self.open = False
        #: The message's effects are committed: whatever happens, it is done.
        self.committed = False
        #: They were committed by an earlier handling.
        self.again = False
        #: The reply that was committed with them, and its row in the outbox.
        self.reply: AgentMessage | None = None
        self.reply_row: UUID | None = None
