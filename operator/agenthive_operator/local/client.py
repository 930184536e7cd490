"""A thin client of the Kubernetes API: plain dicts in, plain dicts out, over one aiohttp session.

The controllers and the kubelet use it against any API server; nothing here knows which one answers.
"""

from __future__ import annotations

import asyncio
import base64
import ssl
import tempfile
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp
import orjson
import yaml

from agenthive_operator.local.resources import Obj, Resource

MERGE_PATCH = "application/merge-patch+json"
JSON_PATCH = "application/json-patch+json"
APPLY_PATCH = "application/apply-patch+yaml"
PAGE = 500
REQUEST_SECONDS = 30.0


class ApiError(Exception):
    """The API server refused a request; ``status`` is the HTTP code, ``reason`` the Status reason (NotFound …)."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(f"{status} {reason}: {message}")
        self.status = status
        self.reason = reason
        self.message = message


@dataclass(frozen=True, slots=True)
class Connection:
    """Where an API server is and how to speak to it."""

    server: str
    token: str | None = None
    tls: ssl.SSLContext | None = None

    @classmethod
    def from_kubeconfig(cls, path: Path) -> Connection:
        """The current context of a kubeconfig file.

        Raises:
            ValueError: the file names no current context, or one that is not in it.
            OSError: the file cannot be read.
        """
        document = yaml.safe_load(path.read_text()) or {}
        context = _named(document, "contexts", document.get("current-context"), path)["context"]
        cluster = _named(document, "clusters", context.get("cluster"), path)["cluster"]
        user = _named(document, "users", context.get("user"), path)["user"] if context.get("user") else {}
        if user.get("exec") or user.get("auth-provider"):
            raise ValueError(f"{path}: the user logs in through a plugin; name a token or a client certificate instead")
        tls = _tls(cluster, user, path.parent) if cluster["server"].startswith("https:") else None
        token = user.get("token")
        if token is None and user.get("tokenFile"):
            token = (path.parent / user["tokenFile"]).read_text().strip()
        return cls(cluster["server"].rstrip("/"), token, tls)


def _named(document: Obj, section: str, name: str | None, path: Path) -> Obj:
    for entry in document.get(section) or []:
        if entry.get("name") == name:
            return dict(entry)
    raise ValueError(f"{path}: {section} holds no entry named {name!r}")


def _tls(cluster: Obj, user: Obj, base: Path) -> ssl.SSLContext:
    context = ssl.create_default_context()
    if cluster.get("certificate-authority-data"):
        context.load_verify_locations(cadata=base64.b64decode(cluster["certificate-authority-data"]).decode())
    elif cluster.get("certificate-authority"):
        context.load_verify_locations(cafile=str(base / cluster["certificate-authority"]))
    if cluster.get("insecure-skip-tls-verify"):
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if user.get("client-certificate-data"):
        # ssl reads certificates from files only.
        with tempfile.TemporaryDirectory() as folder:
            certificate, key = Path(folder, "crt"), Path(folder, "key")
            certificate.write_bytes(base64.b64decode(user["client-certificate-data"]))
            key.touch(mode=0o600)
            key.write_bytes(base64.b64decode(user["client-key-data"]))
            context.load_cert_chain(certificate, key)
    elif user.get("client-certificate"):
        context.load_cert_chain(base / user["client-certificate"], base / user["client-key"])
    return context


class ApiClient:
    """Requests against one API server. Use as an async context manager.

    Every method raises :class:`ApiError` for an answer that is not a success, and aiohttp's
    ``ClientError`` or ``TimeoutError`` where no answer came.
    """

    def __init__(self, connection: Connection, *, user_agent: str = "agenthive-local") -> None:
        self._connection = connection
        headers = {"User-Agent": user_agent, "Accept": "application/json"}
        if connection.token:
            headers["Authorization"] = f"Bearer {connection.token}"
        self._headers = headers
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        ssl_setting: ssl.SSLContext | bool = self._connection.tls if self._connection.tls is not None else True
        self._session = aiohttp.ClientSession(
            headers=self._headers,
            connector=aiohttp.TCPConnector(ssl=ssl_setting, limit=0, limit_per_host=0),
            timeout=aiohttp.ClientTimeout(total=REQUEST_SECONDS),
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None
            # TLS connections were aborted; their sockets are closed by the next turns of the loop.
            await asyncio.sleep(0)
            await asyncio.sleep(0)

    async def request(
        self,
        method: str,
        path: str,
        *,
        body: Any = None,
        params: Mapping[str, str] | None = None,
        content_type: str = "application/json",
    ) -> Obj:
        """One request; the answer's JSON document."""
        data = None if body is None else orjson.dumps(body)
        headers = {"Content-Type": content_type} if data is not None else None
        async with self._open.request(
            method, self._connection.server + path, data=data, params=params, headers=headers
        ) as response:
            answer = await response.read()
            if response.status >= 400:
                raise _error(response.status, answer.decode(errors="replace"))
            return dict(orjson.loads(answer)) if answer else {}

    async def get(self, resource: Resource, namespace: str | None, name: str) -> Obj:
        """One object."""
        return await self.request("GET", resource.path(namespace, name))

    async def find(self, resource: Resource, namespace: str | None, name: str) -> Obj | None:
        """One object, or None when there is none of that name."""
        try:
            return await self.get(resource, namespace, name)
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    async def list(
        self, resource: Resource, namespace: str | None = None, *, labels: str = "", fields: str = ""
    ) -> tuple[list[Obj], str]:
        """All objects of a collection, read page by page, and the resourceVersion to watch from."""
        params = _selectors(labels, fields) | {"limit": str(PAGE)}
        items: list[Obj] = []
        while True:
            page = await self.request("GET", resource.path(namespace), params=params)
            # Lists leave out what is the same for every item.
            items += [{"apiVersion": resource.api_version, "kind": resource.kind} | item for item in page["items"]]
            if not (more := page["metadata"].get("continue")):
                return items, str(page["metadata"]["resourceVersion"])
            params["continue"] = more

    async def create(self, resource: Resource, obj: Obj) -> Obj:
        """Create ``obj`` in its own namespace."""
        return await self.request("POST", resource.path(obj["metadata"].get("namespace")), body=obj)

    async def patch(self, resource: Resource, obj: Obj, change: Any, *, sub: str | None = None) -> Obj:
        """Merge-patch (a dict) or JSON-patch (a list) ``obj``; a dict carries its uid, so a namesake is never hit."""
        if isinstance(change, dict):
            meta = {**change.get("metadata", {}), "uid": obj["metadata"]["uid"]}
            change, content_type = {**change, "metadata": meta}, MERGE_PATCH
        else:
            content_type = JSON_PATCH
        return await self.request("PATCH", resource.path_of(obj, sub), body=change, content_type=content_type)

    async def apply(self, resource: Resource, obj: Obj, *, manager: str) -> Obj:
        """Server-side apply with force."""
        params = {"fieldManager": manager, "force": "true"}
        return await self.request("PATCH", resource.path_of(obj), body=obj, params=params, content_type=APPLY_PATCH)

    async def delete(
        self,
        resource: Resource,
        obj: Obj,
        *,
        grace_seconds: int | None = None,
        propagation: str | None = None,
        resource_version: str | None = None,
    ) -> Obj | None:
        """Delete exactly this object (uid precondition); None when it, or its incarnation, is already gone."""
        preconditions = {"uid": obj["metadata"]["uid"]}
        if resource_version is not None:
            preconditions["resourceVersion"] = resource_version
        options: Obj = {"kind": "DeleteOptions", "apiVersion": "v1", "preconditions": preconditions}
        if grace_seconds is not None:
            options["gracePeriodSeconds"] = grace_seconds
        if propagation is not None:
            options["propagationPolicy"] = propagation
        try:
            return await self.request("DELETE", resource.path_of(obj), body=options)
        except ApiError as error:
            if error.status == 404 or (error.status == 409 and resource_version is None):
                return None
            raise

    async def watch(
        self,
        resource: Resource,
        version: str,
        namespace: str | None = None,
        *,
        labels: str = "",
        fields: str = "",
        seconds: int = 300,
    ) -> AsyncIterator[tuple[str, Obj]]:
        """Events (type, object) after ``version`` until the server ends the watch, at most ``seconds``."""
        params = _selectors(labels, fields) | {
            "watch": "1",
            "resourceVersion": version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(seconds),
        }
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=REQUEST_SECONDS, sock_read=seconds + 30)
        url = self._connection.server + resource.path(namespace)
        async with self._open.get(url, params=params, timeout=timeout) as response:
            if response.status >= 400:
                raise _error(response.status, await response.text())
            rest = b""
            try:
                async for chunk in response.content.iter_any():
                    *lines, rest = (rest + chunk).split(b"\n")
                    for line in lines:
                        if line.strip():
                            event = orjson.loads(line)
                            yield event["type"], event["object"]
            finally:
                # Given up in the middle: a TLS connection would linger until the server says goodbye.
                if response.connection is not None and response.connection.transport is not None:
                    response.connection.transport.abort()

    @property
    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            raise RuntimeError("the API client is not open: use it with 'async with'")
        return self._session


def _selectors(labels: str, fields: str) -> dict[str, str]:
    params = {}
    if labels:
        params["labelSelector"] = labels
    if fields:
        params["fieldSelector"] = fields
    return params


def _error(status: int, text: str) -> ApiError:
    try:
        document = orjson.loads(text)
        return ApiError(status, str(document.get("reason", "")), str(document.get("message", text)))
    except (ValueError, AttributeError):
        return ApiError(status, "", text[:500])


def status_error(document: Obj) -> ApiError:
    """The error that a watch reports as an ERROR event."""
    return ApiError(int(document.get("code", 500)), str(document.get("reason", "")), str(document.get("message", "")))
