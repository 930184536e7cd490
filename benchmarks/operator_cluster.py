"""An API server, what is put into it, and a program that acts on it: each a process of its own."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
import psutil
import yaml

from agenthive_operator.local.client import ApiClient, ApiError, Connection
from agenthive_operator.local.folder import Folder
from agenthive_operator.local.kubelet.process import Records
from agenthive_operator.local.planes import Plane
from agenthive_operator.local.resources import CRDS, DEPLOYMENTS, SECRETS, Resource

NAMESPACE = "bench"
AGENTS_EACH = 10
AT_ONCE = 16
POLL_SECONDS = 0.05
NAMESPACES = Resource("", "v1", "namespaces", "Namespace", namespaced=False)
HIVES = Resource("agenthive.dev", "v1alpha1", "agenthives", "AgentHive")
AGENTS = Resource("agenthive.dev", "v1alpha1", "agents", "Agent")
WRITES = frozenset({"create", "update", "patch", "delete", "deletecollection"})
#: User agents of the programs that are measured.
MEASURED = ("agenthive-operator", "kopf", "OpenAPI-Generator")


class Requests:
    """The requests of the programs that are measured, read from the audit log as it grows."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._read = 0
        self._rest = b""
        self.counted: Counter[tuple[str, str, int]] = Counter()
        """Verb, resource with its subresource, status."""

    def look(self) -> Counter[tuple[str, str, int]]:
        """Read what is new."""
        with self._log.open("rb") as file:
            file.seek(self._read)
            data = file.read()
        self._read += len(data)
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            event = orjson.loads(line)
            ended_watch = event["verb"] == "watch" and event["stage"] != "ResponseStarted"
            if ended_watch or not event.get("userAgent", "").startswith(MEASURED):
                continue
            asked = event.get("objectRef", {})
            what = "/".join(filter(None, (asked.get("resource", "other"), asked.get("subresource"))))
            self.counted[event["verb"], what, event["responseStatus"]["code"]] += 1
        return self.counted

    def writes(self) -> Counter[str]:
        """Writes by verb and resource."""
        return _by_name(self.look(), lambda verb: verb in WRITES)

    def reads(self) -> Counter[str]:
        """Requests that are no writes, by verb and resource."""
        return _by_name(self.look(), lambda verb: verb not in WRITES)

    def forget(self) -> None:
        """Count anew."""
        self.look()
        self.counted.clear()


def _by_name(counted: Counter[tuple[str, str, int]], chosen: Callable[[str], bool]) -> Counter[str]:
    found: Counter[str] = Counter()
    for (verb, what, _), count in counted.items():
        if chosen(verb):
            found[f"{verb} {what}"] += count
    return found


class Program:
    """A running operator; ``log`` is what it printed."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self._process = process
        self.log = log
        self._watched = psutil.Process(process.pid)

    @property
    def resident(self) -> float:
        """Resident memory now, MiB."""
        return float(self._watched.memory_info().rss) / 2**20

    @property
    def cpu(self) -> float:
        """Seconds of CPU it took so far."""
        times = self._watched.cpu_times()
        return float(times.user + times.system)

    def printed(self, text: str = "") -> bool:
        """Whether ``text`` is in its log; raises RuntimeError when the program has ended."""
        if self._process.poll() is not None:
            raise RuntimeError(f"it ended with {self._process.returncode}: {self.log.read_text()[-2000:]}")
        return text in self.log.read_text()

    def stop(self) -> None:
        """End it as a cluster does."""
        if self._process.poll() is None:
            self._process.terminate()
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class Cluster:
    """An API server with our kinds, one namespace, and nobody who acts."""

    def __init__(self, folder: Path, kubeconfig: Path, client: ApiClient, plane: Plane) -> None:
        self._folder = folder
        self._kubeconfig = kubeconfig
        self.client = client
        self._plane = plane
        self._programs: list[Program] = []
        self.requests = Requests(folder / "audit.jsonl")

    def start(self, *argv: str) -> Program:
        """Start a program beside the API server."""
        log = self._folder / f"program-{len(self._programs)}.log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                [sys.executable, *argv],
                stdout=out,
                stderr=out,
                env=os.environ | {"KUBECONFIG": str(self._kubeconfig)},
            )
        self._programs.append(Program(process, log))
        return self._programs[-1]

    def server_cpu(self) -> float:
        """Seconds of CPU that the API server took so far."""
        total = 0.0
        for pid in self._plane.pids:
            times = psutil.Process(pid).cpu_times()
            total += times.user + times.system
        return total

    async def apply(self, hives: int, redis: str, postgres: str, *, admin: bool = False) -> None:
        """``hives`` hives of ten Agents on one Redis and one PostgreSQL; ``admin``: with a login for each Agent."""
        urls = {"redis": redis, "postgres": postgres}
        await self.client.create(SECRETS, body("v1", "Secret", "urls", stringData=urls))
        await together(self.client.create(HIVES, hive(number, admin=admin)) for number in range(hives))
        await together(self.client.create(AGENTS, agent(number)) for number in range(hives * AGENTS_EACH))

    async def report_ready(self) -> None:
        """Tell of every Deployment that its pods are ready, as a cluster's controllers would."""
        found, _ = await self.client.list(DEPLOYMENTS, NAMESPACE)
        counts = dict.fromkeys(("replicas", "updatedReplicas", "readyReplicas", "availableReplicas"), 1)
        await together(
            self.client.patch(
                DEPLOYMENTS,
                each,
                {"status": {"observedGeneration": each["metadata"]["generation"], **counts}},
                sub="status",
            )
            for each in found
        )

    async def stop(self) -> None:
        """End the programs, then the API server."""
        for program in self._programs:
            program.stop()
        await self._plane.stop()


