"""How a hive moves from one server to another. Pure.

``decide`` is one step: from the book (``plan.book``) and what is seen now to the next book and what is to hold
meanwhile.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Final, Literal
from urllib.parse import parse_qsl, urlsplit

from agenthive_operator.plan.book import SERVERS, Book, Gates, GivenUp, Held, Move
from agenthive_operator.plan.checksum import digest
from agenthive_operator.plan.external import FILE_OPTIONS, Server

NAMES: Final[Mapping[Server, str]] = {"redis": "Redis", "postgres": "PostgreSQL"}
ACCEPT_ANNOTATION: Final = "agenthive.dev/accept-empty-database"
RETRY_ANNOTATION: Final = "agenthive.dev/retry-cutover"
LOOK_SECONDS: Final = 1.0
"""A move under way is looked at this often: not all that it waits for is told by an event."""
_LOGIN: Final = frozenset({"user", "passfile"})


@dataclass(frozen=True, slots=True)
class Candidate:
    """What a look at a server that is to be moved to has found; nothing was changed there.

    ``reason`` and ``message`` are a probe's. ``database`` is ``host:port/name`` of a PostgreSQL, ``schema`` whether it
    has a schema of the hive's name.
    """

    ok: bool
    reason: str
    message: str
    identity: str = ""
    database: str = ""
    schema: bool = False


@dataclass(frozen=True, slots=True)
class Remains:
    """What the hive's queues on the Redis in force hold. ``gates`` is how its gates were set before that look.

    ``later`` are delayed messages that are not due in time; ``agents`` are the names of those that have something
    left; ``problem`` says why it is not known.
    """

    gates: Gates
    waiting: int = 0
    in_flight: int = 0
    delayed: int = 0
    later: int = 0
    outbox: int = 0
    topics: int = 0
    agents: tuple[str, ...] = ()
    problem: str = ""

    @property
    def total(self) -> int:
        """Messages that are not finished."""
        return self.waiting + self.in_flight + self.delayed + self.outbox + self.topics

    @property
    def text(self) -> str:
        """What is left, for people."""
        if self.problem:
            return f"what is left is not known: {self.problem}"
        counts = {
            "waiting": self.waiting, "in flight": self.in_flight, "delayed": self.delayed,
            "in the outbox": self.outbox, "in topics": self.topics,
        }  # fmt: skip
        told = ", ".join(f"{count} {what}" for what, count in counts.items() if count) or "nothing"
        late = f" ({self.later} of them due later than that)" if self.later else ""
        more = " …" if len(self.agents) > 5 else ""
        names = f"; of agents {', '.join(self.agents[:5])}{more}" if self.agents else ""
        return f"{told}{late}{names}"


@dataclass(frozen=True, slots=True)
class Seen:
    """All that a step depends on.

    Attributes:
        book: As it was left by the step before.
        wanted: The server that the spec and its Secrets name now; None where they name none.
        missing: Why there is none.
        good: Whether the server in force (or, before there is one, the wanted one) was found good.
        identities: Who that is, as far as it is known.
        candidates: What was found at a wanted server that is not in force; None while the look is under way.
        remains: What is left on the Redis in force; None while that is not known.
        running: Agents of which pods are left.
        stop_seconds: How long pods may take to stop.
        accept: The annotation that accepts a database without the hive's data.
        retry: The annotation whose change has a move that was given up tried again.
        now: Unix time.
    """

    book: Book
    wanted: Mapping[Server, Held | None]
    missing: Mapping[Server, str]
    good: Mapping[Server, bool]
    identities: Mapping[Server, str]
    candidates: Mapping[Server, Candidate | None]
    strategy: Literal["Drain", "Abandon"] = "Drain"
    timeout: float = 300.0
    suspended: bool = False
    remains: Remains | None = None
    running: tuple[str, ...] = ()
    stop_seconds: float = 60.0
    accept: str = ""
    retry: str = ""
    command: str = "kubectl annotate hive <hive>"
    now: float = 0.0


@dataclass(frozen=True, slots=True)
class Note:
    """What the condition of a server says of a change: a reason of RedisReady or PostgresReady, and a text."""

    reason: str
    text: str


@dataclass(frozen=True, slots=True)
class Step:
    """What comes of a look: the book to keep, what the conditions say, what is told as an Event."""

    book: Book
    notes: Mapping[Server, Note] = field(default_factory=dict)
    event: str = ""
    accepted: bool = False
    """The annotation that accepts a database has done its work, unless it names the one that it is meant for."""
    again: float | None = None


def decide(seen: Seen) -> Step:
    """One step."""
    book = _adopted(seen)
    changed: list[Server] = []
    notes: dict[Server, Note] = {}
    for server in SERVERS:
        held, wanted = book.held(server), seen.wanted.get(server)
        if held is None:
            continue
        if wanted is None:
            notes[server] = Note("NewServerRefused", seen.missing.get(server, "there is no URL"))
        elif not wanted.leads_as(held):
            changed.append(server)
    book, movers, waits = _judged(seen, book, changed, notes)
    if waits:  # both move together, if both do
        return Step(book, notes, again=LOOK_SECONDS if book.move else None)
    if not movers:
        return _without_target(seen, book, notes)
    target = target_of(seen, movers)
    if book.given_up is not None and book.given_up.target == target:
        notes |= dict.fromkeys(movers, Note("CutoverTimedOut", book.given_up.text))
        given_up = replace(book.given_up, opened=_is_open(seen, replace(book, move=None)))
        return Step(replace(book, move=None, given_up=given_up), notes)
    if book.move is None or book.move.target != target:
        book = replace(book, given_up=None, move=_begun(seen, book, movers, target))
    return _moved(seen, book, notes)


def target_of(seen: Seen, movers: tuple[Server, ...]) -> str:
    """What a move leads to, and how: another one is another move."""
    ways = {server: [*held.urls, *held.files] for server in movers if (held := seen.wanted[server]) is not None}
    return digest({"ways": ways, "strategy": seen.strategy, "timeout": seen.timeout, "retry": seen.retry})


def is_same(held: Held, wanted: Held, candidate: Candidate) -> bool:
    """Whether another way leads to the server in force.

    The operator's own server is itself, whatever it has lost. Who a server is decides where that is known, else whether
    it is at the same place; one of which neither can be said is another.
    """
    if held.managed and wanted.managed:
        return True
    if held.identity and candidate.identity:
        return held.identity == candidate.identity
    return leads_to(url_of(wanted), url_of(held))


def leads_to(url: str | None, other: str | None) -> bool:
    """Whether two URLs differ in the login and the certificates alone. Anything leads to what is not known."""
    return other is None or (url is not None and _place(url) == _place(other))


def _place(url: str) -> tuple[str, str, str, frozenset[tuple[str, str]]]:
    """What a URL says but for who comes in, and with which certificates."""
    try:
        parts = urlsplit(url)
        query = parse_qsl(parts.query, keep_blank_values=True)
    except ValueError:
        return "", url, "", frozenset()
    options = frozenset(
        (name, value) for name, value in query if name not in _LOGIN | FILE_OPTIONS and "password" not in name
    )
    return parts.scheme, parts.netloc.rpartition("@")[2], parts.path, options


def is_copy(held: Held, candidate: Candidate) -> bool:
    """Whether a database holds this hive's data: its schema bears the hive's UUID."""
    known = uuid_of(held.identity)
    return candidate.schema and bool(known) and known == uuid_of(candidate.identity)


def uuid_of(identity: str) -> str:
    """The hive's UUID in the identity of a PostgreSQL."""
    return identity.partition(" ")[0]


