"""How many pods an agent gets: the one place that decides it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from agenthive_operator.api.agent import Agent
from agenthive_operator.api.hive import AgentHive

SURGE_PERCENT: Final = 25
"""Pods that a rollout may start beyond an agent's replicas, as a share of them; rounded up."""


def replicas(agent: Agent, hive: AgentHive, *, halted: bool = False) -> int:
    """Pods of ``agent``: what its spec says.

    None while its hive is suspended or moves to another server (``halted``), or either is being deleted.
    """
    if halted or hive.spec.suspend or hive.metadata.deleting or agent.metadata.deleting:
        return 0
    return agent.spec.replicas


def with_surge(count: int) -> int:
    """The most pods of an agent with ``count`` replicas: while it is rolled."""
    return count + -(-count * SURGE_PERCENT // 100)


def replicas_of(live: Mapping[str, Any], hive: AgentHive) -> int:
    """As ``replicas``, for an Agent as the API server returns it: a hive has many, and nothing else of them counts."""
    if hive.spec.suspend or hive.metadata.deleting or live["metadata"].get("deletionTimestamp"):
        return 0
    return int((live.get("spec") or {}).get("replicas", 1))
