"""Which agents of a hive may replace their pods now: at most some at once, and none by a change that fails.

A roll needs a slot while every pod of the agent works: that is what it may spoil. An agent that is new, stuck or has
lost pods rolls at once, so the fix of what is broken never waits. Everything is read from the Deployments, so an
operator that starts anew goes on where its predecessor was.

A change of the hive carries a digest (``change``). When it has failed on ``FAILURES`` agents and worked on fewer, the
agents that do not have it yet keep their pods until it is another one. As long as it has failed on more agents than it
worked on, those keep their slots: a change that works nowhere is tried on no more agents than roll at once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final, Literal

from agenthive_operator.plan.names import CHANGE_ANNOTATION

SLOTS: Final = 5
SLOT_SHARE: Final = 10
"""Agents of a hive that roll at once: five, or 10 % of a large hive. Each starts up to 25 % more pods than it has, so
the surge stays at a few percent of the hive's pods, and a hive of any size has rolled after some ten rounds."""
FAILURES: Final = 3
"""One failed roll may be the agent's own fault, or its node's; three, and few that worked, are the change's."""
_REVISION: Final = "deployment.kubernetes.io/revision"


class Phase(Enum):
    """What the pods of one agent are doing."""

    NEW = "new"
    """Never complete: there is nothing that works to be spoilt."""
    STEADY = "steady"
    """All run the newest template."""
    ROLLING = "rolling"
    """Pods are being replaced."""
    STALLED = "stalled"
    """The Deployment's progress deadline passed."""


@dataclass(frozen=True, slots=True)
class Standing:
    """An agent's phase, and the hive's change that its Deployment carries."""

    phase: Phase
    change: str


def slots(agents: int) -> int:
    """How many of a hive's agents may roll at once."""
    return max(SLOTS, -(-agents * SLOT_SHARE // 100))


def standing_of(deployment: Mapping[str, Any]) -> Standing:
    """Where a Deployment stands, by what its controller reported."""
    annotations = deployment["metadata"].get("annotations") or {}
    return Standing(_phase(deployment, annotations), annotations.get(CHANGE_ANNOTATION, ""))


def _phase(deployment: Mapping[str, Any], annotations: Mapping[str, str]) -> Phase:
    status = deployment.get("status") or {}
    observed = status.get("observedGeneration", 0)
    progress: Mapping[str, Any] = next((c for c in status.get("conditions") or () if c["type"] == "Progressing"), {})
    if not observed:
        return Phase.NEW
    if observed < deployment["metadata"].get("generation", 0):
        return Phase.ROLLING
    if progress.get("status") == "False":
        return Phase.STALLED
    if status.get("replicas", 0) > status.get("updatedReplicas", 0):
        return Phase.ROLLING
    if progress.get("reason") == "NewReplicaSetAvailable" or _works(deployment):
        return Phase.STEADY
    return Phase.ROLLING if int(annotations.get(_REVISION, 0)) > 1 else Phase.NEW


def _works(deployment: Mapping[str, Any]) -> bool:
    ready, wanted = (deployment.get("status") or {}).get("readyReplicas", 0), deployment["spec"].get("replicas", 1)
    return int(ready) >= int(wanted)


def needs_slot(deployment: Mapping[str, Any]) -> bool:
    """Whether a new template may spoil something: pods run, and all of them work."""
    running = deployment["spec"].get("replicas", 1) > 0
    return running and _works(deployment) and standing_of(deployment).phase is Phase.STEADY


Answer = Literal["roll", "queued", "halted"]


@dataclass(slots=True)
class HiveRolls:
    """The rolls of one hive: a plain data structure that is told what is seen."""

    standings: dict[str, Standing] = field(default_factory=dict)
    _counts: Counter[Standing] = field(default_factory=Counter)
    _rolling: int = 0
    _admitted: set[str] = field(default_factory=set)
    _waiting: dict[str, str] = field(default_factory=dict)
    _woken: set[str] = field(default_factory=set)

    def note(self, agent: str, standing: Standing | None) -> None:
        """How an agent stands, at a look at it; None: it has no Deployment."""
        self._woken.discard(agent)
        before = self.standings.pop(agent, None)
        if before is not None:
            self._counts[before] -= 1
            if not self._counts[before]:
                del self._counts[before]
            self._rolling -= before.phase is Phase.ROLLING
        if standing is not None:
            self.standings[agent] = standing
            self._counts[standing] += 1
            self._rolling += standing.phase is Phase.ROLLING

    def ask(self, agent: str, change: str) -> Answer:
        """Whether ``agent`` may take on ``change`` now. If so it holds a slot until ``applied``."""
        self._waiting.pop(agent, None)
        self._woken.discard(agent)
        if self._holds_back(agent, change):
            self._waiting[agent] = change
            return "halted"
        if self._free() - self._stuck(agent, change) <= 0:
            self._waiting[agent] = change
            return "queued"
        self._admitted.add(agent)
        return "roll"

    def applied(self, agent: str) -> None:
        """The request that started the roll was answered: from now on the Deployment itself says that it rolls."""
        self._admitted.discard(agent)

    def settle(self, agent: str) -> None:
        """``agent`` waits for nothing."""
        self._waiting.pop(agent, None)

    def wake(self) -> list[str]:
        """Those that waited longest and may ask again: a slot is kept for each until it is looked at."""
        free, woken = self._free(), list[str]()
        for agent, change in self._waiting.items():
            if len(woken) >= free:
                break
            if len(woken) < free - self._stuck(agent, change) and not self._holds_back(agent, change):
                woken.append(agent)
        for agent in woken:
            del self._waiting[agent]
        self._woken.update(woken)
        return woken

    @property
    def waiting(self) -> list[str]:
        """Those that asked and may not."""
        return list(self._waiting)

    def halted(self) -> tuple[list[str], list[str]]:
        """Agents that are spared a change, and those on which it failed."""
        if not any(s.phase is Phase.STALLED and count >= FAILURES for s, count in self._counts.items()):
            return [], []  # asked at every look, while thousands may wait
        spared = {agent: change for agent, change in self._waiting.items() if self._holds_back(agent, change)}
        changes = set(spared.values())
        failed = [a for a, s in self.standings.items() if s.phase is Phase.STALLED and s.change in changes]
        return sorted(spared), sorted(failed)

    def _holds_back(self, agent: str, change: str) -> bool:
        return self._stuck(agent, change) >= FAILURES

    def _stuck(self, agent: str, change: str) -> int:
        """Slots that are not for ``agent`` because ``change``, which it does not have yet, failed on as many others."""
        has = self.standings.get(agent)
        return 0 if has is not None and has.change == change else self._failed(change)

    def _failed(self, change: str) -> int:
        """Agents on which ``change`` failed; none while it has worked on as many."""
        failed = self._counts[Standing(Phase.STALLED, change)]
        return failed if failed > self._counts[Standing(Phase.STEADY, change)] else 0

    def _free(self) -> int:
        under_way = sum(
            1
            for agent in self._admitted | self._woken
            if (s := self.standings.get(agent)) is None or s.phase is not Phase.ROLLING
        )
        return slots(len(self.standings)) - self._rolling - under_way