def url_of(held: Held | None) -> str | None:
    """The URL that agents use, without certificates."""
    return dict(held.urls)["url"] if held is not None else None


# ---- steps


def _adopted(seen: Seen) -> Book:
    """The first server found good is in force from then on; of one in force the identity is kept up to date."""
    book = seen.book
    for server in SERVERS:
        held, wanted, identity = book.held(server), seen.wanted.get(server), seen.identities.get(server, "")
        if held is None:
            if wanted is not None and seen.good.get(server):
                book = book.with_held(server, replace(wanted, identity=identity))
        elif identity and seen.good.get(server) and held.identity != identity:
            book = book.with_held(server, replace(held, identity=identity))
        if held is not None and wanted is not None and wanted.leads_as(held) and held.managed != wanted.managed:
            book = book.with_held(server, replace(held, managed=wanted.managed))
    return book


def _judged(
    seen: Seen, book: Book, changed: list[Server], notes: dict[Server, Note]
) -> tuple[Book, tuple[Server, ...], bool]:
    """Which of the changed servers are to be moved to, and whether a look at one is still under way."""
    movers: list[Server] = []
    waits = False
    for server in changed:
        held, wanted, candidate = book.held(server), seen.wanted[server], seen.candidates.get(server)
        assert held is not None, "only of a server in force can there be another"
        assert wanted is not None, "a change has a target"
        if candidate is None:
            waits = True
        elif not candidate.ok and wanted.managed:
            notes[server] = Note("CuttingOver", f"it is being started: {candidate.message}")
        elif not candidate.ok:
            notes[server] = Note("NewServerRefused", f"it is not used ({candidate.reason}): {candidate.message}")
        elif is_same(held, wanted, candidate):
            book = book.with_held(server, replace(wanted, identity=held.identity))
        elif seen.book.redis is None or seen.book.postgres is None:
            # No agent has ever run, for that takes both: there is nothing to move.
            book = book.with_held(server, replace(wanted, identity=candidate.identity))
        elif server == "redis" or is_copy(held, candidate) or is_accepted(seen.accept, candidate):
            movers.append(server)
        else:
            notes[server] = Note("DatabaseNotAccepted", _not_accepted(seen, candidate))
    return book, tuple(movers), waits


