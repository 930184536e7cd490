"""Names and forms of what the cache keeps."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agenthive.cache_entries import (
    MAX_ENTRY_BYTES,
    Change,
    Loaded,
    document_of,
    entry_name,
    form_of,
    life_of,
    state_name,
    told,
    too_large,
)
from agenthive.store.fold import Current, Write, changes_of, fold

texts = st.text(st.characters(codec="utf-8"), max_size=120)


def test_names_are_readable_where_they_are_short() -> None:
    assert state_name("librarian", "notes/ä") == "s:librarian:notes/ä"
    assert state_name("", "k") == "s::k"
    assert state_name("librarian", "k" * 1000).startswith("s:librarian#")
    assert len(state_name("librarian", "k" * 1000)) == 44
    assert state_name("", "k" * 1000).startswith("s:#")


@given(st.tuples(st.sampled_from("sf"), texts, texts), st.tuples(st.sampled_from("sf"), texts, texts))
def test_a_name_is_that_of_one_document(one: tuple[str, str, str], other: tuple[str, str, str]) -> None:
    assert (entry_name(*one) == entry_name(*other)) == (one == other)
    assert state_name(*one[1:]) == entry_name("s", *one[1:])


def test_an_owner_cannot_pass_for_another_one() -> None:
    assert state_name("a", "b:c") != state_name("a:b", "c")
    assert state_name("a" * 60, "b" * 60) != state_name("a" * 61, "b" * 59 + "a")


def test_forms() -> None:
    assert form_of(Loaded(None)) == ("N0", "")
    assert form_of(Loaded('{"a": 1}', 17)) == ("V17", '{"a": 1}')
    assert form_of(Loaded("x" * (MAX_ENTRY_BYTES + 1), 17)) == ("B0", "")
    assert document_of(b'V17 42 {"a": 1}') == b'{"a": 1}'


def test_what_is_too_large_is_told_in_bytes() -> None:
    assert not too_large("x" * MAX_ENTRY_BYTES)
    assert too_large("x" * (MAX_ENTRY_BYTES + 1))
    assert not too_large("ä" * (MAX_ENTRY_BYTES // 2))
    assert too_large("ä" * (MAX_ENTRY_BYTES // 2 + 1))


@given(st.floats(0, 1), st.none() | st.floats(-10, 100))
def test_an_entry_never_outlives_its_document_or_its_bound(jitter: float, left: float | None) -> None:
    life = life_of(Loaded("1", 1, left), 28.0, jitter)
    assert 0 <= life <= 28_000
    assert life <= max(0.0, 28.0 if left is None else left) * 1000
    assert life >= min(22_400, 22_400 if left is None else max(0, int(left * 1000)))


def test_what_a_write_tells() -> None:
    known, gone = Change("a", 7, 8, "1"), Change("b")
    large = Change("c", 7, 8, "x" * (MAX_ENTRY_BYTES + 1))
    assert told([known, gone, large]) == [3, "a", "b", "c", 7, 8, "1", "", "", "", "", "", ""]


def test_what_a_folded_batch_tells() -> None:
    writes = [
        Write(("a", "new"), "1"),
        Write(("a", "old"), "2"),
        Write(("a", "old"), "3"),
        Write(("a", "dies"), "4", ttl=5.0),
        Write(("a", "gone"), None),
        Write(("a", "kept"), "5", expected=1),
    ]
    current = {("a", key): Current(40, True) for key in ("old", "dies", "gone", "kept")}
    changes = changes_of(fold(writes, current, 99), current)
    assert sorted(changes, key=lambda change: change.name) == [
        Change("s:a:dies", 40, 41, None),
        Change("s:a:gone"),
        Change("s:a:new", 0, 99, "1"),
        Change("s:a:old", 40, 42, "3"),
    ]
