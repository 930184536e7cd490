"""When an Agent's credentials are replaced, and how far that is. Pure: told what was observed and the time.

One rotation: the next credentials are made valid beside the present ones (BEGIN), go into the Agent's Secret (SWITCH),
which rolls the pods, and once no pod is left that may use the former ones those are revoked (FINISH). All that a
restarted operator has to know is in that Secret: its annotations and, during the roll, the former credentials.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import Any, Final

from agenthive_operator.plan.names import CREDENTIALS_MARK, ROTATE_ANNOTATION, ROTATE_HIVE_ANNOTATION

MOST_AT_ONCE: Final = 5
"""Agents of one hive whose credentials are replaced at the same time."""
SPREAD_SHARE: Final = 0.25
"""Credentials are replaced up to this share of ``rotateDays`` early, by the Agent's name: so they spread."""
PREVIOUS: Final = "PREVIOUS_"
"""Before the name of a connection in an Agent's Secret: the same connection with the former credentials."""
STAMP: Final = "%Y%m%dT%H%M%SZ"
"""A time that may be the value of a label."""
LONGEST_TOKEN: Final = 64


@dataclass(frozen=True, slots=True)
class Record:
    """What an Agent's Secret says of its credentials.

    Attributes:
        since: Since when they are in use (``STAMP``); empty if they are the first: then as long as the Secret is there.
        own: The last value of ``agenthive.dev/rotate`` on the Agent that was answered; empty for none.
        hive: The same, of the hive.
        previous: The former ones, while pods may use them: the connections by name, each after ``PREVIOUS``.
    """

    since: str = ""
    own: str = ""
    hive: str = ""
    previous: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def annotations(self) -> dict[str, str]:
        """As annotations of the Secret."""
        marks = {CREDENTIALS_MARK: self.since, ROTATE_ANNOTATION: self.own, ROTATE_HIVE_ANNOTATION: self.hive}
        return {name: value for name, value in marks.items() if value}


def record_of(annotations: Mapping[str, str], data: Mapping[str, str]) -> Record:
    """The record in an Agent's Secret; ``data`` is decoded."""
    return Record(
        since=annotations.get(CREDENTIALS_MARK, ""),
        own=annotations.get(ROTATE_ANNOTATION, ""),
        hive=annotations.get(ROTATE_HIVE_ANNOTATION, ""),
        previous={name: url for name, url in data.items() if name.startswith(PREVIOUS)},
    )


@dataclass(frozen=True, slots=True)
class Wish:
    """What people want: the values of ``agenthive.dev/rotate`` (empty for none) and ``spec.credentials.rotateDays``."""

    own: str = ""
    hive: str = ""
    days: int | None = None

    def asks(self, record: Record) -> bool:
        """Whether a value is new. Taking an annotation away asks for nothing."""
        return self.own not in {"", record.own} or self.hive not in {"", record.hive}


def token(annotations: Mapping[str, str]) -> str:
    """The value of ``agenthive.dev/rotate``; of one that is too long to be repeated, a digest."""
    value = annotations.get(ROTATE_ANNOTATION, "")
    return value if len(value) <= LONGEST_TOKEN else hashlib.sha256(value.encode()).hexdigest()


def answered(record: Record, wish: Wish) -> Record:
    """``record`` with all that is asked noted as answered."""
    return Record(record.since, wish.own or record.own, wish.hive or record.hive, record.previous)


def switched(record: Record, wish: Wish, previous: Mapping[str, str], now: datetime) -> Record:
    """The record with the next credentials, ``previous`` (connections by name) being those they replace."""
    former = {PREVIOUS + name: url for name, url in previous.items()}
    noted = answered(record, wish)
    return Record(now.astimezone(UTC).strftime(STAMP), noted.own, noted.hive, former)


def finished(record: Record) -> Record:
    """The record once the former credentials are revoked."""
    return Record(record.since, record.own, record.hive)


def limited(record: Record, names: Iterable[str]) -> Record:
    """The record without former credentials of other connections than these: those cannot be revoked (any more)."""
    kept = {PREVIOUS + name for name in names}
    return replace(record, previous={name: url for name, url in record.previous.items() if name in kept})


