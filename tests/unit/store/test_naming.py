"""Names inside PostgreSQL."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agenthive.settings import HiveScope
from agenthive.store.naming import MAX_IDENTIFIER, literal, lock_key, quote, schema_name

LABEL = st.from_regex(r"[a-z0-9]([-a-z0-9]{0,8}[a-z0-9])?", fullmatch=True)


@pytest.mark.parametrize(
    ("scope", "expected"),
    [
        (HiveScope(), "ah_local_default_default"),
        (HiveScope(instance="prod", namespace="team", hive="demo"), "ah_prod_team_demo"),
        (HiveScope(hive="code-atlas"), "ah_local_default_code__atlas"),
        (HiveScope(instance="1", namespace="2", hive="3"), "ah_1_2_3"),
    ],
)
def test_schema_name(scope: HiveScope, expected: str) -> None:
    assert schema_name(scope) == expected


def test_a_long_name_is_capped_and_still_distinct() -> None:
    one = schema_name(HiveScope(namespace="n" * 63, hive="h" * 62 + "1"))
    two = schema_name(HiveScope(namespace="n" * 63, hive="h" * 62 + "2"))
    assert len(one) == len(two) == MAX_IDENTIFIER
    assert one != two
    assert one == schema_name(HiveScope(namespace="n" * 63, hive="h" * 62 + "1"))


@given(st.tuples(LABEL, LABEL, LABEL), st.tuples(LABEL, LABEL, LABEL))
def test_two_hives_never_share_a_schema(one: tuple[str, str, str], two: tuple[str, str, str]) -> None:
    names = [schema_name(HiveScope(instance=i, namespace=n, hive=h)) for i, n, h in (one, two)]
    assert (names[0] == names[1]) == (one == two)
    for name in names:
        assert re.fullmatch(r"[a-z][a-z0-9_]{0,62}", name), "needs quotes in psql"


def test_dashes_cannot_be_mistaken_for_separators() -> None:
    assert schema_name(HiveScope(namespace="b-c", hive="d")) != schema_name(HiveScope(namespace="b", hive="c-d"))


def test_quote() -> None:
    assert quote('a"b') == '"a""b"'
    for bad in ("", "a\0b", "x" * 64, "é" * 32):
        with pytest.raises(ValueError, match="identifier"):
            quote(bad)


def test_lock_keys_are_stable_signed_64_bit_numbers_and_differ() -> None:
    keys = {lock_key("migrate", "a"), lock_key("migrate", "b"), lock_key("partitions", "a"), lock_key("migratea")}
    assert len(keys) == 4
    assert all(-(2**63) <= key < 2**63 for key in keys)
    # Written down: two versions of this code have to take the same lock.
    assert lock_key("migrate", "ah_local_default_demo") == 2394876218139749847


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_a_literal_holds_nothing_that_could_end_it(text: str) -> None:
    written = re.fullmatch(r"convert_from\(decode\('([0-9a-f]*)', 'hex'\), 'UTF8'\)", literal(text))
    assert written is not None
    assert bytes.fromhex(written[1]).decode() == text
