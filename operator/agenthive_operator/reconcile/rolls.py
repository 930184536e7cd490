"""Turns of agents at replacing their pods: who may, who waits, and who is woken when a slot is free.

The decisions are ``plan/rolling``'s. Counting starts from the cached Deployments of a hive, and every look at an Agent,
which each event of its Deployment causes, keeps it right.
"""

from __future__ import annotations

from agenthive_operator.plan.rolling import Answer, HiveRolls, standing_of
from agenthive_operator.reconcile.cache import Key, ObjectCache
from agenthive_operator.reconcile.queue import KeyedQueue

NAMED = 10


class Rolls:
    """The rolls of all hives."""

    def __init__(self, cache: ObjectCache, queue: KeyedQueue[Key]) -> None:
        self._cache = cache
        self._queue = queue
        self._hives: dict[Key, HiveRolls] = {}
        self._hive_of: dict[Key, Key] = {}
        self._told: dict[Key, str] = {}

    def ask(self, agent: Key, hive: Key, change: str) -> Answer:
        """Whether the Agent may roll now; with ``roll`` it holds a slot until ``applied``."""
        rolls = self._of(agent, hive)
        self._note(rolls, agent)
        return rolls.ask(agent.name, change)

    def applied(self, agent: Key, hive: Key) -> None:
        """The roll that was asked for has begun, or is not to be."""
        self._of(agent, hive).applied(agent.name)

    def settle(self, agent: Key, hive: Key) -> None:
        """The Agent has nothing to roll."""
        self._of(agent, hive).settle(agent.name)

    def look(self, agent: Key, hive: Key) -> None:
        """Take in how the Agent stands now; wake who may roll instead, and the hive if that is news for it."""
        rolls = self._of(agent, hive)
        self._note(rolls, agent)
        self._wake(hive, rolls)

    def forget(self, agent: Key) -> None:
        """The Agent is gone."""
        hive = self._hive_of.pop(agent, None)
        if hive is None or (rolls := self._hives.get(hive)) is None:
            return
        rolls.note(agent.name, None)
        rolls.applied(agent.name)
        rolls.settle(agent.name)
        self._wake(hive, rolls)
        if not rolls.standings:
            self._hives.pop(hive)
            self._told.pop(hive, None)

    def halted(self, hive: Key) -> str:
        """What a person reads while a change of the hive is kept from its agents because it fails; empty if none is."""
        rolls = self._hives.get(hive)
        spared, failed = rolls.halted() if rolls is not None else ([], [])
        if not spared:
            return ""
        named = ", ".join(failed[:NAMED]) + (" …" if len(failed) > NAMED else "")
        return (
            f"a change of the hive failed on {len(failed)} agents ({named}) and is kept from {len(spared)} others, "
            "which go on as they are; see the conditions of those that failed, and correct the hive"
        )

    # ---- inside

    def _of(self, agent: Key, hive: Key) -> HiveRolls:
        self._hive_of[agent] = hive
        rolls = self._hives.get(hive)
        if rolls is None:
            rolls = self._hives[hive] = HiveRolls()
            for known in self._cache.agents_of(hive.namespace, hive.name):
                self._note(rolls, Key("Agent", hive.namespace, known["metadata"]["name"]))
        return rolls

    def _note(self, rolls: HiveRolls, agent: Key) -> None:
        deployment = self._cache.get("Deployment", agent.namespace, agent.name)
        rolls.note(agent.name, standing_of(deployment) if deployment is not None else None)

    def _wake(self, hive: Key, rolls: HiveRolls) -> None:
        for name in rolls.wake():
            self._queue.add(Key("Agent", hive.namespace, name))
        text = self.halted(hive)
        if text != self._told.get(hive, ""):
            if bool(text) != bool(self._told.get(hive)):
                for name in rolls.waiting:  # they wait for something else now
                    self._queue.add(Key("Agent", hive.namespace, name))
            self._told[hive] = text
            self._queue.add(hive)
