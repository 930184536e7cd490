"""Small decisions: migrations to apply, days with partitions, ends of prefixes, filters, arguments."""

from __future__ import annotations

from datetime import date, timedelta
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agenthive.store.errors import InvalidValue, MigrationError, SchemaMissing, SchemaTooNew
from agenthive.store.messages import checked_policy
from agenthive.store.migrate import Migration, check_sequence, migrations, pending, require_current
from agenthive.store.partitions import METRICS, bounds, wanted_days
from agenthive.store.state import expected_of, prefix_end, seconds_of
from agenthive.store.statements import filtered

ONE = Migration(1, "one", "SELECT 1", "aaa")
TWO = Migration(2, "two", "SELECT 2", "bbb")


@pytest.mark.parametrize(
    ("applied", "expected"),
    [({}, (ONE, TWO)), ({1: "aaa"}, (TWO,)), ({1: "aaa", 2: "bbb"}, ())],
)
def test_pending(applied: dict[int, str], expected: tuple[Migration, ...]) -> None:
    assert pending((ONE, TWO), applied, "ah_x") == expected


def test_a_migration_that_was_edited_is_found_out() -> None:
    with pytest.raises(MigrationError, match="0001_one was applied to schema ah_x with another content"):
        pending((ONE, TWO), {1: "changed"}, "ah_x")


def test_a_newer_schema_is_refused_with_what_to_do() -> None:
    with pytest.raises(SchemaTooNew, match=r"ah_x is at version 3 and this code knows only 2: upgrade agenthive-k8s"):
        pending((ONE, TWO), {1: "aaa", 2: "bbb", 3: "ccc"}, "ah_x")


def test_migrations_are_numbered_without_gaps() -> None:
    assert check_sequence([ONE, TWO]) == (ONE, TWO)
    for wrong in ([TWO], [ONE, ONE], [ONE, Migration(3, "three", "", "")]):
        with pytest.raises(MigrationError, match="without gaps"):
            check_sequence(wrong)


def test_the_migrations_of_this_code() -> None:
    known = migrations()
    assert known[0].name == "state_metrics_messages"
    assert all(len(migration.checksum) == 64 for migration in known)
    require_current(len(known), "ah_x", "db:5432/app")


@pytest.mark.parametrize(
    ("current", "kind", "text"),
    [
        (0, SchemaMissing, "db:5432/app has no schema ah_x for this hive: run `agenthive db upgrade`"),
        (10_000, SchemaTooNew, "upgrade agenthive-k8s"),
    ],
)
def test_require_current(current: int, kind: type[Exception], text: str) -> None:
    with pytest.raises(kind, match=text):
        require_current(current, "ah_x", "db:5432/app")


def test_an_older_schema_has_to_be_upgraded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agenthive.store.migrate.migrations", lambda: (ONE, TWO))
    with pytest.raises(SchemaMissing, match="is at version 1 and this code needs 2: run `agenthive db upgrade`"):
        require_current(1, "ah_x", "db:5432/app")


def test_days_with_partitions() -> None:
    days = wanted_days(date(2026, 2, 27))
    assert (days[0], days[-1], len(days)) == (date(2026, 2, 26), date(2026, 3, 13), 16)
    assert {after - before for before, after in pairwise(days)} == {timedelta(days=1)}
    assert METRICS.partition(date(2026, 3, 1)) == "agent_metrics_p20260301"
    assert bounds(date(2026, 12, 31)) == ("2026-12-31 00:00:00+00", "2027-01-01 00:00:00+00")


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)


@given(TEXT, TEXT)
def test_prefix_end_is_the_first_string_behind(prefix: str, other: str) -> None:
    end = prefix_end(prefix)
    assert end is None or end > prefix
    inside = prefix <= other and (end is None or other < end)
    assert inside == other.startswith(prefix)
    assert prefix + other >= prefix
    assert end is None or prefix + other < end


@pytest.mark.parametrize(
    ("prefix", "end"),
    [("", None), ("a", "b"), ("module/", "module0"), ("a\U0010ffff", "b"), ("\U0010ffff", None), ("\ud7ff", "\ue000")],
)
def test_prefix_end(prefix: str, end: str | None) -> None:
    assert prefix_end(prefix) == end


def test_filtered() -> None:
    assert filtered("SELECT a FROM t", "ORDER BY a", {"x =": None, "y >=": 5, "z =": "q"}, 10) == (
        "SELECT a FROM t WHERE y >= $1 AND z = $2 ORDER BY a LIMIT $3",
        [5, "q", 10],
    )
    assert filtered("SELECT a FROM t", "ORDER BY a", {}, 1) == ("SELECT a FROM t  ORDER BY a LIMIT $1", [1])


@pytest.mark.parametrize(("ttl", "seconds"), [(None, None), (1, 1.0), (0.5, 0.5), (timedelta(minutes=2), 120.0)])
def test_ttl(ttl: Any, seconds: float | None) -> None:
    assert seconds_of(ttl) == seconds


@pytest.mark.parametrize("ttl", [0, -1, float("nan"), float("inf"), 1e12, "5", timedelta(0)])
def test_bad_ttl(ttl: Any) -> None:
    with pytest.raises(InvalidValue, match="ttl"):
        seconds_of(ttl)


@pytest.mark.parametrize("version", [-1, "1", 1.0])
def test_bad_expected_versions(version: Any) -> None:
    with pytest.raises(InvalidValue, match="expect_version"):
        expected_of(version)


def test_policies_of_the_message_log() -> None:
    assert [checked_policy(policy) for policy in ("failures", "all")] == ["failures", "all"]
    with pytest.raises(InvalidValue, match="'failures' or 'all', not 'none'"):
        checked_policy("none")
