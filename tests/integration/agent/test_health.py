"""The health pages over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from agenthive.health import HEAD_BYTES, HealthServer


class Pages:
    def __init__(self) -> None:
        self.ready: tuple[bool, str] | Exception = (False, "starting")
        self.port = 0

    async def live(self) -> tuple[bool, str]:
        return True, "ok"

    async def is_ready(self) -> tuple[bool, str]:
        if isinstance(self.ready, Exception):
            raise self.ready
        return self.ready

    async def ask(self, request: bytes) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(request)
            return await asyncio.wait_for(reader.read(), 10)
        finally:
            writer.close()
            await writer.wait_closed()

    async def get(self, path: str) -> tuple[int, bytes]:
        answer = await self.ask(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        head, _, body = answer.partition(b"\r\n\r\n")
        return int(head.split()[1]), body


@pytest.fixture
async def pages() -> AsyncIterator[Pages]:
    pages = Pages()
    server = HealthServer(live=pages.live, ready=pages.is_ready, metrics=lambda: b"figures 1\n")
    pages.port = await server.start("127.0.0.1", 0)
    yield pages
    await server.stop()


async def test_pages(pages: Pages) -> None:
    assert await pages.get("/livez") == (200, b"ok\n")
    assert await pages.get("/readyz") == (503, b"starting\n")
    pages.ready = (True, "ok")
    assert await pages.get("/readyz?verbose") == (200, b"ok\n")
    assert await pages.get("/metrics") == (200, b"figures 1\n")
    assert await pages.get("/") == (404, b"/livez, /readyz and /metrics are served here\n")


async def test_only_reading(pages: Pages) -> None:
    assert (await pages.ask(b"POST /livez HTTP/1.1\r\n\r\n")).startswith(b"HTTP/1.1 405 ")
    answer = await pages.ask(b"HEAD /livez HTTP/1.1\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"Content-Length: 3\r\n" in answer
    assert answer.endswith(b"\r\n\r\n")


async def test_a_page_that_breaks_is_500_and_the_server_stays(pages: Pages, caplog: pytest.LogCaptureFixture) -> None:
    pages.ready = RuntimeError("broken")
    assert (await pages.get("/readyz"))[0] == 500
    assert "/readyz failed" in caplog.text
    assert (await pages.get("/livez"))[0] == 200


@pytest.mark.parametrize("request_", [b"", b"\0\1\2", b"x" * (HEAD_BYTES * 2), b"GET /livez HTTP/1.1\r\nunfinished"])
async def test_what_is_no_request_gets_no_answer_and_does_no_harm(pages: Pages, request_: bytes) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", pages.port)
    writer.write(request_)
    writer.write_eof()
    with contextlib.suppress(ConnectionResetError):  # closed with our bytes unread
        assert await asyncio.wait_for(reader.read(), 10) == b""
    writer.close()
    assert await pages.get("/livez") == (200, b"ok\n")
