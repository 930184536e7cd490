"""The kubelet's HTTP endpoint: what the API server asks for on behalf of `kubectl logs` and `kubectl exec`."""

from __future__ import annotations

import hmac
import logging
import socket
import ssl
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

from aiohttp import web

from agenthive_operator.local.informer import Store
from agenthive_operator.local.kubelet.container import Container
from agenthive_operator.local.kubelet.exec import serve_exec
from agenthive_operator.local.kubelet.logs import LogQuery, LogWriter, Snapshot, follow, incarnations
from agenthive_operator.local.kubelet.pod import log_folder
from agenthive_operator.local.kubelet.process import StartError
from agenthive_operator.local.objects import parse_time, utc_now
from agenthive_operator.local.resources import Obj

logger = logging.getLogger(__name__)


def parse_query(query: dict[str, str]) -> LogQuery:
    """The parameters of pods/log.

    Raises:
        ValueError: one is no number or no time.
    """

    def number(name: str) -> int | None:
        if name not in query:
            return None
        try:
            value = int(query[name])
        except ValueError as error:
            raise ValueError(f"{name} is {query[name]!r}: write a number") from error
        if value < 0:
            raise ValueError(f"{name} is {value}: write a number that is not negative")
        return value

    since = parse_time(query.get("sinceTime"))
    if (seconds := number("sinceSeconds")) is not None:
        since = utc_now() - timedelta(seconds=seconds)
    return LogQuery(
        tail=number("tailLines"),
        since=since,
        timestamps=query.get("timestamps") in {"true", "1"},
        limit_bytes=number("limitBytes"),
    )


class PodServer:
    """Serves ``/containerLogs/{namespace}/{pod}/{container}`` and ``/exec/{namespace}/{pod}/{container}``.

    Args:
        pods: the pods of the node.
        logs: the root of their logs.
        writers: the logs being written, by folder.
        find: the container of a pod, by name, if it was started.
        token: what callers must present as bearer token; None: who they are is seen from their certificate.
    """

    def __init__(
        self,
        pods: Store,
        logs: Path,
        writers: dict[Path, LogWriter],
        find: Callable[[Obj, str], Container | None],
        *,
        token: str | None,
    ) -> None:
        self._pods = pods
        self._logs = logs
        self._writers = writers
        self._find = find
        self._token = token
        self._runner: web.AppRunner | None = None

    async def start(self, listener: socket.socket, tls: ssl.SSLContext | None = None) -> None:
        """Serve on a socket that listens already.

        Raises:
            ValueError: nothing would tell who asks.
        """
        if self._token is None and (tls is None or tls.verify_mode is not ssl.CERT_REQUIRED):
            raise ValueError("callers have to show a token or a certificate: anybody on this machine could ask")
        app = web.Application()
        app.router.add_get("/containerLogs/{namespace}/{pod}/{container}", self._container_logs)
        app.router.add_get("/exec/{namespace}/{pod}/{container}", self._exec)
        app.router.add_get("/healthz", self._healthz)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        await self._runner.setup()
        await web.SockSite(self._runner, listener, ssl_context=tls).start()

    async def stop(self) -> None:
        """Close; the socket with it."""
        if self._runner is not None:
            await self._runner.cleanup()

    async def _healthz(self, request: web.Request) -> web.Response:
        return web.Response(text="ok")

    def _authenticate(self, request: web.Request) -> None:
        given = request.headers.get("Authorization", "")
        if self._token is not None and not hmac.compare_digest(given.encode(), f"Bearer {self._token}".encode()):
            raise web.HTTPUnauthorized(text="a bearer token is needed")

    def _pod(self, request: web.Request) -> Obj:
        name = request.match_info["pod"]
        pod = self._pods.get(request.match_info["namespace"], name)
        if pod is None:
            raise web.HTTPNotFound(text=f'pod "{name}" is not on this node')
        return pod

    async def _exec(self, request: web.Request) -> web.StreamResponse:
        self._authenticate(request)
        pod, name = self._pod(request), request.match_info["container"]
        words = request.query.getall("command", [])
        if not words:
            raise web.HTTPBadRequest(text="you must specify at least one command for the container")
        container = self._find(pod, name)
        try:
            if container is None:
                raise StartError(f'container "{name}" in pod "{request.match_info["pod"]}" is not running')
            command = container.command(words)
        except StartError as error:
            raise web.HTTPBadRequest(text=str(error)) from error
        return await serve_exec(request, command)

    async def _container_logs(self, request: web.Request) -> web.StreamResponse:
        self._authenticate(request)
        name, container = request.match_info["pod"], request.match_info["container"]
        pod = self._pod(request)
        try:
            query = parse_query(dict(request.query))
        except ValueError as error:
            raise web.HTTPBadRequest(text=str(error)) from error
        folder = log_folder(self._logs, pod) / container
        lives = incarnations(folder)
        previous = request.query.get("previous") in {"true", "1"}
        if previous and len(lives) < 2:
            raise web.HTTPBadRequest(text=f'previous terminated container "{container}" in pod "{name}" not found')
        if not lives:
            raise web.HTTPBadRequest(text=f'container "{container}" in pod "{name}" is waiting to start')
        follows = request.query.get("follow") in {"true", "1"} and not previous
        return await self._stream(request, folder, lives[-2] if previous else lives[-1], query, follows=follows)

    async def _stream(
        self, request: web.Request, folder: Path, incarnation: int, query: LogQuery, *, follows: bool
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/plain; charset=utf-8"})
        await response.prepare(request)
        try:
            if follows:
                async for text in follow(folder, incarnation, self._writers.get(folder), query):
                    await response.write(text)
            else:
                snapshot = Snapshot(folder, incarnation)
                try:
                    for text in snapshot.read(query):
                        await response.write(text)
                finally:
                    snapshot.close()
            await response.write_eof()
        except ConnectionError:
            logger.debug("a reader of %s went away", folder)
        return response
