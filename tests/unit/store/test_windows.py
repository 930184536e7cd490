"""Which days a query looks at, in which order."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, timezone
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agenthive.store.errors import InvalidValue
from agenthive.store.windows import check_window, day_after, windows, within

TODAY = date(2026, 3, 10)
MOMENTS = st.datetimes(datetime(2026, 1, 1), datetime(2026, 5, 1), timezones=st.just(UTC))


def test_without_bounds_the_latest_days_come_first() -> None:
    looks = list(windows(TODAY, None, None))
    assert looks[:3] == [
        (date(2026, 3, 10), date(2026, 3, 12)),
        (date(2026, 3, 6), date(2026, 3, 10)),
        (date(2026, 2, 26), date(2026, 3, 6)),
    ]
    assert looks[-1] == (None, date(2026, 3, 12) - timedelta(days=126))
    assert len(looks) == 7


def test_a_short_window_is_one_look() -> None:
    since = datetime(2026, 3, 10, 11, tzinfo=UTC)
    assert list(windows(TODAY, since, since + timedelta(hours=1))) == [(TODAY, date(2026, 3, 11))]
    assert list(windows(TODAY, since, None)) == [(TODAY, date(2026, 3, 12))]
    midnight = datetime(2026, 3, 11, tzinfo=UTC)
    assert list(windows(TODAY, since, midnight)) == [(TODAY, date(2026, 3, 11))], (
        "the day that begins then is not meant"
    )
    tokyo = datetime(2026, 3, 10, 3, tzinfo=timezone(timedelta(hours=9)))
    assert list(windows(TODAY, tokyo, tokyo + timedelta(hours=1))) == [(date(2026, 3, 9), TODAY)]


def test_a_window_that_is_none() -> None:
    since = datetime(2026, 3, 20, tzinfo=UTC)
    assert list(windows(TODAY, since, None)) == []


@given(MOMENTS, MOMENTS, st.booleans(), st.booleans())
def test_looks_follow_each_other_and_cover_the_window(one: datetime, other: datetime, low: bool, high: bool) -> None:
    since, until = sorted((one, other))
    looks = list(windows(TODAY, since if low else None, until if high else None))
    assert all(later[0] == earlier[1] for later, earlier in pairwise(looks))
    if looks:
        first, end = looks[-1][0], looks[0][1]
        assert end == (day_after(until) if high else TODAY + timedelta(days=2))
        assert first == (since.date() if low else None)


def test_the_condition_is_made_of_constants() -> None:
    assert within("t", TODAY, date(2026, 3, 12)) == ("t >= '2026-03-10 00:00:00+00' AND t < '2026-03-12 00:00:00+00'")
    assert within("t", None, TODAY) == "t < '2026-03-10 00:00:00+00'"


def test_arguments_that_make_no_sense() -> None:
    with pytest.raises(InvalidValue, match="limit must be at least 1, not 0"):
        check_window(None, None, 0)
    for name in ("since", "until"):
        with pytest.raises(InvalidValue, match=f"{name} .* names no time zone"):
            check_window(**{"since": None, "until": None, "limit": 1, name: datetime(2026, 1, 1)})
