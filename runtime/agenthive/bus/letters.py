"""Dead letters: look through them, put them back into a queue, throw them away. Every call does a bounded step."""

from __future__ import annotations

import asyncio
import itertools
import math
import re
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from typing import Any, TypeVar

from agenthive.bus.connections import Connections
from agenthive.bus.keys import TOPIC_MARK, AgentKeys
from agenthive.bus.library import library
from agenthive.bus.model import DeadLetter, DeadLetters, LetterFilter, LetterReport, parse_dead_letter
from agenthive.bus.policy import lane_of, packed_options, to_ms
from agenthive.protocol import AgentMessage

LOOK_LETTERS = 10_000
"""Most letters one call of ``page`` looks at."""
BATCH_LETTERS = 200
BATCH_BYTES = 8 * 1024 * 1024
"""Most documents one call redrives, by number and size."""
BATCH_PURGE = 500
RATE_STEPS = 10
"""With a rate, batches are so small that there are about so many each second."""
KNOWN = "2"
"""Result of a message that was accepted before, see lua/send.lua."""
_LETTER_ID = re.compile(r"\d{1,15}-\d{1,10}")
_PLAIN = re.compile(r"[A-Za-z0-9_.:-]+")
"""Text that every writer of JSON writes alike, so that the server can look for it."""

T = TypeVar("T")
Progress = Callable[[LetterReport], None]
Chosen = str | Iterable[str] | LetterFilter
"""Ids of letters or messages, or a filter."""


