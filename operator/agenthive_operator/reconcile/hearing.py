"""Whether watches tell what happens: lists that find news of which a watch said nothing are the evidence. Pure."""

from __future__ import annotations

from typing import Final

Watch = tuple[str, str | None]
DEAF_AFTER: Final = 2
"""So many lists in a row with unheard news: one may come between a change and the word of it."""


class Hearing:
    """What was heard of each watch since its kind was last listed. A watch is a kind and a namespace."""

    def __init__(self) -> None:
        self._heard: set[Watch] = set()
        self._listed: set[Watch] = set()
        self._unheard: dict[Watch, int] = {}

    def told(self, watch: Watch) -> None:
        """An event of this watch came."""
        self._heard.add(watch)
        self._unheard.pop(watch, None)

    def listed(self, watch: Watch, *, news: bool) -> None:
        """Everything it watches was listed; ``news``: the list held what the watch had not told."""
        first = watch not in self._listed
        self._listed.add(watch)
        if news and not first and watch not in self._heard:
            self._unheard[watch] = self._unheard.get(watch, 0) + 1
        self._heard.discard(watch)

    @property
    def silent(self) -> frozenset[Watch]:
        """Watches that tell nothing."""
        return frozenset(watch for watch, count in self._unheard.items() if count >= DEAF_AFTER)
