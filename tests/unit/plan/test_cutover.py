"""How a hive moves from one server to another, step by step."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from agenthive_operator.plan.book import Book, GivenUp, Held, Move, book_of, data_of
from agenthive_operator.plan.cutover import Candidate, Remains, Seen, Step, decide, leads_to

OLD = Held((("url", "redis://:old-secret@old:6379/0"),), identity="one")
NEW = Held((("url", "redis://:new-secret@new:6379/0"),))
STORE = Held(
    (("admin", "postgresql://a:store-secret@db/x"), ("url", "postgresql://u:p@db/x")),
    managed=True,
    identity="u1 7/5/1",
)
OTHER = Held((("url", "postgresql://u:p@other/x"),))
BOOK = Book(OLD, STORE)
EMPTY = Remains("draining")
GOOD = Candidate(True, "Reachable", "Valkey", "two")


def seen(book: Book = BOOK, **changes: Any) -> Seen:
    """A hive that is to move to another Redis, but for ``changes``."""
    facts: dict[str, Any] = {
        "wanted": {"redis": NEW, "postgres": STORE},
        "missing": {},
        "good": {"redis": True, "postgres": True},
        "identities": {"redis": "one", "postgres": "u1 7/5/1"},
        "candidates": {"redis": GOOD, "postgres": None},
        "timeout": 100.0,
        "stop_seconds": 60.0,
        "now": 1000.0,
        **changes,
    }
    return Seen(book, **facts)


def moving(phase: Any = "draining", **changes: Any) -> Book:
    """A book in the middle of a move to the Redis of ``seen``."""
    move = decide(seen()).book.move
    assert move is not None
    return replace(BOOK, move=replace(move, phase=phase, **changes))


def note(step: Step, server: Any = "redis") -> tuple[str, str]:
    told = step.notes[server]
    return told.reason, told.text


def test_the_first_good_server_is_in_force() -> None:
    wanted = {"redis": NEW, "postgres": STORE}
    step = decide(seen(Book(), wanted=wanted, good={"redis": True, "postgres": False}))
    assert step.book == Book(replace(NEW, identity="one"))
    assert not step.notes


def test_nothing_is_done_while_nothing_changes() -> None:
    step = decide(seen(wanted={"redis": OLD, "postgres": STORE}))
    assert step == Step(BOOK)


def test_the_identity_of_the_server_in_force_is_kept_up() -> None:
    step = decide(seen(wanted={"redis": OLD, "postgres": STORE}, identities={"redis": "fresh", "postgres": ""}))
    assert step.book == replace(BOOK, redis=replace(OLD, identity="fresh"))


@pytest.mark.parametrize(
    ("candidate", "words"), [(Candidate(False, "Unreachable", "no answer"), "(Unreachable): no answer")]
)
def test_a_bad_new_server_is_refused(candidate: Candidate, words: str) -> None:
    step = decide(seen(candidates={"redis": candidate}))
    assert step.book == BOOK
    assert note(step)[0] == "NewServerRefused"
    assert words in note(step)[1]


def test_a_missing_secret_is_told() -> None:
    step = decide(seen(wanted={"redis": None, "postgres": STORE}, missing={"redis": "Secret 'x' does not exist"}))
    assert (step.book, note(step)) == (BOOK, ("NewServerRefused", "Secret 'x' does not exist"))


def test_a_managed_server_that_starts_is_waited_for() -> None:
    wanted = {"redis": replace(NEW, managed=True), "postgres": STORE}
    step = decide(seen(wanted=wanted, candidates={"redis": Candidate(False, "Unreachable", "no pod")}))
    assert note(step)[0] == "CuttingOver"
    assert step.book == BOOK


def test_the_same_server_by_another_name_rolls() -> None:
    step = decide(seen(candidates={"redis": replace(GOOD, identity="one")}))
    assert step.book == Book(replace(NEW, identity="one"), STORE)
    assert not step.book.halted


def test_the_operators_own_server_is_itself_whatever_it_lost() -> None:
    own = replace(OLD, managed=True)
    fresh = replace(NEW, managed=True)
    step = decide(seen(Book(own, STORE), wanted={"redis": fresh, "postgres": STORE}))
    assert step.book == Book(replace(fresh, identity="one"), STORE)


@pytest.mark.parametrize(
    ("url", "files", "candidate"),
    [
        ("redis://:renewed@old:6379/0", (), ""),
        ("redis://:old-secret@old:6379/0", (("redis-ca.crt", "renewed"),), "one"),
        ("redis://:renewed@old:6379/0", (), "one"),
    ],
)
def test_what_leads_to_the_same_place_is_the_same_server(url: str, files: Any, candidate: str) -> None:
    wanted = Held((("admin", "redis://root:x@old:6379/0"), ("url", url)), files)
    step = decide(
        seen(wanted={"redis": wanted, "postgres": STORE}, candidates={"redis": replace(GOOD, identity=candidate)})
    )
    assert step.book == Book(replace(wanted, identity="one"), STORE)
    assert step.book.redis is not None
    assert step.book.redis.mints


@pytest.mark.parametrize(
    ("url", "other", "same"),
    [
        ("redis://a:b@db:1/0", None, True),
        (None, "redis://db:1/0", False),
        ("redis://a:b@db:1/0", "redis://db:1/0", True),
        ("redis://db:1/0?ssl_ca_certs=/here/ca", "redis://db:1/0?ssl_ca_certs=%2Fthere%2Fca", True),
        ("redis+sentinel://s:1/x?sentinel_password=a", "redis+sentinel://s:1/x?sentinel_password=b", True),
        ("postgresql://db/x?user=a&password=b", "postgresql://c:d@db/x", True),
        ("redis://db:1/0", "redis://db:1/1", False),
        ("redis://db:1/0", "rediss://db:1/0", False),
        ("redis://db:1/0?protocol=2", "redis://db:1/0", False),
        ("redis://[", "redis://[", True),
    ],
)
def test_logins_and_certificates_lead_nowhere_else(url: str | None, other: str | None, same: bool) -> None:
    assert leads_to(url, other) is same


def test_a_server_in_force_of_unknown_identity_is_another() -> None:
    book = Book(replace(OLD, identity=""), STORE)
    step = decide(seen(book, identities={}, candidates={"redis": replace(GOOD, identity="")}))
    assert step.book.move is not None


def test_a_hive_that_never_ran_just_takes_another_server() -> None:
    step = decide(seen(Book(OLD), wanted={"redis": NEW, "postgres": STORE}, good={"redis": True}))
    assert (step.book, step.notes) == (Book(replace(NEW, identity="two")), {})
    accepted = postgres(replace(COPY, identity=" 9/5/1", schema=False), Book(postgres=STORE), good={})
    assert accepted.book == Book(postgres=replace(OTHER, identity=" 9/5/1"))


def test_both_candidates_are_waited_for() -> None:
    step = decide(seen(wanted={"redis": NEW, "postgres": OTHER}))
    assert (step.book, step.notes) == (BOOK, {})


def test_drain_closes_the_gates_and_then_stops_all() -> None:
    step = decide(seen())
    move = step.book.move
    assert move == Move("draining", ("redis",), move.target if move else "", 1100.0, drain=True)
    assert (step.book.gates, step.book.halted) == ("draining", False)
    busy = decide(seen(step.book, remains=replace(EMPTY, waiting=3, outbox=1, agents=("a",)), now=1001.0))
    assert busy.book == step.book
    assert "left: 3 waiting, 1 in the outbox; of agents a; given up at 00:18:20 UTC" in note(busy)[1]
    done = decide(seen(busy.book, remains=EMPTY, now=1099.0))
    assert done.book.move == replace(move, phase="stopping", until=1159.0)
    assert (done.book.gates, done.book.halted) == ("stopping", True)
    stopping = decide(seen(done.book, remains=EMPTY, running=("a",), now=1100.0))
    assert stopping.book == done.book
    assert "agents are stopped: a" in note(stopping)[1]
    unsure = decide(seen(done.book, remains=Remains("stopping"), now=1100.0))
    assert unsure.book == done.book, "only a look after the last pod counts"
    over = decide(seen(done.book, remains=Remains("stopped"), now=1101.0))
    assert over.book.redis == replace(NEW, identity="two")
    assert over.book.halted
    assert over.event == "moved to another Redis"
    wait = decide(seen(over.book, remains=Remains("open"), good={"redis": False, "postgres": True}))
    assert wait.book.halted
    end = decide(seen(over.book, remains=Remains("open"), identities={}))
    assert (end.book.move, end.event) == (None, "agents start on the new server")


def test_what_came_in_between_is_drained_too() -> None:
    step = decide(seen(moving("stopping"), remains=Remains("stopped", waiting=1)))
    assert step.book.move is not None
    assert (step.book.move.phase, step.book.halted) == ("draining", False)


@pytest.mark.parametrize(
    ("book", "changes", "words"),
    [
        (moving(), {"remains": replace(EMPTY, waiting=2, agents=("a",))}, "2 waiting; of agents a"),
        (moving(), {"remains": replace(EMPTY, problem="Redis is gone")}, "not known: Redis is gone"),
        (moving(), {}, "not known"),
        (moving(), {"remains": replace(EMPTY, delayed=2, later=1), "now": 1001.0}, "(1 of them due later than that)"),
        (moving("stopping"), {"running": ("b",)}, "pods of agents b do not end"),
        (moving("stopping"), {"remains": Remains("stopped", in_flight=1)}, "1 in flight"),
        (moving("stopping"), {"remains": Remains("stopping")}, "the last look"),
    ],
)
def test_a_move_that_takes_too_long_is_given_up_and_not_repeated(
    book: Book, changes: dict[str, Any], words: str
) -> None:
    facts = {"now": 2000.0, **changes}
    step = decide(seen(book, **facts))
    assert note(step)[0] == "CutoverTimedOut"
    assert words in note(step)[1]
    assert "agenthive.dev/retry-cutover" in note(step)[1]
    assert step.book.move is None
    assert (step.book.redis, step.book.gates, step.book.halted) == (OLD, "open", False)
    again = decide(seen(step.book, now=9000.0))
    assert (again.book, note(again)[0]) == (step.book, "CutoverTimedOut")
    open_again = decide(seen(step.book, remains=Remains("open"), now=9000.0)).book
    assert open_again.gates is None, "once senders are let in nobody looks any more"
    assert decide(seen(open_again, now=9001.0)).book == open_again
    for change in ({"retry": "1"}, {"timeout": 200.0}, {"strategy": "Abandon"}):
        assert decide(seen(step.book, now=9000.0, **change)).book.move is not None, "somebody changed something"


def test_a_move_that_is_not_wanted_any_more_is_called_off() -> None:
    step = decide(seen(moving("stopping"), wanted={"redis": OLD, "postgres": STORE}))
    assert (step.book.move, step.book.redis, step.book.gates) == (None, OLD, "open")
    end = decide(seen(step.book, wanted={"redis": OLD, "postgres": STORE}, remains=Remains("open")))
    assert end.book == BOOK


def test_abandon_counts_what_it_leaves() -> None:
    step = decide(seen(strategy="Abandon"))
    assert step.book.move is not None
    assert (step.book.move.phase, step.book.move.drain) == ("stopping", False)
    over = decide(seen(step.book, strategy="Abandon", remains=Remains("stopped", waiting=7, agents=("a",))))
    assert over.event == "moved to another Redis; in the old Redis stay: 7 waiting; of agents a"
    gone = decide(seen(step.book, strategy="Abandon", remains=Remains("stopped", problem="it is down")))
    assert gone.book.redis == replace(NEW, identity="two")


def test_a_suspended_hive_just_switches() -> None:
    step = decide(seen(suspended=True))
    assert step.book.move is not None
    assert step.book.move.phase == "stopping"


def test_a_new_server_that_dies_before_agents_start_is_left_without_a_drain() -> None:
    book = Book(replace(NEW, identity="two"), STORE, Move("starting", ("redis",), "t", 0.0, drain=True))
    back = {"redis": OLD, "postgres": STORE}
    candidates = {"redis": replace(GOOD, identity="one")}
    step = decide(seen(book, wanted=back, candidates=candidates, good={"redis": False, "postgres": True}))
    assert step.book.move is not None
    assert (step.book.move.phase, step.book.move.drain) == ("stopping", False)


COPY = Candidate(True, "Reachable", "PostgreSQL", "u1 9/5/1", "other:5432/x", schema=True)


def postgres(candidate: Candidate, book: Book = BOOK, **changes: Any) -> Step:
    """A look at a hive that is to move to another PostgreSQL."""
    wanted = {"redis": OLD, "postgres": OTHER}
    return decide(seen(book, wanted=wanted, candidates={"postgres": candidate}, **changes))


@pytest.mark.parametrize(
    ("candidate", "accept", "moves"),
    [
        (COPY, "", True),
        (replace(COPY, identity=" 9/5/1", schema=False), "", False),
        (replace(COPY, identity=" 9/5/1", schema=False), "true", True),
        (replace(COPY, identity=" 9/5/1", schema=False), "other:5432/x", True),
        (replace(COPY, identity=" 9/5/1", schema=False), "elsewhere:5432/x", False),
        (replace(COPY, identity="u2 9/5/1"), "", False),
    ],
)
def test_a_database_without_the_hives_data_has_to_be_accepted(candidate: Candidate, accept: str, moves: bool) -> None:
    step = postgres(candidate, accept=accept, command="kubectl annotate hive demo -n team")
    assert (step.book.move is not None) == moves
    if not moves:
        assert note(step, "postgres")[0] == "DatabaseNotAccepted"
        command = "kubectl annotate hive demo -n team agenthive.dev/accept-empty-database=other:5432/x"
        assert command in note(step, "postgres")[1]
        return
    over = postgres(candidate, step.book, accept=accept, remains=Remains("stopped", waiting=3))
    assert over.accepted
    assert over.book.postgres == replace(OTHER, identity=candidate.identity if candidate is COPY else "u1 ")
    assert "stay" not in over.event, "the queues are where they were"


def test_the_same_database_by_another_name_rolls() -> None:
    assert postgres(replace(COPY, identity="u1 7/5/1")).book.postgres == replace(OTHER, identity="u1 7/5/1")


def test_a_book_survives_its_secret() -> None:
    secure = replace(OLD, files=(("redis-ca.crt", "PEM"), ("redis-tls.key", "KEY")))
    book = replace(moving("stopping"), redis=secure, given_up=GivenUp("t", ("redis",), "text", opened=True))
    assert book_of(data_of(book)) == book
    assert book_of({}) == Book()
    for nonsense in (
        "{",
        "[]",
        '{"servers": []}',
        '{"phase": "?", "servers": [], "target": "", "until": 0, "drain": 1}',
    ):
        assert book_of({**data_of(book), "move": nonsense}) == Book(secure, STORE)


def test_no_text_holds_a_secret() -> None:
    for held in (OLD, STORE):
        assert "secret" not in repr(held)
