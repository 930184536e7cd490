"""Quantities in the form that a real API server returned for each of these (1.36)."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agenthive_operator.plan.quantity import MILLI, canonical, canonical_resources, value

RETURNED = [
    ("1", "1"), ("0", "0"), ("0Gi", "0"), ("0.0", "0"), ("1024Mi", "1Gi"), ("1000Mi", "1000Mi"), ("0.5", "500m"),
    ("1000m", "1"), ("1500m", "1500m"), ("1.5Gi", "1536Mi"), ("1.5Ki", "1536"), ("0.5Ki", "512"), ("0.25Ki", "256"),
    (".5Gi", "512Mi"), ("1e3", "1e3"), ("1E3", "1E3"), ("3e2", "300"), ("12e6", "12e6"), ("1.2e3", "1200"),
    ("1.5e1", "1.5e1"), ("1k", "1k"), ("1000k", "1M"), ("2048k", "2048k"), ("1024", "1024"), ("1024Ki", "1Mi"),
    ("1025Ki", "1025Ki"), ("1Ei", "1Ei"), ("1000P", "1E"), ("+1Gi", "+1Gi"), ("1.", "1."), ("1.0", "1"),
    ("5.5", "5500m"), ("20.555", "20.555"), ("18.406k", "18.406k"), ("100000", "100k"), ("1000000", "1M"),
    ("5u", "1m"), ("1500u", "2m"), ("123456789n", "124m"), ("49.049m", "50m"), ("100e-3", "100e-3"),
]  # fmt: skip


@pytest.mark.parametrize(("written", "returned"), RETURNED)
def test_canonical_is_what_a_server_returns(written: str, returned: str) -> None:
    assert canonical(written, finest=MILLI) == returned


@given(
    st.one_of(st.integers(0, 10**9).map(str), st.decimals(0, 10**6, places=3).map(lambda d: f"{d:f}")),
    st.sampled_from(["", "m", "k", "M", "G", "Ki", "Mi", "Gi", "e3", "E-2", "u", "n"]),
)
def test_canonical_keeps_the_value_and_is_stable(number: str, suffix: str) -> None:
    once = canonical(number + suffix)
    assert 0 <= value(once) - value(number + suffix) < Decimal("1e-9")
    assert canonical(once) == once


@pytest.mark.parametrize("text", ["", "1 Gi", "Gi", "1gi", "1,5", "--1", "1e"])
def test_what_is_no_quantity_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a quantity: write a number with a unit"):
        canonical(text)


def test_negative_quantities_have_their_value() -> None:
    assert value("-1Ki") == -1024
    assert canonical("-2048") == "-2048"


def test_resources_lose_what_is_empty() -> None:
    resources = {"requests": {"cpu": 1, "memory": "1024Mi"}, "limits": {}}
    assert canonical_resources(resources) == {"requests": {"cpu": "1", "memory": "1Gi"}}
