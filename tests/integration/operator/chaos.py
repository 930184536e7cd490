"""A proxy in front of the API server that does to one client what networks, load balancers and API servers do.

A rule decides for each request, and for each event of a watch, which fault it meets; None: it passes.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from aiohttp import web

from .forwarding import in_front_of
from .replicas import UNFORWARDED

HTML = b"<html><body><h1>502 Bad Gateway</h1>the load balancer's word for it</body></html>\n"


@dataclass(slots=True)
class Asked:
    """A request as it came, and what became of it (``status`` 0: no answer was let through)."""

    at: float
    method: str
    path: str
    query: dict[str, str]
    body: bytes = b""
    status: int = 0

    @property
    def watches(self) -> bool:
        return "watch" in self.query

    @property
    def kind(self) -> str:
        """The plural of what is asked for."""
        parts = self.path.strip("/").split("/")[1:]  # api or apis
        parts = parts[1:] if self.path.startswith("/api/") else parts[2:]
        return parts[2] if parts[:1] == ["namespaces"] and len(parts) > 2 else "".join(parts[:1])

    @property
    def name(self) -> str:
        """The name of the object asked for; empty for a collection."""
        return self.path.partition(f"/{self.kind}")[2].strip("/").partition("/")[0]

    @property
    def lists(self) -> bool:
        return self.method == "GET" and not self.watches and not self.name

    @property
    def writes(self) -> bool:
        return self.method not in {"GET", "HEAD"}


# ---- faults


@dataclass(frozen=True)
class Answer:
    """This, instead of what the API server would say; it is not asked."""

    status: int
    reason: str = ""
    retry_after: int | None = None
    html: bool = False


@dataclass(frozen=True)
class Cut:
    """The connection ends: ``before`` the server is asked, in the ``middle`` of the answer, or ``after`` the deed."""

    when: str = "before"


@dataclass(frozen=True)
class Late:
    """The answer comes this many seconds later."""

    seconds: float


@dataclass(frozen=True)
class Tampered:
    """The answer to a list is changed on its way."""

    change: Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Silent:
    """A watch stays open and says nothing."""


@dataclass(frozen=True)
class Swallowed:
    """Events of these types are lost."""

    types: tuple[str, ...]


@dataclass(frozen=True)
class Broken:
    """A watch ends with an ERROR event of this code."""

    code: int


Fault = Answer | Cut | Late | Tampered | Silent | Swallowed | Broken
Rule = Callable[[Asked], Fault | None]


def harmless(_: Asked) -> None:
    return None


def status_body(code: int, reason: str) -> dict[str, Any]:
    return {
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "reason": reason, "code": code,
        "message": "chaos says no",
    }  # fmt: skip


@dataclass
class Chaos:
    """The proxy. ``faulty`` sets its rule for a while; ``accepted`` are the tokens it lets in (None: any)."""

    api: Any
    asked: list[Asked] = field(default_factory=list)
    accepted: set[str] | None = None
    rule: Rule = harmless
    url: str = ""
    _changed: asyncio.Event = field(default_factory=asyncio.Event)
    _open: dict[int, web.Request] = field(default_factory=dict)

    @contextlib.contextmanager
    def faulty(self, rule: Rule) -> Iterator[None]:
        """This rule meanwhile; watches that were made silent by it stay so."""
        self._set(rule)
        try:
            yield
        finally:
            self._set(harmless)

    def _set(self, rule: Rule) -> None:
        self.rule = rule
        self._changed.set()
        self._changed = asyncio.Event()

    @contextlib.asynccontextmanager
    async def serve(self) -> AsyncIterator[Chaos]:
        async with in_front_of(self.api, self._handle) as (self.url, self._session):
            yield self

    def hang_up(self) -> None:
        """Reset every connection that has a request under way."""
        for request in list(self._open.values()):
            if request.transport is not None:
                request.transport.abort()

    # ---- what was seen

    def writes(self, since: float = 0.0) -> list[Asked]:
        return [asked for asked in self.asked if asked.writes and asked.at >= since]

    def deletes(self) -> list[Asked]:
        return [asked for asked in self.asked if asked.method == "DELETE"]

    def lists(self, since: float = 0.0) -> list[Asked]:
        return [asked for asked in self.asked if asked.lists and asked.at >= since]

    # ---- a request

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        asked = Asked(time.monotonic(), request.method, request.path, dict(request.query), await request.read())
        self.asked.append(asked)
        token = request.headers.get("Authorization", "").partition(" ")[2]
        if self.accepted is not None and token not in self.accepted:
            return self._refuse(asked, Answer(401, "Unauthorized"))
        fault = self.rule(asked)
        if isinstance(fault, Late):
            await asyncio.sleep(fault.seconds)
        if isinstance(fault, Answer):
            return self._refuse(asked, fault)
        if isinstance(fault, Cut) and fault.when == "before":
            return self._cut(request)
        self._open[id(request)] = request
        try:
            async with self._session.request(
                request.method, self.api.url + request.path_qs, headers=self._headers(request),
                data=asked.body or None, timeout=aiohttp.ClientTimeout(total=None),
            ) as answer:  # fmt: skip
                with contextlib.suppress(aiohttp.ClientError, ConnectionError):  # one of the two sides went
                    if asked.watches and answer.status == 200:
                        return await self._stream(request, asked, answer)
                    return await self._whole(request, asked, answer, fault)
        except aiohttp.ClientError:
            pass
        finally:
            self._open.pop(id(request), None)
        return self._cut(request)

    def _headers(self, request: web.Request) -> dict[str, str]:
        headers = {name: value for name, value in request.headers.items() if name.lower() not in UNFORWARDED}
        return {**headers, "Authorization": f"Bearer {self.api.token}", "Accept-Encoding": "identity"}

    def _refuse(self, asked: Asked, fault: Answer) -> web.Response:
        asked.status = fault.status
        headers = {} if fault.retry_after is None else {"Retry-After": str(fault.retry_after)}
        if fault.html:
            return web.Response(status=fault.status, body=HTML, content_type="text/html", headers=headers)
        return web.json_response(status_body(fault.status, fault.reason), status=fault.status, headers=headers)

    def _cut(self, request: web.Request) -> web.Response:
        if request.transport is not None:
            request.transport.abort()
        return web.Response()

    async def _whole(
        self, request: web.Request, asked: Asked, answer: aiohttp.ClientResponse, fault: Fault | None
    ) -> web.StreamResponse:
        body = await answer.read()
        if isinstance(fault, Cut) and fault.when == "after":
            return self._cut(request)
        if isinstance(fault, Tampered) and answer.status == 200:
            listed = json.loads(body)
            fault.change(listed)
            body = json.dumps(listed).encode()
        kept = {name: value for name, value in answer.headers.items() if name.lower() not in UNFORWARDED}
        response = web.StreamResponse(status=answer.status, headers=kept)
        response.content_length = len(body)
        await response.prepare(request)
        if isinstance(fault, Cut):
            await response.write(body[: len(body) // 2])
            return self._cut(request)
        asked.status = answer.status
        await response.write(body)
        await response.write_eof()
        return response

    async def _stream(self, request: web.Request, asked: Asked, answer: aiohttp.ClientResponse) -> web.StreamResponse:
        response = web.StreamResponse(status=200, headers={"Content-Type": "application/json"})
        await response.prepare(request)
        asked.status = 200
        line: asyncio.Future[bytes] = asyncio.ensure_future(answer.content.readline())
        try:
            while True:
                changed = asyncio.ensure_future(self._changed.wait())
                fault = self.rule(asked)
                if isinstance(fault, Silent):
                    await asyncio.Event().wait()
                if isinstance(fault, Broken):
                    event = {"type": "ERROR", "object": status_body(fault.code, "Expired")}
                    await response.write(json.dumps(event).encode() + b"\n")
                    return response
                if isinstance(fault, Cut):
                    if fault.when == "middle":
                        await response.write(b'{"type": "MODIFIED", "object": {"metad')
                        return response
                    return self._cut(request) if fault.when == "before" else response
                if isinstance(fault, Answer) and fault.html:
                    await response.write(HTML)
                    return response
                await asyncio.wait({line, changed}, return_when=asyncio.FIRST_COMPLETED)
                changed.cancel()
                if not line.done():
                    continue
                if not (text := line.result()):
                    return response
                lost = isinstance(fault := self.rule(asked), Swallowed) and json.loads(text)["type"] in fault.types
                if not lost:
                    await response.write(text)
                line = asyncio.ensure_future(answer.content.readline())
        finally:
            line.cancel()
