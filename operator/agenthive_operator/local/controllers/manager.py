"""All controllers together, over one set of informers."""

from __future__ import annotations

import asyncio
from pathlib import Path

from agenthive_operator.local.controllers.base import Controller
from agenthive_operator.local.controllers.claims import ClaimController
from agenthive_operator.local.controllers.deployment import DeploymentController
from agenthive_operator.local.controllers.endpoints import EndpointsController
from agenthive_operator.local.controllers.garbage import GarbageCollector
from agenthive_operator.local.controllers.job import JobController
from agenthive_operator.local.controllers.replicaset import ReplicaSetController
from agenthive_operator.local.controllers.scheduler import Scheduler
from agenthive_operator.local.controllers.statefulset import StatefulSetController
from agenthive_operator.local.informer import Informers


class Controllers:
    """The controllers of one control plane.

    Args:
        informers: shared with the kubelet.
        claims_root: where volume claims have their folders.
        node: the node every pod is bound to.
    """

    def __init__(self, informers: Informers, *, claims_root: Path, node: str) -> None:
        self.informers = informers
        self.controllers: list[Controller] = [
            DeploymentController(informers),
            ReplicaSetController(informers),
            StatefulSetController(informers),
            JobController(informers),
            EndpointsController(informers),
            ClaimController(informers, claims_root),
            Scheduler(informers, node),
        ]
        self.garbage = GarbageCollector(informers)

    async def start(self) -> None:
        """Fill the informers: decisions are only made on complete copies."""
        await self.informers.start()
        await self.garbage.start()

    async def run(self) -> None:
        """Reconcile until cancelled; call after ``start``."""
        async with asyncio.TaskGroup() as group:
            for controller in self.controllers:
                group.create_task(controller.queue.run(), name=controller.resource.plural)
            group.create_task(self.garbage.run(), name="garbage")
