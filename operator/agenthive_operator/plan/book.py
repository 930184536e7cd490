"""What is remembered of a hive's servers from one look to the next, and how that lies in a Secret. Pure.

The servers in force and the move to others, if one is under way: whoever looks next, another operator among them, goes
on from there. URLs are kept without the paths of certificates, which lie elsewhere for each process; the certificates
themselves are kept beside them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final, Literal, cast

from agenthive_operator.plan.external import FILE_NAMES, Server, Ways

Phase = Literal["draining", "stopping", "starting"]
Gates = Literal["draining", "stopping", "stopped", "open"]

SERVERS: Final[tuple[Server, Server]] = ("redis", "postgres")
_GATES: Final[Mapping[Phase, Gates]] = {"draining": "draining", "stopping": "stopping", "starting": "open"}


@dataclass(frozen=True, slots=True)
class Held:
    """A server: the ways that lead to it, and who it is.

    Attributes:
        urls: By name, in the order of the names: ``url`` is the one that agents use; ``direct`` and ``admin``.
        files: Certificates (PEM) by the name of their file.
        managed: Whether it is the operator's own.
        identity: Of a Redis a UUID; of a PostgreSQL the hive's UUID in it and, behind a space, what tells this database
            from a copy. Empty as long as it is not known.
    """

    urls: tuple[tuple[str, str], ...] = field(repr=False)
    files: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    managed: bool = False
    identity: str = ""

    @classmethod
    def of(cls, ways: Ways, *, managed: bool, identity: str = "") -> Held:
        """A server by the ways into it."""
        return cls(tuple(sorted(ways.urls.items())), tuple(sorted(ways.files.items())), managed, identity)

    def ways(self, server: Server) -> Ways:
        """The ways into it."""
        return Ways(server, dict(self.urls), dict(self.files))

    def leads_as(self, other: Held) -> bool:
        """Whether nothing differs in how one comes in, certificates included."""
        return (self.urls, self.files) == (other.urls, other.files)

    @property
    def mints(self) -> bool:
        """Whether there is administrative access, so that each Agent gets credentials of its own."""
        return any(name == "admin" for name, _ in self.urls)


@dataclass(frozen=True, slots=True)
class Move:
    """A move under way. ``target`` says what it leads to, ``until`` (Unix time) when it is given up.

    ``drain``: queues have to be empty before agents are stopped for good.
    """

    phase: Phase
    servers: tuple[Server, ...]
    target: str
    until: float
    drain: bool


@dataclass(frozen=True, slots=True)
class GivenUp:
    """A move that took too long. It is not tried again as long as ``target`` is the same.

    ``opened``: senders are known to be let in again.
    """

    target: str
    servers: tuple[Server, ...]
    text: str
    opened: bool = False


@dataclass(frozen=True, slots=True)
class Book:
    """What is remembered of a hive's servers."""

    redis: Held | None = None
    postgres: Held | None = None
    move: Move | None = None
    given_up: GivenUp | None = None

    def held(self, server: Server) -> Held | None:
        """The server in force; None before the first one was found good."""
        return self.redis if server == "redis" else self.postgres

    def with_held(self, server: Server, held: Held) -> Book:
        """The book with another server in force."""
        return replace(self, redis=held) if server == "redis" else replace(self, postgres=held)

    @property
    def halted(self) -> bool:
        """Whether agents are to stand at zero pods."""
        return self.move is not None and self.move.phase != "draining"

    @property
    def gates(self) -> Gates | None:
        """How the gates of the Redis in force are to be; None where they are left alone."""
        if self.move is not None:
            return _GATES[self.move.phase]
        return "open" if self.given_up is not None and not self.given_up.opened else None


def data_of(book: Book) -> dict[str, str]:
    """The book as texts of a Secret."""
    data: dict[str, str] = {}
    for server in SERVERS:
        if (held := book.held(server)) is None:
            continue
        data |= {f"{server}.{name}": url for name, url in held.urls} | dict(held.files)
        data[f"{server}-managed"] = "true" if held.managed else "false"
        if held.identity:
            data[f"{server}-identity"] = held.identity
    if (move := book.move) is not None:
        data["move"] = json.dumps(asdict(move))
    if (given_up := book.given_up) is not None:
        data["given-up"] = json.dumps(asdict(given_up))
    return data


def book_of(data: Mapping[str, str]) -> Book:
    """The book in a Secret; what somebody has made unreadable there counts as absent."""
    book = Book()
    for server in SERVERS:
        urls = tuple(sorted((name.partition(".")[2], url) for name, url in data.items() if _is_url(server, name)))
        if any(name == "url" for name, _ in urls):
            files = tuple(sorted((name, data[name]) for name in FILE_NAMES & data.keys() if name.startswith(server)))
            managed = data.get(f"{server}-managed") == "true"
            book = book.with_held(server, Held(urls, files, managed, data.get(f"{server}-identity", "")))
    try:
        move = Move(**_entry(data, "move")) if "move" in data else None
        given_up = GivenUp(**_entry(data, "given-up")) if "given-up" in data else None
        if move is not None and not (move.phase in _GATES and set(move.servers) <= set(SERVERS)):
            return book
    except (ValueError, TypeError, KeyError):
        return book
    return replace(book, move=move, given_up=given_up)


def _is_url(server: Server, name: str) -> bool:
    return name in {f"{server}.{way}" for way in ("url", "direct", "admin")}


def _entry(data: Mapping[str, str], name: str) -> dict[str, Any]:
    entry = cast(dict[str, Any], json.loads(data[name]))
    return {**entry, "servers": tuple(entry["servers"])}
