"""The models of both kinds: parsing, defaults, status."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from tests import cel_cases
from tests.cel_cases import CASES

from agenthive.settings import Messaging, PostgresPool, RedisPool
from agenthive_operator.api import Agent, AgentHive, AgentStatus, Condition, InvalidObjectError
from agenthive_operator.api.crd import crd_manifests
from agenthive_operator.api.hive import DEFAULT_POSTGRES_IMAGE, DEFAULT_REDIS_IMAGE, AgentHiveStatus

META = {"name": "demo", "namespace": "ns", "uid": "u1", "generation": 2, "resourceVersion": "7"}


def test_a_hive_without_a_spec_has_all_defaults() -> None:
    hive = AgentHive.parse({"metadata": META})
    assert hive.spec.redis.run is not None
    assert hive.spec.redis.run.image == DEFAULT_REDIS_IMAGE
    assert hive.spec.postgres.run is not None
    assert hive.spec.postgres.run.image == DEFAULT_POSTGRES_IMAGE
    assert (hive.spec.messaging, hive.spec.redis.pool, hive.spec.postgres.pool) == (
        Messaging(),
        RedisPool(),
        PostgresPool(),
    )
    assert (hive.spec.redis.cutover.strategy, hive.spec.redis.cutover.timeout_seconds) == ("Drain", 300)
    assert hive.spec.deletion_policy == "Retain"
    assert not hive.spec.suspend
    assert not hive.metadata.deleting
    assert hive.instance_id is None


def test_an_external_server_is_not_run() -> None:
    hive = AgentHive.parse(cel_cases.external("redis"))
    assert hive.spec.redis.run is None
    assert hive.spec.postgres.run is not None


@pytest.mark.parametrize(
    ("spec", "status", "expected"),
    [({}, {}, None), ({"instanceId": "a"}, {}, "a"), ({}, {"instanceId": "b"}, "b")],
)
def test_the_instance_id_in_use_counts(spec: dict[str, Any], status: dict[str, Any], expected: str | None) -> None:
    assert AgentHive.parse({"metadata": META, "spec": spec, "status": status}).instance_id == expected


def test_an_agent_has_the_defaults_of_the_crd() -> None:
    agent = Agent.parse(cel_cases.agent())
    properties = crd_manifests()[1]["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    for name, value in (
        ("concurrency", agent.spec.concurrency),
        ("replicas", agent.spec.replicas),
        ("drainSeconds", agent.spec.drain_seconds),
    ):
        assert properties["properties"][name]["default"] == value


@pytest.mark.parametrize("case", [case for case in CASES if case.message is None], ids=lambda case: case.name)
def test_what_the_api_server_takes_can_be_parsed(case: cel_cases.Case) -> None:
    model = AgentHive if case.kind == "AgentHive" else Agent
    assert model.parse(case.new).metadata.name == case.new["metadata"]["name"]


def test_owner_references_make_children_of_the_resource() -> None:
    hive = AgentHive.parse({"metadata": META})
    assert hive.owner() == {
        "apiVersion": "agenthive.dev/v1alpha1",
        "kind": "AgentHive",
        "name": "demo",
        "uid": "u1",
        "controller": True,
        "blockOwnerDeletion": True,
    }
    assert Agent.parse(cel_cases.agent()).owner()["kind"] == "Agent"


def test_fields_of_a_newer_version_are_ignored() -> None:
    agent = cel_cases.agent(autoscaling={"maxReplicas": 3})
    assert Agent.parse(agent).spec.replicas == 1


def test_an_object_that_does_not_fit_says_where_and_why() -> None:
    broken = cel_cases.agent(concurrency=0) | {"metadata": {"name": "w", "namespace": "ns"}}
    with pytest.raises(InvalidObjectError, match=r"Agent ns/w: spec\.concurrency: .*greater than or equal to 1"):
        Agent.parse(broken)


def test_deletion_is_seen() -> None:
    hive = AgentHive.parse({"metadata": META | {"deletionTimestamp": "2026-11-22T20:00:00Z", "finalizers": ["a/b"]}})
    assert hive.metadata.deleting
    assert hive.metadata.finalizers == ("a/b",)


def test_a_status_is_dumped_as_kubernetes_writes_it() -> None:
    condition = Condition(
        type="Ready",
        status="True",
        reason="AllReady",
        message="",
        last_transition_time=datetime(2026, 11, 22, 20, tzinfo=UTC),
        observed_generation=3,
    )
    assert AgentStatus(replicas=0, conditions=(condition,)).dump() == {
        "replicas": 0,
        "conditions": [
            {
                "type": "Ready",
                "status": "True",
                "reason": "AllReady",
                "message": "",
                "lastTransitionTime": "2026-11-22T20:00:00Z",
                "observedGeneration": 3,
            }
        ],
    }
    assert AgentHiveStatus(backlog=3).dump() == {"conditions": [], "backlog": 3}
