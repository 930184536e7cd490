"""OpenAPI v3 documents, as far as kubectl and Helm look at them: schemas, and which parameters an operation takes."""

from __future__ import annotations

import hashlib
from typing import Any

import orjson

from .errors import Json
from .kinds import Kind, Registry
from .typing_tree import Node

_SCALARS: dict[str, Json] = {
    "str": {"type": "string"}, "int": {"type": "integer"}, "bool": {"type": "boolean"}, "float": {"type": "number"},
    "datetime": {"type": "string", "format": "date-time"}, "bytes": {"type": "string", "format": "byte"},
    "quantity": {"type": "string"}, "object": {"x-kubernetes-int-or-string": True},
}  # fmt: skip

_PARAMETERS = ("dryRun", "fieldManager", "fieldValidation")
_PATCHES = (
    "application/apply-patch+yaml", "application/json-patch+json", "application/merge-patch+json",
)  # fmt: skip


class OpenApi:
    """Builds the documents when first asked for, and again after kinds have changed."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        self._seen = -1
        self._documents: dict[str, bytes] = {}

    def index(self) -> Json:
        """``/openapi/v3``."""
        self._forget_old()
        found = {}
        for group, versions in self.registry.versions().items():
            for version in versions:
                path = _path(group, version)
                digest = hashlib.sha256(self.document(path) or b"").hexdigest()[:32].upper()
                found[path] = {"serverRelativeURL": f"/openapi/v3/{path}?hash={digest}"}
        return {"paths": found}

    def document(self, path: str) -> bytes | None:
        """The document of ``api/v1`` or ``apis/<group>/<version>``; None where it is not served."""
        self._forget_old()
        if path not in self._documents:
            kinds = [kind for kind in self.registry if _path(kind.group, kind.version) == path]
            if not kinds:
                return None
            self._documents[path] = orjson.dumps(_document(kinds))
        return self._documents[path]

    def _forget_old(self) -> None:
        if self._seen != self.registry.changes:
            self._seen = self.registry.changes
            self._documents.clear()


def _path(group: str, version: str) -> str:
    return f"apis/{group}/{version}" if group else f"api/{version}"


def _document(kinds: list[Kind]) -> Json:
    schemas: Json = {}
    paths: Json = {}
    for kind in kinds:
        name = schema_name(kind)
        gvk = {"group": kind.group, "kind": kind.kind, "version": kind.version}
        schema = _custom(kind.schema_json) if kind.schema_json is not None else _schema(kind.node)
        schemas[name] = {**schema, "x-kubernetes-group-version-kind": [gvk]}
        paths |= _paths(kind, name, gvk)
    return {
        "openapi": "3.0.0", "info": {"title": "Kubernetes (AgentHive's emulator)", "version": "v1.36.0"},
        "paths": paths, "components": {"schemas": schemas},
    }  # fmt: skip


def schema_name(kind: Kind) -> str:
    """Name of a kind's schema, as Kubernetes makes it: the group backwards, version, kind."""
    if kind.custom:
        return f"{'.'.join(reversed(kind.group.split('.')))}.{kind.version}.{kind.kind}"
    group = kind.group.partition(".")[0] or "core"
    return f"io.k8s.api.{group}.{kind.version}.{kind.kind}"


def _custom(schema: Json) -> Json:
    properties = {
        "apiVersion": {"type": "string"}, "kind": {"type": "string"}, "metadata": {"type": "object"},
        **schema.get("properties", {}),
    }  # fmt: skip
    return {**schema, "properties": properties}


def _schema(node: Node) -> Json:
    if node.shape == "struct":
        found: Json = {"type": "object", "properties": {name: _schema(below) for name, below in node.fields.items()}}
        if node.required:
            found["required"] = list(node.required)
    elif node.shape == "map":
        found = {"type": "object", "additionalProperties": _schema(node.items())}
    elif node.shape == "list":
        found = {"type": "array", "items": _schema(node.items()), "x-kubernetes-list-type": node.topology}
        if node.keys:
            found["x-kubernetes-list-map-keys"] = list(node.keys)
        if node.patch_merge:
            found["x-kubernetes-patch-strategy"] = "merge"
            if node.patch_key:
                found["x-kubernetes-patch-merge-key"] = node.patch_key
    else:
        found = dict(_SCALARS.get(node.scalar, {"x-kubernetes-preserve-unknown-fields": True}))
    if node.atomic:
        found["x-kubernetes-map-type"] = "atomic"
    return found


def _paths(kind: Kind, name: str, gvk: Json) -> Json:
    base = f"/{_path(kind.group, kind.version)}"
    collection = f"{base}/namespaces/{{namespace}}/{kind.plural}" if kind.namespaced else f"{base}/{kind.plural}"
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{name}"}}}
    patches = [*_PATCHES, *([] if kind.custom else ["application/strategic-merge-patch+json"])]

    def operation(action: str, *parameters: str, bodies: list[str] | None = None) -> Json:
        found: Json = {
            "x-kubernetes-action": action, "x-kubernetes-group-version-kind": gvk,
            "responses": {"200": {"description": "OK", "content": content}},
            "parameters": [{"name": each, "in": "query", "schema": {"type": "string"}} for each in parameters],
        }  # fmt: skip
        if bodies:
            found["requestBody"] = {"content": {media: {"schema": {"type": "object"}} for media in bodies}}
        return found

    found: dict[str, Any] = {
        collection: {
            "get": operation("list", "labelSelector", "fieldSelector", "limit", "continue", "watch"),
            "post": operation("post", *_PARAMETERS, bodies=["application/json"]),
        },
        f"{collection}/{{name}}": {
            "get": operation("get"),
            "put": operation("put", *_PARAMETERS, bodies=["application/json"]),
            "patch": operation("patch", *_PARAMETERS, "force", bodies=patches),
            "delete": operation("delete", "dryRun", "gracePeriodSeconds", "propagationPolicy"),
        },
    }
    return found
