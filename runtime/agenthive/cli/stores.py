"""The hive's PostgreSQL, for commands: reading from it, and telling the audit trail what a person did."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from agenthive.settings import Settings
    from agenthive.store import Store

CLIENT = "agenthive-cli"
#: How long a command waits for PostgreSQL to take its audit row, seconds.
AUDIT_SECONDS = 5.0


def url_of(settings: Settings) -> str:
    """The URL of the hive's PostgreSQL: the direct one where there is one.

    Raises:
        click.ClickException: it names none.
    """
    url = settings.postgres_direct_url or settings.postgres_url
    if url is None:
        raise click.ClickException(f"hive {settings.hive} names no PostgreSQL: set AGENTHIVE_POSTGRES_URL")
    return url.get_secret_value()


@asynccontextmanager
async def store_of(settings: Settings) -> AsyncIterator[Store]:
    """The chosen hive's store, closed afterwards."""
    url = url_of(settings)
    from agenthive.settings import PostgresPool  # noqa: PLC0415 - pydantic costs 200 ms that `--help` does not have
    from agenthive.store import Store  # noqa: PLC0415 - asyncpg costs 50 ms
    from agenthive.store.audit import person  # noqa: PLC0415 - as above

    async with await Store.connect(
        url,
        settings.scope,
        agent=CLIENT,
        pool=PostgresPool(min_size=1, max_size=1),
        application_name=CLIENT,
        process=person(),
    ) as store:
        yield store


async def tell_audit(settings: Settings, action: str, subject: str, details: dict[str, Any]) -> None:
    """Record what a person has done, if the hive has a PostgreSQL. What was done is done: a failure is a warning."""
    if settings.postgres_url is None and settings.postgres_direct_url is None:
        return
    from agenthive.settings import PostgresPool  # noqa: PLC0415 - as above
    from agenthive.store import StoreError, schema_name  # noqa: PLC0415 - as above
    from agenthive.store.audit import TOOL, AuditTrail, person  # noqa: PLC0415 - as above
    from agenthive.store.database import Database  # noqa: PLC0415 - as above

    async def write() -> None:
        database = await Database.connect(
            url_of(settings), pool=PostgresPool(min_size=1, max_size=1), application_name=CLIENT
        )
        try:
            who = person()
            # In a pod (kubectl hive runs it there) the login is the agent's, which may write rows of this agent alone.
            agent = settings.agent or TOOL
            trail = AuditTrail(database, schema_name(settings.scope), agent, actor=who, process=f"cli/{who}")
            await trail.record(action, subject, details)
            await trail.aclose(AUDIT_SECONDS)
        finally:
            await database.aclose()

    try:
        async with asyncio.timeout(AUDIT_SECONDS):
            await write()
    except (StoreError, TimeoutError) as error:
        why = str(error) or f"PostgreSQL did not answer within {AUDIT_SECONDS:g} s"
        click.echo(f"warning: this was done, but it is not in the audit trail: {why}", err=True)
