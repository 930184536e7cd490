"""``agenthive status``, ``watch`` and ``cancel``: what waits, what runs, what became of it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import click

from agenthive.cli.options import Chosen, bus_of, connection_options, run_async, settings_of
from agenthive.cli.output import ago, first_line, print_json, print_table, size
from agenthive.cli.stores import tell_audit

if TYPE_CHECKING:
    from agenthive.bus import MessageStatus, QueueStats

Rates = dict[str, float | None]
RATE_COLUMNS: Final = ("IN/S#", "OUT/S#", "GIVEN UP/S#")
#: How far apart the two looks are that make a rate.
LOOK_SECONDS: Final = 1.0


@click.command()
@click.argument("agent", required=False)
@click.argument("message_id", required=False)
@click.option("--rates", is_flag=True, help="Look twice, a second apart: messages per second in, out and given up.")
@connection_options
def status(chosen: Chosen, agent: str | None, message_id: str | None, rates: bool) -> None:
    """Show the queues of the hive's agents, of one AGENT, or what became of one message."""
    if rates and message_id:
        raise click.UsageError("--rates are those of queues: leave out the message")
    run_async(_message(chosen, agent, message_id) if agent and message_id else _queues(chosen, agent, rates=rates))


@click.command()
@click.argument("agent")
@click.argument("message_id")
@click.option("--timeout", type=click.FloatRange(min=0, min_open=True), help="Seconds. Default: until it is final.")
@connection_options
def watch(chosen: Chosen, agent: str, message_id: str, timeout: float | None) -> None:
    """Follow a message to AGENT, a line for each change, until it is final; exit code 1 if it failed or expired."""
    run_async(_watch(chosen, agent, message_id, timeout))


@click.command()
@click.argument("agent")
@click.argument("message_id")
@click.option("--reason", default="", metavar="TEXT", help="Why; part of its error, and told to whoever asked.")
@connection_options
def cancel(chosen: Chosen, agent: str, message_id: str, reason: str) -> None:
    """Take a message to AGENT that waits, is delayed or is to be retried out of the queue.

    Prints cancelled, or, with exit code 1: running, finished or unknown; then nothing was done.
    """
    run_async(_cancel(chosen, agent, message_id, reason))


async def _queues(chosen: Chosen, agent: str | None, *, rates: bool) -> None:
    settings = await settings_of(chosen)
    async with bus_of(settings) as bus:
        names = [agent] if agent else sorted(await bus.agents())
        clock = asyncio.get_running_loop().time
        before, then = (await bus.queues(names) if rates else {}), clock()
        if rates:
            await asyncio.sleep(LOOK_SECONDS)
        queues, now = await bus.queues(names), clock()
    documents = [queue_document(name, queue) for name, queue in queues.items()]
    if rates:
        for document in documents:
            former = queue_document(document["agent"], before[document["agent"]])
            document["rates"] = rates_of(former, document, now - then)
    if chosen.json:
        print_json(documents)
        return
    print_table(
        (
            "AGENT", "BACKLOG#", "IN FLIGHT#", "DELAYED#", "DEAD LETTERS#", "OLDEST#", "SIZE#", "HALTED#",
            *(RATE_COLUMNS if rates else ()),
        ),
        [
            (
                document["agent"],
                document["backlog"],
                document["in_flight"],
                document["delayed"],
                document["dead_letters"],
                ago(document["oldest"]),
                size(document["bytes"]),
                document["halted_keys"],
                *(rate_cells(document["rates"]) if rates else ()),
            )
            for document in documents
        ],
        empty=f"no agent has run in hive {settings.hive} yet",
    )  # fmt: skip
    for name, queue in queues.items():
        if queue.dead_letters_dropped:
            click.echo(f"{name}: {queue.dead_letters_dropped} dead letters were dropped, there were too many", err=True)
        if queue.replies_dropped:
            click.echo(f"{name}: {queue.replies_dropped} replies were dropped, their asker was gone", err=True)


