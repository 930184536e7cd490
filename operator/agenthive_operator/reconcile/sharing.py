"""Equal parts of many objects, held once: a thousand Deployments of one make differ in a few names.

Parsed JSON alone: dictionaries, lists, strings, numbers. What is shared is never changed again.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

REMEMBERED: Final = 20_000
"""Parts that are remembered; then everything is forgotten, and what comes later shares anew."""


class Sharing:
    """Remembers parts of values and finds them again."""

    def __init__(self, remembered: int = REMEMBERED) -> None:
        self._remembered = remembered
        self._texts: dict[str, str] = {}
        #: By the identities of what is in it, which stands still as long as the part itself is remembered here.
        self._parts: dict[tuple[Any, ...], Any] = {}

    def shared(self, value: Any) -> Any:
        """``value``, made of parts that others are made of as well where they are equal."""
        if len(self._texts) > self._remembered or len(self._parts) > self._remembered:
            self._texts, self._parts = {}, {}
        return self._shared(value)

    def _shared(self, value: Any) -> Any:
        kind = type(value)
        if kind is str:
            return self._texts.setdefault(value, value)
        if kind is dict:
            below = {key: self._shared(item) for key, item in value.items()}
            return self._parts.setdefault((dict, *below, *_identities(below.values())), below)
        if kind is list:
            items = [self._shared(item) for item in value]
            return self._parts.setdefault((list, *_identities(items)), items)
        return value


def _identities(values: Iterable[Any]) -> list[Any]:
    """What tells values apart: how numbers are written (1, 1.0 and True are equal), where others are."""
    return [repr(value) if isinstance(value, int | float) else id(value) for value in values]
