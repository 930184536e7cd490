"""The inputs of the planners' tests: resources from ``inputs/`` and what was observed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from agenthive_operator.api import Agent, AgentHive
from agenthive_operator.plan.inputs import ObservedAgent, ObservedHive, ObservedServer, OperatorPlace
from agenthive_operator.plan.references import Reference

INPUTS = Path(__file__).with_name("inputs")
GOLDEN = Path(__file__).with_name("golden")

OBSERVED_HIVE = ObservedHive(ObservedServer("redis-password"), ObservedServer("p@ss/word"))
PLACE = OperatorPlace("agenthive-system", ("10.96.0.10",))
OBSERVED_AGENT = ObservedAgent(
    instance_id="local",
    redis_url="redis://:redis-password@demo-redis.team.svc:6379/0",
    postgres_url="postgresql://agenthive:p%40ss@demo-postgres.team.svc:5432/agenthive",
    runtime_image="agenthive-runtime:0.1.0",
    digests={Reference("ConfigMap", "worker-code"): "c0de"},
)


def manifest(name: str, **spec: Any) -> dict[str, Any]:
    """The resource in ``inputs/<name>.yaml`` with fields of its spec replaced."""
    loaded: dict[str, Any] = yaml.safe_load((INPUTS / f"{name}.yaml").read_text())
    loaded["spec"] = loaded.get("spec", {}) | spec
    return loaded


def hive(name: str = "hive-minimal", **spec: Any) -> AgentHive:
    """The hive in ``inputs/<name>.yaml``."""
    return AgentHive.parse(manifest(name, **spec))


def agent(name: str = "agent-minimal", **spec: Any) -> Agent:
    """The agent in ``inputs/<name>.yaml``."""
    return Agent.parse(manifest(name, **spec))


def named(objects: list[dict[str, Any]], kind: str, name: str | None = None) -> dict[str, Any]:
    """The one object of ``kind`` (called ``name``) in a plan."""
    (found,) = [o for o in objects if o["kind"] == kind and name in (None, o["metadata"]["name"])]
    return found
