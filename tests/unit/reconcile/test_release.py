"""Refusals and what they mean, and whether an apply would replace pods."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from tests.unit.plan.build import OBSERVED_AGENT, agent, hive, named

from agenthive_operator.backends.kube import ApiError
from agenthive_operator.plan.agent import plan_agent
from agenthive_operator.plan.names import TEMPLATE_ANNOTATION
from agenthive_operator.reconcile.children import prepare
from agenthive_operator.reconcile.conditions import (
    BLOCKED_SECONDS,
    AgentInput,
    HiveFacts,
    HiveInput,
    Problem,
    agent_conditions,
    hive_conditions,
    rollout_of,
    sooner,
)
from agenthive_operator.reconcile.reasons import REASONS
from agenthive_operator.reconcile.refusals import is_refusal, pods_refused, refusal, template_refusal
from agenthive_operator.reconcile.release import changes_template, template_fields, waiting

QUOTA = 'secrets "w-agenthive" is forbidden: exceeded quota: few, requested: count/secrets=1, used: 1, limited: 1'
RIGHT = 'deployments.apps "w" is forbidden: User "operator" cannot patch resource "deployments" in API group "apps"'
TYPED = "failed to create typed patch object (ns/w; apps/v1, Kind=Deployment): .spec.x: field not declared in schema"
WEBHOOK = 'admission webhook "x.example.org" does not support dry run'
FIELDS = ["spec.podTemplate of this Agent"]


@pytest.mark.parametrize(
    ("status", "message", "refused", "child", "template"),
    [
        (422, "spec.x: Invalid value", True, "ApplyRejected", "PodTemplateRejected"),
        (500, TYPED, True, "ApplyRejected", "PodTemplateRejected"),
        (403, QUOTA, True, "QuotaExceeded", "QuotaExceeded"),
        (403, RIGHT, True, "ApplyRejected", "ApplyRejected"),
        (403, 'admission webhook "p" denied the request', True, "ApplyRejected", "PodTemplateRejected"),
        (400, WEBHOOK, True, "ApplyRejected", None),
        (500, "etcdserver: request timed out", False, None, None),
        (409, "conflict", False, None, None),
        (429, "slow down", False, None, None),
    ],
)
def test_refusals(status: int, message: str, refused: bool, child: str | None, template: str | None) -> None:
    error = ApiError(status, "X", message)
    assert is_refusal(error) is refused
    if refused:
        problem = refusal(error, "Secret w-agenthive")
        assert (problem.reason, message in problem.message) == (child, True)
        found = template_refusal(error, "w", FIELDS)
        assert (found.reason if found else None) == template
        assert ("correct spec.podTemplate" in found.message if found else False) is (template == "PodTemplateRejected")


@pytest.mark.parametrize(
    ("message", "reason", "text"),
    [
        ("", None, ""),
        ('pods "w-5d8c9f7b-x2zzq" is forbidden: exceeded quota: few', "QuotaExceeded", 'pods "w" is forbidden: exc'),
        ('pods "w-5d8c9f7b-x2zzq" is forbidden: violates PodSecurity', "PodsRefused", 'pods "w" is forbidden: vio'),
        ('Pod "w-sjs46tp6cw-mxgmf" is invalid: spec.x', "PodsRefused", 'Pod "w" is invalid'),
        ("no service account", "PodsRefused", "no service account"),
    ],
)
def test_refused_pods(message: str, reason: str | None, text: str) -> None:
    problem = pods_refused(message)
    assert (problem.reason if problem else None) == reason
    assert (problem.message if problem else "").startswith(text)


def planned(**spec: Any) -> dict[str, Any]:
    return prepare(named(plan_agent(agent(**spec), hive(), OBSERVED_AGENT), "Deployment"))


def written_before_digests(live: dict[str, Any]) -> None:
    del live["metadata"]["annotations"][TEMPLATE_ANNOTATION]


def by_hand(live: dict[str, Any]) -> None:
    live["spec"]["template"]["spec"]["containers"][0]["image"] = "other:1"


def of_others(live: dict[str, Any]) -> None:
    live["spec"]["template"]["metadata"]["annotations"]["kubectl.kubernetes.io/restartedAt"] = "now"


def test_what_replaces_pods() -> None:
    body = planned()
    assert not changes_template(body, body)
    assert not changes_template(body, planned(replicas=7)), "scaling"
    assert changes_template(body, planned(drainSeconds=31))
    sidecar = {"spec": {"containers": [{"name": "side", "image": "s:1"}]}}
    assert changes_template(planned(podTemplate=sidecar), body), "what is taken away"
    for change, expected in ((written_before_digests, False), (by_hand, True), (of_others, False)):
        live = copy.deepcopy(body)
        change(live)
        assert changes_template(live, body) is expected


def test_the_fields_to_correct_are_named() -> None:
    assert template_fields(agent(), hive()) == []
    assert template_fields(agent("agent-full"), hive()) == FIELDS
    both = template_fields(agent("agent-template"), hive("hive-template"))
    assert both == [*FIELDS, "spec.agentDefaults.podTemplate of AgentHive 'demo'"]


@pytest.mark.parametrize(
    ("again", "problem", "expected"),
    [
        (None, Problem("PodTemplateRejected", "x", again=120.0), 120.0),
        (30.0, Problem("PodTemplateRejected", "x", again=120.0), 30.0),
        (None, Problem("QuotaExceeded", "x"), BLOCKED_SECONDS),
        (None, Problem("RollQueued", "x"), None),
        (20.0, Problem("RollQueued", "x"), 20.0),
    ],
)
def test_when_to_look_again(again: float | None, problem: Problem, expected: float | None) -> None:
    assert sooner(again, problem) == expected


WORKING = {
    "metadata": {"generation": 1},
    "spec": {"replicas": 1},
    "status": {"observedGeneration": 1, "replicas": 1, "updatedReplicas": 1, "readyReplicas": 1},
}


@pytest.mark.parametrize(
    ("problem", "ready", "progressing"),
    [
        (waiting("queued", "h"), "RollQueued", ("True", "RollQueued")),
        (waiting("halted", "h"), "RollHalted", ("False", "RollHalted")),
        (Problem("PodTemplateRejected", "x"), "PodTemplateRejected", ("False", "Waiting")),
        (Problem("QuotaExceeded", "x"), "QuotaExceeded", ("False", "UpToDate")),
    ],
)
def test_conditions_of_an_agent_that_is_held(problem: Problem, ready: str, progressing: tuple[str, str]) -> None:
    facts = HiveFacts(exists=True, ready=True)
    verdicts = agent_conditions(AgentInput("a", "h", facts, rollout=rollout_of(WORKING), problem=problem))
    assert (verdicts["Ready"].status, verdicts["Ready"].reason) == ("False", ready)
    assert (verdicts["Progressing"].status, verdicts["Progressing"].reason) == progressing
    for kind, verdict in verdicts.items():
        assert verdict.status in REASONS["Agent"][kind][verdict.reason].status.split(", ")


def test_the_hive_says_that_its_change_is_held_back() -> None:
    verdict = hive_conditions(HiveInput(None, None, None, agents_total=9, agents_ready=2, halted="why"))["AgentsReady"]
    assert (verdict.status, verdict.reason, verdict.message) == ("False", "RollHalted", "why")
    assert "RollHalted" in REASONS["AgentHive"]["AgentsReady"]
