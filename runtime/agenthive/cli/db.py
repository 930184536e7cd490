"""``agenthive db``: the hive's schema in PostgreSQL."""

from __future__ import annotations

import click

from agenthive.cli.options import Chosen, connection_options, run_async, settings_of
from agenthive.cli.output import print_json


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


async def _target(chosen: Chosen) -> tuple[str, str]:
    settings = await settings_of(chosen)
    from agenthive.store import schema_name  # noqa: PLC0415 - asyncpg costs 50 ms

    if settings.postgres_url is None:
        raise click.ClickException(f"hive {settings.hive} names no PostgreSQL: set AGENTHIVE_POSTGRES_URL")
    return settings.postgres_url.get_secret_value(), schema_name(settings.scope)


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
