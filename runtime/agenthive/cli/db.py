"""``agenthive db``: the hive's schema in PostgreSQL."""

from __future__ import annotations

import click

from agenthive.cli.options import Chosen, connection_options, run_async, settings_of
from agenthive.cli.output import ago, print_json, print_table
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


@db.command()
@click.option("--sql", is_flag=True, help="Print the SQL that makes the roles, for psql, and change nothing.")
@click.option("--agent", "agents", multiple=True, metavar="NAME", help="With --sql: an agent that gets a login.")
@connection_options
def roles(chosen: Chosen, sql: bool, agents: tuple[str, ...]) -> None:
    """List the hive's database roles, or print the SQL that makes them where the operator may not.

    An agent has two logins while its credentials rotate; the older one goes.
    """
    if agents and not sql:
        raise click.UsageError("--agent goes with --sql: logins are made by an administrator")
    run_async(_print_roles_sql(chosen, agents) if sql else _list_roles(chosen))


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


async def _print_roles_sql(chosen: Chosen, agents: tuple[str, ...]) -> None:
    settings = await settings_of(chosen)
    from agenthive.store import schema_name  # noqa: PLC0415 - as above
    from agenthive.store.roles import roles_sql  # noqa: PLC0415 - as above

    click.echo(roles_sql(schema_name(settings.scope), agents), nl=False)


async def _list_roles(chosen: Chosen) -> None:
    from agenthive.store.database import Address, close_once, connect_once  # noqa: PLC0415 - as above
    from agenthive.store.roles import known_groups, known_logins  # noqa: PLC0415 - as above

    url, schema = await _target(chosen)
    connection = await connect_once(Address.parse(url), "agenthive db roles")
    try:
        groups = await known_groups(connection, schema)
        logins = await known_logins(connection, schema)
    finally:
        await close_once(connection)
    # An agent's logins side by side, the older first: while its credentials rotate it has two.
    logins.sort(key=lambda login: (login.agent, login.made))
    if chosen.json:
        print_json(
            [{"role": role, "kind": kind, "agent": None, "made": None} for kind, role in groups.items()]
            + [{"role": login.role, "kind": "agent", "agent": login.agent, "made": login.made} for login in logins]
        )
        return
    rows: list[tuple[str, str, str | None, str | None]] = [(role, kind, None, None) for kind, role in groups.items()]
    rows += [(login.role, "agent", login.agent, ago(login.made)) for login in logins]
    print_table(["ROLE", "KIND", "AGENT", "AGE"], rows, empty=f"{schema} has no database roles: one login owns it all")
