"""Who may roll: by tables of what the Deployments of a hive say."""

from __future__ import annotations

from typing import Any

import pytest

from agenthive_operator.plan.names import CHANGE_ANNOTATION
from agenthive_operator.plan.rolling import (
    FAILURES,
    SLOTS,
    HiveRolls,
    Phase,
    Standing,
    needs_slot,
    slots,
    standing_of,
)

DONE = {"type": "Progressing", "status": "True", "reason": "NewReplicaSetAvailable"}
MOVING = {"type": "Progressing", "status": "True", "reason": "ReplicaSetUpdated"}
LATE = {"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded"}


def deployment(
    condition: dict[str, Any] | None = DONE, *, generation: int = 2, replicas: int = 2, revision: int = 2, **status: int
) -> dict[str, Any]:
    counts = {"observedGeneration": 2, "replicas": 2, "updatedReplicas": 2, "readyReplicas": 2, **status}
    annotations = {CHANGE_ANNOTATION: "c", "deployment.kubernetes.io/revision": str(revision)}
    return {
        "metadata": {"generation": generation, "annotations": annotations},
        "spec": {"replicas": replicas},
        "status": {**counts, "conditions": [condition] if condition else []},
    }


@pytest.mark.parametrize(
    ("seen", "phase", "gated"),
    [
        (deployment(), Phase.STEADY, True),
        (deployment(None), Phase.STEADY, True),
        ({"metadata": {}, "spec": {}}, Phase.NEW, False),
        (deployment(generation=3), Phase.ROLLING, False),
        (deployment(MOVING, replicas=2, updatedReplicas=1), Phase.ROLLING, False),
        (deployment(MOVING, readyReplicas=1), Phase.ROLLING, False),
        (deployment(MOVING, readyReplicas=1, revision=1), Phase.NEW, False),
        (deployment(LATE, updatedReplicas=1), Phase.STALLED, False),
        (deployment(LATE, generation=3), Phase.ROLLING, False),
        (deployment(replicas=5, readyReplicas=2), Phase.STEADY, False),
        (deployment(readyReplicas=1), Phase.STEADY, False),
        (deployment(replicas=0, updatedReplicas=0, readyReplicas=0), Phase.ROLLING, False),
    ],
    ids=["complete", "complete-unsaid", "never-seen", "spec-unseen", "old-pods-left", "not-ready-yet", "first-start",
         "stalled", "fix-unseen", "scaled-up", "a-pod-fails", "drains"],
)  # fmt: skip
def test_standing(seen: dict[str, Any], phase: Phase, gated: bool) -> None:
    assert standing_of(seen).phase is phase
    assert needs_slot(seen) is gated


@pytest.mark.parametrize(("agents", "expected"), [(0, 5), (1, 5), (50, 5), (51, 6), (100, 10), (3000, 300)])
def test_slots(agents: int, expected: int) -> None:
    assert slots(agents) == expected


def fleet(count: int, phase: Phase = Phase.STEADY, change: str = "old") -> HiveRolls:
    rolls = HiveRolls()
    for number in range(count):
        rolls.note(f"a{number}", Standing(phase, change))
    return rolls


def roll(rolls: HiveRolls, agent: str, change: str = "new") -> str:
    answer = rolls.ask(agent, change)
    if answer == "roll":
        rolls.note(agent, Standing(Phase.ROLLING, change))
        rolls.applied(agent)
    return answer


def test_the_first_come_roll_and_the_next_are_woken_as_they_finish() -> None:
    rolls = fleet(20)
    answers = [roll(rolls, f"a{number}") for number in range(20)]
    assert answers == ["roll"] * SLOTS + ["queued"] * (20 - SLOTS)
    assert rolls.wake() == []
    rolls.note("a3", Standing(Phase.STEADY, "new"))
    assert rolls.wake() == ["a5"]
    assert rolls.wake() == [], "told once"
    assert roll(rolls, "a5") == "roll"
    assert roll(rolls, "a7") == "queued"


def test_a_slot_is_held_while_the_request_is_under_way() -> None:
    rolls = fleet(10)
    assert [rolls.ask(f"a{number}", "new") for number in range(6)] == ["roll"] * 5 + ["queued"]
    rolls.applied("a0")  # refused: nothing rolls
    assert rolls.wake() == ["a5"]
    rolls.note("a1", Standing(Phase.ROLLING, "new"))
    assert rolls.ask("a6", "new") == "queued", "the slot is kept for the one that was woken"
    assert rolls.ask("a5", "new") == "roll", "one that rolls and whose answer is awaited counts once"


@pytest.mark.parametrize(
    ("stalled", "done", "answer"),
    [(1, 0, "roll"), (2, 0, "roll"), (FAILURES, 0, "halted"), (FAILURES, FAILURES - 1, "halted"),
     (FAILURES, FAILURES, "roll"), (SLOTS, 0, "halted"), (SLOTS, SLOTS + 1, "roll")],
)  # fmt: skip
def test_a_change_that_fails_stops(stalled: int, done: int, answer: str) -> None:
    rolls = fleet(40)
    for number in range(stalled):
        rolls.note(f"a{number}", Standing(Phase.STALLED, "new"))
    for number in range(stalled, stalled + done):
        rolls.note(f"a{number}", Standing(Phase.STEADY, "new"))
    assert rolls.ask("a39", "new") == answer
    assert rolls.ask("a38", "another") == "roll", "the correction"
    spared, failed = rolls.halted()
    assert (spared, len(failed)) == ((["a39"], stalled) if answer == "halted" else ([], 0))
    assert rolls.wake() == []


def test_a_change_that_works_nowhere_is_tried_on_no_more_agents_than_roll_at_once() -> None:
    rolls = fleet(40)
    tried = {agent for agent in list(rolls.standings) if roll(rolls, agent) == "roll"}
    for agent in sorted(tried):
        rolls.note(agent, Standing(Phase.STALLED, "new"))
        assert rolls.wake() == []
    assert len(tried) == SLOTS


def test_one_roll_that_fails_holds_its_slot_only_until_others_worked() -> None:
    rolls = fleet(20)
    for number in range(20):
        roll(rolls, f"a{number}")
    rolls.note("a0", Standing(Phase.STALLED, "new"))
    assert rolls.wake() == []
    rolls.note("a1", Standing(Phase.STEADY, "new"))
    assert rolls.wake() == ["a5", "a6"]


def test_an_agent_whose_own_spec_changes_is_not_held_back_by_what_it_has_already() -> None:
    rolls = fleet(10, change="new")
    for number in range(6):
        rolls.note(f"a{number}", Standing(Phase.STALLED, "new"))
    assert rolls.ask("a9", "new") == "roll"


def test_one_that_is_gone_or_waits_no_more_is_forgotten() -> None:
    rolls = fleet(12)
    for number in range(12):
        roll(rolls, f"a{number}")
    rolls.settle("a5")
    rolls.note("a0", None)
    assert rolls.wake() == ["a6"]
