"""The audit log: one line for each request, in the form in which kube-apiserver writes its own.

Who asked for what and how that ended (``audit.k8s.io/v1``, level Metadata); bodies and credentials are not in it.
"""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

import orjson
from aiohttp import web

from .errors import ApiError, Json
from .kinds import Registry
from .routing import find_target, is_true

#: Where a request keeps the name of what it created, which its path does not have.
CREATED = "agenthive.created"

_VERBS = {"POST": "create", "PUT": "update", "PATCH": "patch"}


class AuditLog:
    """Appends to a file.

    Args:
        file: Where to; what is in it stays.
        registry: The kinds that paths speak of.

    Raises:
        OSError: The file cannot be opened.
    """

    def __init__(self, file: Path, registry: Registry) -> None:
        self._file: BinaryIO = file.open("ab", buffering=0)
        self._registry = registry

    def note(self, request: web.BaseRequest, status: int, *, began: bool = False) -> None:
        """A request was answered; ``began``: its answer, a watch's, has only begun."""
        verb, target = self._asked(request)
        event: Json = {
            "kind": "Event",
            "apiVersion": "audit.k8s.io/v1",
            "level": "Metadata",
            "auditID": str(uuid.uuid4()),
            "stage": "ResponseStarted" if began else "ResponseComplete",
            "requestURI": request.path_qs,
            "verb": verb,
            "user": {"username": "admin", "groups": ["system:masters", "system:authenticated"]},
            "userAgent": request.headers.get("User-Agent", ""),
            "responseStatus": {"code": status},
            "stageTimestamp": datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z"),
        }
        if target is not None:
            event["objectRef"] = target
        self._file.write(orjson.dumps(event) + b"\n")

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _asked(self, request: web.BaseRequest) -> tuple[str, Json | None]:
        """The verb as RBAC knows it, and what it was asked of; None where that is no resource."""
        parts = [part for part in request.path.split("/") if part]
        core = parts[:1] == ["api"]
        lead = 2 if core else 3
        if parts[:1] not in (["api"], ["apis"]) or len(parts) <= lead:
            return request.method.lower(), None
        group, version = ("", parts[1]) if core else (parts[1], parts[2])
        try:
            target = find_target(self._registry, group, version, parts[lead:])
        except ApiError:
            return request.method.lower(), None
        if request.method in ("GET", "HEAD"):
            watches = is_true(request.query.get("watch"))
            verb = "watch" if watches else "get" if target.name else "list"
        elif request.method == "DELETE":
            verb = "delete" if target.name else "deletecollection"
        else:
            verb = _VERBS.get(request.method, request.method.lower())
        found = {
            "resource": target.kind.plural, "namespace": target.namespace,
            "name": target.name or request.get(CREATED, ""),
            "apiGroup": group, "apiVersion": version, "subresource": target.sub,
        }  # fmt: skip
        return verb, {key: value for key, value in found.items() if value}
