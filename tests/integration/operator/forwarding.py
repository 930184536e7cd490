"""An HTTP server in front of the API server: where tests look at what operators ask, and spoil the answers."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aiohttp
from aiohttp import web

Handle = Callable[[web.Request], Awaitable[web.StreamResponse]]


@contextlib.asynccontextmanager
async def in_front_of(api: Any, handle: Handle) -> AsyncIterator[tuple[str, aiohttp.ClientSession]]:
    """Have every request handled; gives the URL for clients, and a session with which to ask the API server."""
    application = web.Application(client_max_size=2**24)
    application.router.add_route("*", "/{path:.*}", handle)
    runner = web.AppRunner(application, shutdown_timeout=0.1, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    connector = aiohttp.TCPConnector(ssl=api.client_ssl(), limit=0)
    async with aiohttp.ClientSession(connector=connector, auto_decompress=False) as session:
        try:
            yield "http://{}:{}".format(*runner.addresses[0][:2]), session
        finally:
            await runner.cleanup()
