"""The kubelet: registers the node, runs a worker for each pod bound to it, serves logs and exec."""

from __future__ import annotations

import asyncio
import logging
import os
import platform
import shutil
import ssl
from pathlib import Path

import psutil

from agenthive_operator.local.client import ApiError
from agenthive_operator.local.informer import Informers
from agenthive_operator.local.kubelet.addresses import NODE_PORT, Addresses
from agenthive_operator.local.kubelet.backoff import base_seconds
from agenthive_operator.local.kubelet.container import Container, Host
from agenthive_operator.local.kubelet.events import EventRecorder
from agenthive_operator.local.kubelet.pod import Places, PodWorker, log_folder
from agenthive_operator.local.kubelet.process import Records
from agenthive_operator.local.kubelet.server import PodServer
from agenthive_operator.local.kubelet.sources import Names
from agenthive_operator.local.objects import controller_of, format_time, uid_of, utc_now
from agenthive_operator.local.resources import NODES, PODS, Obj

logger = logging.getLogger(__name__)

NODE = "local"


def node_object(name: str, address: str, *, ready: bool = True) -> Obj:
    """The Node as this machine is."""
    stamp = format_time(utc_now())
    capacity = {
        "cpu": str(os.cpu_count() or 1),
        "memory": f"{psutil.virtual_memory().total // 1024}Ki",
        "pods": "10000",
    }
    state = {
        "type": "Ready",
        "status": "True" if ready else "False",
        "reason": "KubeletReady" if ready else "KubeletStopped",
        "message": "pods run as processes of this machine" if ready else "the local control plane is down",
        "lastHeartbeatTime": stamp,
        "lastTransitionTime": stamp,
    }
    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": name,
            "labels": {
                "kubernetes.io/hostname": name,
                "kubernetes.io/os": platform.system().lower(),
                "kubernetes.io/arch": machine,
            },
        },
        "status": {
            "capacity": capacity,
            "allocatable": capacity,
            "conditions": [state],
            # As Hostname too: a real API server prefers that, and nobody resolves our name.
            "addresses": [{"type": kind, "address": address} for kind in ("InternalIP", "Hostname")],
            # So that a real API server passes exec on as it comes: it would turn it into SPDY.
            "declaredFeatures": ["ExtendWebSocketsToKubelet"],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": NODE_PORT}},
            "nodeInfo": {
                "machineID": "",
                "systemUUID": "",
                "bootID": "",
                "kernelVersion": platform.release(),
                "osImage": platform.platform(),
                "containerRuntimeVersion": "process://1",
                "kubeletVersion": "v1.36.0-agenthive",
                "kubeProxyVersion": "",
                "operatingSystem": platform.system().lower(),
                "architecture": machine,
            },
        },
    }


class Kubelet:
    """Runs the pods of one node as processes.

    Args:
        informers: shared with the controllers.
        places: its folders.
        addresses: of node and pods.
        records: where processes are written down.
        kubeconfig: of the API server; pods that ask for access get one with their account's token.
        token: bearer token that callers must present; None: a certificate, which ``tls`` asks for.
        tls: serve logs and exec by HTTPS, as a real API server wants it.
        node: the node's name.
    """

    def __init__(
        self,
        informers: Informers,
        *,
        places: Places,
        addresses: Addresses,
        records: Records,
        kubeconfig: Path,
        token: str | None = None,
        tls: ssl.SSLContext | None = None,
        node: str = NODE,
    ) -> None:
        self.node = node
        self.addresses = addresses
        self._client = informers.client
        self._places = places
        self._tls = tls
        self._pods = informers.of(PODS)
        self._events = EventRecorder(self._client)
        self._host = Host(
            client=self._client,
            names=Names(informers),
            records=records,
            event=self._events.record,
            kubeconfig=kubeconfig,
            backoff_base=base_seconds(),
        )
        self._workers: dict[str, PodWorker] = {}
        self._server = PodServer(self._pods, places.logs, self._host.writers, self._container, token=token)
        self._writer: asyncio.Task[None] | None = None
        self._stopping = False

    async def start(self) -> None:
        """Register the node, serve logs, start the pods; the informers must have synced."""
        await self._server.start(self.addresses.listener, self._tls)
        await self._register(ready=True)
        self._writer = asyncio.create_task(self._events.run(), name="events")
        pods = [pod for pod in self._pods if self._is_ours(pod)]
        await asyncio.to_thread(self._remove_strays, pods)
        self._pods.on_change(self._changed)
        for pod in pods:
            self._changed(None, pod)

    async def stop(self, grace_bound: float) -> None:
        """End all pods, those of StatefulSets (the servers) last; each gets at most ``grace_bound`` seconds."""
        self._stopping = True
        workers = [worker for worker in self._workers.values() if not worker.task.done()]
        servers = [w for w in workers if (controller_of(w.pod) or {}).get("kind") == "StatefulSet"]
        others = [w for w in workers if w not in servers]
        for group in (others, servers):
            await asyncio.gather(*(worker.shut_down(grace_bound) for worker in group))
        try:
            await self._register(ready=False)
        except (ApiError, OSError, TimeoutError) as error:
            logger.warning("the node cannot be marked as stopped: %s", error)
        if self._writer is not None:
            self._writer.cancel()
            await asyncio.gather(self._writer, return_exceptions=True)
        await self._server.stop()
        self.addresses.close()

    def _container(self, pod: Obj, name: str) -> Container | None:
        worker = self._workers.get(uid_of(pod))
        return None if worker is None else worker.container(name)

    def _is_ours(self, pod: Obj) -> bool:
        return bool(pod["spec"].get("nodeName") == self.node)

    def _changed(self, old: Obj | None, new: Obj | None) -> None:
        if self._stopping:
            return
        if new is None:
            worker = self._workers.get(uid_of(old or {}))
            if worker is not None:
                worker.update(None)
            return
        if not self._is_ours(new):
            return
        worker = self._workers.get(uid_of(new))
        if worker is None:
            uid = uid_of(new)
            worker = self._workers[uid] = PodWorker(self._host, self._places, self.addresses, new)
            worker.task.add_done_callback(lambda _: self._workers.pop(uid, None))
        else:
            worker.update(new)

    async def _register(self, *, ready: bool) -> None:
        node = node_object(self.node, self.addresses.node, ready=ready)
        found = await self._client.find(NODES, None, self.node)
        if found is None:
            found = await self._client.create(NODES, node)
        await self._client.patch(NODES, found, {"status": node["status"]}, sub="status")

    def _remove_strays(self, pods: list[Obj]) -> None:
        """Folders of pods that were deleted while no kubelet ran. Claims stay: they end with their object."""
        kept = {self._places.pods / uid_of(pod) for pod in pods} | {log_folder(self._places.logs, pod) for pod in pods}
        for root in (self._places.pods, self._places.logs):
            for folder in root.iterdir():
                if folder not in kept:
                    shutil.rmtree(folder, ignore_errors=True)


def logs_root(folder: Path) -> Path:
    """Where a control plane in ``folder`` keeps the logs of its pods."""
    return folder / "logs" / "pods"
