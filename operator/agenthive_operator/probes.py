"""The operator's HTTP endpoint: /healthz, /readyz and /metrics, served by the loop whose health they speak of."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

from aiohttp import web

from agenthive.telemetry import CONTENT_TYPE
from agenthive_operator.metrics import Metrics
from agenthive_operator.reconcile.controller import Health

STUCK_SECONDS: Final = 300.0
"""A key that waits for longer, or is handled for longer, means that the queue is stuck."""
STALLED_SECONDS: Final = 15.0
"""The controller beats every second; silence for this long means that its tasks have ended."""


def troubles(seen: Health, now: float) -> list[str]:
    """What is wrong with the controller, for people; nothing while it is well. Pure: told the monotonic time."""
    found = []
    if seen.synced and now - seen.beat > STALLED_SECONDS:
        found.append(f"the controller's loop has not turned for {now - seen.beat:.0f} s")
    if seen.oldest_wait > STUCK_SECONDS:
        found.append(f"the queue is stuck: a key has waited for {seen.oldest_wait:.0f} s")
    if seen.oldest_in_flight > STUCK_SECONDS:
        found.append(f"the queue is stuck: a key has been handled for {seen.oldest_in_flight:.0f} s")
    if seen.silent:
        kinds = ", ".join(sorted(seen.silent))
        found.append(f"the watch of {kinds} is silent: lists find changes that it does not tell")
    return found


def figures(seen: Health, now: float) -> dict[str, Any]:
    """What both probes answer beside their verdict. Pure."""
    return {
        "leads": seen.acting,
        "synced": seen.synced,
        "objects": seen.objects,
        "queue": seen.depth,
        "oldestWaitSeconds": round(seen.oldest_wait, 1),
        "oldestInFlightSeconds": round(seen.oldest_in_flight, 1),
        "secondsSinceEvent": round(now - seen.last_event, 1) if seen.last_event else 0.0,
    }


@asynccontextmanager
async def serving(address: str | None, health: Callable[[], Health], metrics: Metrics) -> AsyncIterator[None]:
    """Serve at ``host:port`` meanwhile; at None nothing is served.

    Raises:
        ValueError: the address is not of that form.
        OSError: it is taken, or not ours.
    """
    if address is None:
        yield
        return
    host, port = split_address(address)

    def answer(wrong: list[str]) -> web.Response:
        body = {"ok": not wrong, "wrong": wrong, **figures(health(), time.monotonic())}
        return web.json_response(body, status=503 if wrong else 200)

    async def healthz(_: web.Request) -> web.Response:
        return answer(troubles(health(), time.monotonic()))

    async def readyz(_: web.Request) -> web.Response:
        seen = health()
        return answer(troubles(seen, time.monotonic()) + ([] if seen.synced else ["not everything was read yet"]))

    async def scrape(_: web.Request) -> web.Response:
        return web.Response(body=metrics.exposition(), headers={"Content-Type": CONTENT_TYPE})

    app = web.Application()
    app.add_routes([web.get("/healthz", healthz), web.get("/readyz", readyz), web.get("/metrics", scrape)])
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
        yield
    finally:
        await runner.cleanup()


def split_address(address: str) -> tuple[str, int]:
    """``host:port``, ``[host]:port`` or ``:port`` (every interface) taken apart. Pure. Raises ``ValueError``."""
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdecimal() or int(port) > 65535:
        raise ValueError(f"{address!r} is no address to serve at: write host:port, or :port for every interface")
    return host.removeprefix("[").removesuffix("]"), int(port)
