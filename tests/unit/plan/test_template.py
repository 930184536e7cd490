"""podTemplates of a hive and of its agents, merged; whole pods stand in ``golden/agent-template.yaml``."""

from __future__ import annotations

from typing import Any

import pytest
from tests.unit.plan.build import OBSERVED_AGENT, agent, hive, named

from agenthive_operator.api import Agent, AgentHive
from agenthive_operator.plan.agent import plan_agent, pod_template
from agenthive_operator.plan.references import Reference, agent_references


def spec_of(worker: Agent, of: AgentHive) -> dict[str, Any]:
    spec: dict[str, Any] = pod_template(worker, of, OBSERVED_AGENT)["spec"]
    return spec


def with_template(spec: dict[str, Any], *, of_hive: bool) -> tuple[Agent, AgentHive]:
    template = {"podTemplate": {"spec": spec}}
    return (agent(), hive(agentDefaults=template)) if of_hive else (agent(**template), hive())


def test_an_agent_wins_over_its_hive_and_none_removes() -> None:
    spec = spec_of(agent("agent-template"), hive("hive-template"))
    assert "runtimeClassName" not in spec
    assert spec["priorityClassName"] == "urgent"
    assert [t["key"] for t in spec["tolerations"]] == ["gpu"], "a list without a merge key is replaced"
    assert spec["dnsConfig"] == {"nameservers": ["10.0.0.10"]}
    assert [(c["name"], c["image"]) for c in spec["initContainers"]] == [("proxy", "proxy:2"), ("fetch", "fetch:1")]
    assert spec["initContainers"][0]["restartPolicy"] == "Always"
    assert spec["securityContext"]["runAsUser"] == 1234
    assert spec["securityContext"]["runAsNonRoot"] is True


def test_secrets_of_the_hives_template_are_followed() -> None:
    found = agent_references(agent("agent-template"), hive("hive-template"))
    assert {Reference("Secret", "hive-certs"), Reference("Secret", "proxy-login")} <= found


@pytest.mark.parametrize("of_hive", [True, False])
def test_what_the_rules_of_the_crd_missed_has_no_effect(of_hive: bool) -> None:
    mine = {"name": "MINE", "value": "1"}
    containers = [
        {
            "name": "agent",
            "command": ["sh"],
            "args": ["-c", "true"],
            "env": [{"name": "AGENTHIVE_HIVE", "value": "x"}, {"name": "AGENTHIVE_NEW", "value": "x"}, mine],
        },
        {"name": "side", "image": "s", "command": ["side"], "env": [{"name": "AGENTHIVE_HIVE", "value": "x"}, mine]},
    ]
    worker, of = with_template({"containers": containers}, of_hive=of_hive)
    own, side = spec_of(worker, of)["containers"]
    plain = spec_of(agent(), hive())["containers"][0]
    assert (own["command"], own["args"]) == (plain["command"], plain["args"])
    assert own["env"] == [*plain["env"], mine]
    assert (side["command"], side["env"]) == (["side"], [mine])


def test_arguments_that_the_agent_does_not_have_are_removed() -> None:
    worker = agent(
        entrypoint=None, command=["run"], podTemplate={"spec": {"containers": [{"name": "agent", "args": ["x"]}]}}
    )
    container = spec_of(worker, hive())["containers"][0]
    assert container["command"] == ["run"]
    assert "args" not in container


@pytest.mark.parametrize("of_hive", [True, False])
def test_a_template_with_spread_constraints_of_its_own_gets_no_others(of_hive: bool) -> None:
    worker, of = with_template({"topologySpreadConstraints": []}, of_hive=of_hive)
    assert not spec_of(worker, of).get("topologySpreadConstraints")


def test_scaling_changes_nothing_in_the_template() -> None:
    assert len({str(spec_of(agent(replicas=count), hive())) for count in (0, 1, 2, 100)}) == 1


@pytest.mark.parametrize(
    ("worker", "of", "expected"),
    [
        (agent(replicas=1), hive(), False),
        (agent(replicas=2), hive(), True),
        (agent(replicas=100), hive(), True),
        (agent(replicas=0), hive(), False),
        (agent(replicas=5), hive(suspend=True), False),
    ],
)
def test_a_disruption_budget_is_for_two_pods_or_more(worker: Agent, of: AgentHive, expected: bool) -> None:
    planned = plan_agent(worker, of, OBSERVED_AGENT)
    assert ("PodDisruptionBudget" in {body["kind"] for body in planned}) is expected
    if expected:
        selector = named(planned, "Deployment")["spec"]["selector"]
        assert named(planned, "PodDisruptionBudget")["spec"]["selector"] == selector


PROBES = {"startupProbe", "livenessProbe", "readinessProbe"}


@pytest.mark.parametrize(
    ("program", "probed"),
    [
        ({"entrypoint": "a:b"}, True),
        ({"entrypoint": None, "command": ["agenthive", "run", "a:b"]}, True),
        ({"entrypoint": None, "command": ["agenthive"]}, False),
        ({"entrypoint": None, "command": ["python", "-m", "worker"]}, False),
    ],
)
def test_only_the_runtime_is_probed(program: dict[str, Any], probed: bool) -> None:
    container = spec_of(agent(**program), hive())["containers"][0]
    assert (container.keys() >= PROBES) is probed
    assert bool(container.keys() & PROBES) is probed


def test_a_template_may_give_a_program_its_probes() -> None:
    probe = {"httpGet": {"path": "/healthz", "port": 9000}}
    template = {"spec": {"containers": [{"name": "agent", "readinessProbe": probe}]}}
    container = spec_of(agent(entrypoint=None, command=["worker"], podTemplate=template), hive())["containers"][0]
    assert container["readinessProbe"] == probe


@pytest.mark.parametrize(
    ("spec", "defaults", "expected"),
    [
        ({}, {}, "IfNotPresent"),
        ({}, {"imagePullPolicy": "Always"}, "Always"),
        ({"image": "mine:latest"}, {}, None),
        ({}, {"image": "ours:latest"}, None),
        ({"image": "mine:1", "imagePullPolicy": "Never"}, {"imagePullPolicy": "Always"}, "Never"),
    ],
)
def test_an_image_that_nobody_named_need_not_come_from_a_registry(
    spec: dict[str, Any], defaults: dict[str, Any], expected: str | None
) -> None:
    container = spec_of(agent(**spec), hive(agentDefaults=defaults))["containers"][0]
    assert container.get("imagePullPolicy") == expected
