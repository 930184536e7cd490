"""Answers as kopf can bear them.

kopf ends, and often hangs while it does, on what a watch or a list may well meet: an error in the stream other than
410, a line cut in the middle, the page of a load balancer, a 404 or 409. Its session is ours: here such answers become
a connection that broke, which kopf tries again, or a watch that has to begin with a new list. So does a refused
token, which is then read again: kopf would log in anew, and close the session under requests that are under way.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any, Final

import aiohttp
import orjson
from kubernetes.aio import client, config

from agenthive_operator.backends.configuration import load_configuration
from agenthive_operator.pace import collection_of

logger = logging.getLogger(__name__)

UNDERSTOOD: Final = frozenset({403, 429})
"""Refusals that kopf itself deals with; so it does with those of 500 and above."""
EXPIRED: Final = orjson.dumps(
    {"type": "ERROR", "object": {"kind": "Status", "code": 410, "reason": "Expired", "message": "begin again"}}
)


class RefusedError(aiohttp.ClientConnectionError):
    """The API server does not accept the credentials."""


class Access:
    """The credentials of each request of a session, read again once they were refused."""

    def __init__(self, configuration: client.Configuration) -> None:
        self._configuration = configuration
        self._refused = False

    def tracing(self) -> aiohttp.TraceConfig:
        """What the session has to be made with."""
        trace = aiohttp.TraceConfig()

        async def started(_: Any, context: SimpleNamespace, asked: aiohttp.TraceRequestStartParams) -> None:
            del context
            if header := await self._header():
                asked.headers["Authorization"] = header

        async def failed(_: Any, context: SimpleNamespace, error: aiohttp.TraceRequestExceptionParams) -> None:
            del context
            self._refused = self._refused or isinstance(error.exception, RefusedError)

        trace.on_request_start.append(started)
        trace.on_request_exception.append(failed)
        return trace

    async def _header(self) -> str | None:
        if self._refused:
            self._refused = False
            try:
                self._configuration = await load_configuration()
            except (config.ConfigException, OSError, ValueError) as error:
                self._refused = True
                logger.warning("the API server refuses the credentials, and others cannot be read: %s", error)
        header: str | None = await self._configuration.get_api_key_with_prefix("BearerToken")
        return header


class CheckedResponse(aiohttp.ClientResponse):
    """A response whose oddities, where it is one to a list or a watch of ours, are those of a connection."""

    async def start(self, connection: Any) -> aiohttp.ClientResponse:
        """Raises ``aiohttp.ClientConnectionError`` for an answer that is not the API server's."""
        await super().start(connection)
        if self.status == 401:
            self.close()
            raise RefusedError("401 Unauthorized")
        if collection_of(self.url.path) is None:
            return self
        watches = "watch" in self.url.query
        if watches and self.status == 410:
            self.status = 200
            self.content = Lines(self.content, expired=True)  # type: ignore[assignment]
        elif 400 <= self.status < 500 and self.status not in UNDERSTOOD:
            self.close()
            raise aiohttp.ClientConnectionError(f"{self.status} {self.reason}")
        elif self.status < 300 and self.content_type != "application/json":
            self.close()
            raise aiohttp.ClientConnectionError(f"the answer is of type {self.content_type}, no word of an API server")
        elif watches and self.status == 200:
            self.content = Lines(self.content)  # type: ignore[assignment]
        return self

    async def json(self, **options: Any) -> Any:
        """Raises ``aiohttp.ClientPayloadError`` for what is no object."""
        if collection_of(self.url.path) is None or self.status != 200:
            return await super().json(**options)
        try:
            answer = orjson.loads(await self.read())
        except ValueError as error:
            raise aiohttp.ClientPayloadError(f"the list is no JSON: {error}") from error
        if not isinstance(answer, dict) or not isinstance(answer.get("items"), list | None):
            raise aiohttp.ClientPayloadError("the answer is no list")
        return {**answer, "items": answer.get("items") or []}


class Lines:
    """The events of a watch: whole lines alone, each an event, each error one that calls for a new list."""

    def __init__(self, reader: aiohttp.StreamReader, *, expired: bool = False) -> None:
        self._reader = reader
        self._expired = expired

    def __getattr__(self, name: str) -> Any:
        """Everything else that is asked of a stream."""
        return getattr(self._reader, name)

    async def iter_chunked(self, _: int) -> AsyncIterator[bytes]:
        """What kopf reads. Raises ``aiohttp.ClientPayloadError`` where a line is no event."""
        if self._expired:
            yield EXPIRED + b"\n"
            return
        rest = b""
        async for chunk in self._reader.iter_any():
            *lines, rest = (rest + chunk).split(b"\n")
            if events := b"".join(_checked(line) + b"\n" for line in lines if line.strip()):
                yield events


def _checked(line: bytes) -> bytes:
    # The type comes first as API servers write it: what is an event need not be read twice.
    if line.startswith(b'{"type":"') and not line.startswith(b'{"type":"ERROR"') and line.endswith(b"}"):
        return line
    try:
        event = orjson.loads(line)
    except ValueError as error:
        raise aiohttp.ClientPayloadError(f"a line of a watch is no event: {error}") from error
    if not isinstance(event, dict) or not isinstance(event.get("object"), dict) or "type" not in event:
        raise aiohttp.ClientPayloadError("a line of a watch is no event")
    return EXPIRED if event["type"] == "ERROR" else line
