"""When credentials are replaced and in which order: tables of what is seen and what is decided."""

from __future__ import annotations

import base64
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from tests.unit.plan.build import OBSERVED_AGENT, agent, hive, named

from agenthive_operator.plan.agent import plan_agent
from agenthive_operator.plan.names import TEMPLATE_ANNOTATION
from agenthive_operator.plan.rotation import (
    MOST_AT_ONCE,
    Decision,
    Record,
    Seen,
    Step,
    Wish,
    answered,
    decide,
    due_at,
    finished,
    has_outdated,
    limited,
    record_of,
    switched,
    token,
)

NOW = datetime(2026, 5, 31, 12, tzinfo=UTC)
MADE = NOW - timedelta(days=100)
FRESH = Record(since="20260531T110000Z")
ROLLS = Record(since="20260531T110000Z", previous={"PREVIOUS_AGENTHIVE_POSTGRES_URL": "postgresql://u:secret@h/d"})
CALM = Seen(FRESH, Wish(), MADE, "ns/demo/anna", NOW)
ASKED = replace(CALM, wish=Wish(own="again"))


@pytest.mark.parametrize(
    ("seen", "step"),
    [
        (CALM, Step.KEEP),
        (replace(CALM, wish=Wish(days=30)), Step.KEEP),
        (replace(CALM, record=Record(), wish=Wish(days=30)), Step.BEGIN),
        (ASKED, Step.BEGIN),
        (replace(CALM, wish=Wish(hive="again")), Step.BEGIN),
        (replace(ASKED, record=replace(FRESH, own="again")), Step.KEEP),
        (replace(ASKED, record=replace(FRESH, hive="again")), Step.BEGIN),
        (replace(CALM, record=replace(FRESH, own="again")), Step.KEEP),
        (replace(ASKED, prepared=True), Step.SWITCH),
        (replace(ASKED, prepared=True, rolling=True), Step.KEEP),
        (replace(ASKED, prepared=True, usable=False), Step.KEEP),
        (replace(ASKED, prepared=True, others=MOST_AT_ONCE), Step.SWITCH),
        (replace(ASKED, prepared=True, stray=True), Step.SWITCH),
        (replace(ASKED, rolling=True), Step.KEEP),
        (replace(ASKED, usable=False), Step.KEEP),
        (replace(ASKED, others=MOST_AT_ONCE - 1), Step.BEGIN),
        (replace(CALM, record=ROLLS), Step.FINISH),
        (replace(CALM, record=ROLLS, outdated=True), Step.KEEP),
        (replace(CALM, record=ROLLS, usable=False), Step.KEEP),
        (replace(CALM, record=ROLLS, rolling=True), Step.FINISH),
        (replace(ASKED, record=ROLLS), Step.FINISH),
        (replace(ASKED, record=ROLLS, outdated=True, prepared=True), Step.KEEP),
        (replace(CALM, stray=True), Step.FINISH),
        (replace(CALM, stray=True, outdated=True), Step.KEEP),
        (replace(CALM, stray=True, rolling=True), Step.KEEP),
        (replace(ASKED, mints=False), Step.DECLINE),
        (replace(CALM, record=Record(), wish=Wish(days=1), mints=False), Step.KEEP),
    ],
)
def test_one_step_at_a_time(seen: Seen, step: Step) -> None:
    assert decide(seen).step is step


@pytest.mark.parametrize(
    ("seen", "words"),
    [
        (CALM, ""),
        (replace(CALM, usable=False), ""),
        (replace(ASKED, usable=False), "waits for the hive"),
        (replace(CALM, record=ROLLS, usable=False), "waits for the hive"),
        (replace(ASKED, rolling=True), "waits for the rollout"),
        (replace(CALM, record=ROLLS, outdated=True), "stay valid until"),
    ],
)
def test_what_waits_says_why_and_no_secret(seen: Seen, words: str) -> None:
    waits = decide(seen).waits
    assert (words in waits, "secret" in f"{waits}{seen}") == (True, False)
    assert bool(waits) is bool(words)


def test_more_than_a_few_at_once_queue() -> None:
    assert decide(replace(ASKED, others=MOST_AT_ONCE)) == Decision(Step.KEEP, queues=True)


def test_a_whole_rotation_ends_where_nothing_is_to_be_done() -> None:
    seen = replace(CALM, record=Record(), wish=Wish(own="a", hive="b", days=30))
    steps = []
    for _ in range(10):
        decision = decide(seen)
        steps.append(decision.step)
        match decision.step:
            case Step.BEGIN:
                seen = replace(seen, prepared=True, stray=True)
            case Step.SWITCH:
                record = switched(seen.record, seen.wish, {"URL": "old"}, seen.now)
                assert record == Record("20260531T120000Z", "a", "b", {"PREVIOUS_URL": "old"})
                seen = replace(seen, record=record, prepared=False, outdated=True, rolling=True)
            case Step.KEEP if seen.outdated:
                seen = replace(seen, outdated=False, rolling=False)
            case Step.FINISH:
                seen = replace(seen, record=finished(seen.record), stray=False)
    assert steps == [Step.BEGIN, Step.SWITCH, Step.KEEP, Step.FINISH, *[Step.KEEP] * 6]


