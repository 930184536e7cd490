"""The three pages a pod serves: /livez, /readyz and /metrics. GET and HEAD, one request a connection, no framework."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from http import HTTPStatus

from agenthive.telemetry import CONTENT_TYPE

log = logging.getLogger(__name__)

#: Longest request head that is read, bytes, and longest time a client may take over it, seconds.
HEAD_BYTES = 8192
HEAD_SECONDS = 5.0

#: A page returns (healthy, text): 200 or 503.
Check = Callable[[], Awaitable[tuple[bool, str]]]
Metrics = Callable[[], bytes]


class HealthServer:
    """Serves the probes on one address.

    Args:
        live: is this process worth keeping?
        ready: can it take work?
        metrics: the Prometheus exposition.
    """

    def __init__(self, *, live: Check, ready: Check, metrics: Metrics) -> None:
        self._checks: dict[str, Check] = {"/livez": live, "/readyz": ready}
        self._metrics = metrics
        self._server: asyncio.Server | None = None

    async def start(self, host: str, port: int) -> int:
        """Listen; the port, which is a free one if ``port`` is 0.

        Raises:
            OSError: the address is taken or not ours.
        """
        self._server = await asyncio.start_server(self._serve, host, port, limit=HEAD_BYTES)
        return int(self._server.sockets[0].getsockname()[1])

    async def stop(self) -> None:
        """Close the port."""
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(HEAD_SECONDS):
                head = await reader.readuntil(b"\r\n\r\n")
            writer.write(await self._answer(head))
            await writer.drain()
        except (TimeoutError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # a client that left, dawdled or sent no HTTP: it gets no answer, and nobody is to be told
        finally:
            writer.close()

    async def _answer(self, head: bytes) -> bytes:
        method, _, rest = head.partition(b"\r\n")[0].partition(b" ")
        path = rest.partition(b" ")[0].partition(b"?")[0].decode("latin-1")
        status, kind, body = await self._page(method, path)
        start = (
            f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: {kind}\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        ).encode("latin-1")
        return start if method == b"HEAD" else start + body

    async def _page(self, method: bytes, path: str) -> tuple[HTTPStatus, str, bytes]:
        text = "text/plain; charset=utf-8"
        if method not in {b"GET", b"HEAD"}:
            return HTTPStatus.METHOD_NOT_ALLOWED, text, b"GET or HEAD only\n"
        try:
            if path == "/metrics":
                return HTTPStatus.OK, CONTENT_TYPE, self._metrics()
            if check := self._checks.get(path):
                healthy, why = await check()
                return (HTTPStatus.OK if healthy else HTTPStatus.SERVICE_UNAVAILABLE), text, f"{why}\n".encode()
        except Exception:
            # A page that breaks is a bug of ours; the prober sees 500, the log says why, the server stays.
            log.exception("%s failed", path)
            return HTTPStatus.INTERNAL_SERVER_ERROR, text, b"failed: see the log\n"
        return HTTPStatus.NOT_FOUND, text, b"/livez, /readyz and /metrics are served here\n"
