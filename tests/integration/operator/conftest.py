"""The operator as a user meets it: objects applied to an API server, an operator beside it, real servers behind it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from agenthive_operator.backends import kube as api
from agenthive_operator.backends.kube import BY_KIND, ApiError, Kube
from agenthive_operator.backends.lease import LeaseName
from agenthive_operator.main import operate
from agenthive_operator.reconcile.context import Options

Object = dict[str, Any]
TESTS = "agenthive-tests"
DEADLINE = 30.0


@dataclass
class Cluster:
    """One namespace of the API server, and short ways to say what a test does in it."""

    kube: Kube
    namespace: str
    kubectl: Callable[..., Any]
    made: list[Object] = field(default_factory=list)

    def body(self, kind: str, name: str, **fields: Any) -> Object:
        metadata = {"name": name, "namespace": self.namespace, **fields.pop("metadata", {})}
        return {"apiVersion": BY_KIND[kind].api_version, "kind": kind, "metadata": metadata, **fields}

    async def create(self, kind: str, name: str, **fields: Any) -> Object:
        return await self.kube.create(self.body(kind, name, **fields))

    async def get(self, kind: str, name: str) -> Object | None:
        return await self.kube.get(BY_KIND[kind], self.namespace, name)

    async def need(self, kind: str, name: str) -> Object:
        found = await self.get(kind, name)
        assert found is not None, f"{kind} {name} is not there"
        return found

    async def list(self, kind: str) -> list[Object]:
        return (await self.kube.list(BY_KIND[kind], self.namespace))[0]

    async def delete(self, kind: str, name: str) -> None:
        found = await self.need(kind, name)
        await self.kube.delete(BY_KIND[kind], self.namespace, name, uid=found["metadata"]["uid"])

    async def patch(self, kind: str, name: str, **patch: Any) -> Object:
        """A merge patch, as a user with kubectl edit would make it."""
        return await self.kube.merge_patch(await self.need(kind, name), patch)

    async def patch_status(self, kind: str, name: str, **status: Any) -> Object:
        """What the cluster's own controllers would report."""
        return await self.kube.merge_patch(await self.need(kind, name), {"status": status}, subresource="status")

    async def until(self, what: str, check: Callable[[], Coroutine[Any, Any, Any]], seconds: float = DEADLINE) -> Any:
        """Poll until ``check`` returns something true, and return it; the last answer is in the failure."""
        answer: Any = None
        try:
            async with asyncio.timeout(seconds):
                while not (answer := await check()):  # noqa: ASYNC110 - polls under a deadline
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise AssertionError(f"not within {seconds:.0f} s: {what}; last answer {answer!r}") from None
        return answer

    async def exists(self, kind: str, name: str) -> Object:
        found: Object = await self.until(f"{kind} {name} exists", lambda: self.get(kind, name))
        return found

    async def gone(self, kind: str, name: str, seconds: float = DEADLINE) -> None:
        async def check() -> bool:
            return await self.get(kind, name) is None

        await self.until(f"{kind} {name} is gone", check, seconds)

    async def condition(
        self, kind: str, name: str, condition: str, status: str, reason: str | None = None, seconds: float = DEADLINE
    ) -> Object:
        """Wait for a condition that speaks of the newest generation."""
        seen: list[Object] = []

        async def check() -> Object | None:
            found = await self.get(kind, name)
            entries = ((found or {}).get("status") or {}).get("conditions") or []
            seen[:] = entries
            for entry in entries:
                fresh = found and entry["observedGeneration"] >= found["metadata"]["generation"]
                right = entry["type"] == condition and entry["status"] == status and reason in {None, entry["reason"]}
                if fresh and right:
                    return dict(entry)
            return None

        try:
            result: Object = await self.until(f"{kind} {name} {condition}={status} {reason or ''}", check, seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}; conditions: {json.dumps(seen, indent=1)}") from None
        return result

    # ---- common scenes

    async def external_hive(self, name: str, redis_url: str, postgres_url: str, **spec: Any) -> Object:
        """A hive on external servers whose URLs are in the Secret ``<name>-urls``."""
        await self.create("Secret", f"{name}-urls", stringData={"redis": redis_url, "postgres": postgres_url})
        servers = {
            server: {"external": {"urlSecretRef": {"name": f"{name}-urls", "key": server}}}
            for server in ("redis", "postgres")
        }
        return await self.create("AgentHive", name, spec={**servers, **spec})

    async def agent(self, name: str, hive: str, **spec: Any) -> Object:
        fields = {"hiveRef": {"name": hive}, "entrypoint": "greeter:agent", **spec}
        return await self.create("Agent", name, spec=fields)

    async def pods_ready(self, name: str) -> None:
        """Report the Deployment's pods as ready, as a cluster's controllers would."""
        deployment = await self.exists("Deployment", name)
        count = deployment["spec"]["replicas"]
        counts = dict.fromkeys(("replicas", "updatedReplicas", "readyReplicas", "availableReplicas"), count)
        await self.patch_status("Deployment", name, observedGeneration=deployment["metadata"]["generation"], **counts)

    async def versions(self) -> dict[tuple[str, str], str]:
        """resourceVersion of everything in the namespace that the operator writes."""
        found = {}
        for resource in (*api.CUSTOM, *api.CHILDREN, api.EVENT):
            for obj in await self.list(resource.kind):
                if obj["metadata"]["name"] != "kube-root-ca.crt":
                    found[(resource.kind, obj["metadata"]["name"])] = obj["metadata"]["resourceVersion"]
        return found


@pytest.fixture
async def cluster(api_server: Any, kube_namespace: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Cluster]:
    """A namespace of the test's own."""
    monkeypatch.setenv("KUBECONFIG", str(api_server.kubeconfig))
    async with await Kube.connect(user_agent=TESTS) as kube:
        monkeypatch.setenv("KUBECONFIG", str(api_server.operator_kubeconfig))  # what the operator of a test reads
        yield Cluster(kube, kube_namespace, api_server.kubectl)
        # Nothing may be left that waits for an operator which is gone.
        for kind in ("Agent", "AgentHive"):
            for obj in (await kube.list(BY_KIND[kind], kube_namespace))[0]:
                try:
                    await kube.merge_patch(obj, {"metadata": {"finalizers": []}})
                except ApiError as error:
                    if error.status not in {404, 409}:
                        raise


@asynccontextmanager
async def running_operator(
    options: Options, *, probe_address: str | None = None, lease: LeaseName | None = None
) -> AsyncIterator[None]:
    """The operator with everything it has: its controller in this loop, kopf in its thread."""
    stop = asyncio.Event()
    task = asyncio.create_task(operate(options, probe_address=probe_address, stop=stop, lease=lease))
    try:
        yield
    finally:
        stop.set()
        assert await asyncio.wait_for(task, 30), "the operator ended by itself"


@pytest.fixture
def options(cluster: Cluster) -> Options:
    """The operator of a test sees the test's namespace only."""
    return Options(namespaces=(cluster.namespace,), cleanup_seconds=3.0)


@pytest.fixture
def brisk(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests that wait for the operator's next look at something that it found good, or blocked: every 2 s, not 15.

    To be named before ``operator``.
    """
    monkeypatch.setattr("agenthive_operator.reconcile.monitor.STEADY_SECONDS", 2.0)
    monkeypatch.setattr("agenthive_operator.reconcile.conditions.BLOCKED_SECONDS", 2.0)


@pytest.fixture
async def operator(options: Options) -> AsyncIterator[None]:
    """An operator that runs during the test."""
    async with running_operator(options):
        yield
