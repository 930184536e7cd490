"""``agenthive db``: the hive's schema in PostgreSQL."""

from __future__ import annotations

import click

from agenthive.cli.options import Chosen, connection_options, run_async, settings_of
from agenthive.cli.output import print_json
from agenthive.cli.stores import store_of, url_of


@click.group()
def db() -> None:
    """The hive's schema in PostgreSQL."""


@db.command()
@connection_options
def upgrade(chosen: Chosen) -> None:
    """Create the schema or bring it up to date. Repeating it is harmless, and so is running it twice at once."""
    run_async(_upgrade(chosen))


@db.command()
@connection_options
def status(chosen: Chosen) -> None:
    """Show which version the schema has and what is missing. Exit code 1 if something is."""
    run_async(_status(chosen))


@db.command()
@connection_options
def maintain(chosen: Chosen) -> None:
    """Make the partitions of the days to come, drop what is past its retention. The operator does it daily."""
    run_async(_maintain(chosen))


async def _target(chosen: Chosen) -> tuple[str, str]:
    settings = await settings_of(chosen)
    from agenthive.store import schema_name  # noqa: PLC0415 - asyncpg costs 50 ms

    return url_of(settings), schema_name(settings.scope)


async def _upgrade(chosen: Chosen) -> None:
    from agenthive.store import upgrade as apply  # noqa: PLC0415 - as above

    url, schema = await _target(chosen)
    applied = await apply(url, schema)
    if chosen.json:
        print_json({"schema": schema, "applied": [{"version": step.version, "name": step.name} for step in applied]})
    elif not applied:
        click.echo(f"{schema} is up to date")
    for step in () if chosen.json else applied:
        click.echo(f"{schema}: applied {step.version} {step.name}")


async def _maintain(chosen: Chosen) -> None:
    settings = await settings_of(chosen)
    async with store_of(settings) as store:
        dropped = await store.retain(settings.retention)
        made = await store.maintain(retention=settings.retention)
    if chosen.json:
        print_json({"schema": store.schema, "made": made, "dropped": dropped})
        return
    for verb, names in (("made", made), ("dropped", dropped)):
        for name in names:
            click.echo(f"{store.schema}: {verb} {name}")
    if not made and not dropped:
        click.echo(f"{store.schema}: nothing was due")


async def _status(chosen: Chosen) -> None:
    from agenthive.store import schema_status  # noqa: PLC0415 - as above

    url, schema = await _target(chosen)
    found = await schema_status(url, schema)
    pending = [{"version": step.version, "name": step.name} for step in found.pending]
    if chosen.json:
        print_json({"schema": schema, "current": found.current, "latest": found.latest, "pending": pending})
    else:
        click.echo(f"{schema}: version {found.current} of {found.latest}")
        for step in pending:
            click.echo(f"pending: {step['version']} {step['name']}")
    if pending:
        raise click.exceptions.Exit(1)
