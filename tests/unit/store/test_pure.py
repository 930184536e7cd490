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
from agenthive.store.partitions import AUDIT, MESSAGES, METRICS, PartitionedTable, bounds, expired, wanted
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
    days = wanted(METRICS, date(2026, 2, 27))
    assert (days[0], days[-1], len(days)) == (date(2026, 2, 26), date(2026, 3, 13), 16)
    assert {after - before for before, after in pairwise(days)} == {timedelta(days=1)}
    assert METRICS.partition(date(2026, 3, 1)) == "agent_metrics_p20260301"
    assert bounds(METRICS, date(2026, 12, 31)) == ("2026-12-31 00:00:00+00", "2027-01-01 00:00:00+00")


def test_months_with_partitions() -> None:
    assert wanted(AUDIT, date(2026, 2, 10)) == [date(2026, 2, 1)]
    assert wanted(AUDIT, date(2026, 2, 15)) == [date(2026, 2, 1), date(2026, 3, 1)]
    assert wanted(AUDIT, date(2026, 1, 1)) == [date(2025, 12, 1), date(2026, 1, 1)]
    assert AUDIT.partition(date(2026, 3, 31)) == "audit_log_p202603"
    assert bounds(AUDIT, date(2026, 12, 31)) == ("2026-12-01 00:00:00+00", "2027-01-01 00:00:00+00")


@given(st.dates(date(2000, 1, 1), date(2100, 1, 1)), st.sampled_from([METRICS, AUDIT]))
def test_partitions_follow_each_other_and_are_known_by_their_names(day: date, table: PartitionedTable) -> None:
    first, end = table.days(day)
    assert first <= day < end
    assert table.days(end)[0] == end, "the next begins where this one ends"
    assert table.day_of(table.partition(day)) == first


@pytest.mark.parametrize(
    "name", ["agent_metrics_p2026030", "agent_metrics_p20260231", "agent_metrics_old", "x_p20260301"]
)
def test_partitions_of_other_names_are_nobodys(name: str) -> None:
    assert METRICS.day_of(name) is None
    assert expired(METRICS, [name], date(2030, 1, 1), 1) == []


def test_what_is_past_its_retention() -> None:
    days = [date(2026, 3, 1) + timedelta(days=offset) for offset in range(10)]
    there = {MESSAGES.partition(day) for day in days}
    assert expired(MESSAGES, there, date(2026, 3, 10), 7) == ["message_log_p20260301", "message_log_p20260302"]
    assert expired(MESSAGES, there, date(2026, 3, 2), 1) == []
    months = {AUDIT.partition(date(2025, month, 1)) for month in range(1, 13)}
    assert expired(AUDIT, months, date(2026, 2, 28), 365) == ["audit_log_p202501"]
    assert expired(AUDIT, months, date(2026, 3, 1), 365) == ["audit_log_p202501", "audit_log_p202502"]


@given(st.dates(date(2000, 1, 1), date(2100, 1, 1)), st.integers(1, 400), st.sampled_from([METRICS, AUDIT]))
def test_retention_never_takes_what_maintenance_makes(today: date, days: int, table: PartitionedTable) -> None:
    made = [table.partition(day) for day in wanted(table, today)]
    assert expired(table, made, today, days) == []


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
