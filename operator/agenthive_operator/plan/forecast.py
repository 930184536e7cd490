"""How long pods take to be replaced. Pure.

A Deployment starts a share of its pods beyond their number and ends as many old ones as new ones became ready, so it
goes round by round at the pace at which pods start; of a hive's agents only some roll at once. Old pods finish what
they handle meanwhile: only those of the last round add to the time.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from statistics import median
from typing import Any

from agenthive_operator.plan.agent import GRACE_BEYOND_DRAIN_SECONDS
from agenthive_operator.plan.replicas import with_surge
from agenthive_operator.plan.rolling import slots


@dataclass(frozen=True, slots=True)
class Startup:
    """How long pods took from creation to ready: the median, seconds, and of how many; ``of`` says whose."""

    seconds: float
    pods: int
    of: str


@dataclass(frozen=True, slots=True)
class Roll:
    """One agent whose pods are replaced.

    Attributes:
        pods: How many.
        drain: The most seconds for which an old pod may go on, once it is told to end.
        startup: None where no pod has become ready yet.
        waits: Whether it needs one of the hive's slots: agents whose pods do not all work roll at once.
    """

    pods: int
    drain: float
    startup: Startup | None
    waits: bool = True

    @property
    def least(self) -> float | None:
        """Seconds until the last new pod is ready; None where nothing is known of how long one takes."""
        if self.startup is None:
            return None
        return self.startup.seconds * rounds(self.pods)


@dataclass(frozen=True, slots=True)
class Span:
    """Seconds: while no handler runs, and if each uses all of the time it may have."""

    least: float
    most: float


def rounds(pods: int) -> int:
    """In how many rounds a Deployment replaces its pods."""
    surge = with_surge(pods) - pods
    return -(-pods // surge) if surge else 0


def span_of(roll: Roll) -> Span | None:
    """How long one agent's roll takes."""
    return None if roll.least is None else Span(roll.least, roll.least + roll.drain)


def span_of_all(rolls: Sequence[Roll], agents: int) -> Span | None:
    """How long the rolls of a hive with so many agents take together; None where one cannot be told."""
    lanes = [0.0] * min(slots(agents), max(1, len(rolls)))
    ends = [0.0]
    for roll in rolls:
        if roll.least is None:
            return None
        if roll.waits:
            heapq.heapreplace(lanes, lanes[0] + roll.least)
        else:
            ends.append(roll.least)
    least = max([*lanes, *ends])
    return Span(least, least + max((roll.drain for roll in rolls), default=0.0))


def drain_of(template: Mapping[str, Any], drain_seconds: int) -> float:
    """The most seconds for which a pod of this template goes on after it was told to end."""
    grace = template["spec"].get("terminationGracePeriodSeconds")
    most = drain_seconds + GRACE_BEYOND_DRAIN_SECONDS
    return float(min(most, grace) if isinstance(grace, int) else most)


def startup_of(pods: Iterable[Mapping[str, Any]], of: str) -> Startup | None:
    """How long the pods that are ready took to become so. One that was restarted tells nothing of that."""
    found = [seconds for pod in pods if (seconds := _seconds_to_ready(pod)) is not None]
    return Startup(median(found), len(found), of) if found else None


def _seconds_to_ready(pod: Mapping[str, Any]) -> float | None:
    status = pod.get("status") or {}
    if any(container.get("restartCount") for container in status.get("containerStatuses") or ()):
        return None
    for condition in status.get("conditions") or ():
        if condition["type"] == "Ready" and condition["status"] == "True" and condition.get("lastTransitionTime"):
            created = datetime.fromisoformat(pod["metadata"]["creationTimestamp"])
            return max(1.0, (datetime.fromisoformat(condition["lastTransitionTime"]) - created).total_seconds())
    return None
