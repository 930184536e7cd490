"""``agenthive publish`` and ``agenthive topics``: to every agent that listens, and who that is."""

from __future__ import annotations

from functools import partial
from typing import Any

import click

from agenthive.cli.messages import message_from, message_options
from agenthive.cli.options import Chosen, bus_of, connection_options, run_async, settings_of
from agenthive.cli.output import print_json, print_table


@click.command()
@partial(message_options, recipient="TOPIC")
@click.option(
    "--ttl",
    type=click.FloatRange(min=0, min_open=True),
    help="Seconds until a copy expires. Default: the topics' retention.",
)
@click.option("--delay", type=click.FloatRange(min=0), help="Seconds before it may be handled.")
@connection_options
def publish(chosen: Chosen, agent: str, ttl: float | None, **options: Any) -> None:
    """Publish a message of TYPE to TOPIC and print its id: each subscribed agent gets a copy."""
    run_async(_publish(chosen, agent, ttl, options))


@click.command()
@connection_options
def topics(chosen: Chosen) -> None:
    """Show the hive's topics, who is subscribed, and how many messages each agent has still to get."""
    run_async(_topics(chosen))


async def _publish(chosen: Chosen, topic: str, ttl: float | None, options: dict[str, Any]) -> None:
    settings = await settings_of(chosen)
    retention = settings.messaging.topics.retention_seconds
    message = message_from(settings, agent=f"#{topic}", ttl=retention if ttl is None else ttl, **options)
    async with bus_of(settings) as bus:
        message_id = await bus.publish(topic, message)
    if chosen.json:
        print_json({"topic": topic, "message_id": message_id})
    else:
        click.echo(message_id)


async def _topics(chosen: Chosen) -> None:
    settings = await settings_of(chosen)
    async with bus_of(settings) as bus:
        found = await bus.topics()
    if chosen.json:
        print_json([{"topic": topic.topic, "length": topic.length, "behind": topic.behind} for topic in found])
        return
    print_table(
        ("TOPIC", "KEPT#", "AGENT", "BEHIND#"),
        [
            (topic.topic, topic.length, agent, behind)
            for topic in found
            for agent, behind in (topic.behind.items() or [(None, None)])
        ],
        empty=f"nothing was published in hive {settings.hive}, and no agent is subscribed",
    )
