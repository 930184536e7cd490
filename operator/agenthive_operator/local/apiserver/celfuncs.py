"""Functions of Kubernetes' CEL libraries that the CEL package does not have."""

from __future__ import annotations

import re
from collections.abc import Callable
from decimal import Decimal
from itertools import pairwise
from typing import Any

from . import formats
from .quantity import quantity_value

# The CEL engine passes values of its own types only: a quantity travels as a mapping with this one key.
_QUANTITY = "\0quantity"


def quantity(text: str) -> dict[str, str]:
    """``quantity('1Gi')``; raises ValueError for text that is none."""
    return {_QUANTITY: str(quantity_value(text))}


def is_quantity(text: str) -> bool:
    try:
        quantity_value(text)
    except ValueError:
        return False
    return True


def _number(value: Any) -> Decimal:
    if isinstance(value, dict) and _QUANTITY in value:
        return Decimal(value[_QUANTITY])
    if isinstance(value, int | float) and not isinstance(value, bool):
        return Decimal(str(value))
    raise TypeError(f"{value!r} is not a quantity")


def _pack(number: Decimal) -> dict[str, str]:
    return {_QUANTITY: str(number)}


def compare_to(first: Any, second: Any) -> int:
    left, right = _number(first), _number(second)
    return (left > right) - (left < right)


def is_less_than(first: Any, second: Any) -> bool:
    return compare_to(first, second) < 0


def is_greater_than(first: Any, second: Any) -> bool:
    return compare_to(first, second) > 0


def add(first: Any, second: Any) -> dict[str, str]:
    return _pack(_number(first) + _number(second))


def sub(first: Any, second: Any) -> dict[str, str]:
    return _pack(_number(first) - _number(second))


def sign(value: Any) -> int:
    number = _number(value)
    return (number > 0) - (number < 0)


def is_integer(value: Any) -> bool:
    return _number(value) == _number(value).to_integral_value()


def as_integer(value: Any) -> int:
    if not is_integer(value):
        raise ValueError("cannot convert value to integer")
    return int(_number(value))


def as_approximate_float(value: Any) -> float:
    return float(_number(value))


def is_sorted(items: list[Any]) -> bool:
    return all(first <= second for first, second in pairwise(items))


def index_of(where: Any, what: Any, start: int = 0) -> int:
    if isinstance(where, str):
        return where.find(what, start)
    return where.index(what) if what in where else -1


def last_index_of(where: Any, what: Any) -> int:
    if isinstance(where, str):
        return where.rfind(what)
    return len(where) - 1 - where[::-1].index(what) if what in where else -1


def find(text: str, pattern: str) -> str:
    found = formats.go_pattern(pattern).search(text)
    return found[0] if found else ""


def find_all(text: str, pattern: str, limit: int = -1) -> list[str]:
    found = [match[0] for match in formats.go_pattern(pattern).finditer(text)]
    return found if limit < 0 else found[:limit]


def text_format(template: str, values: list[Any]) -> str:
    """``'%s has %d'.format([...])``: the verbs %s and %d."""
    left = iter(values)

    def put(found: re.Match[str]) -> str:
        if found[0] == "%%":
            return "%"
        value = next(left)
        return {True: "true", False: "false"}[value] if isinstance(value, bool) else str(value)

    return re.sub(r"%[sd%]", put, template)


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "quantity": quantity,
    "isQuantity": is_quantity,
    "compareTo": compare_to,
    "isLessThan": is_less_than,
    "isGreaterThan": is_greater_than,
    "add": add,
    "sub": sub,
    "sign": sign,
    "isInteger": is_integer,
    "asInteger": as_integer,
    "asApproximateFloat": as_approximate_float,
    "isSorted": is_sorted,
    "indexOf": index_of,
    "lastIndexOf": last_index_of,
    "find": find,
    "findAll": find_all,
    "format": text_format,
}
