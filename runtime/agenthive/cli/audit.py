"""``agenthive audit``: what was done, and whether the record of it is whole."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import click
import orjson

from agenthive.cli.letters import Moment
from agenthive.cli.options import Chosen, connection_options, run_async, settings_of
from agenthive.cli.output import print_json, print_table
from agenthive.cli.queues import local_time
from agenthive.cli.stores import store_of


@click.group()
def audit() -> None:
    """The audit trail: what was done, and whether the record of it is whole."""


@audit.command("list")
@click.option("--agent", metavar="NAME", help="By processes of this agent.")
@click.option("--actor", metavar="NAME", help="By this pod, or this person: user@host.")
@click.option("--action", metavar="ACTION", help="This action, such as dlq.purge.")
@click.option("--subject", metavar="TEXT", help="About this, such as a message's ID.")
@click.option("--since", type=Moment(), metavar="TIME|AGE", help="Since then: a time, or 10m, 2h, 3d.")
@click.option("--limit", type=click.IntRange(1, 100_000), default=100, show_default=True, help="The latest so many.")
@connection_options
def list_rows(chosen: Chosen, **filters: Any) -> None:
    """List what was done, the latest last."""
    run_async(_list(chosen, **filters))


@audit.command()
@click.option(
    "--checkpoint",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="What `audit checkpoint` printed: also finds rows that were cut off at the end.",
)
@connection_options
def verify(chosen: Chosen, checkpoint: Path | None) -> None:
    """Check every row of the trail; for each chain say what is wrong first. Exit code 1 if anything is."""
    run_async(_verify(chosen, checkpoint))


@audit.command()
@connection_options
def checkpoint(chosen: Chosen) -> None:
    """Print, as JSON, how far each chain is: for `audit verify`, kept where the database's owner cannot write."""
    run_async(_checkpoint(chosen))


async def _list(chosen: Chosen, *, since: datetime | None, limit: int, **filters: str | None) -> None:
    settings = await settings_of(chosen)
    async with store_of(settings) as store:
        rows = await store.audit.recent(since=since, limit=limit, **filters)
    rows.reverse()
    if chosen.json:
        print_json(
            [
                {
                    "at": row.at,
                    "agent": row.agent,
                    "actor": row.actor,
                    "action": row.action,
                    "subject": row.subject,
                    "details": orjson.loads(row.details),
                    "chain": row.chain,
                    "seq": row.seq,
                    "hash": row.hash.hex(),
                }
                for row in rows
            ]
        )
        return
    print_table(
        ("AT", "AGENT", "ACTOR", "ACTION", "SUBJECT", "DETAILS"),
        [
            (
                local_time(row.at),
                row.agent or None,
                row.actor,
                row.action,
                row.subject,
                None if row.details == "{}" else row.details,
            )
            for row in rows
        ],
        empty=f"the audit trail of hive {settings.hive} has nothing of that",
    )


async def _verify(chosen: Chosen, file: Path | None) -> None:
    from agenthive.store.audit import load_checkpoint  # noqa: PLC0415 - asyncpg costs 50 ms
    from agenthive.store.naming import schema_name  # noqa: PLC0415 - as above

    settings = await settings_of(chosen)
    text = None if file is None else file.read_text(encoding="utf-8")  # noqa: ASYNC240 - nothing else runs here
    known = None if text is None else load_checkpoint(text, schema_name(settings.scope))
    async with store_of(settings) as store:
        found = await store.audit.verify(known)
    if chosen.json:
        print_json(
            {
                "ok": not found.findings,
                "rows": found.rows,
                "chains": found.chains,
                "findings": [
                    {"chain": one.chain, "seq": one.seq, "at": one.at, "kind": one.kind, "text": one.text}
                    for one in found.findings
                ],
            }
        )
    elif found.findings:
        print_table(
            ("CHAIN", "SEQ#", "AT", "KIND", "WHAT IS WRONG"),
            [(one.chain, one.seq, local_time(one.at), one.kind, one.text) for one in found.findings],
            empty="",
        )
    else:
        click.echo(f"{found.rows} rows in {found.chains} chains: nothing is wrong")
    if found.findings:
        raise click.exceptions.Exit(1)


async def _checkpoint(chosen: Chosen) -> None:
    from agenthive.store.audit import dump_checkpoint  # noqa: PLC0415 - as above

    async with store_of(await settings_of(chosen)) as store:
        print_json(dump_checkpoint(store.schema, await store.audit.heads()))
