"""``agenthive dlq``: dead letters, the messages that were given up."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from agenthive.cli.options import Chosen, bus_of, connection_options, run_async, settings_of
from agenthive.cli.output import first_line, print_json, print_table
from agenthive.cli.queues import local_time

if TYPE_CHECKING:
    from agenthive.bus import DeadLetter


@click.group()
def dlq() -> None:
    """Dead letters: messages that were given up."""


@dlq.command("list")
@click.argument("agent")
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True, help="At most this many.")
@click.option("--after", metavar="ID", help="Go on after the dead letter of this ID.")
@connection_options
def list_dead_letters(chosen: Chosen, agent: str, limit: int, after: str | None) -> None:
    """List AGENT's dead letters with the reason each died of."""
    run_async(_dead_letters(chosen, agent, limit, after))


async def _dead_letters(chosen: Chosen, agent: str, limit: int, after: str | None) -> None:
    async with bus_of(await settings_of(chosen)) as bus:
        letters = await bus.dead_letters(agent, limit=limit, after=after)
    if chosen.json:
        print_json([dead_letter_document(letter) for letter in letters])
        return
    print_table(
        ("ID", "MESSAGE", "TYPE", "REASON", "ATTEMPTS#", "DIED", "ERROR"),
        [
            (
                letter.id,
                letter.message and letter.message.message_id,
                letter.message and letter.message.message_type,
                letter.reason,
                letter.attempts,
                local_time(letter.died_at),
                first_line(letter.error),
            )
            for letter in letters
        ],
        empty=f"{agent} has no dead letters",
    )


def dead_letter_document(letter: DeadLetter) -> dict[str, Any]:
    """A dead letter as JSON; ``raw`` is there where it is no message."""
    document = {
        "id": letter.id,
        "reason": letter.reason,
        "error": letter.error,
        "attempts": letter.attempts,
        "died_at": letter.died_at,
        "message": letter.message and letter.message.model_dump(mode="json", exclude_none=True),
    }
    if letter.message is None:
        document["raw"] = letter.raw.decode(errors="replace")
    return document
