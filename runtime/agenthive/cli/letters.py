"""``agenthive dlq``: dead letters, the messages that were given up."""

from __future__ import annotations

import re
import sys
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import click

from agenthive.cli.options import Chosen, bus_of, connection_options, run_async, settings_of
from agenthive.cli.output import first_line, print_json, print_table
from agenthive.cli.queues import local_time
from agenthive.cli.stores import tell_audit

if TYPE_CHECKING:
    from collections.abc import Callable

    from agenthive.bus import DeadLetter, LetterFilter, LetterReport
    from agenthive.settings import Settings

F = TypeVar("F", bound="Callable[..., Any]")

SHOWN_PROBLEMS = 20
_AGE = re.compile(r"(\d+(?:\.\d+)?)([smhd])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


class Moment(click.ParamType[datetime]):
    """A moment: ISO 8601 (local time where it names no zone), or an age such as ``90s``, ``10m``, ``2h`` or ``3d``."""

    name = "moment"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        """Parse it; a usage error says how to write one."""
        if age := _AGE.fullmatch(value):
            return datetime.now(UTC) - timedelta(**{_UNITS[age[2]]: float(age[1])})
        try:
            return datetime.fromisoformat(value).astimezone(UTC)
        except (ValueError, OverflowError):
            self.fail(f"{value!r} is no moment; write 2026-01-31T12:00:00Z, or an age: 10m, 2h, 3d", param, ctx)


def filter_options(function: F) -> F:
    """Which dead letters are meant."""
    for option in (
        click.option("--until", type=Moment(), metavar="TIME|AGE", help="Given up then or earlier."),
        click.option("--since", type=Moment(), metavar="TIME|AGE", help="Given up then or later: a time, or 10m, 2h."),
        click.option("--error", metavar="TEXT", help="With this text in the error, upper or lower case."),
        click.option("--reason", metavar="REASON", help="failed, rejected, expired, crashed or malformed."),
        click.option("--message", "message_id", metavar="ID", help="Of the message of this ID."),
        click.option("--from", "from_agent", metavar="NAME", help="From this sender."),
        click.option("--type", "message_type", metavar="TYPE", help="Of this message type."),
    ):
        function = option(function)
    return function


def chosen_options(function: F) -> F:
    """Dead letters to do something with: by ids, by filters, or all."""
    function = click.option("--all", "every", is_flag=True, help="All there are now.")(filter_options(function))
    function = click.argument("ids", nargs=-1, metavar="[ID]...")(function)
    return click.argument("agent")(function)


@click.group()
def dlq() -> None:
    """Dead letters: messages that were given up."""


@dlq.command("list")
@click.argument("agent")
@filter_options
@click.option("--newest", is_flag=True, help="The newest first.")
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True, help="At most this many.")
@click.option("--after", metavar="ID", help="Go on after the dead letter of this ID.")
@connection_options
def list_dead_letters(chosen: Chosen, agent: str, **options: Any) -> None:
    """List AGENT's dead letters with the reason each died of, the oldest first."""
    run_async(_list(chosen, agent, **options))


@dlq.command("show")
@click.argument("agent")
@click.argument("letter_id", metavar="ID")
@connection_options
def show(chosen: Chosen, agent: str, letter_id: str) -> None:
    """Show one of AGENT's dead letters whole: the one of this ID, or the newest of the message of this ID."""
    run_async(_show(chosen, agent, letter_id))


@dlq.command("redrive")
@chosen_options
@click.option("--rate", type=click.FloatRange(min=0, min_open=True), metavar="N", help="At most N messages a second.")
@click.option("--to", metavar="NAME", help="Into this agent's queue instead.")
@click.option(
    "--ttl", type=click.FloatRange(min=0, min_open=True), help="Seconds until they expire. Default: as they were sent."
)
@connection_options
def redrive(
    chosen: Chosen, agent: str, rate: float | None, to: str | None, ttl: float | None, **selection: Any
) -> None:
    """Put dead letters back into AGENT's queue, by letter or message ID, by filters, or --all.

    Each starts anew: its attempts, its time to live. Interrupted, it may just be run again.
    """
    run_async(_redrive(chosen, agent, rate, to, ttl, selection))


