"""Who holds the Lease, and what to do about it. Pure: objects and times in, a decision out.

How long another replica's Lease is good is judged by our own clock, from the moment we last saw it change: never by
the times written in it, which another machine's clock made.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from typing import Any, Final, NamedTuple

Object = dict[str, Any]

LEASE_SECONDS: Final = 10
"""So long nobody else takes a Lease that its holder has stopped to renew."""
RENEW_DEADLINE_SECONDS: Final = 6.0
"""So long after it began its last good renewal a holder may act. What it sent by then has the rest to arrive."""
RETRY_SECONDS: Final = 2.0
"""A holder renews this often, and the others look this often, should their watch be silent."""
PAUSE_SECONDS: Final = 0.5
"""Between attempts at a write that failed."""
LEAST_SECONDS: Final = 1
MOST_SECONDS: Final = 600


class Claim(NamedTuple):
    """What a Lease says: a holder ("" for none), for how long from each renewal, and what changes with a renewal."""

    holder: str
    seconds: float
    renewed: str
    acquired: str
    transitions: int


@dataclass(frozen=True, slots=True)
class Seen:
    """A Lease as it was last seen; ``claim`` is None where there is none. Times are those of the observer's clock."""

    claim: Claim | None
    version: str
    uid: str
    since: float
    """When this claim was first seen."""
    free_at: float
    """When another than its holder may take it, unless it changes."""


class Action(Enum):
    """What to do next."""

    CREATE = "create"
    TAKE = "take"
    RENEW = "renew"
    WAIT = "wait"
    LOST = "lost"


class Decision(NamedTuple):
    """``seconds``: how long to wait. ``why``: the cause of a loss."""

    action: Action
    seconds: float = 0.0
    why: str = ""


def see(before: Seen | None, lease: Object | None, now: float) -> Seen:
    """What is known once ``lease`` was read (None: there is none) at ``now``."""
    if lease is None:
        # Somebody deleted it, which does not stop its holder: that one still may act until its time is over.
        free_at = before.free_at if before is not None else now
        return Seen(None, "", "", now, max(now, free_at))
    claim, metadata = claim_of(lease), lease["metadata"]
    since = before.since if before is not None and before.claim == claim else now
    free_at = since + claim.seconds if claim.holder else now
    return Seen(claim, str(metadata["resourceVersion"]), str(metadata["uid"]), since, free_at)


def decide(me: str, renewed: float | None, tried: float | None, seen: Seen, now: float) -> Decision:
    """The next step of the replica ``me``.

    Args:
        me: Its identity.
        renewed: When it began the last renewal that succeeded; None while it does not lead.
        tried: When it began the last write that failed, if none succeeded since.
        seen: The Lease.
        now: Seconds of its clock, as all times here.
    """
    holder = seen.claim.holder if seen.claim is not None else None
    if renewed is not None:
        if holder not in {me, None}:
            return Decision(Action.LOST, why=f"{holder or 'nobody'} holds it now")
        if now - renewed >= RENEW_DEADLINE_SECONDS:
            return Decision(Action.LOST, why=f"it could not be renewed for {now - renewed:.1f} s")
    elif holder != me and now < seen.free_at:
        return Decision(Action.WAIT, min(RETRY_SECONDS, seen.free_at - now))
    if tried is not None and now - tried < PAUSE_SECONDS:
        return Decision(Action.WAIT, tried + PAUSE_SECONDS - now)
    if holder is None:
        return Decision(Action.CREATE)
    if renewed is None:
        return Decision(Action.TAKE)
    if now - renewed < RETRY_SECONDS:
        return Decision(Action.WAIT, renewed + RETRY_SECONDS - now)
    return Decision(Action.RENEW)


def claim_of(lease: Object) -> Claim:
    """What a Lease says. A duration that is missing or absurd counts as ours or as the nearest bound."""
    spec = lease.get("spec") or {}
    seconds = int(spec.get("leaseDurationSeconds") or LEASE_SECONDS)
    return Claim(
        holder=str(spec.get("holderIdentity") or ""),
        seconds=float(min(max(seconds, LEAST_SECONDS), MOST_SECONDS)),
        renewed=str(spec.get("renewTime") or ""),
        acquired=str(spec.get("acquireTime") or ""),
        transitions=int(spec.get("leaseTransitions") or 0),
    )


def claim_spec(me: str, before: Claim | None, now: datetime) -> Object:
    """The spec of a Lease that ``me`` takes or renews."""
    moment = micro_time(now)
    same = before is not None and before.holder == me
    transitions = before.transitions if before is not None else 0
    return {
        "holderIdentity": me,
        "leaseDurationSeconds": LEASE_SECONDS,
        "acquireTime": before.acquired if same and before is not None and before.acquired else moment,
        "renewTime": moment,
        "leaseTransitions": transitions + (0 if same or before is None else 1),
    }


def release_spec(now: datetime) -> Object:
    """The change to the spec of a Lease that its holder lets go."""
    return {"holderIdentity": "", "renewTime": micro_time(now)}


def micro_time(moment: datetime) -> str:
    """RFC 3339 in UTC with microseconds, as a Lease holds times."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
