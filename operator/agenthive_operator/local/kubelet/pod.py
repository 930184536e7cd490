"""One pod: its folders and address, its containers in their order, its status, its end."""

from __future__ import annotations

import asyncio
import logging
import os
import pwd
import shutil
from collections.abc import Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from agenthive_operator.local.client import ApiError
from agenthive_operator.local.controllers.claims import folder_name
from agenthive_operator.local.images import image_for
from agenthive_operator.local.kubelet import sources, volumes
from agenthive_operator.local.kubelet.addresses import Addresses
from agenthive_operator.local.kubelet.container import Container, Host, PodView
from agenthive_operator.local.kubelet.environment import ConfigError
from agenthive_operator.local.kubelet.status import pod_status, remembered
from agenthive_operator.local.objects import (
    controller_of,
    is_deleting,
    is_finished,
    key_of,
    uid_of,
    utc_now,
    version_of,
)
from agenthive_operator.local.resources import PODS, Obj

logger = logging.getLogger(__name__)

#: Grace of a pod whose object is gone already, seconds.
FORCED_GRACE_SECONDS = 2.0
#: How often mounted Secrets and ConfigMaps are looked at again, seconds; as the real kubelet.
VOLUME_SYNC_SECONDS = 60.0
WRITE_RETRY_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Places:
    """Folders of one kubelet."""

    pods: Path
    claims: Path
    logs: Path


def log_folder(root: Path, pod: Obj) -> Path:
    """Where a pod's logs lie."""
    namespace, name = key_of(pod)
    return root / f"{namespace}_{name}_{uid_of(pod)}"


def unsupported(pod: Obj) -> str | None:
    """What a pod asks for that local mode does not do; None when it can run."""
    spec = pod["spec"]
    for container in spec.get("initContainers") or []:
        if container.get("restartPolicy") == "Always":
            return f"init container {container['name']}: sidecars (restartPolicy Always) are not offered in local mode"
    for container in spec["containers"]:
        if "postStart" in (container.get("lifecycle") or {}):
            return f"container {container['name']}: postStart hooks are not offered in local mode"
        if container.get("volumeDevices"):
            return f"container {container['name']}: block devices are not offered in local mode"
    if spec.get("activeDeadlineSeconds"):
        return "activeDeadlineSeconds is not offered in local mode"
    for volume in spec.get("volumes") or []:
        if (reason := volumes.unsupported(volume)) is not None:
            return reason
    return None


def owner_account(volume: str, pod: Obj) -> pwd.struct_passwd | None:
    """Who must be able to read a volume: the account of a container that mounts it; None: we ourselves."""
    for container in [*(pod["spec"].get("initContainers") or []), *pod["spec"]["containers"]]:
        if any(mount["name"] == volume for mount in container.get("volumeMounts") or []):
            account = image_for(container["image"]).account
            if account is not None:
                return account
    return None


