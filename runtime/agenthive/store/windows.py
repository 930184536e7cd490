"""Reading the newest rows of a table that is partitioned by day, at a cost that does not grow with its partitions.

Two things make it so. Each statement names the days it may look at as constants, so that PostgreSQL plans for their
partitions only, even where it keeps one plan for all parameters; the text changes once a day, so prepared statements
are still found. And without a lower bound the days are walked newest first, until enough is found.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, date, datetime, timedelta
from typing import Any

from agenthive.store import codec
from agenthive.store.database import Database
from agenthive.store.errors import InvalidValue
from agenthive.store.statements import filtered

#: The first look goes back so many days, today among them; each further one twice as many.
FIRST_DAYS = 2
#: Behind a look of so many days all the rest is looked at.
MOST_DAYS = 64


def day_after(moment: datetime) -> date:
    """The first UTC day that begins at ``moment`` or later."""
    moment = moment.astimezone(UTC)
    return moment.date() if moment == datetime.combine(moment, datetime.min.time(), UTC) else next_day(moment.date())


def next_day(day: date) -> date:
    """The day behind ``day``."""
    return day + timedelta(days=1)


def windows(today: date, since: datetime | None, until: datetime | None) -> Iterator[tuple[date | None, date]]:
    """Ranges of UTC days, newest first, that cover the time from ``since`` to ``until``. Pure.

    Args:
        today: the day it is.
        since: None: since ever, which is the first day of the last range then.
        until: None: the end of tomorrow.
    """
    end = next_day(next_day(today)) if until is None else day_after(until)
    first = None if since is None else since.astimezone(UTC).date()
    span = FIRST_DAYS
    while first is None or first < end:
        start = end - timedelta(days=span)
        if first is None and span > MOST_DAYS:
            yield None, end
            return
        if first is not None and start <= first:
            yield first, end
            return
        yield start, end
        end, span = start, span * 2


def within(column: str, first: date | None, end: date) -> str:
    """The condition that ``column`` is of these days, with constants."""
    upper = f"{column} < '{end:%Y-%m-%d} 00:00:00+00'"
    return upper if first is None else f"{column} >= '{first:%Y-%m-%d} 00:00:00+00' AND {upper}"


def check_window(since: datetime | None, until: datetime | None, limit: int) -> None:
    """Refuse what makes no sense.

    Raises:
        InvalidValue: a time without zone, or a limit below 1.
    """
    if limit < 1:
        raise InvalidValue(f"limit must be at least 1, not {limit}")
    for name, moment in (("since", since), ("until", until)):
        if moment is not None:
            codec.check_timestamp(moment, name)


async def newest(
    database: Database,
    select: str,
    order: str,
    column: str,
    conditions: Mapping[str, object | None],
    *,
    since: datetime | None,
    until: datetime | None,
    limit: int,
    walk: bool = True,
) -> list[Any]:
    """The newest rows, newest first.

    Args:
        database: whose.
        select: ``SELECT … FROM …``.
        order: ``ORDER BY …``, newest first.
        column: the time of a row, by which the table is partitioned.
        conditions: as of ``filtered``.
        since: not before this time.
        until: before this time; None: the end of tomorrow, so that days to come cost nothing.
        limit: most rows.
        walk: whether to look at the latest days first; of use where rows are everywhere.

    Raises:
        InvalidValue: an argument makes no sense.
        StoreUnavailable: PostgreSQL did not come back within 30 s.
    """
    check_window(since, until, limit)
    ranges = list(windows(codec.utc_now().date(), since, until))
    if not walk and ranges:
        ranges = [(ranges[-1][0], ranges[0][1])]
    given = {**conditions, f"{column} >=": since, f"{column} <": until}

    async def read(connection: Any) -> list[Any]:
        rows: list[Any] = []
        for first, end in ranges:
            statement, arguments = filtered(
                select, order, given, limit - len(rows), constant=within(column, first, end)
            )
            rows += await connection.fetch(statement, *arguments)
            if len(rows) == limit:
                break
        return rows

    with database.translating():
        return await database.run(read)