def due_at(record: Record, made: datetime, days: int, name: str) -> datetime:
    """When credentials become too old.

    Args:
        record: What the Secret says.
        made: Since when the Secret is there.
        days: ``rotateDays``.
        name: Of the Agent, in full: decides how much earlier than that it is.
    """
    try:
        since = datetime.strptime(record.since, STAMP).replace(tzinfo=UTC)
    except ValueError:  # the first ones, or somebody edited it
        since = made
    early = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4]) / 2**32
    return since + timedelta(days=days * (1 - SPREAD_SHARE * early))


class Step(Enum):
    """What is to be done now."""

    KEEP = "keep"
    BEGIN = "begin"
    SWITCH = "switch"
    FINISH = "finish"
    DECLINE = "decline"
    """Asked for, where the operator makes no credentials: note it, say so, do nothing."""


@dataclass(frozen=True, slots=True)
class Decision:
    """The step; what a rotation that cannot go on waits for; ``queues`` if that is but its turn."""

    step: Step
    waits: str = ""
    queues: bool = False


@dataclass(frozen=True, slots=True)
class Seen:
    """All that the decision depends on.

    Attributes:
        record: What the Agent's Secret says.
        wish: What people want.
        made: Since when the Secret is there.
        name: The Agent's, in full.
        mints: Whether the operator makes credentials for this hive's agents.
        usable: Whether the hive is ready.
        rolling: Whether the Deployment is rolling, or has not been seen by its controller.
        outdated: Whether a pod may still use other credentials than those in the Secret.
        prepared: Whether the next credentials are let in.
        stray: Whether a server lets in others than those in the Secret: a rotation that was given up left them.
        others: Other Agents of the hive whose credentials are being replaced.
        now: The time.
    """

    record: Record
    wish: Wish
    made: datetime
    name: str
    now: datetime
    mints: bool = True
    usable: bool = True
    rolling: bool = False
    outdated: bool = False
    prepared: bool = False
    stray: bool = False
    others: int = 0

    @property
    def is_due(self) -> bool:
        """Whether the credentials in the Secret are to be replaced."""
        if self.wish.asks(self.record):
            return True
        days = self.wish.days
        return days is not None and self.now >= due_at(self.record, self.made, days, self.name)


def decide(seen: Seen) -> Decision:
    """The next step. First match wins."""
    if not seen.mints:
        return Decision(Step.DECLINE if seen.wish.asks(seen.record) else Step.KEEP)
    if not seen.usable:
        wanted = seen.record.previous or seen.is_due
        return Decision(Step.KEEP, "the rotation of its credentials waits for the hive" if wanted else "")
    if seen.record.previous:
        if seen.outdated:
            return Decision(Step.KEEP, "its former credentials stay valid until no pod of the former template is left")
        return Decision(Step.FINISH)
    if seen.is_due:
        if seen.rolling:
            return Decision(Step.KEEP, "the rotation of its credentials waits for the rollout that is under way")
        if seen.prepared:
            return Decision(Step.SWITCH)
        if seen.others >= MOST_AT_ONCE:
            return Decision(Step.KEEP, queues=True)
        return Decision(Step.BEGIN)
    if seen.stray and not seen.outdated and not seen.rolling:
        return Decision(Step.FINISH)
    return Decision(Step.KEEP)


def has_outdated(deployment: Mapping[str, Any] | None, pods: Iterable[Mapping[str, Any]], since: str) -> bool:
    """Whether a pod runs, drains or may yet be made that has other credentials than those in use ``since``.

    Told by the label that the pod template carries. A container that starts anew in an older pod reads the Secret as
    it is by then, but nothing tells that it did: such a pod counts.
    """
    if deployment is not None and _mark(deployment["spec"]["template"]) != since:
        return True
    ended = {"Succeeded", "Failed"}
    return any((pod.get("status") or {}).get("phase") not in ended and _mark(pod) != since for pod in pods)


def _mark(obj: Mapping[str, Any]) -> str:
    return str(((obj.get("metadata") or {}).get("labels") or {}).get(CREDENTIALS_MARK, ""))
