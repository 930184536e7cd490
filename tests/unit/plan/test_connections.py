"""How many connections a hive may open, and when that is told."""

from __future__ import annotations

from typing import Any

import pytest

from agenthive.settings import PostgresPool
from agenthive_operator.api import Agent, AgentHive
from agenthive_operator.plan.connections import OPERATOR_CONNECTIONS, budget_text, connection_budget
from agenthive_operator.plan.postgres import MAX_CONNECTIONS
from agenthive_operator.plan.replicas import replicas, replicas_of, with_surge

DELETED = {"deletionTimestamp": "2026-11-22T20:00:00Z"}


@pytest.mark.parametrize(("count", "most"), [(0, 0), (1, 2), (2, 3), (4, 5), (5, 7), (8, 10), (10_000, 12_500)])
def test_a_rollout_surges_by_a_quarter_rounded_up(count: int, most: int) -> None:
    assert with_surge(count) == most


@pytest.mark.parametrize(
    ("replicas", "pool", "room", "most", "near"),
    [
        ([], 10, 97, OPERATOR_CONNECTIONS, False),
        ([1, 1], 10, 97, 40 + OPERATOR_CONNECTIONS, False),
        ([0, 0, 1], 10, 97, 20 + OPERATOR_CONNECTIONS, False),
        ([4, 4], 10, 97, 100 + OPERATOR_CONNECTIONS, True),
        ([6], 10, 100, 80 + OPERATOR_CONNECTIONS, True),
        ([38], 1, 62, 48 + OPERATOR_CONNECTIONS, True),
        ([38], 1, 63, 48 + OPERATOR_CONNECTIONS, False),
        ([1], 1, 0, 2 + OPERATOR_CONNECTIONS, True),
    ],
)
def test_the_budget(replicas: list[int], pool: int, room: int, most: int, near: bool) -> None:
    budget = connection_budget(replicas, pool, room)
    assert (budget.most, budget.is_near) == (most, near)


def test_ten_agents_of_the_defaults_fit_into_the_managed_server() -> None:
    budget = connection_budget([1] * 10, PostgresPool().max_size, MAX_CONNECTIONS - 3)
    assert not budget.is_near


@pytest.mark.parametrize(("managed", "words"), [(True, "external server"), (False, "raise max_connections")])
def test_the_text_has_the_numbers_and_what_to_do(managed: bool, words: str) -> None:
    text = budget_text(connection_budget([4, 4], 10, 97), managed=managed)
    for part in ("102 connections", "10 pods", "97", "80 %", "spec.postgres.pool.maxSize", "PgBouncer", words):
        assert part in text


@pytest.mark.parametrize(
    ("worker", "of"),
    [
        ({"spec": {"replicas": 3}}, {}),
        ({"spec": {}}, {}),
        ({"spec": {"replicas": 3}}, {"spec": {"suspend": True}}),
        ({"spec": {"replicas": 3}}, {"metadata": DELETED}),
        ({"spec": {"replicas": 3}, "metadata": DELETED}, {}),
    ],
)
def test_replicas_as_the_api_returns_them_are_those_of_the_model(worker: dict[str, Any], of: dict[str, Any]) -> None:
    live = {
        "metadata": {"name": "worker", "namespace": "team", **worker.get("metadata", {})},
        "spec": {"hiveRef": {"name": "demo"}, "entrypoint": "w:agent", **worker["spec"]},
    }
    parent = AgentHive.parse({"metadata": {"name": "demo", **of.get("metadata", {})}, "spec": of.get("spec", {})})
    assert replicas_of(live, parent) == replicas(Agent.parse(live), parent)