class PodWorker:
    """Runs one pod, from the moment it is bound to the node until its object is gone."""

    def __init__(self, host: Host, places: Places, addresses: Addresses, pod: Obj) -> None:
        self.pod = pod
        self._host = host
        self._places = places
        self._addresses = addresses
        self._folder = places.pods / uid_of(pod)
        status = pod.get("status") or {}
        spec = pod["spec"]
        self.init = [remembered(c, status, "initContainerStatuses") for c in spec.get("initContainers") or []]
        self.main = [remembered(c, status, "containerStatuses") for c in spec["containers"]]
        self._running: dict[Container, asyncio.Task[None]] = {}
        self._address = ""
        self._view: PodView | None = None
        self._deleting = asyncio.Event()
        self._gone = asyncio.Event()
        self._shutdown = asyncio.Event()
        self._dirty = asyncio.Event()
        self._grace_bound = float("inf")
        self.task = asyncio.create_task(self._run(), name=f"pod-{key_of(pod)[0]}/{key_of(pod)[1]}")
        self.update(pod)

    def update(self, pod: Obj | None) -> None:
        """The pod's object as it is now; None: it is gone."""
        if pod is None:
            self._gone.set()
            return
        if version_of(pod) >= version_of(self.pod):
            self.pod = pod
            if self._view is not None:
                self._view.pod = pod
        if is_deleting(pod):
            self._deleting.set()

    def container(self, name: str) -> Container | None:
        """The container of that name, if it was started."""
        return next((container for container in self._running if container.spec["name"] == name), None)

    async def shut_down(self, grace_bound: float) -> None:
        """End the processes, each with its grace period but at most ``grace_bound`` seconds; the object stays."""
        self._grace_bound = grace_bound
        self._shutdown.set()
        await asyncio.gather(self.task, return_exceptions=True)

    async def _run(self) -> None:
        writer = asyncio.create_task(self._write_statuses(), name="status")
        try:
            if not is_finished(self.pod) and not self._deleting.is_set():
                await self._live_until_told()
                await self._write_status_now()
            elif not self._deleting.is_set():
                await _first(self._deleting.wait(), self._gone.wait(), self._shutdown.wait())
            if not self._shutdown.is_set() or self._deleting.is_set() or self._gone.is_set():
                await self._bury()
        except asyncio.CancelledError:
            raise
        except Exception:
            # The edge of this pod: whatever happens here must not end the kubelet.
            logger.exception("pod %s failed", key_of(self.pod))
        finally:
            for container, task in self._running.items():
                container.kill()
                task.cancel()
            writer.cancel()
            await asyncio.gather(writer, *self._running.values(), return_exceptions=True)

    async def _live_until_told(self) -> None:
        life = asyncio.create_task(self._live(), name="life")
        told = asyncio.create_task(_first(self._deleting.wait(), self._gone.wait(), self._shutdown.wait()))
        try:
            await asyncio.wait({life, told}, return_when=asyncio.FIRST_COMPLETED)
            if not told.done():
                # It ended by itself; its object stays until somebody deletes it.
                await life
                await self._write_status_now()
                await told
            await self._terminate()
        finally:
            for task in (life, told):
                task.cancel()
            await asyncio.gather(life, told, return_exceptions=True)

    async def _live(self) -> None:
        """Folders, init containers one after another, then all containers; returns when all have ended for good."""
        await self._set_up()
        assert self._view is not None
        spec = self.pod["spec"]
        policy = spec.get("restartPolicy", "Always")
        init_policy = "Never" if policy == "Never" else "OnFailure"
        for container, state in zip(spec.get("initContainers") or [], self.init, strict=True):
            await self._start(Container(self._host, self._view, container, state, policy=init_policy))
            if state.exit_code != 0:
                return
        syncing = asyncio.create_task(self._sync_volumes(), name="volumes")
        try:
            await asyncio.gather(
                *(
                    self._start(Container(self._host, self._view, container, state, policy=policy))
                    for container, state in zip(spec["containers"], self.main, strict=True)
                )
            )
        finally:
            syncing.cancel()
            await asyncio.gather(syncing, return_exceptions=True)

    async def _start(self, container: Container) -> None:
        task = asyncio.create_task(container.run(), name=str(container.spec["name"]))
        self._running[container] = task
        await asyncio.shield(task)

    async def _set_up(self) -> None:
        namespace, name = key_of(self.pod)
        lasting = (controller_of(self.pod) or {}).get("kind") == "StatefulSet"
        self._address = self._addresses.allocate(f"{namespace}/{name}", lasting=lasting)
        self._changed()
        pause = 0.25
        while True:
            try:
                if (reason := unsupported(self.pod)) is not None:
                    raise ConfigError(reason)
                folders = await self._make_volumes()
                break
            except (ConfigError, ApiError, aiohttp.ClientError, TimeoutError, OSError) as error:
                text = str(error) or type(error).__name__
                for state in [*self.init, *self.main]:
                    state.state = {"waiting": {"reason": "ContainerCreating", "message": text}}
                self._host.event(self.pod, "Warning", "FailedMount", text)
                self._changed()
            await asyncio.sleep(pause)
            pause = min(5.0, pause * 2)
        private = self._folder / "containers"
        private.mkdir(parents=True, exist_ok=True, mode=0o711)
        self._view = PodView(
            self.pod, folders, private, log_folder(self._places.logs, self.pod), self._address, self._changed
        )

    async def _make_volumes(self) -> dict[str, Path]:
        """The pod's volumes by name. Parents are searchable, the volumes themselves only by who mounts them."""
        root = self._folder / "volumes"
        root.mkdir(parents=True, exist_ok=True, mode=0o711)
        folders = {}
        for volume in self.pod["spec"].get("volumes") or []:
            account = owner_account(volume["name"], self.pod)
            if "hostPath" in volume:
                folders[volume["name"]] = Path(volume["hostPath"]["path"])
                continue
            folder = root / volume["name"]
            if "persistentVolumeClaim" in volume:
                claim_name = volume["persistentVolumeClaim"]["claimName"]
                claim = await sources.bound_claim(self._host.client, key_of(self.pod)[0], claim_name)
                folder = self._places.claims / folder_name(claim)
            folders[volume["name"]] = folder
            if volumes.is_written(volume):
                await self._write_volume(volume, folder)
            else:
                folder.mkdir(parents=True, exist_ok=True, mode=0o700)
                volumes.give(folder, account)
        return folders

    async def _write_volume(self, volume: Obj, folder: Path) -> None:
        namespace = key_of(self.pod)[0]
        found = await sources.fetch(self._host.client, namespace, volumes.references(volume))
        files = volumes.files_of(volume, self.pod, found)
        volumes.write(folder, files, owner_account(volume["name"], self.pod))

    async def _sync_volumes(self) -> None:
        """Let mounted Secrets and ConfigMaps follow their objects."""
        written = [v for v in self.pod["spec"].get("volumes") or [] if volumes.is_written(v)]
        while written:
            await asyncio.sleep(VOLUME_SYNC_SECONDS)
            for volume in written:
                try:
                    await self._write_volume(volume, self._folder / "volumes" / volume["name"])
                except (ConfigError, ApiError, aiohttp.ClientError, TimeoutError, OSError) as error:
                    logger.info("volume %s of %s stays as it is: %s", volume["name"], key_of(self.pod), error)

    async def _terminate(self) -> None:
        """End all containers within the grace period."""
        grace = self._grace_seconds()
        stops = asyncio.create_task(self._stop_all(grace), name="stops")
        gone = asyncio.create_task(self._gone.wait())
        try:
            await asyncio.wait({stops, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not stops.done():
                # Its object is gone, or went while we waited: no reason to be patient.
                await asyncio.wait({stops}, timeout=FORCED_GRACE_SECONDS)
                for container in self._running:
                    container.kill()
            await stops
        finally:
            gone.cancel()

    async def _stop_all(self, grace: float) -> None:
        await asyncio.gather(*(self._stop(container, task, grace) for container, task in self._running.items()))

    async def _stop(self, container: Container, task: asyncio.Task[None], grace: float) -> None:
        if task.done():
            return
        await container.stop(grace)
        if not container.state.running:
            task.cancel()  # it waited for something
        await asyncio.gather(task, return_exceptions=True)

    def _grace_seconds(self) -> float:
        wanted = self.pod["metadata"].get("deletionGracePeriodSeconds")
        if wanted is None:
            wanted = self.pod["spec"].get("terminationGracePeriodSeconds", 30)
        return min(float(wanted), self._grace_bound)

    async def _bury(self) -> None:
        """Nothing runs any more: delete the object and what belonged to it."""
        while not self._gone.is_set():
            try:
                await self._host.client.delete(PODS, self.pod, grace_seconds=0)
                break
            except (ApiError, aiohttp.ClientError, TimeoutError, OSError) as error:
                logger.warning("pod %s cannot be deleted yet: %s", key_of(self.pod), error)
                await asyncio.sleep(WRITE_RETRY_SECONDS)
        if self._address:
            self._addresses.release(self._address)
        await asyncio.to_thread(self._remove_folders)

    def _remove_folders(self) -> None:
        for folder in (self._folder, log_folder(self._places.logs, self.pod)):
            if folder.exists():
                shutil.rmtree(folder)

    def _changed(self) -> None:
        self._dirty.set()

    async def _write_statuses(self) -> None:
        while True:
            await self._dirty.wait()
            self._dirty.clear()
            if not await self._try_write():
                await asyncio.sleep(WRITE_RETRY_SECONDS)
                self._dirty.set()

    async def _write_status_now(self) -> None:
        self._dirty.clear()
        await self._try_write()

    async def _try_write(self) -> bool:
        """Write the status if it differs from what the object holds; False: try again later."""
        if self._gone.is_set():
            return True
        status = pod_status(
            self.pod, self.init, self.main, address=self._address, host=self._addresses.node, now=utc_now()
        )
        if (self.pod.get("status") or {}) | status == (self.pod.get("status") or {}):
            return True
        try:
            self.update(await self._host.client.patch(PODS, self.pod, {"status": status}, sub="status"))
        except ApiError as error:
            if error.status in {404, 409}:
                # Gone, or another pod of this name: the informer will say so too.
                self._gone.set()
                return True
            logger.warning("status of pod %s not written: %s", key_of(self.pod), error)
            return False
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            logger.debug("status of pod %s not written: %s", key_of(self.pod), error)
            return False
        return True


async def _first(*waits: Coroutine[Any, Any, object]) -> None:
    tasks = [asyncio.create_task(each) for each in waits]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()


def make_places(volumes_root: Path, logs: Path) -> Places:
    """The folders below ``volumes_root``; searchable, so that servers under another account reach their own."""
    places = Places(pods=volumes_root / "pods", claims=volumes_root / "claims", logs=logs)
    for folder in (volumes_root, places.pods, places.claims):
        folder.mkdir(parents=True, exist_ok=True)
        if os.geteuid() == 0:
            folder.chmod(0o711)
    logs.mkdir(parents=True, exist_ok=True, mode=0o700)
    return places
