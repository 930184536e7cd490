"""``agenthive resume``: ordering keys that a message with ``on_fail: halt`` has halted."""

from __future__ import annotations

import click

from agenthive.cli.options import Chosen, bus_of, connection_options, run_async, settings_of
from agenthive.cli.output import print_json, print_table
from agenthive.cli.stores import tell_audit


@click.command()
@click.argument("agent")
@click.argument("key", required=False)
@connection_options
def resume(chosen: Chosen, agent: str, key: str | None) -> None:
    """Let a halted ordering KEY of AGENT go on with its next message; without KEY, list the halted ones.

    The dead letter that halted it stays. To handle that message first, redrive it instead.
    """
    run_async(_list(chosen, agent) if key is None else _resume(chosen, agent, key))


async def _list(chosen: Chosen, agent: str) -> None:
    async with bus_of(await settings_of(chosen)) as bus:
        found = await bus.halted(agent)
    if chosen.json:
        print_json([{"key": one.key, "dead_letter": one.letter, "waiting": one.waiting} for one in found])
        return
    print_table(
        ("KEY", "WAITING#", "DEAD LETTER"),
        [(one.key, one.waiting, one.letter) for one in found],
        empty=f"{agent} has no halted ordering keys",
    )


async def _resume(chosen: Chosen, agent: str, key: str) -> None:
    settings = await settings_of(chosen)
    async with bus_of(settings) as bus:
        resumed = await bus.resume(agent, key)
    if resumed:
        await tell_audit(settings, "key.resume", key, {"agent": agent})
    if chosen.json:
        print_json({"agent": agent, "key": key, "resumed": resumed})
    elif resumed:
        click.echo(f"{key} goes on")
    if not resumed:
        raise click.ClickException(
            f"ordering key {key!r} of {agent} is not halted; `agenthive resume {agent}` lists those that are"
        )
