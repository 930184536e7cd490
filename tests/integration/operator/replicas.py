"""Several operator processes on one API server, each behind a proxy that notes what it sends and when."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from .conftest import Cluster
from .forwarding import in_front_of

UNFORWARDED = {"host", "content-length", "transfer-encoding", "connection"}


@dataclass(frozen=True)
class Sent:
    """A request as it reached the proxy."""

    at: float
    method: str
    path: str


@dataclass
class Recorder:
    """An HTTP proxy in front of the API server for one client.

    While ``refusing``, writes are answered with 503; while ``swallowing``, nothing is answered or passed on at all.
    Namespaces in ``forbidden`` are answered as to somebody who holds no Role there.
    """

    api: Any
    sent: list[Sent] = field(default_factory=list)
    refusing: bool = False
    forbidden: set[str] = field(default_factory=set)
    swallowing: asyncio.Event = field(default_factory=asyncio.Event)
    url: str = ""

    @contextlib.asynccontextmanager
    async def serve(self) -> AsyncIterator[Recorder]:
        async with in_front_of(self.api, self._handle) as (self.url, self._session):
            yield self

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        self.sent.append(Sent(time.monotonic(), request.method, request.path))
        if self.swallowing.is_set():
            await asyncio.Event().wait()
        if self.refusing and request.method != "GET":
            return web.json_response({"kind": "Status", "reason": "ServiceUnavailable", "message": "no"}, status=503)
        if self.forbidden & set(request.path.split("/")):
            return web.json_response({"kind": "Status", "reason": "Forbidden", "message": "no Role"}, status=403)
        headers = {name: value for name, value in request.headers.items() if name.lower() not in UNFORWARDED}
        async with self._session.request(
            request.method, self.api.url + request.path_qs, headers=headers, data=body or None,
            timeout=aiohttp.ClientTimeout(total=None),
        ) as answer:  # fmt: skip
            kept = {name: value for name, value in answer.headers.items() if name.lower() not in UNFORWARDED}
            response = web.StreamResponse(status=answer.status, headers=kept)
            with contextlib.suppress(aiohttp.ClientError, ConnectionError):  # the client went, killed as likely as not
                await response.prepare(request)
                async for chunk in answer.content.iter_any():
                    if self.swallowing.is_set():
                        await asyncio.Event().wait()
                    await response.write(chunk)
                await response.write_eof()
            return response

    def writes(self, since: float = 0.0) -> list[Sent]:
        """What changes objects other than the Lease."""
        return [
            sent
            for sent in self.sent
            if sent.method not in {"GET", "HEAD"} and "/leases" not in sent.path and sent.at >= since
        ]

    def claims(self, since: float = 0.0) -> list[Sent]:
        """Attempts to take or to renew the Lease."""
        return [s for s in self.sent if s.method in {"POST", "PATCH"} and "/leases" in s.path and s.at >= since]


@dataclass
class Replica:
    """One operator process. ``name`` begins its identity in the Lease."""

    name: str
    recorder: Recorder
    process: asyncio.subprocess.Process
    log: Path
    port: int

    def signal(self, number: signal.Signals) -> float:
        """Send a signal; returns when."""
        now = time.monotonic()
        self.process.send_signal(number)
        return now

    async def ended(self, seconds: float = 15.0) -> int:
        return await asyncio.wait_for(self.process.wait(), seconds)

    async def figures(self) -> dict[str, Any] | None:
        """What /healthz answers; None unless it is fine."""
        try:
            async with (
                aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=2)) as session,
                session.get(f"http://127.0.0.1:{self.port}/healthz") as answer,
            ):
                return dict(await answer.json()) if answer.status == 200 else None
        except (aiohttp.ClientError, TimeoutError):
            return None

    async def wrote(self, cluster: Cluster, since: float, seconds: float = 30.0) -> float:
        """When it first wrote to an object after ``since``."""

        async def check() -> list[Sent]:
            return self.recorder.writes(since)

        try:
            found = await cluster.until(f"{self.name} writes", check, seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}; its log:\n{self.log.read_text()}") from None
        return float(found[0].at)


def write_kubeconfig(file: Path, server: str, token: str, ca: Path | None = None) -> Path:
    """A KUBECONFIG for one user of one server."""
    cluster = {"server": server} | ({"certificate-authority": str(ca)} if ca else {})
    file.write_text(
        json.dumps(
            {
                "apiVersion": "v1", "kind": "Config", "current-context": "c",
                "clusters": [{"name": "c", "cluster": cluster}],
                "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
                "users": [{"name": "u", "user": {"token": token}}],
            }
        )
    )  # fmt: skip
    return file


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.asynccontextmanager
async def operator_process(
    cluster: Cluster, recorder: Recorder, folder: Path, name: str, kubeconfig: Path, *arguments: str
) -> AsyncIterator[Replica]:
    """An operator from its start until it is known to be healthy."""
    log, port = folder / f"{name}.log", free_port()
    with log.open("ab") as output:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "agenthive_operator", *arguments, "--probe-address", f"127.0.0.1:{port}",
            env={**os.environ, "KUBECONFIG": str(kubeconfig), "POD_NAME": name}, stdout=output, stderr=output,
        )  # fmt: skip
    started = Replica(name, recorder, process, log, port)
    try:
        try:
            await cluster.until(f"{name} is healthy", started.figures)
        except AssertionError as error:
            raise AssertionError(f"{error}; its log:\n{log.read_text()}") from None
        yield started
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@contextlib.asynccontextmanager
async def replica(cluster: Cluster, api: Any, folder: Path, name: str) -> AsyncIterator[Replica]:
    """One of several operators of the cluster's namespace, behind a recorder of its own."""
    async with Recorder(api).serve() as recorder:
        config = write_kubeconfig(folder / f"{name}.config", recorder.url, api.token)
        arguments = ("--leader-elect", "--lease-namespace", cluster.namespace, "--namespace", cluster.namespace)
        async with operator_process(cluster, recorder, folder, name, config, *arguments) as started:
            yield started


class Load:
    """A hive whose spec changes all the time, so that whoever acts writes its status all the time."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._go = asyncio.Event()

    async def start(self) -> None:
        missing = {"external": {"urlSecretRef": {"name": "none", "key": "url"}}}
        await self._cluster.create("AgentHive", "busy", spec={"redis": missing, "postgres": missing})
        self._go.set()

    async def run(self) -> None:
        retries = 0
        while True:
            await self._go.wait()
            retries += 1
            await self._cluster.patch("AgentHive", "busy", spec={"messaging": {"maxRetries": retries % 10}})
            await asyncio.sleep(0.05)

    async def rest(self) -> None:
        """Change nothing any more, and wait until the last change was taken in."""
        self._go.clear()

        async def settled() -> bool:
            hive = await self._cluster.need("AgentHive", "busy")
            return bool(hive["status"]["observedGeneration"] == hive["metadata"]["generation"])

        await self._cluster.until("nothing is left to write", settled)
        await asyncio.sleep(0.3)

    def resume(self) -> None:
        self._go.set()


@contextlib.asynccontextmanager
async def busy_hive(cluster: Cluster) -> AsyncIterator[Load]:
    """A load that runs."""
    load = Load(cluster)
    await load.start()
    changing = asyncio.create_task(load.run())
    try:
        yield load
    finally:
        changing.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await changing
