"""Controllers and kubelet in this process, against the API server of the session."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from agenthive_operator.local.apiserver import ensure_client, ensure_tls
from agenthive_operator.local.client import ApiClient, Connection
from agenthive_operator.local.controllers.manager import Controllers
from agenthive_operator.local.informer import Informers
from agenthive_operator.local.kubelet.addresses import Addresses
from agenthive_operator.local.kubelet.backoff import BASE_VARIABLE
from agenthive_operator.local.kubelet.kubelet import NODE, Kubelet
from agenthive_operator.local.kubelet.pod import make_places
from agenthive_operator.local.kubelet.process import Records
from agenthive_operator.local.objects import is_ready
from agenthive_operator.local.resources import PODS, Resource

DEADLINE_SECONDS = 30.0


@dataclass
class Node:
    """A running node, and how tests speak to it."""

    api: Any
    client: ApiClient
    namespace: str
    folder: Path
    kubelet: Kubelet

    def apply(self, *objects: dict) -> None:
        """kubectl apply, in the test's namespace."""
        for obj in objects:
            self.api.kubectl("apply", "-n", self.namespace, "-f", "-", stdin=json.dumps(obj))

    async def kubectl(self, *args: str, check: bool = True) -> str:
        """kubectl in the test's namespace, without holding up the node: it runs in this loop."""
        done = await asyncio.to_thread(self.api.kubectl, "-n", self.namespace, *args, check=check)
        return done.stdout + done.stderr

    async def get(self, resource: Resource, name: str) -> dict | None:
        return await self.client.find(resource, self.namespace, name)

    async def pods(self, **labels: str) -> list[dict]:
        selector = ",".join(f"{key}={value}" for key, value in labels.items())
        return (await self.client.list(PODS, self.namespace, labels=selector))[0]

    async def until(self, check: Callable[[], Awaitable[Any]], what: str, seconds: float = DEADLINE_SECONDS) -> Any:
        """Poll ``check`` until it returns something true; that."""
        deadline = time.monotonic() + seconds
        while True:
            if found := await check():
                return found
            if time.monotonic() > deadline:
                state = json.dumps([pod.get("status") for pod in await self.pods()], indent=1)
                raise AssertionError(f"not within {seconds:.0f} s: {what}\n{state}")
            await asyncio.sleep(0.05)

    async def until_pod(self, name: str, check: Callable[[dict], Any], what: str) -> dict:
        """Poll one pod until ``check`` holds."""

        async def look() -> dict | None:
            pod = await self.get(PODS, name)
            return pod if pod is not None and check(pod) else None

        return await self.until(look, f"pod {name}: {what}")

    async def until_ready(self, name: str) -> dict:
        return await self.until_pod(name, is_ready, "ready")

    async def until_gone(self, resource: Resource, name: str) -> None:
        async def gone() -> bool:
            return await self.get(resource, name) is None

        await self.until(gone, f"{resource.plural} {name} gone")


@pytest.fixture
async def node(api_server, kube_namespace, reachable_folder, monkeypatch) -> AsyncIterator[Node]:
    """A node whose crash loops wait a fifth of a second."""
    monkeypatch.setenv(BASE_VARIABLE, "0.2")
    folder = reachable_folder
    async with ApiClient(Connection.from_kubeconfig(api_server.kubeconfig)) as client:
        informers = Informers(client)
        places = make_places(folder / "volumes", folder / "logs")
        controllers = Controllers(informers, claims_root=places.claims, node=NODE)
        await controllers.start()
        running = asyncio.create_task(controllers.run())
        kubelet = Kubelet(
            informers,
            places=places,
            addresses=Addresses(folder / "addresses.json", folder),
            records=Records(folder / "processes"),
            kubeconfig=api_server.kubeconfig,
            token=None if api_server.real else api_server.token,
            tls=ensure_tls(folder).kubelet_context(ensure_client(api_server.ca.parent)[0]) if api_server.real else None,
        )
        await kubelet.start()
        try:
            yield Node(api_server, client, kube_namespace, folder, kubelet)
        finally:
            await kubelet.stop(0.5)
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            await informers.stop()
    assert list((folder / "processes").iterdir()) == [], "processes are left"


@pytest.fixture
def reachable_folder(tmp_path_factory):
    """A folder that PostgreSQL's own account can reach, which pytest's are not when we are root."""
    import shutil
    import tempfile

    folder = Path(tempfile.mkdtemp(prefix="agenthive-local-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)