def is_accepted(accept: str, candidate: Candidate) -> bool:
    """Whether the annotation means this database: it names it, or any."""
    return accept.strip() in {"true", candidate.database}


def _not_accepted(seen: Seen, candidate: Candidate) -> str:
    has = "has a schema of this hive's name with other data" if candidate.schema else "has no data of this hive"
    return (
        f"the database {candidate.database} {has}, and data is not moved. Restore a dump there, or, to go on without"
        f" the data: {seen.command} {ACCEPT_ANNOTATION}={candidate.database}"
    )


def _without_target(seen: Seen, book: Book, notes: dict[Server, Note]) -> Step:
    """Nothing to move to: a move that had not been done is called off, one that was done comes to its end."""
    move = book.move
    if move is None:
        return Step(replace(book, given_up=None) if _is_open(seen, book) else book, notes)
    if move.phase != "starting":
        text = "what it led to is not wanted, or not fit, any more"
        book = replace(book, move=None, given_up=GivenUp("", move.servers, text))
        return Step(book, notes, event="the move to another server is called off", again=LOOK_SECONDS)
    if all(seen.good.get(server) for server in SERVERS) and _is_open(seen, book):
        return Step(replace(book, move=None), notes, event="agents start on the new server")
    text = "agents stand at zero pods until the new server is ready"
    return Step(book, {**dict.fromkeys(move.servers, Note("CuttingOver", text)), **notes}, again=LOOK_SECONDS)


def _is_open(seen: Seen, book: Book) -> bool:
    """Whether the gates of the Redis in force were opened, should they have been closed."""
    if book.given_up is not None and book.given_up.opened:
        return True
    return (
        book.gates == "open" and seen.remains is not None and seen.remains.gates == "open" and not seen.remains.problem
    )


def _begun(seen: Seen, book: Book, movers: tuple[Server, ...], target: str) -> Move:
    """A new move. Of a server on which agents were not started yet nothing has to be drained."""
    unused = book.move is not None and book.move.phase == "starting"
    drain = "redis" in movers and seen.strategy == "Drain" and not seen.suspended and not unused
    wait = seen.timeout if drain else seen.stop_seconds
    return Move("draining" if drain else "stopping", movers, target, seen.now + wait, drain)


