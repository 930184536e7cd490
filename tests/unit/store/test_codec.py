"""JSON and the limits of what can be kept."""

from __future__ import annotations

import dataclasses
import math
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agenthive.store import codec
from agenthive.store.errors import InvalidValue, ValueTooLarge

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
NUMBERS = st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner),
)


@given(JSON)
def test_what_is_written_comes_back(value: Any) -> None:
    assert codec.decode(codec.encode(value)) == value


@dataclasses.dataclass
class Card:
    value: float


@pytest.mark.parametrize(
    "value",
    [math.nan, math.inf, [1, {"a": -math.inf}], (None, math.nan), object(), {1: 2}, 2**64, "\ud800", Card(1.0), {1, 2}],
)
def test_what_is_not_json_is_refused(value: Any) -> None:
    with pytest.raises(InvalidValue, match="state key 'k' cannot be written as JSON"):
        codec.encode(value, what="state key 'k'")


def test_null_is_not_mistaken_for_nan() -> None:
    assert codec.encode({"a": None, "b": ["null", 1.5]}) == '{"a":null,"b":["null",1.5]}'


def test_the_size_limit_counts_bytes_of_the_text() -> None:
    assert len(codec.encode("x" * (codec.MAX_DOCUMENT_BYTES - 2))) == codec.MAX_DOCUMENT_BYTES
    with pytest.raises(ValueTooLarge, match="1048577 bytes as JSON; at most 1048576"):
        codec.encode("x" * (codec.MAX_DOCUMENT_BYTES - 1))
    with pytest.raises(ValueTooLarge, match="6 bytes"):
        codec.encode("éé", limit=5)


@pytest.mark.parametrize("key", ["a", "module/json.decoder", "é" * 512, "x" * 1024, "a b\n"])
def test_good_keys(key: str) -> None:
    assert codec.check_key(key) is key


@pytest.mark.parametrize("key", ["", None, 7, b"a", "a\0b", "x" * 1025, "é" * 513, "\ud800"])
def test_bad_keys(key: Any) -> None:
    with pytest.raises(InvalidValue, match="topic"):
        codec.check_key(key, "topic")


@pytest.mark.parametrize("value", [0, -1, 1e308, 5e-324, 10**300, True, Decimal("1.5"), 1_000_000_000_000])
def test_any_finite_number(value: Any) -> None:
    assert codec.check_finite(value) == float(value)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 10**400, "1.5", None, "x", [1]])
def test_other_values_are_no_metrics(value: Any) -> None:
    with pytest.raises(InvalidValue, match="latency must be a finite number"):
        codec.check_finite(value, "latency")


def test_timestamps_name_their_time_zone() -> None:
    now = datetime.now(UTC)
    assert codec.check_timestamp(now) is now
    with pytest.raises(InvalidValue, match=r"since .* names no time zone"):
        codec.check_timestamp(datetime(2026, 1, 1), "since")


def test_ids_are_distinct_version_7_uuids_of_the_present() -> None:
    ids = [codec.new_id() for _ in range(1000)]
    assert len(set(ids)) == 1000
    assert {(one.version, one.variant) for one in ids} == {(7, "specified in RFC 4122")}
    assert abs((ids[0].int >> 80) / 1000 - codec.utc_now().timestamp()) < 60
