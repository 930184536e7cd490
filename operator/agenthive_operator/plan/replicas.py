"""How many pods an agent gets: the one place that decides it."""

from __future__ import annotations

from agenthive_operator.api.agent import Agent
from agenthive_operator.api.hive import AgentHive


def replicas(agent: Agent, hive: AgentHive) -> int:
    """Pods of ``agent``: none while its hive is suspended or either is being deleted, else what its spec says."""
    if hive.spec.suspend or hive.metadata.deleting or agent.metadata.deleting:
        return 0
    return agent.spec.replicas