def queue_document(agent: str, queue: QueueStats) -> dict[str, Any]:
    """An agent's queue as JSON."""
    return {
        "agent": agent,
        "backlog": queue.backlog,
        "backlog_by_priority": {priority.name.lower(): count for priority, count in queue.backlog_by_priority.items()},
        "in_flight": queue.in_flight,
        "delayed": queue.delayed,
        "dead_letters": queue.dead_letters,
        "dead_letters_dropped": queue.dead_letters_dropped,
        "replies_dropped": queue.replies_dropped,
        "oldest": queue.oldest,
        "bytes": queue.bytes,
        "blocked": queue.blocked,
        "halted_keys": queue.halted,
        "arrived": queue.arrived,
        "finished": queue.finished,
        "given_up": queue.given_up,
    }


def rates_of(before: Mapping[str, Any], after: Mapping[str, Any], seconds: float) -> Rates:
    """Messages per second between two looks at a queue, as documents; None of what either does not know. Pure.

    ``in``: became ready to be claimed; ``out``: finished, whatever way; ``given_up``: became dead letters.
    """
    found: Rates = {}
    for name, counter in (("in", "arrived"), ("out", "finished"), ("given_up", "given_up")):
        old, new = before.get(counter), after.get(counter)
        # Fewer than before: it is another server, or an emptied one.
        if old is None or new is None or new < old or seconds <= 0:
            found[name] = None
        else:
            found[name] = round((new - old) / seconds, 1)
    return found


def rate_cells(rates: Rates) -> tuple[str | None, ...]:
    """The cells below ``RATE_COLUMNS``."""
    return tuple(None if rate is None else f"{rate:g}" for rate in rates.values())


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
        "detail": found.detail,
        "attempts": found.attempts,
        "error": found.error,
        "accepted_at": found.accepted_at,
        "first_claimed_at": found.first_claimed_at,
        "claimed_at": found.claimed_at,
        "finished_at": found.finished_at,
        "due_at": found.due_at,
    }


def print_status(agent: str, found: MessageStatus) -> None:
    """What became of a message, for people."""
    print_table(
        ("AGENT", "MESSAGE", "STATUS", "ATTEMPTS#", "ACCEPTED", "FINISHED", "ERROR"),
        [
            (
                agent,
                found.message_id,
                _state(found),
                found.attempts,
                local_time(found.accepted_at),
                local_time(found.finished_at),
                first_line(found.error),
            )
        ],
        empty="",
    )


async def _watch(chosen: Chosen, agent: str, message_id: str, timeout: float | None) -> None:
    async with bus_of(await settings_of(chosen)) as bus:
        async for found in bus.watch(agent, message_id, timeout):
            if chosen.json:
                print_json(status_document(agent, found), indent=False)
            else:
                click.echo(f"{local_time(datetime.now(UTC))}  {_change(found)}")
    if found.status != "delivered":
        raise click.exceptions.Exit(1)


async def _cancel(chosen: Chosen, agent: str, message_id: str, reason: str) -> None:
    settings = await settings_of(chosen)
    async with bus_of(settings) as bus:
        result = await bus.cancel(agent, message_id, reason)
    if result == "cancelled":
        await tell_audit(settings, "message.cancel", message_id, {"agent": agent, "reason": reason[:500]})
    if chosen.json:
        print_json({"agent": agent, "message_id": message_id, "result": result})
    else:
        click.echo(result)
    if result != "cancelled":
        raise click.exceptions.Exit(1)


def _change(found: MessageStatus) -> str:
    """A status as one line for people."""
    parts = [_state(found)]
    if found.attempts:
        parts.append(f"attempt {found.attempts}")
    if found.due_at is not None:
        parts.append(f"due {local_time(found.due_at)}")
    if found.error is not None:
        parts.append(first_line(found.error) or "")
    return "  ".join(parts)


def _state(found: MessageStatus) -> str:
    return f"{found.status} ({found.detail.replace('_', ' ')})" if found.detail else found.status


def local_time(moment: datetime | None) -> str | None:
    """Local time to the second."""
    return f"{moment.astimezone():%Y-%m-%d %H:%M:%S}" if moment else None
