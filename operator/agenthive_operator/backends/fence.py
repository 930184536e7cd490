"""The fence of writes: asked right before a request leaves, it lets nothing out of a replica that may not act."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any, Final

import aiohttp

Guard = Callable[[], float]
"""Returns the seconds that a write may take from now on; raises where nothing may be written."""

READS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_USER_TIMEOUT: Final = getattr(socket, "TCP_USER_TIMEOUT", None)


def fenced_requests(guard: Guard) -> type[aiohttp.ClientRequest]:
    """The class of the requests of an aiohttp session that ``guard`` watches."""

    class FencedRequest(aiohttp.ClientRequest):
        def _leave(self, conn: Any) -> None:
            if self.method not in READS:
                _deliver_within(conn.transport, guard())

        async def send(self, conn: Any) -> aiohttp.ClientResponse:
            # Here the connection stands: between an earlier look and now there may lie a handshake with a slow server,
            # or a process that was stopped and goes on.
            self._leave(conn)
            return await super().send(conn)

        async def write_bytes(self, writer: Any, conn: Any, *more: Any) -> None:
            # Headers leave with the body, and before Python 3.12 that is a task whose turn comes later.
            try:
                self._leave(conn)
            except Exception as error:  # it goes to who waits for the answer, as any failure to send does
                conn.protocol.set_exception(error)
            else:
                await super().write_bytes(writer, conn, *more)

    return FencedRequest


def _deliver_within(transport: Any, seconds: float) -> None:
    """Have the kernel give up what it could not deliver by then, rather than deliver it when a network comes back."""
    found = transport.get_extra_info("socket") if transport is not None else None
    if found is not None and _USER_TIMEOUT is not None:  # which Linux has
        found.setsockopt(socket.IPPROTO_TCP, _USER_TIMEOUT, max(1, int(seconds * 1000)))
