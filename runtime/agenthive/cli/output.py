"""What commands print: tables for people, JSON for programs."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import click
import orjson


def print_json(value: Any, *, indent: bool = True) -> None:
    """One JSON document; one of a sequence goes on one line."""
    click.echo(orjson.dumps(value, option=(orjson.OPT_INDENT_2 if indent else 0) | orjson.OPT_UTC_Z))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[Any]], *, empty: str) -> None:
    """A table; colours only on a terminal, and no line folded where the output is no terminal.

    Args:
        columns: headings; those of numeric columns end in ``#``, which is not printed.
        rows: None is printed as ``-``.
        empty: printed instead where there are no rows.
    """
    if not rows:
        click.echo(empty, err=True)
        return
    from rich.console import Console  # noqa: PLC0415 - 50 ms only tables need
    from rich.table import Table  # noqa: PLC0415

    console = Console(markup=False, emoji=False, highlight=False)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(
            column.removesuffix("#"),
            justify="right" if column.endswith("#") else "left",
            no_wrap=not console.is_terminal,
            overflow="fold",
        )
    for row in rows:
        table.add_row(*("-" if cell is None else str(cell) for cell in row))
    if console.is_terminal:
        console.print(table)
        return
    console.width = 10_000
    with console.capture() as captured:
        console.print(table)
    click.echo("\n".join(line.rstrip() for line in captured.get().splitlines()))


def ago(moment: datetime | None, now: datetime | None = None) -> str | None:
    """How long ago, as kubectl writes it: ``42s``, ``5m``, ``3h``, ``2d``."""
    if moment is None:
        return None
    seconds = max(0, int(((now or datetime.now(UTC)) - moment).total_seconds()))
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "m")):
        if seconds >= 2 * size:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"


def size(count: int) -> str:
    """A number of bytes for people: ``812B``, ``14Ki``, ``3Mi``, ``2Gi``."""
    for bits, unit in ((30, "Gi"), (20, "Mi"), (10, "Ki")):
        if count >= 2 << bits:
            return f"{count >> bits}{unit}"
    return f"{count}B"


def first_line(text: str | None) -> str | None:
    """The headline of an error."""
    return text.strip().partition("\n")[0] if text else None
