"""Folding a batch of writes: tables for the cases, a model for the rest."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agenthive.store.errors import StoreError, VersionConflict
from agenthive.store.fold import Current, Folded, Key, Row, Write, fold, is_plain

K: Key = ("agent", "k")
BIRTH = 1000


def put(data: str, expected: int | None = None, key: Key = K, ttl: float | None = None) -> Write:
    return Write(key, data, ttl, expected)


def drop(expected: int | None = None, key: Key = K) -> Write:
    return Write(key, None, None, expected)


def conflict(expected: int, current: int) -> tuple[int, int]:
    return (expected, current)


def outcome(results: list[int | StoreError]) -> list[int | tuple[int, int]]:
    return [(r.expected, r.current) if isinstance(r, VersionConflict) else r for r in results if not _other(r)]


def _other(result: int | StoreError) -> bool:
    return isinstance(result, StoreError) and not isinstance(result, VersionConflict)


ALIVE = Current(7, alive=True)
EXPIRED = Current(7, alive=False)

CASES = [
    ("new key", None, [put("a")], [BIRTH], Folded(inserts=[Row(K, "a", None, BIRTH)])),
    ("several sets make one row", None, [put("a"), put("b"), put("c")], [1000, 1001, 1002],
     Folded(inserts=[Row(K, "c", None, 1002)])),
    ("update counts on", ALIVE, [put("a"), put("b", ttl=5.0)], [8, 9], Folded(updates=[Row(K, "b", 5.0, 9)])),
    ("first of two compare-and-sets wins", ALIVE, [put("a", 7), put("b", 7)], [8, conflict(7, 8)],
     Folded(updates=[Row(K, "a", None, 8)])),
    ("a chain of compare-and-sets", ALIVE, [put("a", 7), put("b", 8)], [8, 9], Folded(updates=[Row(K, "b", None, 9)])),
    ("a set between breaks the chain", ALIVE, [put("a"), put("b", 7)], [8, conflict(7, 8)],
     Folded(updates=[Row(K, "a", None, 8)])),
    ("create only if absent", None, [put("a", 0), put("b", 0)], [1000, conflict(0, 1000)],
     Folded(inserts=[Row(K, "a", None, BIRTH)])),
    ("nothing changes where all conflict", ALIVE, [put("a", 6), drop(6)], [conflict(6, 7), conflict(6, 7)], Folded()),
    ("an expired row is absent, yet counts on", EXPIRED, [put("x", 7), put("a", 0)], [conflict(7, 0), 8],
     Folded(updates=[Row(K, "a", None, 8)])),
    ("delete", ALIVE, [drop(), drop()], [1, 0], Folded(deletes=[K])),
    ("delete at a version", ALIVE, [drop(7)], [1], Folded(deletes=[K])),
    ("delete what is absent", None, [drop()], [0], Folded()),
    ("delete an expired row", EXPIRED, [drop()], [0], Folded()),
    ("made and deleted in one batch", None, [put("a"), drop()], [1000, 1], Folded()),
    ("deleted and made again does not repeat a version", ALIVE, [drop(), put("a")], [1, 8],
     Folded(updates=[Row(K, "a", None, 8)])),
    ("a compare-and-set from before the deletion fails", ALIVE, [drop(), put("a"), put("b", 7)], [1, 8, conflict(7, 8)],
     Folded(updates=[Row(K, "a", None, 8)])),
]  # fmt: skip


@pytest.mark.parametrize(
    ("row", "writes", "results", "expected"), [case[1:] for case in CASES], ids=[c[0] for c in CASES]
)
def test_fold(row: Current | None, writes: list[Write], results: list[int], expected: Folded) -> None:
    folded = fold(writes, {K: row} if row else {}, BIRTH)
    assert outcome(folded.results) == results
    assert (folded.inserts, folded.updates, folded.deletes) == (expected.inserts, expected.updates, expected.deletes)


def test_rows_are_ordered_by_key_whatever_the_order_of_callers() -> None:
    keys = [("b", "2"), ("a", "9"), ("b", "1")]
    folded = fold([put("x", key=key) for key in keys], {}, BIRTH)
    assert [row.key for row in folded.inserts] == sorted(keys)
    folded = fold([drop(key=key) for key in keys], dict.fromkeys(keys, ALIVE), BIRTH)
    assert folded.deletes == sorted(keys)


@pytest.mark.parametrize(
    ("writes", "plain"),
    [
        ([put("a")], True),
        ([put("a", key=("x", "1")), put("a", key=("y", "1"))], True),
        ([put("a"), put("b")], False),
        ([put("a", 0)], False),
        ([drop()], False),
    ],
)
def test_is_plain(writes: list[Write], plain: bool) -> None:
    assert is_plain(writes) is plain


KEYS = [("a", "1"), ("a", "2"), ("", "1")]
# Callers expect what they can have read: nothing, the row, or an older version. (Chains are in the table above.)
READ = 9
EXPECTED = st.sampled_from([None, 0, READ, 3])
WRITES = st.lists(
    st.builds(Write, st.sampled_from(KEYS), st.sampled_from([None, "x", "y"]), st.none(), EXPECTED), max_size=12
)
ROWS = st.dictionaries(st.sampled_from(KEYS), st.builds(Current, st.just(READ), st.booleans()))


@given(WRITES, ROWS)
def test_a_batch_is_what_its_writes_would_be_one_by_one(writes: list[Write], rows: dict[Key, Current]) -> None:
    """Folding all at once = folding one write, storing what comes out, folding the next."""
    table = {key: (row, "old") for key, row in rows.items()}
    versions_seen = {key: {row.version} for key, row in rows.items()}
    one_by_one = []
    for number, write in enumerate(writes):
        # A key that is made again starts at the clock, which has gone on; in a batch it counts on. Both are new.
        step = fold([write], {key: row for key, (row, _) in table.items()}, BIRTH + 100 * number)
        one_by_one.append(step.results[0])
        for row in [*step.inserts, *step.updates]:
            table[row.key] = (Current(row.version, alive=True), row.data)
            assert row.version not in versions_seen.setdefault(row.key, set())
            versions_seen[row.key].add(row.version)
        for key in step.deletes:
            del table[key]
    folded = fold(writes, rows, BIRTH)
    final = {key: (row, "old") for key, row in rows.items()}
    for row in [*folded.inserts, *folded.updates]:
        final[row.key] = (Current(row.version, alive=True), row.data)
    for key in folded.deletes:
        del final[key]
    visible = {key: data for key, (row, data) in final.items() if row.alive}
    assert visible == {key: data for key, (row, data) in table.items() if row.alive}
    assert [isinstance(r, StoreError) for r in folded.results] == [isinstance(r, StoreError) for r in one_by_one]
