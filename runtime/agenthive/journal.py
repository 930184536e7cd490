"""What an agent process writes down about messages: rows of the message log, and of the audit trail.

Both are written behind the back of whoever sends and handles; under the policy ``failures`` a message that goes well is
no work at all.
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agenthive.protocol import AgentMessage
    from agenthive.store import Store
    from agenthive.telemetry import Telemetry

log = logging.getLogger(__name__)

SENT = "sent"


class Journal:
    """The message log and the audit trail of one agent process.

    Args:
        store: where they are.
        agent: its name.
        figures: where rows that cannot be written are counted.
    """

    def __init__(self, store: Store, agent: str, figures: Telemetry) -> None:
        self._log = store.messages
        self._audit = store.audit
        self._agent = agent
        self._figures = figures
        #: Whether also what goes well is written down.
        self.everything = store.messages.policy == "all"

    def sent(self, message: AgentMessage) -> None:
        """The bus has accepted a message of this process."""
        if message.delivery_options.persistent:
            self.note(message.message_id, message, SENT, None, 0)

    def note(
        self,
        message_id: str,
        message: AgentMessage | None,
        status: str,
        error: str | None,
        attempts: int,
        *,
        why: str | None = None,
    ) -> None:
        """A message has taken a status; of what is no message (None) there is little to say.

        Args:
            message_id: of the message.
            message: itself.
            status: ``sent``, ``retried``, ``delivered``, ``failed`` or ``expired``.
            error: why, for the message log.
            attempts: how often it was tried.
            why: what the audit trail calls it where that is more than the status: ``rejected``, ``crashed`` …
        """
        from agenthive.store import InvalidValue  # noqa: PLC0415 - asyncpg, which an agent without a store never loads

        if not self._log.wants(status):
            return
        sender, recipient = (message.from_agent, message.to_agent) if message else ("", self._agent)
        message_type = message.message_type if message else ""
        try:
            self._log.record(
                message_id,
                from_agent=sender,
                to_agent=recipient,
                message_type=message_type,
                status=status,
                attempts=attempts,
                created_at=message.timestamp if message else datetime.now(UTC),
                error=error,
                body=message.body if message else None,
            )
        except InvalidValue as unfit:
            self._figures.store_errors["message_log"] += 1
            log.warning("not written to the message log: %s", unfit)
        # Neither body nor error: what is in the trail can never be taken out again.
        self._audit.note(
            f"message.{why or status}",
            message_id,
            {"from": sender, "to": recipient, "type": message_type, "attempts": attempts},
        )
