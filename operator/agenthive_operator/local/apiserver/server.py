"""The server's sockets, its start and its end, and the kubeconfig that leads to it."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import logging
import os
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import orjson
from aiohttp import web

from .audit import AuditLog
from .handlers import Api
from .store import Store
from .tls import Tls, ensure_tls
from .writes import MAX_BODY

log = logging.getLogger(__name__)

EVENT_LIFETIME = timedelta(hours=1)
SWEEP_SECONDS = 60.0


class ApiServer:
    """A small Kubernetes API server in memory.

    Args:
        folder: Holds the certificate and, where ``state_file`` is not given, the state (``state.jsonl``).
        token: What clients must send as their bearer token.
        state_file: Where the state is kept over restarts and crashes; False keeps it in memory only.
        audit_file: Where a line is written for each request; None: nowhere.

    Raises:
        JournalError: The state file is not ours or is damaged.
    """

    def __init__(
        self, folder: Path, *, token: str, state_file: Path | bool = True, audit_file: Path | None = None
    ) -> None:
        self.folder = folder
        self.token = token
        self.tls: Tls = ensure_tls(folder)
        where = folder / "state.jsonl" if state_file is True else state_file or None
        self.store = Store(where)
        self.api = Api(self.store, token)
        if audit_file is not None:
            self.api.audit = AuditLog(audit_file, self.api.registry)
        self.url = ""
        self._runner: web.ServerRunner | None = None
        self._sweeper: asyncio.Task[None] | None = None

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> str:
        """Listen; port 0 takes a free one.

        Returns:
            The URL, for instance ``https://127.0.0.1:6443``.

        Raises:
            OSError: The address is taken.
        """
        loop = asyncio.get_running_loop()
        # A server without an application hands its options to connections, which have none for the size of bodies.
        make = partial(web.BaseRequest, loop=loop, client_max_size=MAX_BODY)
        # Without a log of accesses: a line for each costs as much as many a request. There is the audit log.
        server = web.Server(self.api.handle, request_factory=make, access_log=None)
        self._runner = web.ServerRunner(server, shutdown_timeout=0.5)
        await self._runner.setup()
        site = web.TCPSite(self._runner, host, port, ssl_context=self.tls.server_context(), backlog=1024)
        try:
            await site.start()
        except OSError:
            await self._runner.cleanup()
            raise
        bound = self._runner.addresses[0]
        self.url = f"https://{bound[0]}:{bound[1]}"
        self._sweeper = asyncio.create_task(self._sweep(), name="apiserver-events")
        return self.url

    async def stop(self) -> None:
        """Close every connection, watches too, and the state file."""
        if self._sweeper is not None:
            self._sweeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._sweeper
        if self._runner is not None:
            await self._runner.cleanup()
        if self.api.kubelets is not None:
            await self.api.kubelets.close()
        if self.api.audit is not None:
            self.api.audit.close()
        self.store.close()

    def write_kubeconfig(self, path: Path) -> None:
        """Write a kubeconfig (mode 0600) whose only context is this server."""
        write_kubeconfig(path, self.url, self.tls.ca.read_bytes(), self.token)

    async def _sweep(self) -> None:
        """Events live for an hour, as in a real cluster."""
        kind = self.api.registry.find("", "v1", "events")
        assert kind is not None
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            oldest = (datetime.now(UTC) - EVENT_LIFETIME).strftime("%Y-%m-%dT%H:%M:%SZ")
            for key, entry in list(self.store.resource("events").objects.items()):
                obj = entry.obj
                if (obj.get("lastTimestamp") or obj["metadata"]["creationTimestamp"]) < oldest:
                    self.api.admission.removed(kind, self.store.remove("events", key))


def write_kubeconfig(path: Path, url: str, ca: bytes, token: str) -> None:
    """Write a kubeconfig (mode 0600) for a server with a bearer token.

    Args:
        path: The file.
        url: The server.
        ca: Certificate of its authority, PEM.
        token: The bearer token.
    """
    name = "agenthive-local"
    content = {
        "apiVersion": "v1", "kind": "Config", "current-context": name,
        "clusters": [
            {"name": name, "cluster": {"server": url, "certificate-authority-data": base64.b64encode(ca).decode()}}
        ],
        "users": [{"name": name, "user": {"token": token}}],
        "contexts": [{"name": name, "context": {"cluster": name, "user": name, "namespace": "default"}}],
    }  # fmt: skip
    fresh = path.with_name(path.name + ".new")
    fresh.unlink(missing_ok=True)
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(orjson.dumps(content, option=orjson.OPT_INDENT_2) + b"\n")
    fresh.replace(path)
