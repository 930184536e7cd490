"""What a batch of writes to agent state comes to: pure.

Several writes to one key become one row operation, and still each caller gets the result it would have had alone.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from agenthive.cache_entries import Change, state_name
from agenthive.store.errors import StoreError, VersionConflict

#: Owner and key of a document.
Key = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Write:
    """One caller's write.

    Attributes:
        key: owner and key.
        data: the document as JSON text; None deletes.
        ttl: seconds until it expires; None for never.
        expected: the version the key must have; 0: it must not exist; None: any.
    """

    key: Key
    data: str | None
    ttl: float | None = None
    expected: int | None = None


class Current(NamedTuple):
    """A row as it is in the table, and locked; ``alive`` unless it has expired."""

    version: int
    alive: bool


class Row(NamedTuple):
    """A row as it is to be."""

    key: Key
    data: str
    ttl: float | None
    version: int


@dataclass(slots=True)
class Folded:
    """What to do, each list ordered by key, and what to tell each caller, in the order of the writes.

    A result is the new version of a set, 1 or 0 for a deletion that found something or not, or the caller's error.
    """

    results: list[int | StoreError] = field(default_factory=list)
    inserts: list[Row] = field(default_factory=list)
    updates: list[Row] = field(default_factory=list)
    deletes: list[Key] = field(default_factory=list)


@dataclass(slots=True)
class _Slot:
    version: int
    alive: bool
    in_table: bool
    data: str | None = None
    ttl: float | None = None
    touched: bool = False


def is_plain(writes: Collection[Write]) -> bool:
    """True if one upsert does it all: sets without condition, each of another key."""
    for write in writes:
        if write.data is None or write.expected is not None:
            return False
    return len({write.key for write in writes}) == len(writes)


def fold(writes: Sequence[Write], current: Mapping[Key, Current], birth: int) -> Folded:
    """Apply ``writes`` in order to what is in the table.

    Args:
        writes: in the order of their callers.
        current: the locked rows of their keys; a key without a row is absent.
        birth: the version a new row starts with.
    """
    slots: dict[Key, _Slot] = {}
    folded = Folded()
    for write in writes:
        slot = slots.get(write.key)
        if slot is None:
            row = current.get(write.key)
            slot = slots[write.key] = _Slot(row.version, row.alive, True) if row else _Slot(0, False, False)
        folded.results.append(_apply(write, slot, birth))
    for key, slot in sorted(slots.items()):
        if not slot.touched:
            continue
        if slot.data is not None:
            row_to_be = Row(key, slot.data, slot.ttl, slot.version)
            (folded.updates if slot.in_table else folded.inserts).append(row_to_be)
        elif slot.in_table:
            folded.deletes.append(key)
    return folded


def _apply(write: Write, slot: _Slot, birth: int) -> int | StoreError:
    visible = slot.version if slot.alive else 0
    if write.expected is not None and write.expected != visible:
        return VersionConflict(write.key[1], write.expected, visible)
    if write.data is None:
        found = int(slot.alive)
        if slot.alive:
            slot.touched, slot.alive, slot.data = True, False, None
        return found
    # A row that expired or was deleted in this very batch still counts on from its version.
    slot.version = slot.version + 1 if slot.version else birth
    slot.touched, slot.alive, slot.data, slot.ttl = True, True, write.data, write.ttl
    return slot.version


def changes_of(folded: Folded, current: Mapping[Key, Current]) -> list[Change]:
    """What ``folded``, once it is committed, means for the cache.

    Args:
        current: as ``fold`` was given it.
    """
    rows = [
        change(row.key, row.version, row.data, row.ttl, before=current[row.key].version if row.key in current else 0)
        for row in (*folded.inserts, *folded.updates)
    ]
    return rows + [Change(state_name(*key)) for key in folded.deletes]


def change(key: Key, version: int, data: str, ttl: float | None, *, before: int) -> Change:
    """What the commit of a document means for the cache, which is never told one that expires by itself."""
    return Change(state_name(*key), before, version, data if ttl is None else None)
