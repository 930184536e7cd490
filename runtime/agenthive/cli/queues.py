"""``agenthive status`` and ``agenthive dlq``: what waits, what runs, what was given up."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from agenthive.cli.options import Chosen, bus_of, connection_options, run_async, settings_of
from agenthive.cli.output import ago, first_line, print_json, print_table

if TYPE_CHECKING:
    from agenthive.bus import DeadLetter, MessageStatus, QueueStats


@click.command()
@click.argument("agent", required=False)
@click.argument("message_id", required=False)
@connection_options
def status(chosen: Chosen, agent: str | None, message_id: str | None) -> None:
    """Show the queues of the hive's agents, of one AGENT, or what became of one message."""
    run_async(_message(chosen, agent, message_id) if agent and message_id else _queues(chosen, agent))


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


async def _queues(chosen: Chosen, agent: str | None) -> None:
    settings = await settings_of(chosen)
    async with bus_of(settings) as bus:
        queues = await bus.queues([agent] if agent else sorted(await bus.agents()))
    if chosen.json:
        print_json([queue_document(name, queue) for name, queue in queues.items()])
        return
    print_table(
        ("AGENT", "BACKLOG#", "IN FLIGHT#", "DELAYED#", "DEAD LETTERS#", "OLDEST#"),
        [
            (name, queue.backlog, queue.in_flight, queue.delayed, queue.dead_letters, ago(queue.oldest))
            for name, queue in queues.items()
        ],
        empty=f"no agent has run in hive {settings.hive} yet",
    )


def queue_document(agent: str, queue: QueueStats) -> dict[str, Any]:
    """An agent's queue as JSON."""
    return {
        "agent": agent,
        "backlog": queue.backlog,
        "backlog_by_priority": {priority.name.lower(): count for priority, count in queue.backlog_by_priority.items()},
        "in_flight": queue.in_flight,
        "delayed": queue.delayed,
        "dead_letters": queue.dead_letters,
        "oldest": queue.oldest,
    }


async def _message(chosen: Chosen, agent: str, message_id: str) -> None:
    async with bus_of(await settings_of(chosen)) as bus:
        found = await bus.status(agent, message_id)
    if chosen.json:
        print_json(status_document(agent, found))
    else:
        print_status(agent, found)


def status_document(agent: str, found: MessageStatus) -> dict[str, Any]:
    """What became of a message as JSON."""
    return {
        "agent": agent,
        "message_id": found.message_id,
        "status": found.status,
        "attempts": found.attempts,
        "error": found.error,
        "accepted_at": found.accepted_at,
        "claimed_at": found.claimed_at,
        "finished_at": found.finished_at,
    }


def print_status(agent: str, found: MessageStatus) -> None:
    """What became of a message, for people."""
    print_table(
        ("AGENT", "MESSAGE", "STATUS", "ATTEMPTS#", "ACCEPTED", "FINISHED", "ERROR"),
        [
            (
                agent,
                found.message_id,
                found.status,
                found.attempts,
                _moment(found.accepted_at),
                _moment(found.finished_at),
                first_line(found.error),
            )
        ],
        empty="",
    )


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
                _moment(letter.died_at),
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


def _moment(moment: datetime | None) -> str | None:
    """Local time to the second."""
    return f"{moment.astimezone():%Y-%m-%d %H:%M:%S}" if moment else None
