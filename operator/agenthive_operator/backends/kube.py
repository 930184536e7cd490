"""The Kubernetes API as this operator uses it: a few verbs over plain objects.

Objects are the dictionaries that the API serves. Only what the reconcilers need is here: get, list, watch of
metadata, server-side apply, delete with a uid precondition, and a merge patch of the status. Connections, TLS and
tokens are those of ``kubernetes.aio``.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import quote, urlencode

import aiohttp
import orjson
from kubernetes.aio import client, config

from agenthive_operator.api.meta import GROUP, VERSION
from agenthive_operator.backends.answers import ApiError as ApiError  # noqa: PLC0414 - users of this module meet it
from agenthive_operator.backends.answers import NotLeadingError as NotLeadingError  # noqa: PLC0414
from agenthive_operator.backends.answers import is_list, refusal
from agenthive_operator.backends.configuration import load_configuration
from agenthive_operator.backends.fence import READS, Guard, fenced_requests
from agenthive_operator.plan.names import FIELD_MANAGER

logger = logging.getLogger(__name__)

REQUEST_SECONDS: Final = 20.0
WATCH_SILENCE_SECONDS: Final = 75.0
PAGE: Final = 500
RENEW_SECONDS: Final = 1.0
"""Refused credentials are read again at most this often."""

Object = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Resource:
    """One kind as the API addresses it."""

    kind: str
    plural: str
    group: str = ""
    version: str = "v1"

    @property
    def api_version(self) -> str:
        """``group/version``, or the version alone for the core group."""
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(self, namespace: str | None, name: str | None = None, subresource: str | None = None) -> str:
        """URL path of the collection, of one object, or of its subresource."""
        parts = ["/apis" if self.group else "/api", self.api_version]
        if namespace is not None:
            parts += ["namespaces", quote(namespace, safe="")]
        parts.append(self.plural)
        if name is not None:
            parts.append(quote(name, safe=""))
        if subresource is not None:
            parts.append(subresource)
        return "/".join(parts)


# rbac: agenthive.dev/agenthives get,list,watch,patch
AGENT_HIVE: Final = Resource("AgentHive", "agenthives", GROUP, VERSION)
# rbac: agenthive.dev/agenthives/status patch
# rbac: agenthive.dev/agents get,list,watch
AGENT: Final = Resource("Agent", "agents", GROUP, VERSION)
# rbac: agenthive.dev/agents/status patch
# rbac: apps/deployments get,list,watch,create,patch
DEPLOYMENT: Final = Resource("Deployment", "deployments", "apps")
# rbac: apps/statefulsets get,list,watch,create,patch,delete
STATEFUL_SET: Final = Resource("StatefulSet", "statefulsets", "apps")
# rbac: core/pods get,list,watch
POD: Final = Resource("Pod", "pods")
# rbac: core/secrets get,list,watch,create,patch,delete
SECRET: Final = Resource("Secret", "secrets")
# rbac: core/configmaps get,list,watch,create,patch,delete
CONFIG_MAP: Final = Resource("ConfigMap", "configmaps")
# rbac: core/services get,list,watch,create,patch,delete
SERVICE: Final = Resource("Service", "services")
# rbac: networking.k8s.io/networkpolicies get,list,watch,create,patch,delete
NETWORK_POLICY: Final = Resource("NetworkPolicy", "networkpolicies", "networking.k8s.io")
# rbac: core/events get,create,patch
EVENT: Final = Resource("Event", "events")
# rbac: discovery.k8s.io/endpointslices list
ENDPOINT_SLICE: Final = Resource("EndpointSlice", "endpointslices", "discovery.k8s.io")
# rbac: core/persistentvolumeclaims get,patch
CLAIM: Final = Resource("PersistentVolumeClaim", "persistentvolumeclaims")
# rbac: policy/poddisruptionbudgets get,list,watch,create,patch,delete
DISRUPTION_BUDGET: Final = Resource("PodDisruptionBudget", "poddisruptionbudgets", "policy")
# rbac own: coordination.k8s.io/leases get,create,patch,watch
LEASE: Final = Resource("Lease", "leases", "coordination.k8s.io")
# What kopf reads to find out which kinds exist, where the whole cluster is watched.
# rbac cluster: apiextensions.k8s.io/customresourcedefinitions list,watch

CUSTOM: Final = (AGENT_HIVE, AGENT)
CHILDREN: Final = (DEPLOYMENT, STATEFUL_SET, SERVICE, SECRET, CONFIG_MAP, DISRUPTION_BUDGET, POD, NETWORK_POLICY)
"""Kinds watched by label, in the order in which a resync lists them."""
BY_KIND: Final[Mapping[str, Resource]] = {
    resource.kind: resource for resource in (*CUSTOM, *CHILDREN, CLAIM, EVENT, ENDPOINT_SLICE, LEASE)
}


class Kube:
    """A connection to one API server. Use as an async context manager, or call ``aclose``.

    ``guard`` is asked before each write, right before it leaves, and before whatever else only one replica may do.
    ``trace`` is told each request. ``renew`` reads the configuration again when the server refuses the credentials:
    tokens rotate. ``user_agent`` is how the server's audit log tells who asked: the operator, or a person's command
    line.
    """

    def __init__(
        self,
        configuration: client.Configuration,
        *,
        guard: Guard | None = None,
        trace: aiohttp.TraceConfig | None = None,
        renew: Callable[[], Awaitable[client.Configuration]] | None = None,
        user_agent: str = FIELD_MANAGER,
    ) -> None:
        if trace is not None:
            configuration.trace_configs = [trace]
        self._guard = guard
        if guard is not None:
            session = configuration.client_session_kwargs or {}
            configuration.client_session_kwargs = {**session, "request_class": fenced_requests(guard)}
        self._api: Any = client.ApiClient(configuration)
        self._api.user_agent = user_agent
        self._renew = renew
        self._renewing = asyncio.Lock()
        self._renewed = -RENEW_SECONDS

    @classmethod
    async def connect(cls, *, user_agent: str = FIELD_MANAGER) -> Self:
        """Connect as the environment says (see ``load_configuration``)."""
        return cls(await load_configuration(), renew=load_configuration, user_agent=user_agent)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close all connections."""
        await self._api.close()

    def check(self) -> None:
        """To be called before anything that only the acting replica may do outside of this API.

        Raises ``NotLeadingError`` where this one may not.
        """
        if self._guard is not None:
            self._guard()

    # ---- reading

    async def get(self, resource: Resource, namespace: str, name: str) -> Object | None:
        """The object, or None when the server says that there is none. Any other failure raises ``ApiError``."""
        path = resource.path(namespace, name)
        try:
            found = await self._json("GET", path)
        except ApiError as error:
            if error.absent:
                return None
            raise
        if (found.get("metadata") or {}).get("name") != name:
            raise ApiError(0, "MalformedAnswer", f"GET {path}: this is no {resource.kind} {name}")
        return found

    async def list(
        self, resource: Resource, namespace: str | None = None, *, labels: str = "", metadata_only: bool = False
    ) -> tuple[list[Object], str]:
        """All objects of a kind (in one namespace, matching a label selector) and the list's resourceVersion.

        Pages are fetched until the last; where the place in the list expires on the way, all of it at once is asked
        for. A failure raises; it never looks like absence.
        """
        query = {"limit": str(PAGE)}
        if labels:
            query["labelSelector"] = labels
        headers = _accept(metadata_only, listing=True)
        items: list[Object] = []
        while True:
            try:
                page = await self._json("GET", resource.path(namespace), query, headers=headers)
            except ApiError as error:
                if error.status != 410 or "continue" not in query:
                    raise
                query, items = {name: value for name, value in query.items() if name == "labelSelector"}, []
                continue
            if not is_list(page):
                raise ApiError(0, "MalformedList", f"the answer is no list of {resource.plural}")
            for item in page["items"] or ():  # null is how an empty list of metadata comes
                item.setdefault("apiVersion", resource.api_version)
                item["kind"] = resource.kind  # lists leave it out, metadata-only lists say PartialObjectMetadata
                item["metadata"].pop("managedFields", None)  # half of a large list, and read by nobody here
                items.append(item)
            metadata = page.get("metadata") or {}
            if not metadata.get("continue"):
                return items, str(metadata.get("resourceVersion", ""))
            query["continue"] = metadata["continue"]

    async def watch(
        self,
        resource: Resource,
        namespace: str | None,
        version: str,
        *,
        fields: str = "",
        metadata_only: bool = False,
        seconds: int = 270,
    ) -> AsyncIterator[tuple[str, Object]]:
        """Events (type, object) after ``version``, bookmarks included, until the server ends the stream.

        ``fields`` is a field selector.
        Raises ``ApiError``; status 410 means that the version is too old and a new list is needed.
        """
        query = {
            "watch": "true", "allowWatchBookmarks": "true", "resourceVersion": version, "timeoutSeconds": str(seconds),
        }  # fmt: skip
        if fields:
            query["fieldSelector"] = fields
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=REQUEST_SECONDS, sock_read=WATCH_SILENCE_SECONDS)
        response = await self._request("GET", resource.path(namespace), query, _accept(metadata_only), None, timeout)
        try:
            async for line in response.content:
                event = orjson.loads(line)
                if not isinstance(event, dict) or not isinstance(event.get("object"), dict) or "type" not in event:
                    raise ApiError(0, "MalformedEvent", f"watch of {resource.plural}: the answer holds no events")
                if event["type"] == "ERROR":
                    status = event["object"]
                    raise ApiError(int(status.get("code", 500)), status.get("reason", ""), status.get("message", ""))
                event["object"]["kind"] = resource.kind
                yield event["type"], event["object"]
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:  # ValueError: a line cut in the middle
            raise ApiError(0, type(error).__name__, f"watch of {resource.plural}: {error}") from error
        finally:
            response.close()

    async def lines(self, path: str, query: Mapping[str, str]) -> AsyncIterator[bytes]:
        """The lines of a text that may have no end, such as a followed log. Raises ``ApiError``."""
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=REQUEST_SECONDS)
        response = await self._request("GET", path, query, {"Accept": "*/*"}, None, timeout)
        rest = b""
        try:
            async for chunk in response.content.iter_any():
                *whole, rest = (rest + chunk).split(b"\n")
                for line in whole:
                    yield line
            if rest:
                yield rest
        except (aiohttp.ClientError, TimeoutError) as error:
            raise ApiError(0, type(error).__name__, f"GET {path}: {error}") from error
        finally:
            response.close()

    async def socket(
        self, path: str, query: Sequence[tuple[str, str]], protocol: str
    ) -> aiohttp.ClientWebSocketResponse:
        """A websocket to a subresource; the caller closes it. Raises ``ApiError``."""
        configuration = self._api.configuration
        sent = {**self._api.default_headers}
        await self._api.update_params_for_auth(sent, [], ["BearerToken"], path, "GET", None)
        rest = self._api.rest_client
        if rest.pool_manager is None:
            rest.pool_manager = rest._create_pool_manager()
        try:
            opened: aiohttp.ClientWebSocketResponse = await rest.pool_manager.ws_connect(
                f"{configuration.host}{path}?{urlencode(query)}",
                headers=sent, protocols=(protocol,), proxy=configuration.proxy, max_msg_size=0,
            )  # fmt: skip
        except aiohttp.WSServerHandshakeError as error:
            raise ApiError(error.status, error.message, f"GET {path}: no websocket was opened") from error
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise ApiError(0, type(error).__name__, f"GET {path}: {error}") from error
        return opened

    # ---- writing

    async def apply(self, body: Object, *, dry_run: bool = False, manager: str = FIELD_MANAGER) -> Object:
        """Server-side apply of ``body`` as ``manager``, taking over fields that others hold."""
        resource, metadata = BY_KIND[body["kind"]], body["metadata"]
        query = {"fieldManager": manager, "force": "true"} | ({"dryRun": "All"} if dry_run else {})
        path = resource.path(metadata["namespace"], metadata["name"])
        return await self._json("PATCH", path, query, body, content_type="application/apply-patch+yaml")

    async def create(self, body: Object) -> Object:
        """Create ``body``; 409 AlreadyExists raises ``ApiError``."""
        path = BY_KIND[body["kind"]].path(body["metadata"]["namespace"])
        return await self._json("POST", path, {"fieldManager": FIELD_MANAGER}, body)

    async def delete(
        self, resource: Resource, namespace: str, name: str, *, uid: str, propagation: str = "Background"
    ) -> bool:
        """Delete exactly the object with this uid. False when it is gone already, or another took its name."""
        options = {
            "apiVersion": "v1", "kind": "DeleteOptions",
            "preconditions": {"uid": uid}, "propagationPolicy": propagation,
        }  # fmt: skip
        try:
            await self._json("DELETE", resource.path(namespace, name), body=options)
        except ApiError as error:
            if error.absent or error.status == 409:
                return False
            raise
        return True

    async def patch_status(self, owner: Object, patch: Object) -> Object:
        """Merge-patch the status of ``owner`` (the object with exactly its uid)."""
        return await self.merge_patch(owner, {"status": patch}, subresource="status")

    async def merge_patch(self, target: Object, patch: Object, *, subresource: str | None = None) -> Object:
        """Merge-patch the object with exactly the uid of ``target``; 409 when another has its name now."""
        metadata = target["metadata"]
        body = {**patch, "metadata": {**patch.get("metadata", {}), "uid": metadata["uid"]}}
        path = BY_KIND[target["kind"]].path(metadata["namespace"], metadata["name"], subresource)
        query = {"fieldManager": FIELD_MANAGER}
        return await self._json("PATCH", path, query, body, content_type="application/merge-patch+json")

    # ---- HTTP

    async def _json(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Object | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        content_type: str = "application/json",
    ) -> Object:
        sent = dict(headers or {"Accept": "application/json"}) | {"Content-Type": content_type}
        response = await self._request(method, path, query, sent, body, aiohttp.ClientTimeout(total=REQUEST_SECONDS))
        try:
            data = await response.read()
            answer: Object = orjson.loads(data)
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise ApiError(0, type(error).__name__, f"{method} {path}: {error}") from error
        if not isinstance(answer, dict):
            raise ApiError(0, "MalformedAnswer", f"{method} {path}: the answer is no object")
        return answer

    async def _request(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None,
        headers: Mapping[str, str],
        body: Object | None,
        timeout: aiohttp.ClientTimeout,
    ) -> aiohttp.ClientResponse:
        """The answer, its body unread. Raises ``ApiError``; credentials that are refused are renewed, once."""
        what, renewed = f"{method} {path}", False
        while True:
            if self._guard is not None and method not in READS:
                # What is sent while the lease is good has the rest of it to be answered.
                timeout = aiohttp.ClientTimeout(total=min(REQUEST_SECONDS, self._guard()))
            configuration = self._api.configuration
            sent = {**self._api.default_headers, **headers}
            await self._api.update_params_for_auth(sent, [], ["BearerToken"], path, method, body)
            url = configuration.host + path + (f"?{urlencode(query)}" if query else "")
            try:
                answer = await self._api.rest_client.request(
                    method, url, headers=sent, body=body, _request_timeout=timeout
                )
                response: aiohttp.ClientResponse = answer.response
                if response.status < 400:
                    return response
                data = await response.read()
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                raise ApiError(0, type(error).__name__, f"{what}: {error}") from error
            if response.status != 401 or renewed or not await self._renewed_access():
                raise refusal(response, data, what)
            renewed = True

    async def _renewed_access(self) -> bool:
        """Read the credentials again; whether there is reason to believe that they are accepted now."""
        if self._renew is None:
            return False
        async with self._renewing:
            now = time.monotonic()
            if now - self._renewed < RENEW_SECONDS:
                return False
            self._renewed = now
            try:
                found = await self._renew()
            except (config.ConfigException, OSError, ValueError) as error:
                logger.warning("the API server refuses the credentials, and others cannot be read: %s", error)
                return False
            kept = self._api.configuration
            kept.api_key, kept.refresh_api_key_hook = found.api_key, found.refresh_api_key_hook
            return True


def _accept(metadata_only: bool, *, listing: bool = False) -> dict[str, str]:
    if not metadata_only:
        return {"Accept": "application/json"}
    kind = "PartialObjectMetadataList" if listing else "PartialObjectMetadata"
    return {"Accept": f"application/json;as={kind};g=meta.k8s.io;v=v1,application/json"}


def secret_data(secret: Object) -> dict[str, str]:
    """The decoded values of a Secret; bytes that are no UTF-8 become replacement characters."""
    values = secret.get("data") or {}
    return {key: base64.b64decode(value or "").decode(errors="replace") for key, value in values.items()}
