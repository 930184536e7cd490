"""From a request to an answer."""

from __future__ import annotations

import hmac
import logging
from collections.abc import Mapping

import aiohttp
import orjson
from aiohttp import web

from . import audit, bodies, deletes, discovery, errors, patches, routing, scale
from .admission import Admission
from .bodies import answer, answer_object
from .decode import now
from .deletes import Deleter
from .errors import ApiError, Json
from .kinds import Registry
from .openapi import OpenApi
from .podlogs import proxy_exec, proxy_log
from .reads import Reader, matcher, render
from .routing import Target
from .store import Entry, Store
from .writes import Options, Writer

log = logging.getLogger(__name__)

NEVER = "9999-12-31T23:59:59Z"
_OPEN = ("/healthz", "/livez", "/readyz", "/version")


class Api:
    """All of the server but its sockets.

    Args:
        store: The state.
        token: What clients must send as their bearer token.
    """

    def __init__(self, store: Store, token: str) -> None:
        self.store = store
        self.registry = Registry()
        self.admission = Admission(store, self.registry)
        self.admission.bootstrap()
        self.writer = Writer(store, self.admission)
        self.deleter = Deleter(store, self.admission, self.writer)
        self.reader = Reader(store, self.registry)
        self.openapi = OpenApi(self.registry)
        self.kubelets: aiohttp.ClientSession | None = None
        self.audit: audit.AuditLog | None = None
        #: What clients must send, and what the server itself shows to kubelets.
        self.authorization = f"Bearer {token}"
        self._authorization = self.authorization.encode()

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request; whatever goes wrong becomes a Status."""
        response = await self._answer(request)
        if self.audit is not None:
            self.audit.note(request, response.status)
        return response

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        try:
            return await self._route(request)
        except ApiError as error:
            return bodies.refuse(error)
        except web.HTTPRequestEntityTooLarge as error:
            return bodies.refuse(ApiError(413, "RequestEntityTooLarge", str(error)))
        except (ConnectionResetError, aiohttp.ClientConnectionResetError):
            raise
        except Exception as error:
            # The loop's edge: a fault of ours must not take the connection down unexplained.
            log.exception("%s %s failed", request.method, request.path_qs)
            return bodies.refuse(errors.internal(f"Internal error occurred: {type(error).__name__}: {error}"))

    async def _route(self, request: web.BaseRequest) -> web.StreamResponse:
        path = request.path
        parts = [part for part in path.split("/") if part]
        if not parts or parts[0] not in ("api", "apis"):
            return self._plain(request, path, parts)
        self._authenticate(request)
        if parts[0] == "api":
            group, version, rest = "", parts[1] if len(parts) > 1 else "", parts[2:]
        else:
            group, version = (*parts[1:3], "", "")[:2]
            rest = parts[3:]
        if not rest:
            return self._discover(request, parts, group, version)
        if self._is_review(group, version, rest):
            return await self._review(request, rest[0])
        target = routing.find_target(self.registry, group, version, rest)
        return await self._serve(request, target)

    def _authenticate(self, request: web.BaseRequest) -> None:
        sent = request.headers.get("Authorization", "").encode()
        if not hmac.compare_digest(sent, self._authorization):
            raise errors.unauthorized()

    def _plain(self, request: web.BaseRequest, path: str, parts: list[str]) -> web.Response:
        """Everything outside the API groups."""
        if path.rstrip("/") not in _OPEN and (not parts or parts[0] not in ("livez", "readyz")):
            self._authenticate(request)
        if request.method not in ("GET", "HEAD"):
            raise errors.method_not_allowed()
        if not parts:
            groups = [f"/apis/{group}" for group in self.registry.versions() if group]
            return answer_object({"paths": ["/api", "/api/v1", "/apis", *groups, "/openapi/v3", "/version"]})
        if parts[0] in ("healthz", "livez", "readyz"):
            return web.Response(text="ok")
        if path.rstrip("/") == "/version":
            return answer_object(discovery.VERSION)
        if parts[:2] == ["openapi", "v3"]:
            if len(parts) == 2:
                return answer_object(self.openapi.index())
            document = self.openapi.document("/".join(parts[2:]))
            if document is not None:
                return answer(document)
        raise errors.no_such_path()

    def _discover(self, request: web.BaseRequest, parts: list[str], group: str, version: str) -> web.Response:
        if request.method not in ("GET", "HEAD"):
            raise errors.method_not_allowed()
        core = parts[0] == "api"
        if len(parts) == 1:
            if discovery.wants_aggregated(request.headers.get("Accept", "")):
                body = discovery.aggregated(self.registry, core=core)
                return answer_object(body, media=discovery.AGGREGATED)
            return answer_object(discovery.core_versions() if core else discovery.group_list(self.registry))
        if core or len(parts) > 2:
            found = discovery.resource_list(self.registry, group, version)
        else:
            found = discovery.group(self.registry, group)
        if found is None:
            raise errors.no_such_path()
        return answer_object(found)

    @staticmethod
    def _is_review(group: str, version: str, rest: list[str]) -> bool:
        return any((group, version, rest) == (review[0], review[1], [review[2]]) for review in discovery.REVIEWS)

    @staticmethod
    async def _review(request: web.BaseRequest, plural: str) -> web.Response:
        if request.method != "POST":
            raise errors.method_not_allowed()
        body = await bodies.read_object(request)
        if plural == "selfsubjectreviews":
            # One token, one user: whoever holds it may do everything.
            body["status"] = {"userInfo": {"username": "admin", "groups": ["system:masters", "system:authenticated"]}}
        else:
            body["status"] = {"allowed": True, "reason": "the bearer of this server's token may do everything"}
        body.setdefault("metadata", {})["creationTimestamp"] = now()
        return answer_object(body, 201)

    async def _serve(self, request: web.BaseRequest, target: Target) -> web.StreamResponse:
        method, query = request.method, request.query
        if target.sub == "log":
            if method != "GET":
                raise errors.method_not_allowed()
            return await proxy_log(self, request, target)
        if target.sub == "token":
            return await self._token(request, target)
        if target.sub == "exec":
            if method != "GET":
                raise errors.bad_request("exec speaks websockets; use kubectl 1.30 or newer")
            return await proxy_exec(self, request, target)
        if method in ("GET", "HEAD"):
            return await self._read(request, target, query)
        options = routing.write_options(query, request.headers.get("User-Agent", ""))
        match method, bool(target.name):
            case "POST", False:
                return await self._create(request, target, options)
            case "PUT", True:
                return await self._update(request, target, options)
            case "PATCH", True:
                return await self._patch(request, target, options)
            case "DELETE", _:
                if not target.sub:
                    return await self._delete(request, target, query)
        raise errors.method_not_allowed()

    async def _token(self, request: web.BaseRequest, target: Target) -> web.Response:
        if request.method != "POST":
            raise errors.method_not_allowed()
        self.writer.existing(target.kind, target.key)
        body = await bodies.read_object(request)
        # There is one token here, and no end of it: every account is whoever started this server.
        body["status"] = {"token": self.authorization.removeprefix("Bearer "), "expirationTimestamp": NEVER}
        return answer_object(body, 201)

    async def _read(self, request: web.BaseRequest, target: Target, query: Mapping[str, str]) -> web.StreamResponse:
        form = routing.wanted_form(request.headers.get("Accept", ""))
        if routing.is_true(query.get("watch")):
            return await self._watch(request, target, form)
        if not target.name:
            return answer(self.reader.collection(target, query, form))
        entry = self.reader.get(target)
        if target.sub == "scale":
            return answer_object(scale.scale_of(target.kind, entry))
        if form == "table":
            # A table of one row.
            return answer(
                self.reader.collection(target, {"includeObject": query.get("includeObject", "Metadata")}, form)
            )
        return answer(render(target.kind, entry, form))

    async def _watch(self, request: web.BaseRequest, target: Target, form: routing.Form) -> web.StreamResponse:
        lines = await self.reader.watch(target, request.query, form)
        response = web.StreamResponse(
            headers={"Content-Type": "application/json", "Cache-Control": "no-cache, private"}
        )
        response.enable_chunked_encoding()
        await response.prepare(request)
        if self.audit is not None:
            self.audit.note(request, response.status, began=True)
        async for chunk in lines:
            if chunk:
                await response.write(chunk)
        await response.write_eof()
        return response

    async def _create(self, request: web.BaseRequest, target: Target, options: Options) -> web.Response:
        if target.kind.namespaced and target.namespace is None:
            raise errors.method_not_allowed()
        body = await bodies.read_object(request)
        entry = self.writer.create(target.kind, target.namespace or "", body, options)
        request[audit.CREATED] = entry.obj["metadata"]["name"]
        return self._written(request, target, entry, options, 201)

    async def _update(self, request: web.BaseRequest, target: Target, options: Options) -> web.Response:
        body = await bodies.read_object(request)
        if target.sub == "scale":
            return self._scale(target, body, options)
        entry = self.writer.update(target.kind, target.key, target.sub, body, options)
        return self._written(request, target, entry, options, 200)

    def _scale(self, target: Target, body: Json, options: Options) -> web.Response:
        live = self.writer.existing(target.kind, target.key)
        obj = scale.scaled(target.kind, live.obj, body, target.name)
        entry = self.writer.update(target.kind, target.key, "scale", obj, options)
        return answer_object(scale.scale_of(target.kind, entry))

    async def _patch(self, request: web.BaseRequest, target: Target, options: Options) -> web.Response:
        media = request.headers.get("Content-Type", "").partition(";")[0].strip()
        form = bodies.PATCHES.get(media)
        allowed = [known for known in bodies.PATCHES if not (target.kind.custom and "strategic" in known)]
        if form is None or media not in allowed:
            raise errors.unsupported_media_type(
                "the body of the request was in an unknown format - accepted media types include: " + ", ".join(allowed)
            )
        body = bodies.parse(await request.read(), media)
        if form == "apply":
            if target.sub == "scale":
                raise errors.bad_request("this server does not do server-side apply of a Scale: use a merge patch")
            if not isinstance(body, dict):
                raise errors.bad_request("an applied configuration is an object")
            entry, created = self.writer.apply(target.kind, target.key, target.sub, body, options)
            return self._written(request, target, entry, options, 201 if created else 200)
        if options.force is not None:
            problem = errors.forbidden_field("force", "may not be specified for non-apply patch")
            raise errors.unprocessable("meta.k8s.io", "PatchOptions", "", [problem])
        if target.sub == "scale":
            live = self.writer.existing(target.kind, target.key)
            shown = scale.scale_of(target.kind, live)
            patched = patches.json_patch(shown, body) if form == "json-patch" else patches.merge_patch(shown, body)
            return self._scale(target, patched, options)
        entry = self.writer.patch(target.kind, target.key, target.sub, form, body, options)
        return self._written(request, target, entry, options, 200)

    def _written(
        self, request: web.BaseRequest, target: Target, entry: Entry, options: Options, status: int
    ) -> web.Response:
        form = routing.wanted_form(request.headers.get("Accept", ""))
        if form == "table":
            form = "object"
        if status == 201 and target.kind.resource in _WITHOUT_EFFECT:
            options.warnings.append(f"{target.kind.kind} objects are stored here and have no effect")
        return answer(render(target.kind, entry, form), status, warnings=options.warnings)

    async def _delete(self, request: web.BaseRequest, target: Target, query: Mapping[str, str]) -> web.Response:
        data = await request.read()
        body = bodies.parse(data, request.headers.get("Content-Type", "")) if data else {}
        if not isinstance(body, dict):
            raise errors.bad_request("DeleteOptions must be an object")
        options = deletes.read_options(body, dict(query))
        kind = target.kind
        if not target.name:
            selected = matcher(kind, query)
            gone = self.deleter.delete_collection(kind, target.namespace, selected, options)
            items = [orjson.loads(render(kind, entry, "object")) for entry in gone]
            meta = {"resourceVersion": str(self.store.version)}
            return answer_object(
                {"kind": kind.list_kind, "apiVersion": kind.api_version, "metadata": meta, "items": items}
            )
        entry, done = self.deleter.delete(kind, target.key, options)
        if done and kind.resource not in _RETURNED:
            uid = entry.obj["metadata"]["uid"]
            return answer_object(bodies.success(kind.group, kind.plural, target.name, uid))
        return answer(render(kind, entry, "object"))


# Resources that nobody acts on: the controllers beside this server know none of them, and its one token may do all.
_WITHOUT_EFFECT = frozenset({
    "daemonsets.apps", "poddisruptionbudgets.policy", "networkpolicies.networking.k8s.io",
    "roles.rbac.authorization.k8s.io", "rolebindings.rbac.authorization.k8s.io",
    "clusterroles.rbac.authorization.k8s.io", "clusterrolebindings.rbac.authorization.k8s.io",
    "storageclasses.storage.k8s.io", "priorityclasses.scheduling.k8s.io",
})  # fmt: skip

# Resources whose last state is the answer to a delete.
_RETURNED = ("pods", "services", "persistentvolumeclaims", "persistentvolumes", "serviceaccounts")