def test_a_record_is_what_the_secret_says() -> None:
    record = Record("20260531T110000Z", "a", "b", {"PREVIOUS_URL": "old"})
    assert record_of(record.annotations, {"URL": "new", "PREVIOUS_URL": "old"}) == record
    assert record_of({}, {"URL": "new"}) == Record()
    assert Record().annotations == {}
    assert answered(record, Wish()) == record
    assert answered(record, Wish("c", "")) == replace(record, own="c")


def test_former_credentials_that_nobody_can_revoke_are_let_go() -> None:
    record = Record("20260531T110000Z", "a", "b", {"PREVIOUS_ONE": "old", "PREVIOUS_OTHER": "old"})
    assert limited(record, ["ONE", "OTHER"]) == record
    assert limited(record, ["ONE"]) == replace(record, previous={"PREVIOUS_ONE": "old"})
    assert limited(record, []) == finished(record)


def test_a_value_that_is_too_long_to_be_repeated_still_differs() -> None:
    rotate = "agenthive.dev/rotate"
    assert token({}) == ""
    assert token({rotate: "now"}) == "now"
    one, other = token({rotate: "x" * 100_000}), token({rotate: "x" * 100_001})
    assert one != other
    assert len(one) == 64


def test_agents_made_at_once_do_not_become_due_at_once() -> None:
    due = sorted(due_at(Record(), MADE, 4, f"ns/demo/agent-{n}") for n in range(1000))
    assert MADE + timedelta(days=3) <= due[0] < MADE + timedelta(days=3, hours=1)
    assert MADE + timedelta(days=4, hours=-1) < due[-1] <= MADE + timedelta(days=4)
    most = max(sum(start <= moment < start + timedelta(hours=1) for moment in due) for start in due)
    assert most < 80, "a thousand over a day are 42 an hour"


def test_age_counts_from_the_last_rotation_else_from_the_secret() -> None:
    for since, start in [("20260531T110000Z", NOW - timedelta(hours=1)), ("", MADE), ("edited", MADE)]:
        due = due_at(Record(since=since), MADE, 8, "ns/demo/anna")
        assert timedelta(days=6) <= due - start <= timedelta(days=8)


def a_pod(mark: str | None, phase: str = "Running", **metadata: Any) -> dict[str, Any]:
    labels = {} if mark is None else {"agenthive.dev/credentials": mark}
    return {"metadata": {"labels": labels, **metadata}, "status": {"phase": phase}}


def a_deployment(mark: str | None) -> dict[str, Any]:
    return {"spec": {"template": a_pod(mark)}}


@pytest.mark.parametrize(
    ("deployment", "pods", "since", "outdated"),
    [
        (None, [], "", False),
        (a_deployment(None), [a_pod(None)], "", False),
        (a_deployment("b"), [a_pod("b")], "b", False),
        (a_deployment("b"), [a_pod("b"), a_pod("a")], "b", True),
        (a_deployment("b"), [a_pod("a", deletionTimestamp="2026-05-31T12:00:00Z")], "b", True),
        (a_deployment("b"), [a_pod("a", "Failed"), a_pod("a", "Succeeded")], "b", False),
        (a_deployment("b"), [a_pod(None, "Pending")], "b", True),
        (a_deployment("a"), [], "b", True),
        (a_deployment(None), [a_pod("b")], "b", True),
    ],
)
def test_which_pods_may_use_the_former_credentials(
    deployment: dict[str, Any] | None, pods: list[dict[str, Any]], since: str, outdated: bool
) -> None:
    assert has_outdated(deployment, pods, since) is outdated


def test_the_secret_keeps_the_former_credentials_and_no_pod_sees_them() -> None:
    before = plan_agent(agent(), hive(), OBSERVED_AGENT)
    after = plan_agent(agent(), hive(), replace(OBSERVED_AGENT, credentials=ROLLS))
    secret, deployment = named(after, "Secret"), named(after, "Deployment")
    name = "PREVIOUS_AGENTHIVE_POSTGRES_URL"
    assert base64.b64decode(secret["data"].pop(name)).decode() == ROLLS.previous[name]
    assert secret["metadata"].pop("annotations") == {"agenthive.dev/credentials": ROLLS.since}
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert labels.pop("agenthive.dev/credentials") == ROLLS.since
    digests = [
        named(plan, "Deployment")["metadata"]["annotations"].pop(TEMPLATE_ANNOTATION) for plan in (before, after)
    ]
    assert digests[0] != digests[1], "the label rolls the pods"
    assert after == before, "nothing else differs, and an agent whose credentials are the first ones is as it was"
