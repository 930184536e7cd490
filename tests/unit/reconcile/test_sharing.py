"""Equal parts of objects are one and the same; what differs stays apart."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from agenthive_operator.reconcile.sharing import Sharing

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5)
VALUES = st.recursive(
    SCALARS, lambda below: st.lists(below, max_size=4) | st.dictionaries(st.text(max_size=3), below, max_size=4)
)


def text(value: Any) -> str:
    """Tells 1 from 1.0 and True, which are equal."""
    return json.dumps(value)


@given(st.lists(VALUES, max_size=8), st.integers(1, 50))
def test_values_stay_what_they_are_however_little_is_remembered(values: list[Any], remembered: int) -> None:
    sharing = Sharing(remembered)
    found = [sharing.shared(json.loads(text(value))) for value in values]
    assert [text(value) for value in found] == [text(value) for value in values]


def test_equal_parts_are_held_once() -> None:
    sharing = Sharing()
    body = '{"metadata": {"name": "%s"}, "spec": {"containers": [{"image": "x", "ports": [1, 2]}]}}'
    one, two = (sharing.shared(json.loads(body % name)) for name in "ab")
    assert one["spec"] is two["spec"]
    assert one["metadata"] != two["metadata"]
    assert sharing.shared(json.loads(body % "a")) is one


def test_numbers_that_are_equal_and_of_another_type_are_told_apart() -> None:
    sharing = Sharing()
    assert [text(sharing.shared([value])) for value in (1, True, 1.0, 0, False)] == [
        "[1]", "[true]", "[1.0]", "[0]", "[false]",
    ]  # fmt: skip


def test_the_order_of_keys_is_kept() -> None:
    sharing = Sharing()
    assert [list(sharing.shared(dict.fromkeys(keys, "v"))) for keys in ("ab", "ba")] == [["a", "b"], ["b", "a"]]
