"""A hive and its agents that a user keeps changing, and what has to be true of them once things calm down."""

from __future__ import annotations

import time
from typing import Any

from agenthive_operator.backends.kube import BY_KIND

from .chaos import Chaos
from .conftest import Cluster

CHILDREN = ("Deployment", "Secret", "Service", "ConfigMap")
QUIET_SECONDS = 1.0


class Fleet:
    """What the user wants: the agents of one hive and their replicas."""

    def __init__(self, cluster: Cluster, chaos: Chaos) -> None:
        self._cluster = cluster
        self._chaos = chaos
        self.wanted: dict[str, int] = {}
        self._round = 0

    async def start(self, redis_url: str, postgres_url: str, *, agents: int = 10, **spec: Any) -> None:
        await self._cluster.external_hive("demo", redis_url, postgres_url, **spec)
        for number in range(agents):
            await self._add(f"a{number}")

    async def churn(self) -> None:
        """Some agents are changed, one goes, one comes; what the garbage collector would do is done."""
        self._round += 1
        names = sorted(self.wanted)
        for name in names[:3]:
            self.wanted[name] = self._round + 1
            await self._cluster.patch("Agent", name, spec={"replicas": self.wanted[name]})
        gone = names[-1]
        del self.wanted[gone]
        await self._cluster.delete("Agent", gone)
        await self._collect()
        await self._add(f"n{self._round}")

    async def _add(self, name: str) -> None:
        self.wanted[name] = 1
        await self._cluster.agent(name, "demo")

    async def _collect(self) -> None:
        """Delete what has no living owner, as a cluster's garbage collector would."""
        alive = {obj["metadata"]["uid"] for kind in ("Agent", "AgentHive") for obj in await self._cluster.list(kind)}
        for kind in CHILDREN:
            for obj in await self._cluster.list(kind):
                owners = obj["metadata"].get("ownerReferences")
                if owners and not any(owner["uid"] in alive for owner in owners):
                    metadata = obj["metadata"]
                    await self._cluster.kube.delete(
                        BY_KIND[kind], metadata["namespace"], metadata["name"], uid=metadata["uid"]
                    )

    async def converged(self, what: str, seconds: float = 30.0) -> None:
        """Everything is as the user wants it and says so; then nothing more is written, and nothing was deleted."""
        try:
            await self._cluster.until(f"all is well after {what}", self._is_well, seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}: {await self._wrong()}") from None
        await self._cluster.until(f"nothing is written any more after {what}", self._is_quiet, seconds)
        assert not self._chaos.deletes(), f"{what}: the operator deleted what nobody gave up"

    async def _is_quiet(self) -> bool:
        writes = self._chaos.writes()
        return not writes or time.monotonic() - writes[-1].at > QUIET_SECONDS

    async def _is_well(self) -> bool:
        return not await self._wrong()

    async def _wrong(self) -> list[str]:
        """What is not as it should be."""
        found = []
        await self._collect()
        agents = {agent["metadata"]["name"]: agent for agent in await self._cluster.list("Agent")}
        deployments = {each["metadata"]["name"]: each for each in await self._cluster.list("Deployment")}
        if set(agents) != set(self.wanted) or set(deployments) != set(self.wanted):
            found.append(f"agents {sorted(agents)}, Deployments {sorted(deployments)}")
        for name, agent in agents.items():
            deployment = deployments.get(name)
            if deployment is None or deployment["spec"]["replicas"] != self.wanted[name]:
                found.append(f"the Deployment of {name}")
            elif deployment["metadata"]["ownerReferences"][0]["uid"] != agent["metadata"]["uid"]:
                found.append(f"the owner of the Deployment of {name}")
            if (agent.get("status") or {}).get("observedGeneration") != agent["metadata"]["generation"]:
                found.append(f"the status of {name}")
            if "backlog" not in (agent.get("status") or {}):
                found.append(f"the figures of {name}")  # they come with a look of its own, and are written then
        hive = await self._cluster.need("AgentHive", "demo")
        status = hive.get("status") or {}
        if (status.get("agents") or {}).get("total") != len(self.wanted):
            found.append(f"the hive counts {status.get('agents')}")
        if status.get("observedGeneration") != hive["metadata"]["generation"]:
            found.append("the status of the hive")
        if not hive["metadata"].get("finalizers"):
            found.append("the finalizer is off")
        return found