class Letters:
    """The dead letters of every agent of a hive, for ``Bus``, whose methods of the same names say what they do."""

    def __init__(self, connections: Connections, keys_of: Callable[[str], AgentKeys]) -> None:
        self._connections = connections
        self._keys_of = keys_of

    # --- looking

    async def page(
        self, agent: str, where: LetterFilter, *, limit: int, after: str | None, newest_first: bool = False
    ) -> DeadLetters:
        """At most ``limit`` letters that fit, fewer where that would mean to look at too many in one call."""
        if limit < 1:
            raise ValueError(f"limit is {limit}; ask for at least one dead letter")
        if after is not None and not _LETTER_ID.fullmatch(after):
            raise ValueError(f"{after!r} is no id of a dead letter; give the id of the last one of the page before")
        page, looked = DeadLetters(), 0
        page.next = after
        while len(page) < limit and looked < LOOK_LETTERS:
            page.next, step, found = await self._look(agent, where, page.next, limit - len(page), newest_first)
            looked += step
            letters = (parse_dead_letter(entry, fields) for entry, fields in found)
            page += (letter for letter in letters if where.accepts(letter.message))
            if page.next is None:
                break
        return page

    async def _look(
        self, agent: str, where: LetterFilter, after: str | None, wanted: int, newest_first: bool, brief: bool = False,
        last: str | None = None,
    ) -> tuple[str | None, int, list[Any]]:  # fmt: skip
        """One call: where to go on, how many were looked at, and what was found. ``last`` is the last letter meant."""
        first, end = _range(where, after, newest_first)
        texts = [text for text in (where.message_type, where.from_agent) if text is not None and _PLAIN.fullmatch(text)]
        command = library().call(
            "letters",
            self._keys_of(agent).gate,
            first,
            _earlier(end, last),
            "1" if newest_first else "0",
            wanted,
            where.reason or "",
            where.message_id or "",
            (where.error or "").encode().lower(),
            "1" if brief else "0",
            *(f'"{text}"' for text in texts),
        )
        ((following, looked, found),) = await self._connections.execute([command])
        return following.decode() or None, looked, found

    async def find(self, agent: str, letter_id: str) -> DeadLetter | None:
        """The letter of this id, or else the newest of the message of this id."""
        for letter in await self._named(agent, [letter_id]):
            return letter
        return None

    async def _named(self, agent: str, ids: list[str]) -> list[DeadLetter]:
        """The letters that have these ids, or whose messages have."""
        found: list[DeadLetter] = []
        unknown = set(ids)
        numbers = [one for one in ids if _LETTER_ID.fullmatch(one)]
        dead = self._keys_of(agent).dead
        for some in batches(numbers, 100):
            answers = await self._connections.execute([("XRANGE", dead, one, one) for one in some])
            found += [parse_dead_letter(entry, fields) for answer in answers for entry, fields in answer]
        unknown -= {letter.id for letter in found}
        after = None
        only = LetterFilter(message_id=ids[0]) if len(ids) == 1 else LetterFilter()
        while unknown:
            after, _, entries = await self._look(agent, only, after, BATCH_PURGE, newest_first=True)
            for letter in (parse_dead_letter(entry, fields) for entry, fields in entries):
                if letter.message_id in unknown:
                    unknown.discard(letter.message_id)
                    found.append(letter)
            if after is None:
                break
        return found

    # --- going through many

    async def _chosen(
        self, agent: str, chosen: Chosen, report: LetterReport, *, brief: bool = False
    ) -> AsyncIterator[list[Any]]:
        """What was chosen, in bounded lists of letters (``brief``: of their ids, as bytes), and what is not there.

        A filter means the letters there are now: one that dies while this goes on is not met again.
        """
        if not isinstance(chosen, LetterFilter):
            ids = list(dict.fromkeys([chosen] if isinstance(chosen, str) else chosen))
            report.total = len(ids)
            for some in batches(ids, 100):
                letters = await self._named(agent, some)
                named = {letter.id for letter in letters} | {letter.message_id for letter in letters}
                report.looked += len(some)
                for one in some:
                    if one not in named:
                        report.refuse(one, f"agent {agent} has no dead letter, and none of a message, of this id")
                yield [letter.id.encode() for letter in letters] if brief else letters
            return
        dead = self._keys_of(agent).dead
        (report.total,) = await self._connections.execute([("XLEN", dead)])
        _, _, newest = await self._look(agent, LetterFilter(), None, 1, newest_first=True, brief=True)
        after: str | None = None
        brief = brief and not chosen.reads_documents
        while newest:
            last = newest[0].decode()
            after, looked, found = await self._look(
                agent, chosen, after, BATCH_PURGE, newest_first=False, brief=brief, last=last
            )
            report.looked += looked
            if brief:
                yield found
            else:
                read = (parse_dead_letter(entry, fields) for entry, fields in found)
                yield [letter for letter in read if chosen.accepts(letter.message)]
            if after is None:
                return

    async def purge(self, agent: str, chosen: Chosen, progress: Progress | None) -> LetterReport:
        """Throw letters away."""
        report, gate = LetterReport(0), self._keys_of(agent).gate
        async for found in self._chosen(agent, chosen, report, brief=True):
            ids = [one if isinstance(one, bytes) else one.id for one in found]
            for some in batches(ids, BATCH_PURGE):
                (gone,) = await self._connections.execute([library().call("purge", gate, *some)])
                report.done += gone
            if progress is not None:
                progress(report)
        return report

    async def redrive(
        self, agent: str, chosen: Chosen, *, rate: float | None, to: str | None, ttl: float | None,
        progress: Progress | None,
    ) -> LetterReport:  # fmt: skip
        """Put letters back into the queue, or into that of ``to``."""
        for name, value in (("rate", rate), ("ttl", ttl)):
            if value is not None and not value > 0:
                raise ValueError(f"{name} is {value}; it must be greater than 0")
        if to is not None:
            self._keys_of(to)
        report, clock = LetterReport(0), asyncio.get_running_loop().time
        most, begun = _batch_letters(rate), clock()
        async for letters in self._chosen(agent, chosen, report):
            fit = [letter for letter in letters if _fits(letter, report)]
            for some in _cut(fit, most):
                if rate is not None:
                    await asyncio.sleep(begun + report.done / rate - clock())
                if to is None or to == agent:
                    await self._put_back(agent, some, ttl, report)
                else:
                    await self._hand_over(agent, some, to, ttl, report)
                if progress is not None:
                    progress(report)
        return report

    async def _put_back(self, agent: str, letters: list[DeadLetter], ttl: float | None, report: LetterReport) -> None:
        arguments: list[str | int] = []
        for letter in letters:
            message = letter.message
            assert message is not None
            arguments += (letter.id, letter.message_id, *_lane_ttl_options(message, ttl))
        (answer,) = await self._connections.execute([library().call("redrive", self._keys_of(agent).gate, *arguments)])
        for letter, result in zip(letters, answer.decode(), strict=True):
            if result == "1":
                report.done += 1
            elif result == "2":
                report.refuse(letter.id, f"a message of id {letter.message_id} is pending already")
            else:
                report.refuse(letter.id, f"it is no longer among the dead letters of {agent}")

    async def _hand_over(
        self, agent: str, letters: list[DeadLetter], to: str, ttl: float | None, report: LetterReport
    ) -> None:
        """Into another agent's queue, then out of the dead letters: two calls, for the agents share no slot.

        If the second one is never made, the letter stays, and redriving it again finds the message known. Not so that
        of a topic: the other agent may have got a copy of its own under the same id, so one that it knows is refused.
        """
        arguments: list[str | bytes | int] = ["1", 0]
        for letter in letters:
            message = letter.message
            assert message is not None
            lane, milliseconds, options = _lane_ttl_options(message, ttl)
            document = message.model_copy(update={"to_agent": to}).to_json()
            arguments += (lane, letter.message_id, document, milliseconds, f"{options} f1".lstrip())
        send = library().call("send", self._keys_of(to).gate, *arguments)
        (answer,) = await self._connections.execute([send], sends=True)
        taken = []
        for letter, result in zip(letters, answer.decode(), strict=True):
            assert letter.message is not None
            if result == KNOWN and letter.message.to_agent.startswith(TOPIC_MARK):
                report.refuse(letter.id, f"agent {to} has, or has had, a message of id {letter.message_id} already")
            else:
                taken.append(letter.id)
        if taken:
            purge = library().call("purge", self._keys_of(agent).gate, *taken)
            (gone,) = await self._connections.execute([purge])
            report.done += gone
            report.refused += len(taken) - gone


def batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """``items`` in lists of at most ``size``."""
    rest = iter(items)
    while batch := list(itertools.islice(rest, size)):
        yield batch


def _batch_letters(rate: float | None) -> int:
    return BATCH_LETTERS if rate is None else max(1, min(BATCH_LETTERS, int(rate / RATE_STEPS)))


def _cut(letters: Iterable[DeadLetter], most: int) -> Iterator[list[DeadLetter]]:
    """Lists of so many letters, and not too many bytes, that one call takes."""
    batch: list[DeadLetter] = []
    size = 0
    for letter in letters:
        if batch and (len(batch) == most or size + len(letter.raw) > BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(letter)
        size += len(letter.raw)
    if batch:
        yield batch


def _fits(letter: DeadLetter, report: LetterReport) -> bool:
    """Whether it can be redriven; else it is counted as refused."""
    if letter.message is None or not letter.message_id:
        report.refuse(letter.id, f"it holds no message and cannot be redriven: {letter.error}")
        return False
    return True


def _lane_ttl_options(message: AgentMessage, ttl: float | None) -> tuple[int, int, str]:
    """How a redriven message is queued: at once, for its time to live anew; whoever asked was told that it failed."""
    options = message.delivery_options.model_copy(update={"not_before": None, "deduplication_key": None})
    queued = message.model_copy(update={"reply_to": None, "delivery_options": options})
    return lane_of(message.priority), to_ms(message.ttl if ttl is None else ttl), packed_options(queued)


def _range(where: LetterFilter, after: str | None, newest_first: bool) -> tuple[str, str]:
    """Where to begin and where to end, as XRANGE or XREVRANGE takes them."""
    since = None if where.since is None else math.ceil(where.since.timestamp() * 1000)
    until = None if where.until is None else int(where.until.timestamp() * 1000)
    oldest = "-" if since is None else f"{since}-0"
    newest = "+" if until is None else f"{until}"
    if after is not None:
        time = int(after.partition("-")[0])
        if newest_first and (until is None or time <= until):
            newest = f"({after}"
        elif not newest_first and (since is None or time >= since):
            oldest = f"({after}"
    return (newest, oldest) if newest_first else (oldest, newest)


def _earlier(end: str, last: str | None) -> str:
    """The earlier one of the end of a range and a letter."""
    if last is None:
        return end
    return last if end in {"+", "-"} or int(end) >= int(last.partition("-")[0]) else end
