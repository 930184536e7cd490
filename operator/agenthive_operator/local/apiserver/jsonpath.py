"""The part of kubectl's JSONPath that printer columns use."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any

_STEP = re.compile(
    r"""\.(?P<name>(?:[A-Za-z0-9_$@-]|\\.)+)
      | \[(?P<index>-?\d+)\]
      | \[(?P<all>\*)\] | \.(?P<star>\*)
      | \['(?P<quoted>[^']*)'\]
      | \[\?\(@\.(?P<field>[A-Za-z0-9_.-]+)\s*(?P<op>==|!=)\s*(?P<q>["']?)(?P<value>[^"')]*)(?P=q)\)\]
    """,
    re.VERBOSE,
)

_Step = Callable[[list[Any]], list[Any]]


@lru_cache(maxsize=1024)
def compile_path(text: str) -> Callable[[Any], list[Any]]:
    """What ``text`` finds in an object, as a list.

    Raises:
        ValueError: For syntax this server does not have.
    """
    inner = text.strip()
    if inner.startswith("{") and inner.endswith("}"):
        inner = inner[1:-1]
    steps: list[_Step] = []
    position = 0
    while position < len(inner):
        found = _STEP.match(inner, position)
        if found is None:
            raise ValueError(f"{text!r}: nothing this server understands at {inner[position:]!r}")
        steps.append(_step(found))
        position = found.end()

    def read(obj: Any) -> list[Any]:
        values = [obj]
        for step in steps:
            values = step(values)
        return values

    return read


def _step(found: re.Match[str]) -> _Step:
    if (name := found["name"] or found["quoted"]) is not None:
        key = name.replace("\\", "")
        return lambda values: [value[key] for value in values if isinstance(value, dict) and key in value]
    if found["index"] is not None:
        index = int(found["index"])
        return lambda values: [
            value[index] for value in values if isinstance(value, list) and -len(value) <= index < len(value)
        ]
    if found["all"] or found["star"]:
        return lambda values: [
            item
            for value in values
            if isinstance(value, list | dict)
            for item in (value.values() if isinstance(value, dict) else value)
        ]
    path, wanted, equal = found["field"].split("."), found["value"], found["op"] == "=="
    return lambda values: [
        item
        for value in values
        if isinstance(value, list)
        for item in value
        if (_text(_at(item, path)) == wanted) is equal
    ]


def _at(item: Any, path: list[str]) -> Any:
    for name in path:
        item = item.get(name) if isinstance(item, dict) else None
    return item


def _text(value: Any) -> str:
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else str(value)