@dlq.command("purge")
@chosen_options
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@connection_options
def purge(chosen: Chosen, agent: str, yes: bool, **selection: Any) -> None:
    """Throw AGENT's dead letters away, by letter or message ID, by filters, or --all."""
    run_async(_purge(chosen, agent, yes, selection))


async def _list(chosen: Chosen, agent: str, *, limit: int, after: str | None, newest: bool, **filters: Any) -> None:
    letters: list[DeadLetter] = []
    async with bus_of(await settings_of(chosen)) as bus:
        while True:
            page = await bus.dead_letters(
                agent, limit=limit - len(letters), after=after, newest_first=newest, **filters
            )
            letters += page
            after = page.next
            if after is None or len(letters) == limit:
                break
    if chosen.json:
        print_json([dead_letter_document(letter) for letter in letters])
        return
    fitting = " that fit" if any(filters.values()) else ""
    print_table(
        ("ID", "MESSAGE", "TYPE", "FROM", "REASON", "ATTEMPTS#", "DIED", "ERROR"),
        [
            (
                letter.id,
                letter.message_id or None,
                letter.message and letter.message.message_type,
                letter.message and letter.message.from_agent,
                letter.reason,
                letter.attempts,
                local_time(letter.died_at),
                first_line(letter.error),
            )
            for letter in letters
        ],
        empty=f"{agent} has no dead letters{fitting}",
    )
    if after is not None and sys.stderr.isatty():
        click.echo(f"more may follow: --after {after}", err=True)


async def _show(chosen: Chosen, agent: str, letter_id: str) -> None:
    async with bus_of(await settings_of(chosen)) as bus:
        letter = await bus.dead_letter(agent, letter_id)
    if chosen.json:
        print_json(dead_letter_document(letter))
        return
    for name, value in (
        ("Letter", letter.id),
        ("Message", letter.message_id or "-"),
        ("Reason", letter.reason),
        ("Attempts", letter.attempts),
        ("Died", local_time(letter.died_at)),
    ):
        click.echo(f"{name + ':':<10}{value}")
    click.echo(f"Error:\n{letter.error}\n")
    if letter.message is None:
        click.echo(letter.raw.decode(errors="replace"))
    else:
        print_json(_message_document(letter))


async def _redrive(
    chosen: Chosen, agent: str, rate: float | None, to: str | None, ttl: float | None, selection: dict[str, Any]
) -> None:
    chosen_ones = _in_words(selection)
    which = _selected(selection)
    report = _Reporter(chosen, agent, "redriven")
    settings = await settings_of(chosen)
    try:
        async with bus_of(settings) as bus:
            with report:
                report.last = await bus.redrive(agent, which, rate=rate, to=to, ttl=ttl, progress=report.progress)
    finally:
        await report.tell_audit(settings, "dlq.redrive", selected=chosen_ones, to=to or agent)
    report.print()


async def _purge(chosen: Chosen, agent: str, yes: bool, selection: dict[str, Any]) -> None:
    chosen_ones = _in_words(selection)
    which = _selected(selection)
    report = _Reporter(chosen, agent, "purged")
    if not yes:
        if not sys.stdin.isatty():
            raise click.UsageError("purge asks before it throws dead letters away; where nobody can answer, give --yes")
        what = f"{len(which)} dead letters" if isinstance(which, list) else "all dead letters that fit"
        click.confirm(f"Throw {what} of {agent} away, for good?", abort=True, err=True)
    settings = await settings_of(chosen)
    try:
        async with bus_of(settings) as bus:
            with report:
                report.last = await bus.purge(agent, which, progress=report.progress)
    finally:
        await report.tell_audit(settings, "dlq.purge", selected=chosen_ones)
    report.print()


