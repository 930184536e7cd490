"""Brings a whole control plane up in one folder, and down again in order."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from agenthive_operator.local import servers
from agenthive_operator.local.children import Child
from agenthive_operator.local.client import ApiClient, Connection
from agenthive_operator.local.controllers.manager import Controllers
from agenthive_operator.local.folder import POD_GRACE_SECONDS, Folder, FolderLock
from agenthive_operator.local.informer import Informers
from agenthive_operator.local.kubelet.addresses import Addresses
from agenthive_operator.local.kubelet.kubelet import NODE, Kubelet, logs_root
from agenthive_operator.local.kubelet.pod import make_places
from agenthive_operator.local.kubelet.process import Records
from agenthive_operator.local.objects import condition
from agenthive_operator.local.planes import Plane, free_port, tail
from agenthive_operator.local.resources import CRDS, Obj

logger = logging.getLogger(__name__)

FIELD_MANAGER = "agenthive-local"
OPERATOR_START_SECONDS = 60.0
CRD_SECONDS = 30.0
OPERATOR_PORT = 8081


class SupervisorError(RuntimeError):
    """The control plane did not come up; the text says which part and why."""


@dataclass(frozen=True, slots=True)
class Options:
    """What `up` was asked for."""

    folder: Folder
    #: Start the operator alone, against this cluster.
    kubeconfig: Path | None = None
    #: TCP port of the API server; 0: that of last time, or a free one.
    port: int = 0
    #: A file that gets a line for each request, in the form of kube-apiserver's audit log; None: no such file.
    audit: Path | None = None
    #: Start neither operator nor CRDs: whoever uses the control plane brings them.
    bare: bool = False


#: Called with each step of progress, for people.
Report = Callable[[str], None]


@contextlib.asynccontextmanager
async def control_plane(options: Options, lock: FolderLock, report: Report) -> AsyncIterator[None]:
    """A running control plane; leaving the context ends everything it started: operator, pods, API server.

    Raises:
        SupervisorError, PlaneError, AddressError, EmbeddedServerError: a part did not come up. What had been started
            is ended.
    """
    folder = options.folder
    records = Records(folder.processes)
    ended = await asyncio.to_thread(records.end_leftovers)
    if ended:
        report(f"ended {ended} processes that an earlier run left behind")
    # Takes as long as the API server does to start.
    manifests = asyncio.create_task(asyncio.to_thread(_crd_manifests))
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(manifests.cancel)
        if options.kubeconfig is not None:
            kubeconfig, server = options.kubeconfig.absolute(), str(options.kubeconfig)
            probe = f"127.0.0.1:{free_port(OPERATOR_PORT)}"
            client = await stack.enter_async_context(ApiClient(Connection.from_kubeconfig(kubeconfig)))
            await _apply_crds(client, await manifests, report)
            operator = await _start_operator(stack, folder, kubeconfig, probe, records)
        else:
            plane = Plane(folder, records, port=options.port, audit=options.audit)
            stack.push_async_callback(_ended, plane.stop, report, "API server")
            began = time.monotonic()
            await plane.start()
            report(f"{plane.name} serves on {plane.url} ({time.monotonic() - began:.1f} s)")
            kubeconfig, server = folder.kubeconfig, plane.url
            client = await stack.enter_async_context(ApiClient(Connection.from_kubeconfig(kubeconfig)))
            addresses = Addresses(folder.addresses, folder.root)
            if options.bare:
                await stack.enter_async_context(_node(folder, client, plane, addresses, records, report))
                lock.describe(started=time.time(), server=server, kubeconfig=str(kubeconfig), bare=True)
                yield
                return
            await _apply_crds(client, await manifests, report)
            probe = f"{addresses.node}:{OPERATOR_PORT}"
            # The operator starts while controllers and kubelet do; it ends before them.
            operator = await _start_operator(stack, folder, kubeconfig, probe, records)
            await stack.enter_async_context(_node(folder, client, plane, addresses, records, report))
        stack.push_async_callback(_ended, operator.stop, report, "operator")
        await _operator_ready(folder, operator, probe)
        report("the operator watches")
        lock.describe(started=time.time(), server=server, kubeconfig=str(kubeconfig), probe=probe)
        yield


@contextlib.asynccontextmanager
async def _node(
    folder: Folder, client: ApiClient, plane: Plane, addresses: Addresses, records: Records, report: Report
) -> AsyncIterator[None]:
    """Controllers and kubelet. On the way out pods end first, while the controllers still keep the API true."""
    places = make_places(await asyncio.to_thread(servers.data_root, folder.root), logs_root(folder.root))
    informers = Informers(client)
    controllers = Controllers(informers, claims_root=places.claims, node=NODE)
    kubelet = Kubelet(
        informers,
        places=places,
        addresses=addresses,
        records=records,
        kubeconfig=folder.kubeconfig,
        token=plane.kubelet_token,
        tls=plane.kubelet_tls,
    )
    running: asyncio.Task[None] | None = None
    try:
        await controllers.start()
        running = asyncio.create_task(controllers.run(), name="controllers")
        running.add_done_callback(_log_failure)
        await kubelet.start()
        report(f"controllers and kubelet run; pods have addresses of 127.{addresses.block}.0.0/16")
        yield
    finally:
        await kubelet.stop(POD_GRACE_SECONDS)
        report("pods have ended")
        if running is not None:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
        await informers.stop()


def _log_failure(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        logger.critical("the controllers ended", exc_info=error)


async def _ended(stop: Callable[[], Awaitable[None]], report: Report, what: str) -> None:
    await stop()
    report(f"{what} has ended")


def _crd_manifests() -> list[Obj]:
    # Late: the API models cost half a second, which nobody needs before the API server answers.
    from agenthive_operator.api.crd import crd_manifests  # noqa: PLC0415

    return crd_manifests()


async def _apply_crds(client: ApiClient, manifests: list[Obj], report: Report) -> None:
    """Apply the CRDs and wait until they are served.

    Raises:
        SupervisorError: they are not, in time.
    """
    for manifest in manifests:
        await client.apply(CRDS, manifest, manager=FIELD_MANAGER)
    deadline = time.monotonic() + CRD_SECONDS
    for manifest in manifests:
        name = manifest["metadata"]["name"]
        while (condition(await client.get(CRDS, None, name), "Established") or {}).get("status") != "True":
            if time.monotonic() > deadline:
                raise SupervisorError(f"the API server does not establish the CRD {name}")
            await asyncio.sleep(0.1)
    report(f"{len(manifests)} CRDs applied")


async def _start_operator(
    stack: contextlib.AsyncExitStack, folder: Folder, kubeconfig: Path, probe: str, records: Records
) -> Child:
    argv = [sys.executable, "-P", "-m", "agenthive_operator", "--resolve-services", "--probe-address", probe]
    argv += ["--log-format", "text"]
    env = {**os.environ, "KUBECONFIG": str(kubeconfig)}
    operator = Child("operator", argv, env=env, cwd=folder.root, log=folder.operator_log, records=records)
    operator.start()
    stack.push_async_callback(operator.stop)
    return operator


async def _operator_ready(folder: Folder, operator: Child, probe: str) -> None:
    deadline = time.monotonic() + OPERATOR_START_SECONDS
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=2)) as session:
        while operator.exit_code is None and time.monotonic() < deadline:
            try:
                async with session.get(f"http://{probe}/readyz") as answer:
                    if answer.status == 200:
                        return
            except (aiohttp.ClientError, TimeoutError, OSError):
                pass  # not listening yet
            await asyncio.sleep(0.05)
    raise SupervisorError(f"the operator did not come up; the end of its log:\n{tail(folder.operator_log)}")
