"""Reading what one turn claimed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from agenthive.bus.model import Delivery
from agenthive.protocol import AgentMessage, MessageError

LATER_ATTEMPTS, ACKNOWLEDGED = 1, 2
"""Kinds of groups of claimed messages, see lua/claim.lua."""
PLAIN_HEAD = 14
"""Length of an entry's first line without options."""
NO_OPTIONS = (b"", b"")
ACCEPTED_WORD = 16
"""So long an option that tells when a message was accepted is nonsense (lua/prelude.lua, options_of)."""
Group = Sequence[Any]
"""lane, kind, entries, attempts: as lua/claim.lua returns it."""


def count(groups: list[Group]) -> int:
    """Messages in ``groups``."""
    return sum(len(flat) // 2 for _, _, flat, *_ in groups)


def options_in(head: bytes) -> tuple[bytes, bytes]:
    """When a message was accepted (ms), if the first line of its entry says so, and its ordering key; else empty."""
    accepted = ordering = b""
    for word in head.split(b" ")[1:]:
        if word.startswith(b"a") and word[1:].isdigit() and len(word) < ACCEPTED_WORD:
            accepted = word[1:]
        elif word.startswith(b"o"):
            ordering = word[1:]
    return accepted, ordering


@dataclass(frozen=True, slots=True)
class Malformed:
    """A claimed entry that holds no message."""

    place: tuple[int, bytes, bytes, int, int]
    """lane, entry, message id, attempt, when it was claimed (ms)"""
    error: str
    acknowledged: bool


def read(groups: list[Group], owner: str, now: int) -> tuple[list[Delivery], list[Malformed]]:
    """What the entries hold that ``owner`` claimed at ``now`` (ms of the server's clock)."""
    deliveries: list[Delivery] = []
    malformed: list[Malformed] = []
    from_json = AgentMessage.from_json
    for lane, kind, flat, *rest in groups:
        attempts: Sequence[int] = rest[0] if kind == LATER_ATTEMPTS else ()
        acknowledged = kind == ACKNOWLEDGED
        for number in range(0, len(flat), 2):
            entry = flat[number]
            head, key, document = flat[number + 1].split(b"\n", 2)
            attempt = attempts[number // 2] if attempts else 1
            try:
                message = from_json(document)
            except MessageError as error:
                malformed.append(Malformed((lane, entry, key, attempt, now), str(error), acknowledged))
                continue
            accepted, ordering = NO_OPTIONS if len(head) == PLAIN_HEAD else options_in(head)
            size = len(document)
            deliveries.append(
                Delivery(message, attempt, owner, lane, entry, key, now, accepted, acknowledged, False, size, ordering)
            )
    return deliveries, malformed


def held(groups: list[Group]) -> Iterator[tuple[int, list[bytes]]]:
    """The entries that are the claimer's to complete, by lane."""
    return ((lane, flat[::2]) for lane, kind, flat, *_ in groups if kind != ACKNOWLEDGED)
