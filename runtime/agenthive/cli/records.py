"""``agenthive log`` and ``agenthive metrics``: what PostgreSQL keeps of messages and figures."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import click

from agenthive.cli.letters import Moment
from agenthive.cli.options import Chosen, connection_options, run_async, settings_of
from agenthive.cli.output import first_line, print_json, print_table
from agenthive.cli.queues import local_time
from agenthive.cli.stores import store_of

if TYPE_CHECKING:
    from agenthive.store import Store

STATUSES = ("sent", "retried", "delivered", "failed", "expired")


class Duration(click.ParamType[timedelta]):
    """A length of time, such as ``30s``, ``5m``, ``1h`` or ``1d``."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        """Parse it; a usage error says how to write one."""
        units = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
        try:
            length = timedelta(**{units[value[-1:]]: float(value[:-1])})
        except (KeyError, ValueError, OverflowError):
            self.fail(f"{value!r} is no length of time; write 30s, 5m, 1h or 1d", param, ctx)
        return length


@click.command("log")
@click.argument("agent", required=False)
@click.option("--message", "message_id", metavar="ID", help="Of the message of this ID.")
@click.option("--status", type=click.Choice(STATUSES), help="Of this status.")
@click.option("--since", type=Moment(), metavar="TIME|AGE", help="Since then: a time, or 10m, 2h, 3d.")
@click.option("--limit", type=click.IntRange(1, 100_000), default=100, show_default=True, help="The latest so many.")
@connection_options
def log(chosen: Chosen, agent: str | None, **filters: Any) -> None:
    """Show the message log: what became of messages, as AGENT or all agents noted it, the latest last.

    A hive notes failures only, unless its spec.messaging.log is all.
    """
    run_async(_log(chosen, agent, **filters))


@click.command("metrics")
@click.argument("agent", required=False)
@click.option("--type", "metric_type", metavar="TYPE", help="Figures of this type. Default: list the types.")
@click.option("--since", type=Moment(), default="1h", show_default=True, metavar="TIME|AGE", help="Since then.")
@click.option("--until", type=Moment(), metavar="TIME|AGE", help="Before then. Default: now.")
@click.option("--step", type=Duration(), metavar="LENGTH", help="One line for each so long: 30s, 5m, 1h.")
@click.option("--percentile", type=click.FloatRange(0, 1), metavar="P", help="With --step: also this; 0.5: the median.")
@click.option("--limit", type=click.IntRange(1, 100_000), default=100, show_default=True, help="The latest so many.")
@connection_options
def metrics(chosen: Chosen, agent: str | None, **options: Any) -> None:
    """Show the figures that AGENT or all agents recorded: their types, those of one --type, or a --step at a time."""
    if options["metric_type"] is None and (options["step"] or options["percentile"] is not None):
        raise click.UsageError("--step and --percentile are of one type: give --type TYPE")
    if options["percentile"] is not None and options["step"] is None:
        raise click.UsageError("--percentile is one of each step: give --step LENGTH")
    run_async(_metrics(chosen, agent, **options))


async def _log(
    chosen: Chosen,
    agent: str | None,
    *,
    message_id: str | None,
    status: str | None,
    since: datetime | None,
    limit: int,
) -> None:
    settings = await settings_of(chosen)
    async with store_of(settings) as store:
        rows = await store.messages.recent(agent=agent, message_id=message_id, status=status, since=since, limit=limit)
    rows.reverse()
    if chosen.json:
        names = (
            "logged_at", "agent", "message_id", "status", "from_agent", "to_agent", "message_type", "attempts", "error",
            "created_at", "body",
        )  # fmt: skip
        print_json([{name: getattr(row, name) for name in names} for row in rows])
        return
    print_table(
        ("LOGGED", "AGENT", "MESSAGE", "STATUS", "FROM", "TO", "TYPE", "ATTEMPTS#", "ERROR"),
        [
            (
                local_time(row.logged_at),
                row.agent,
                row.message_id,
                row.status,
                row.from_agent,
                row.to_agent,
                row.message_type,
                row.attempts,
                first_line(row.error),
            )
            for row in rows
        ],
        empty=f"the message log of hive {settings.hive} has nothing of that",
    )


async def _metrics(
    chosen: Chosen,
    agent: str | None,
    *,
    metric_type: str | None,
    since: datetime,
    until: datetime | None,
    step: timedelta | None,
    percentile: float | None,
    limit: int,
) -> None:
    settings = await settings_of(chosen)
    until = until or datetime.now(UTC)
    async with store_of(settings) as store:
        if metric_type is None:
            columns, rows = await _types(store, agent, since, until, limit)
        elif step is None:
            columns, rows = await _figures(store, agent, metric_type, since, until, limit)
        else:
            columns, rows = await _series(store, agent, metric_type, since, until, step, percentile, limit)
    if chosen.json:
        names = [column.removesuffix("#").lower() for column in columns]
        print_json([dict(zip(names, row, strict=True)) for row in rows])
        return
    print_table(
        columns,
        [tuple(map(_shown, row)) for row in rows],
        empty=f"no such figures in hive {settings.hive} between {local_time(since)} and {local_time(until)}",
    )


Table = tuple[tuple[str, ...], list[tuple[Any, ...]]]


async def _types(store: Store, agent: str | None, since: datetime, until: datetime, limit: int) -> Table:
    found = await store.metrics.types(agent=agent, since=since, until=until, limit=limit)
    return (
        ("AGENT", "TYPE", "COUNT#", "LATEST"),
        [(one.agent_name, one.metric_type, one.count, one.latest) for one in found],
    )


async def _figures(
    store: Store, agent: str | None, metric_type: str, since: datetime, until: datetime, limit: int
) -> Table:
    found = await store.metrics.query(agent=agent, metric_type=metric_type, since=since, until=until, limit=limit)
    return (
        ("TIME", "AGENT", "VALUE#", "METADATA"),
        [(one.timestamp, one.agent_name, one.value, one.metadata) for one in reversed(found)],
    )


async def _series(
    store: Store,
    agent: str | None,
    metric_type: str,
    since: datetime,
    until: datetime,
    step: timedelta,
    percentile: float | None,
    limit: int,
) -> Table:
    found = await store.metrics.series(
        metric_type, agent=agent, since=since, until=until, step=step, percentile=percentile
    )
    columns = ("START", "COUNT#", "MIN#", "AVG#", "MAX#", "SUM#", "LAST#")
    rows: list[tuple[Any, ...]] = [
        (one.start, one.count, one.minimum, one.average, one.maximum, one.total, one.last) for one in found[-limit:]
    ]
    if percentile is None:
        return columns, rows
    return (*columns, "PERCENTILE#"), [(*row, one.percentile) for row, one in zip(rows, found[-limit:], strict=True)]


def _shown(cell: Any) -> Any:
    if isinstance(cell, datetime):
        return local_time(cell)
    return f"{cell:.6g}" if isinstance(cell, float) else cell
