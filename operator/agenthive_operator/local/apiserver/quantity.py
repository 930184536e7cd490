"""Kubernetes quantities: ``100m``, ``1Gi``, ``2e3`` as exact numbers and in canonical form."""

from __future__ import annotations

import re
from decimal import ROUND_CEILING, Decimal
from functools import lru_cache

_FORMAT = re.compile(r"^([+-]?)(\d+\.?\d*|\.\d+)(?:([eE][+-]?\d+)|(Ki|Mi|Gi|Ti|Pi|Ei|[numkMGTPE]))?$")
_BINARY = {"Ki": 10, "Mi": 20, "Gi": 30, "Ti": 40, "Pi": 50, "Ei": 60}
_DECIMAL = {"n": -9, "u": -6, "m": -3, "": 0, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}

PATTERN = "^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$"


@lru_cache(maxsize=4096)
def _parsed(text: str) -> tuple[Decimal, str]:
    found = _FORMAT.match(text)
    if found is None:
        raise ValueError(f"quantities must match the regular expression '{PATTERN}', not {text!r}")
    sign, digits, exponent, suffix = found.groups()
    number = Decimal(sign + digits)
    if exponent:
        return number.scaleb(int(exponent[1:])), "exponent"
    if suffix in _BINARY:
        return number * (1 << _BINARY[suffix]), "binary"
    return number.scaleb(_DECIMAL[suffix or ""]), "decimal"


def quantity_value(text: str) -> Decimal:
    """The exact number a quantity stands for.

    Raises:
        ValueError: ``text`` is no quantity.
    """
    return _parsed(text)[0]


@lru_cache(maxsize=4096)
def canonical_quantity(text: str) -> str:
    """As the API server writes it back: ``1024Mi`` → ``1Gi``, ``0.5`` → ``500m``, ``1000m`` → ``1``.

    Raises:
        ValueError: ``text`` is no quantity.
    """
    number, form = _parsed(text)
    if form == "binary" and number == number.to_integral_value() and abs(number) >= 1024:
        whole = int(number)
        for suffix, bits in reversed(_BINARY.items()):
            if whole % (1 << bits) == 0:
                return f"{whole >> bits}{suffix}"
        return str(whole)
    if form == "binary" and number == number.to_integral_value():
        return str(int(number))
    # Nothing is finer than a nano; the server rounds up.
    number = number.quantize(Decimal("1e-9"), rounding=ROUND_CEILING) if number.as_tuple().exponent != 0 else number
    if number == 0:
        return "0"
    for suffix, power in sorted(_DECIMAL.items(), key=lambda pair: -pair[1]):
        scaled = number.scaleb(-power)
        if scaled == scaled.to_integral_value():
            if form == "exponent":
                return f"{int(scaled)}e{power}" if power else str(int(scaled))
            return f"{int(scaled)}{suffix}"
    raise AssertionError(f"{text}: every quantity is a whole number of nanos")
