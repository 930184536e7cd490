"""The Deployment controller: carries out what ``rollout`` decides."""

from __future__ import annotations

from agenthive_operator.local.client import ApiError
from agenthive_operator.local.controllers import rollout
from agenthive_operator.local.controllers.base import Controller
from agenthive_operator.local.informer import Informers
from agenthive_operator.local.objects import (
    Key,
    controller_of,
    is_deleting,
    is_finished,
    labels_of,
    matches,
    owner_reference,
    uid_of,
    utc_now,
)
from agenthive_operator.local.resources import DEPLOYMENTS, PODS, REPLICA_SETS, Obj
from agenthive_operator.reconcile.queue import RetryLater


class DeploymentController(Controller):
    """Deployments → ReplicaSets."""

    resource = DEPLOYMENTS

    def __init__(self, informers: Informers, *, workers: int = 4) -> None:
        super().__init__(informers, workers=workers)
        self.replica_sets = informers.of(REPLICA_SETS)
        self.pods = informers.of(PODS)
        self.follow_children(REPLICA_SETS)

    async def reconcile(self, key: Key) -> float | None:
        """Create, scale and delete ReplicaSets by one step, then write the status."""
        deployment = self.objects.get(*key)
        if deployment is None:
            return None
        owned = await self._owned(deployment)
        if not is_deleting(deployment):
            await self._roll(deployment, owned)
            owned = self._alive(deployment)
        status = rollout.status(deployment, owned, utc_now())
        await self.write_status(deployment, status)
        if rollout.is_complete(deployment["spec"], status):
            return None
        left = rollout.deadline_left({**deployment, "status": status}, utc_now())
        return left + 1 if left > 0 else None

    async def _roll(self, deployment: Obj, owned: list[Obj]) -> None:
        step = rollout.plan(deployment, owned, self._old_pods(deployment, owned))
        if step.create is not None:
            await self._create(deployment, step.create)
        for replica_set, replicas in step.scale:
            annotations = rollout.scale_annotations(deployment)
            change: Obj = {"metadata": {"annotations": annotations}, "spec": {"replicas": replicas}}
            await self.patch(REPLICA_SETS, replica_set, change)
        if step.promote is not None:
            annotations = {rollout.REVISION: str(step.revision)}
            await self.patch(REPLICA_SETS, step.promote, {"metadata": {"annotations": annotations}})
        for replica_set in step.delete:
            await self.delete(REPLICA_SETS, replica_set, propagation="Background")
        if step.revision and rollout.revision_of(deployment) != step.revision:
            annotations = {rollout.REVISION: str(step.revision)}
            await self.patch(DEPLOYMENTS, deployment, {"metadata": {"annotations": annotations}})

    async def _create(self, deployment: Obj, replica_set: Obj) -> None:
        try:
            await self.create(REPLICA_SETS, replica_set)
        except ApiError as error:
            if error.status != 409:
                raise
            # Another template with the same hash, or a namesake of somebody else's: hash again with the count of
            # collisions, as the real controller does. Our own, not yet seen, is found on the next look.
            key = replica_set["metadata"]["namespace"], replica_set["metadata"]["name"]
            found = await self.client.find(REPLICA_SETS, *key)
            if found is not None and (controller_of(found) or {}).get("uid") == uid_of(deployment):
                self.replica_sets.observe(found)
            else:
                count = (deployment.get("status") or {}).get("collisionCount", 0)
                await self.patch(DEPLOYMENTS, deployment, {"status": {"collisionCount": count + 1}}, sub="status")
            raise RetryLater(f"ReplicaSet {key[1]} exists") from error

    async def _owned(self, deployment: Obj) -> list[Obj]:
        """The ReplicaSets of this Deployment; orphans that its selector matches are adopted."""
        if not is_deleting(deployment):
            for replica_set in self.replica_sets.orphans(deployment["metadata"]["namespace"]):
                if not is_deleting(replica_set) and matches(deployment["spec"]["selector"], labels_of(replica_set)):
                    references = replica_set["metadata"].get("ownerReferences") or []
                    owners = [*references, owner_reference(deployment, DEPLOYMENTS)]
                    await self.patch(REPLICA_SETS, replica_set, {"metadata": {"ownerReferences": owners}})
        return self._alive(deployment)

    def _alive(self, deployment: Obj) -> list[Obj]:
        return [rs for rs in self.replica_sets.owned_by(deployment) if not is_deleting(rs)]

    def _old_pods(self, deployment: Obj, owned: list[Obj]) -> int:
        new = rollout.find_new(deployment, owned)
        return sum(1 for rs in owned if rs is not new for pod in self.pods.owned_by(rs) if not is_finished(pod))
