"""Chains of audit rows: whatever is done to them is found, and the first bad row named."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agenthive.store.audit import dump_checkpoint, load_checkpoint
from agenthive.store.chain import AuditRow, Event, Finding, Head, Verifier, digest, follow, head_of, row_hash, start
from agenthive.store.errors import InvalidValue

NOW = datetime(2026, 5, 4, 3, 2, 1, 999_999, tzinfo=UTC)
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)
EVENTS = st.builds(
    Event, st.integers(-10_000, 10_000).map(lambda us: NOW + timedelta(microseconds=us)), TEXT, TEXT, TEXT
)


def chain_of(name: str, events: list[Event]) -> list[AuditRow]:
    return follow(name, name.partition("/")[0], "pod", start(name), events)


@st.composite
def chains(draw: st.DrawFn, least: int = 1) -> list[AuditRow]:
    """One to three chains of some rows each, in order."""
    return [
        row
        for name in ("a/p/1", "a/p/2", "b/p/1")[: draw(st.integers(1, 3))]
        for row in chain_of(name, draw(st.lists(EVENTS, min_size=least, max_size=6)))
    ]


def verify_rows(
    rows: list[AuditRow], *, anchors: dict[str, Head] | None = None, checkpoint: dict[str, Head] | None = None
) -> list[Finding]:
    """As the store does it: in the order of the primary key, page by page."""
    verifier = Verifier(checkpoint)
    rows = sorted(rows, key=lambda row: (row.chain.encode(), row.seq, row.at))
    for first in range(0, len(rows), 2):
        verifier.feed(rows[first : first + 2], anchors or {})
    return verifier.finish(anchors or {})


def checkpoint_of(rows: list[AuditRow]) -> dict[str, Head]:
    return {row.chain: head_of(row) for row in rows}


def others(column: str, value: Any) -> st.SearchStrategy[Any]:
    if column in {"previous", "hash"}:
        return st.binary(min_size=32, max_size=32)
    if column == "seq":
        return st.integers(1, 12)
    if column == "at":
        return st.integers(1, 10**9).map(lambda us: value + timedelta(microseconds=us))
    return TEXT


@given(chains())
def test_what_was_not_touched_is_fine(rows: list[AuditRow]) -> None:
    assert verify_rows(rows) == []
    assert verify_rows(rows, checkpoint=checkpoint_of(rows)) == []


@given(st.data(), chains())
def test_any_cell_that_is_edited_is_found(data: st.DataObject, rows: list[AuditRow]) -> None:
    place = data.draw(st.integers(0, len(rows) - 1))
    row = rows[place]
    column = data.draw(st.sampled_from(AuditRow._fields))
    value = data.draw(others(column, getattr(row, column)).filter(lambda new: new != getattr(row, column)))
    changed = row._replace(**{column: value})
    findings = verify_rows([*rows[:place], changed, *rows[place + 1 :]], checkpoint=checkpoint_of(rows))
    assert findings
    if column not in {"chain", "seq"}:
        assert [(one.chain, one.seq, one.at, one.kind) for one in findings] == [
            (row.chain, row.seq, changed.at, "changed")
        ]


@given(st.data(), chains())
def test_a_cell_that_is_edited_with_a_fitting_hash_is_found_at_the_next_row_or_by_the_checkpoint(
    data: st.DataObject, rows: list[AuditRow]
) -> None:
    place = data.draw(st.integers(0, len(rows) - 1))
    row = rows[place]._replace(subject=rows[place].subject + "!")
    rows[place] = row._replace(hash=row_hash(row))
    last = place + 1 == len(rows) or rows[place + 1].chain != row.chain
    [found] = verify_rows(rows, checkpoint=checkpoint_of([*rows[:place], row]) if last else None)
    assert (found.chain, found.seq, found.kind) == (row.chain, row.seq if last else row.seq + 1, "changed")


@given(st.data(), chains())
def test_any_row_that_is_missing_is_found(data: st.DataObject, rows: list[AuditRow]) -> None:
    first = data.draw(st.integers(0, len(rows) - 1))
    chain = rows[first].chain
    last = data.draw(st.integers(first, max(n for n, row in enumerate(rows) if row.chain == chain)))
    left = rows[:first] + rows[last + 1 :]
    [found] = verify_rows(left, checkpoint=checkpoint_of(rows))
    assert found.chain == chain
    if not any(row.chain == chain for row in left):
        assert (found.kind, found.text) == (
            "removed",
            f"the whole chain is missing: the checkpoint knows {rows[last].seq} rows of it",
        )
    elif last + 1 < len(rows) and rows[last + 1].chain == chain:
        assert (found.kind, found.seq, found.at) == ("missing", rows[first].seq, rows[last + 1].at)
        assert f"before row {rows[last].seq + 1}" in found.text
    else:
        assert (found.kind, found.seq) == ("cut off", rows[first].seq)
        assert f"cut off behind row {rows[first].seq - 1}: the checkpoint knows it up to row {rows[last].seq}" in (
            found.text
        )


@given(st.data(), chains(least=2))
def test_rows_that_change_places_are_found(data: st.DataObject, rows: list[AuditRow]) -> None:
    one = data.draw(st.integers(0, len(rows) - 2).filter(lambda n: rows[n].chain == rows[n + 1].chain))
    first, second = rows[one], rows[one + 1]
    rows[one : one + 2] = [second._replace(seq=first.seq), first._replace(seq=second.seq)]
    [found] = verify_rows(rows)
    assert (found.chain, found.seq, found.kind) == (first.chain, first.seq, "changed")


@given(st.data(), chains(), st.integers(-1000, 1000).filter(bool))
def test_a_number_that_is_there_twice_is_found(data: st.DataObject, rows: list[AuditRow], later: int) -> None:
    place = data.draw(st.integers(0, len(rows) - 1))
    row = rows[place]._replace(at=rows[place].at + timedelta(microseconds=later), subject="forged")
    forged = row._replace(hash=row_hash(row))  # as well as anybody can who sees the row before
    [found] = verify_rows([*rows, forged])
    assert (found.chain, found.seq, found.kind) == (row.chain, row.seq, "inserted")
    assert found.text == f"there are two rows of number {row.seq}: one of them was inserted"


@given(chains(least=3))
def test_after_retention_a_chain_begins_at_its_anchor(rows: list[AuditRow]) -> None:
    anchor, left = head_of(rows[1]), rows[2:]
    chain = rows[0].chain
    before = {**checkpoint_of(rows), chain: head_of(rows[0])}
    for checkpoint in (None, checkpoint_of(rows), before, {**before, chain: anchor}):
        assert verify_rows(left, anchors={chain: anchor}, checkpoint=checkpoint) == []
    assert verify_rows(left)[0] == Finding(chain, 1, rows[2].at, "missing", "rows 1 to 2 are missing before row 3")
    [late] = verify_rows(rows[1:], anchors={chain: anchor})
    assert (late.kind, late.seq) == ("inserted", 2)
    assert late.text == "rows up to 2 were removed by retention: this one came later"
    [false] = verify_rows(left, anchors={chain: anchor._replace(hash=bytes(32))})
    assert (false.kind, false.text) == ("changed", "the row does not continue row 2: one of them was changed")
    known = {chain: anchor._replace(hash=bytes(32))}
    assert [one.kind for one in verify_rows(left, anchors={chain: anchor}, checkpoint=known)] == ["changed"]


def test_a_chain_that_retention_removed_whole_is_told_by_its_anchor() -> None:
    rows = chain_of("a/p/1", [Event(NOW, "x", "y", "{}")] * 3)
    checkpoint = checkpoint_of(rows)
    assert verify_rows([], anchors=checkpoint, checkpoint=checkpoint) == []
    [found] = verify_rows([], anchors={"a/p/1": head_of(rows[0])}, checkpoint=checkpoint)
    assert (found.kind, found.seq) == ("cut off", 2)
    [found] = verify_rows([], anchors={"a/p/1": head_of(rows[2])._replace(hash=bytes(32))}, checkpoint=checkpoint)
    assert (found.kind, found.seq) == ("changed", 3)


def test_each_chain_has_its_own_first_bad_row() -> None:
    rows = [*chain_of("a/p/1", [Event(NOW, "x", "y", "{}")] * 4), *chain_of("b/p/1", [Event(NOW, "x", "y", "{}")] * 4)]
    rows[1] = rows[1]._replace(actor="other")
    rows[2] = rows[2]._replace(actor="other")
    del rows[5]
    found = verify_rows(rows)
    assert [(one.chain, one.seq, one.kind) for one in found] == [("a/p/1", 2, "changed"), ("b/p/1", 2, "missing")]
    assert found[1].text == "row 2 is missing before row 3"


def test_rows_of_one_chain_do_not_continue_another() -> None:
    [row] = chain_of("a/p/1", [Event(NOW, "x", "y", "{}")])
    moved = row._replace(chain="b/p/1")
    moved = moved._replace(hash=row_hash(moved))
    [found] = verify_rows([moved])
    assert (found.kind, found.text) == (
        "changed",
        "the row does not continue the start of its chain: one of them was changed",
    )


@given(st.lists(st.binary(max_size=4), max_size=4), st.lists(st.binary(max_size=4), max_size=4))
def test_the_encoding_is_unambiguous(one: list[bytes], other: list[bytes]) -> None:
    assert (digest(*one) == digest(*other)) == (one == other)


def test_times_never_go_back() -> None:
    rows = chain_of("a/p/1", [Event(NOW + timedelta(hours=hours), "x", "y", "{}") for hours in (0, 2, 1, 3)])
    assert [row.at - NOW for row in rows] == [timedelta(hours=hours) for hours in (0, 2, 2, 3)]


@given(chains())
def test_a_checkpoint_is_what_it_was(rows: list[AuditRow]) -> None:
    import orjson

    document = orjson.dumps(dump_checkpoint("ah_x", checkpoint_of(rows))).decode()
    assert load_checkpoint(document, "ah_x") == checkpoint_of(rows)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "this is no checkpoint"),
        ("[]", "this is no checkpoint"),
        ('{"schema": "ah_x", "chains": {"a": {"seq": "one"}}}', "this is no checkpoint"),
        ('{"schema": "ah_y", "chains": {}}', "is of schema ah_y, and this hive's is ah_x"),
    ],
)
def test_what_is_no_checkpoint(text: str, reason: str) -> None:
    with pytest.raises(InvalidValue, match=reason):
        load_checkpoint(text, "ah_x")
