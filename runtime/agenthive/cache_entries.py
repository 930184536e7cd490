"""What the cache keeps in Redis: names and forms of its entries. Pure; lua/cache.lua writes them."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import Final, NamedTuple

#: An entry ends so long after its read began, less jitter, seconds; see ``agenthive.cache`` for why it is below 30.
STATE_SECONDS: Final = 28.0
#: Largest document that is kept in Redis, bytes.
MAX_ENTRY_BYTES: Final = 65_536
#: Longest name that is kept as it is.
_READABLE: Final = 100

_FORGET: Final = ("", "", "")

MARKER, VALUE, NOTHING, TOO_LARGE = b"L"[0], b"V"[0], b"N"[0], b"B"[0]
"""First byte of what is under a name."""


class Loaded(NamedTuple):
    """What was read where the truth is.

    Attributes:
        data: the JSON text; None: there is no such document.
        version: of the document; 0 for what has no versions.
        left: seconds until the document expires; None: never.
    """

    data: str | None
    version: int = 0
    left: float | None = None


class Change(NamedTuple):
    """What a committed write made of a document.

    Attributes:
        name: of its entry.
        before: the version it replaced.
        version: the version that is now.
        data: the JSON text that is now; None: whatever the cache has is to be forgotten.
    """

    name: str
    before: int = 0
    version: int = 0
    data: str | None = None


def told(changes: Sequence[Change]) -> list[str | int]:
    """``changes`` as the function ``cache_change`` takes them."""
    words: list[str | int] = [len(changes)]
    words += [change.name for change in changes]
    for _, before, version, data in changes:
        words += _FORGET if data is None or too_large(data) else (before, version, data)
    return words


def state_name(owner: str, key: str) -> str:
    """Name of the entry of a state document."""
    if ":" not in owner and len(owner) + len(key) <= _READABLE:  # as entry_name does: every write comes by
        return f"s:{owner}:{key}"
    return entry_name("s", owner, key)


def entry_name(kind: str, owner: str, key: str) -> str:
    """A name that no other (kind, owner, key) has; readable where that is short and clear.

    It tells the owner, by which a server lets agents in to what is theirs (``agenthive.bus.access``).
    """
    if ":" not in owner and len(owner) + len(key) <= _READABLE:
        return f"{kind}:{owner}:{key}"
    digest = blake2b(f"{len(owner)} {owner}{key}".encode(), digest_size=16).hexdigest()
    # No agent's name has a colon. Without a second one this is no name of the form above.
    return f"{kind}#{digest}" if ":" in owner else f"{kind}:{owner}#{digest}"


def document_of(entry: bytes) -> bytes:
    """The document of an entry that is a VALUE."""
    return entry.split(b" ", 2)[2]


def form_of(loaded: Loaded) -> tuple[str, str]:
    """Kind with version, and document, of the entry that keeps ``loaded``."""
    if loaded.data is None:
        return "N0", ""
    return ("B0", "") if too_large(loaded.data) else (f"V{loaded.version}", loaded.data)


def life_of(loaded: Loaded, seconds: float, jitter: float) -> int:
    """How long the entry may live, counted from its lease, ms.

    Args:
        seconds: the longest.
        jitter: 0 to 1; up to a fifth is taken off, so that what was filled together does not end together.
    """
    life = seconds * (1 - 0.2 * jitter)
    return max(0, int(1000 * (life if loaded.left is None else min(life, loaded.left))))


def too_large(data: str) -> bool:
    """Whether a document is not kept in Redis."""
    # Four bytes at most for a character: nearly all are decided without encoding them.
    return 4 * len(data) > MAX_ENTRY_BYTES and (len(data) > MAX_ENTRY_BYTES or len(data.encode()) > MAX_ENTRY_BYTES)
