"""Volume claims: bound at once to a folder of this machine, kept while a pod uses them; data goes with them."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

from agenthive_operator.local.controllers.base import Controller
from agenthive_operator.local.informer import Informers
from agenthive_operator.local.objects import Key, is_deleting, is_finished, uid_of
from agenthive_operator.local.resources import CLAIMS, PODS, Obj

PROTECTION = "kubernetes.io/pvc-protection"


def folder_name(claim: Obj) -> str:
    """The folder of a claim: its uid keeps the data of a later namesake apart."""
    meta = claim["metadata"]
    return f"{meta['namespace']}_{meta['name']}_{meta['uid']}"


def is_used(claim: Obj, pods: list[Obj]) -> bool:
    """Whether a pod that is not finished mounts ``claim``."""
    namespace, name = claim["metadata"]["namespace"], claim["metadata"]["name"]
    return any(
        (volume.get("persistentVolumeClaim") or {}).get("claimName") == name
        for pod in pods
        if pod["metadata"]["namespace"] == namespace and not is_finished(pod)
        for volume in pod["spec"].get("volumes") or []
    )


def bound_status(claim: Obj) -> Obj:
    """The status of a claim that has its volume."""
    spec = claim["spec"]
    capacity = ((spec.get("resources") or {}).get("requests")) or {}
    return {"phase": "Bound", "accessModes": spec.get("accessModes") or ["ReadWriteOnce"], "capacity": capacity}


class ClaimController(Controller):
    """PersistentVolumeClaims → folders below ``root``."""

    resource = CLAIMS

    def __init__(self, informers: Informers, root: Path, *, workers: int = 2) -> None:
        super().__init__(informers, workers=workers)
        self.root = root
        self.pods = informers.of(PODS)
        self.pods.on_change(self._pod_changed)

    def _pod_changed(self, old: Obj | None, new: Obj | None) -> None:
        pod = new or old or {}
        if new is not None and old is not None and not is_finished(new):
            return  # only pods that come, end or go matter
        for volume in pod["spec"].get("volumes") or []:
            if "persistentVolumeClaim" in volume:
                self.queue.add((pod["metadata"]["namespace"], volume["persistentVolumeClaim"]["claimName"]))

    async def reconcile(self, key: Key) -> float | None:
        """Bind a claim, or delete its folder once nobody uses it."""
        claim = self.objects.get(*key)
        if claim is None:
            return None
        finalizers = claim["metadata"].get("finalizers") or []
        if is_deleting(claim):
            if PROTECTION in finalizers and not is_used(claim, list(self.pods)):
                folder = self.root / folder_name(claim)
                if folder.exists():
                    await asyncio.to_thread(shutil.rmtree, folder)
                await self._set_finalizers(claim, [each for each in finalizers if each != PROTECTION])
            return None
        if PROTECTION not in finalizers:
            claim = await self._set_finalizers(claim, [*finalizers, PROTECTION])
        if (claim.get("status") or {}).get("phase") != "Bound":
            if not claim["spec"].get("volumeName"):
                claim = await self.patch(CLAIMS, claim, {"spec": {"volumeName": f"pvc-{uid_of(claim)}"}})
            await self.write_status(claim, bound_status(claim))
        return None

    async def _set_finalizers(self, claim: Obj, finalizers: list[str]) -> Obj:
        patched = await self.client.patch(CLAIMS, claim, {"metadata": {"finalizers": finalizers}})
        if finalizers or not is_deleting(claim):
            self.objects.observe(patched)
        else:
            self.objects.forget(claim)
        return patched
