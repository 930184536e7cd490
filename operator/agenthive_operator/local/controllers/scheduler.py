"""The scheduler of a cluster of one node."""

from __future__ import annotations

from agenthive_operator.local.client import ApiError
from agenthive_operator.local.controllers.base import Controller
from agenthive_operator.local.informer import Informers
from agenthive_operator.local.objects import Key, is_deleting, is_finished, key_of, uid_of
from agenthive_operator.local.resources import PODS, Obj


class Scheduler(Controller):
    """Pods without a node → the one node."""

    resource = PODS

    def __init__(self, informers: Informers, node: str, *, workers: int = 8) -> None:
        super().__init__(informers, workers=workers)
        self.node = node
        self._has_binding = True

    async def reconcile(self, key: Key) -> float | None:
        """Bind a pod that has no node."""
        pod = self.objects.get(*key)
        if pod is None or pod["spec"].get("nodeName") or is_deleting(pod) or is_finished(pod):
            return None
        if pod["spec"].get("schedulingGates"):
            return None
        try:
            await self._bind(pod)
        except ApiError as error:
            if error.status not in {404, 409}:  # gone, or bound meanwhile
                raise
        return None

    async def _bind(self, pod: Obj) -> None:
        namespace, name = key_of(pod)
        binding = {
            "apiVersion": "v1",
            "kind": "Binding",
            "metadata": {"name": name, "namespace": namespace, "uid": uid_of(pod)},
            "target": {"apiVersion": "v1", "kind": "Node", "name": self.node},
        }
        if self._has_binding:
            try:
                await self.client.request("POST", PODS.path_of(pod, "binding"), body=binding)
                return
            except ApiError as error:
                if error.status not in {404, 405}:
                    raise
        # A server without the binding subresource lets the field be set; a real one does not.
        await self.patch(PODS, pod, {"spec": {"nodeName": self.node}})
        self._has_binding = False