@asynccontextmanager
async def cluster() -> AsyncIterator[Cluster]:
    """The emulator, or the API server of KUBEBUILDER_ASSETS, for the time of one measurement."""
    with tempfile.TemporaryDirectory(prefix="agenthive-bench-") as name:
        folder = Folder.at(Path(name))
        folder.create()
        plane = Plane(folder, Records(folder.processes), audit=folder.root / "audit.jsonl")
        await plane.start()
        try:
            async with ApiClient(Connection.from_kubeconfig(folder.kubeconfig), user_agent="agenthive-bench") as client:
                for file in sorted(Path("crds").glob("*.yaml")):
                    await client.create(CRDS, yaml.safe_load(file.read_text()))
                await client.create(
                    NAMESPACES, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}
                )
                await until("the kinds are served", lambda: served(client))
                started = Cluster(folder.root, folder.kubeconfig, client, plane)
                try:
                    yield started
                finally:
                    await started.stop()
        finally:
            await plane.stop()


async def served(client: ApiClient) -> bool:
    """Whether both kinds can be listed."""
    try:
        for kind in (HIVES, AGENTS):
            await client.list(kind)
    except ApiError as error:
        if error.status == 404:
            return False
        raise
    return True


async def until(what: str, check: Callable[[], bool | Awaitable[bool]], seconds: float = 240.0) -> float:
    """Wait for ``check``; how long that took. Raises RuntimeError when it does not come true."""
    began = time.monotonic()
    while True:
        found = check()
        if found if isinstance(found, bool) else await found:
            return time.monotonic() - began
        if time.monotonic() - began > seconds:
            raise RuntimeError(f"not within {seconds:.0f} s: {what}")
        await asyncio.sleep(POLL_SECONDS)


async def together(calls: Iterable[Awaitable[Any]]) -> None:
    """Await all of ``calls``, at most ``AT_ONCE`` at a time."""
    waiting = iter(calls)

    async def work() -> None:
        for call in waiting:
            await call

    await asyncio.gather(*(work() for _ in range(AT_ONCE)))


def body(version: str, kind: str, name: str, **fields: Any) -> dict[str, Any]:
    """An object of the namespace."""
    return {"apiVersion": version, "kind": kind, "metadata": {"name": name, "namespace": NAMESPACE}, **fields}


def hive(number: int, *, admin: bool) -> dict[str, Any]:
    """A hive on the two servers."""
    postgres: dict[str, Any] = {"urlSecretRef": {"name": "urls", "key": "postgres"}}
    if admin:
        postgres["adminUrlSecretRef"] = {"name": "urls", "key": "postgres"}
    spec = {
        "redis": {"external": {"urlSecretRef": {"name": "urls", "key": "redis"}}},
        "postgres": {"external": postgres},
    }
    return body("agenthive.dev/v1alpha1", "AgentHive", f"hive-{number:04}", spec=spec)


def agent(number: int) -> dict[str, Any]:
    """An Agent; ten in a row belong to one hive."""
    spec = {"hiveRef": {"name": f"hive-{number // AGENTS_EACH:04}"}, "entrypoint": "greeter:agent"}
    return body("agenthive.dev/v1alpha1", "Agent", f"agent-{number:05}", spec=spec)