def _moved(seen: Seen, book: Book, notes: dict[Server, Note]) -> Step:
    move, remains = book.move, seen.remains
    assert move is not None, "there is a move"
    late = seen.now >= move.until
    if move.phase == "draining":
        known = remains is not None and remains.gates == "draining"
        if known and remains is not None and not remains.problem and not remains.total:
            until = max(move.until, seen.now + seen.stop_seconds)
            return _going_on(seen, replace(book, move=replace(move, phase="stopping", until=until)), notes)
        if late or (known and remains is not None and remains.later):
            return _given_up(seen, book, notes, remains.text if known and remains else "what is left is not known")
        return _going_on(seen, book, notes)
    if move.phase == "starting":  # what it led to is wanted no more, see _begun
        return _going_on(seen, book, notes)
    if seen.running:
        if late:
            return _given_up(seen, book, notes, f"pods of agents {', '.join(seen.running[:10])} do not end")
        return _going_on(seen, book, notes)
    if remains is None or remains.gates != "stopped":
        if late and move.drain:
            return _given_up(seen, book, notes, "the last look at the old queues does not end")
        return _going_on(seen, book, notes)
    if move.drain and (remains.problem or remains.total):
        if late:
            return _given_up(seen, book, notes, remains.text)
        return _going_on(seen, replace(book, move=replace(move, phase="draining")), notes)
    return _committed(seen, book, notes, remains)


def _committed(seen: Seen, book: Book, notes: dict[Server, Note], remains: Remains) -> Step:
    """All agents stand still: the new servers are in force from here on."""
    move = book.move
    assert move is not None, "there is a move"
    for server in move.servers:
        held, wanted, candidate = book.held(server), seen.wanted[server], seen.candidates[server]
        assert held is not None and wanted is not None and candidate is not None, "decided before"  # noqa: PT018
        identity = candidate.identity
        if server == "postgres" and not is_copy(held, candidate):
            # The hive's UUID goes with it, so that the way back leads to a database that is known.
            known = uuid_of(held.identity)
            identity = f"{known} " if known and not uuid_of(candidate.identity) else candidate.identity
        book = book.with_held(server, replace(wanted, identity=identity))
    names = " and ".join(NAMES[server] for server in move.servers)
    left = ""
    if "redis" in move.servers and (remains.total or remains.problem):
        left = f"; in the old Redis stay: {remains.text}"
    book = replace(book, move=replace(move, phase="starting"))
    step = _going_on(seen, book, notes)
    return replace(step, event=f"moved to another {names}{left}", accepted="postgres" in move.servers)


def _given_up(seen: Seen, book: Book, notes: dict[Server, Note], left: str) -> Step:
    move = book.move
    assert move is not None, "there is a move"
    text = (
        f"the move to the new server was given up, the old one stays in use: {left}. To try again, raise"
        f" spec.redis.cutover.timeoutSeconds or run {seen.command} --overwrite {RETRY_ANNOTATION}=<another value>;"
        " spec.redis.cutover.strategy Abandon leaves behind what waits"
    )
    book = replace(book, move=None, given_up=GivenUp(move.target, move.servers, text))
    return Step(
        book, {**notes, **dict.fromkeys(move.servers, Note("CutoverTimedOut", text))}, again=LOOK_SECONDS
    )  # fmt: skip


def _going_on(seen: Seen, book: Book, notes: dict[Server, Note]) -> Step:
    move = book.move
    assert move is not None, "there is a move"
    # Not how long that is: each second would be a write of the status.
    end = f"{datetime.fromtimestamp(move.until, UTC):%H:%M:%S} UTC"
    if move.phase == "draining":
        known = seen.remains is not None and seen.remains.gates == "draining"
        what = seen.remains.text if known and seen.remains else "being counted"
        text = f"nothing new is taken, queues run empty; left: {what}; given up at {end}"
    elif move.phase == "stopping":
        pods = f": {', '.join(seen.running[:10])}" if seen.running else ""
        text = f"agents are stopped{pods}; given up at {end}"
    else:
        text = "agents stand at zero pods until the new server is ready"
    added = dict.fromkeys(move.servers, Note("CuttingOver", text))
    return Step(book, {**notes, **added}, again=LOOK_SECONDS)
