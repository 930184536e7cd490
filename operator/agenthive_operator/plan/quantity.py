"""Kubernetes quantities in the form in which an API server returns them: an unchanged apply then compares equal."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import ROUND_UP, Decimal

_PARTS = re.compile(r"^[+-]?(?:([0-9]+)(?:\.([0-9]*))?|\.([0-9]+))([KMGTPE]i|[numkMGTPE]|[eE][+-]?[0-9]+)?$")
_BINARY = {f"{letter}i": 1024**power for power, letter in enumerate("KMGTPE", start=1)}
_DECIMAL = {"n": -9, "u": -6, "m": -3, "": 0, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
_NAMES = {exponent: name for name, exponent in _DECIMAL.items()}
NANO, MILLI = -9, -3
# Kubernetes reads a number of at most so many digits without arbitrary precision.
_SHORT_DIGITS = 18


@dataclass(frozen=True, slots=True)
class _Quantity:
    text: str
    value: Decimal
    suffix: str
    whole: str
    fraction: str

    @property
    def binary(self) -> bool:
        return self.suffix in _BINARY

    @property
    def scientific(self) -> bool:
        return not self.binary and len(self.suffix) > 1

    @property
    def kept(self) -> bool:
        """Kubernetes takes the text for canonical, by a quick check of its own, and returns it as it came."""
        digits = self.whole + self.fraction
        if len(digits) > _SHORT_DIGITS:
            return False
        if self.binary:
            return not self.fraction and int(self.whole) % 8 != 0
        exponent = int(self.suffix[1:]) if self.scientific else _DECIMAL[self.suffix]
        scale = exponent - len(self.fraction)
        return scale >= NANO and scale % 3 == 0 and not digits.endswith("000") and not digits.startswith("0")


def _parse(quantity: str | int) -> _Quantity:
    text = str(quantity).strip()
    match = _PARTS.match(text)
    if match is None:
        raise ValueError(f"{quantity!r} is not a quantity: write a number with a unit, for instance 500m, 2 or 1Gi")
    whole, fraction, bare, suffix = (match.group(i) or "" for i in range(1, 5))
    fraction = fraction or bare
    number = Decimal(f"{'-' if text.startswith('-') else ''}{whole or '0'}.{fraction or '0'}")
    if suffix in _BINARY:
        number *= _BINARY[suffix]
    elif suffix in _DECIMAL:
        number = number.scaleb(_DECIMAL[suffix])
    else:
        number = number.scaleb(int(suffix[1:]))
    return _Quantity(text, number, suffix, whole, fraction)


def value(quantity: str | int) -> Decimal:
    """The number that ``quantity`` stands for.

    Raises:
        ValueError: It is not a quantity.
    """
    return _parse(quantity).value


def canonical(quantity: str | int, *, finest: int = NANO) -> str:
    """``quantity`` as an API server writes it: ``1024Mi`` is ``1Gi``, ``0.5`` is ``500m``, ``1000m`` is ``1``.

    Args:
        quantity: As a user writes it.
        finest: Power of ten below which is rounded up; requests and limits are kept in thousandths (``MILLI``).

    Raises:
        ValueError: It is not a quantity.
    """
    parsed = _parse(quantity)
    number = parsed.value
    unit = Decimal(1).scaleb(finest)
    if number % unit:
        number = number.quantize(unit, ROUND_UP)
    elif parsed.kept:
        return parsed.text
    if number == 0:
        return "0"
    # Below 1024 there is no binary form, and a fraction has none either.
    if parsed.binary and abs(number) >= 1024 and number == number.to_integral_value():
        amount, power = _reduced(int(number), 1024, 0, 1, len(_BINARY))
        return f"{amount}{('', *_BINARY)[power]}"
    if parsed.scientific:
        amount, exponent = _reduced(int(number.scaleb(-NANO)), 1000, NANO, 3, 10**6)
        return f"{amount}e{exponent}" if exponent else str(amount)
    amount, exponent = _reduced(int(number.scaleb(-NANO)), 1000, NANO, 3, max(_NAMES))
    return f"{amount}{_NAMES[exponent]}"


def _reduced(amount: int, base: int, exponent: int, step: int, highest: int) -> tuple[int, int]:
    """``amount`` with as many factors of ``base`` as possible moved into ``exponent``."""
    while amount % base == 0 and exponent < highest:
        amount, exponent = amount // base, exponent + step
    return amount, exponent


def canonical_amounts(amounts: Mapping[str, str | int]) -> dict[str, str]:
    """Requests or limits with every quantity in canonical form.

    Raises:
        ValueError: One is not a quantity.
    """
    return {name: canonical(amount, finest=MILLI) for name, amount in amounts.items()}


def canonical_resources(resources: Mapping[str, Mapping[str, str | int]]) -> dict[str, dict[str, str]]:
    """Requests and limits of a container with every quantity in canonical form; empty ones are left out.

    Raises:
        ValueError: One is not a quantity.
    """
    return {kind: canonical_amounts(amounts) for kind, amounts in resources.items() if amounts}
