"""Quantities."""

from __future__ import annotations

from decimal import Decimal

import pytest

from agenthive_operator.local.apiserver.quantity import canonical_quantity, quantity_value


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("0", "0"), ("1", "1"), ("0.5", "500m"), ("1000m", "1"), ("1500m", "1500m"), ("100m", "100m"), ("1k", "1k"),
        ("1000", "1k"), ("1024", "1024"), ("1024Mi", "1Gi"), ("1Gi", "1Gi"), ("1.5Gi", "1536Mi"), ("512", "512"),
        ("1e3", "1e3"), ("12e6", "12e6"), ("1M", "1M"), ("0.1m", "100u"), ("1n", "1n"), ("0.1n", "1n"), ("-1", "-1"),
        (".5", "500m"), ("1023Ki", "1023Ki"), ("0Gi", "0"), ("0.5Ki", "512"),
    ],
)  # fmt: skip
def test_canonical(text: str, canonical: str) -> None:
    assert canonical_quantity(text) == canonical


@pytest.mark.parametrize("text", ["", "1 GB", "GB", "1KiB", "1..2", "1e", "--1", "1Gi "])
def test_no_quantities(text: str) -> None:
    with pytest.raises(ValueError, match="quantities must match"):
        quantity_value(text)


@pytest.mark.parametrize(("text", "value"), [("1Gi", 1 << 30), ("250m", "0.25"), ("2e3", 2000), ("1.5k", 1500)])
def test_values(text: str, value: object) -> None:
    assert quantity_value(text) == Decimal(str(value))