def _selected(selection: dict[str, Any]) -> list[str] | LetterFilter:
    """The ids or the filter that the options name."""
    from agenthive.bus import LetterFilter  # noqa: PLC0415 - pydantic costs 200 ms that `--help` does not have

    ids, every = list(selection.pop("ids")), selection.pop("every")
    filters = {name: value for name, value in selection.items() if value is not None}
    if bool(ids) + bool(filters) + every != 1:
        raise click.UsageError("which dead letters? Give IDs, or filters such as --type, or --all; one of the three")
    return ids or LetterFilter(**filters)


def _in_words(selection: dict[str, Any]) -> dict[str, Any]:
    """The selection as the audit trail keeps it; of many ids the first."""
    ids = selection["ids"]
    given = {name: str(value)[:200] for name, value in selection.items() if value and name != "ids"}
    return {**given, "ids": list(ids[:20]), "id_count": len(ids)} if ids else given


class _Reporter:
    """Says how far it is, on a terminal, and what came of it; also of what went wrong half-way."""

    def __init__(self, chosen: Chosen, agent: str, verb: str) -> None:
        self._chosen = chosen
        self._agent = agent
        self._verb = verb
        self._live = sys.stderr.isatty()
        self.last: LetterReport | None = None

    def progress(self, report: LetterReport) -> None:
        """After each step."""
        self.last = report
        if self._live:
            click.echo(f"\r{report.looked} of {report.total} looked at, {self._counts(report)}", nl=False, err=True)

    def _counts(self, report: LetterReport) -> str:
        refused = f", {report.refused} refused" if report.refused else ""
        return f"{report.done} {self._verb}{refused}"

    def __enter__(self) -> _Reporter:
        return self

    def __exit__(self, _kind: type[BaseException] | None, error: BaseException | None, _trace: object) -> None:
        from agenthive.bus import BusError  # noqa: PLC0415 - as above

        if self._live and self.last is not None:
            click.echo("", err=True)
        if isinstance(error, BusError) and self.last is not None:
            raise click.ClickException(
                f"{error}; {self._counts(self.last)} before that or more, run it again for the rest"
            ) from error

    async def tell_audit(self, settings: Settings, action: str, **details: Any) -> None:
        """What was done, be it half of what was asked for."""
        if self.last is not None and self.last.done:
            await tell_audit(settings, action, self._agent, {"done": self.last.done, **details})

    def print(self) -> None:
        """The outcome; exit code 1 if something was refused."""
        report = self.last
        assert report is not None
        if self._chosen.json:
            problems = [{"id": problem.id, "error": problem.error} for problem in report.problems]
            print_json({"agent": self._agent, self._verb: report.done, "refused": report.refused, "problems": problems})
        else:
            click.echo(self._counts(report))
            for problem in report.problems[:SHOWN_PROBLEMS]:
                click.echo(f"{problem.id}: {first_line(problem.error)}", err=True)
            if report.refused > SHOWN_PROBLEMS:
                click.echo(f"… and {report.refused - SHOWN_PROBLEMS} more", err=True)
        if report.refused:
            raise click.exceptions.Exit(1)


def dead_letter_document(letter: DeadLetter) -> dict[str, Any]:
    """A dead letter as JSON; ``raw`` is there where it is no message."""
    document = {
        "id": letter.id,
        "message_id": letter.message_id or None,
        "reason": letter.reason,
        "error": letter.error,
        "attempts": letter.attempts,
        "died_at": letter.died_at,
        "message": _message_document(letter),
    }
    if letter.message is None:
        document["raw"] = letter.raw.decode(errors="replace")
    return document


def _message_document(letter: DeadLetter) -> dict[str, Any] | None:
    return None if letter.message is None else letter.message.model_dump(mode="json", exclude_none=True)
