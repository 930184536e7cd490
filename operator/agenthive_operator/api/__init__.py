"""API models of group agenthive.dev, version v1alpha1."""

from agenthive_operator.api.agent import Agent, AgentSpec, AgentStatus
from agenthive_operator.api.hive import AgentHive, AgentHiveSpec, AgentHiveStatus
from agenthive_operator.api.meta import (
    API_VERSION,
    GROUP,
    VERSION,
    Condition,
    InvalidObjectError,
    ObjectMeta,
    OwnerReference,
)

__all__ = [
    "API_VERSION",
    "GROUP",
    "VERSION",
    "Agent",
    "AgentHive",
    "AgentHiveSpec",
    "AgentHiveStatus",
    "AgentSpec",
    "AgentStatus",
    "Condition",
    "InvalidObjectError",
    "ObjectMeta",
    "OwnerReference",
]
