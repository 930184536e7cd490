"""When a hive's schema gets its daily housekeeping. Pure: told the time."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Final

FIRST_SECONDS: Final = 600.0
"""Housekeeping of a schema that was just met comes within this long: a start does not do that of all hives at once."""
DAY_SECONDS: Final = 86_400.0
RETRY_SECONDS: Final = 900.0


@dataclass(slots=True)
class Upkeep:
    """The schedule of one hive. Seconds are those of any monotonic clock."""

    rng: random.Random = field(default_factory=random.Random)
    _target: object = None
    _due: float = 0.0

    def is_due(self, target: object, now: float) -> bool:
        """Whether ``target`` (server and schema) is due. Another target than last time starts over."""
        if target != self._target:
            self._target, self._due = target, now + self.rng.uniform(0, FIRST_SECONDS)
        return now >= self._due

    def done(self, target: object, now: float) -> None:
        """It was done: again within a day, earlier by up to a quarter, so that hives spread."""
        self._target, self._due = target, now + DAY_SECONDS * self.rng.uniform(0.75, 1)

    def failed(self, target: object, now: float) -> None:
        """It could not be done: again within a quarter of an hour."""
        self._target, self._due = target, now + RETRY_SECONDS * self.rng.uniform(0.5, 1)
