"""Paths, parameters and headers of requests, read into one value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from . import errors
from .kinds import Kind, Registry
from .writes import Options

Form = Literal["object", "metadata", "table"]


@dataclass(frozen=True, slots=True)
class Target:
    """What a path below ``/api/v1`` or ``/apis/<group>/<version>`` names.

    Attributes:
        kind: The resource.
        namespace: None for cluster-scoped objects and for lists over all namespaces.
        name: Empty for the collection.
        sub: ``status``, ``scale``, ``exec``, ``log``, ``token`` or empty.
    """

    kind: Kind
    namespace: str | None
    name: str
    sub: str

    @property
    def key(self) -> tuple[str, str]:
        return (self.namespace or "", self.name)


def find_target(registry: Registry, group: str, version: str, parts: list[str]) -> Target:
    """Read the rest of a path.

    Raises:
        ApiError: 404 for a resource that is not served.
    """
    namespace: str | None = None
    if parts[0] == "namespaces" and len(parts) > 2 and (len(parts) > 3 or parts[2] not in ("status", "finalize")):
        namespace, parts = parts[1], parts[2:]
    kind = registry.find(group, version, parts[0])
    if kind is None or len(parts) > 3:
        raise errors.no_such_path()
    if kind.namespaced and namespace is None and len(parts) > 1:
        raise errors.no_such_path()
    if not kind.namespaced and namespace is not None:
        raise errors.no_such_path()
    name = parts[1] if len(parts) > 1 else ""
    sub = parts[2] if len(parts) > 2 else ""
    if sub and sub not in kind.subresources:
        raise errors.no_such_path()
    return Target(kind, namespace, name, sub)


def wanted_form(accept: str) -> Form:
    """How the client wants objects: whole, their metadata, or as rows of a table.

    Raises:
        ApiError: 406 where nothing the client accepts is JSON.
    """
    for part in accept.split(","):
        media, _, parameters = part.strip().partition(";")
        if media.strip() not in ("application/json", "*/*", "application/*", ""):
            continue
        chosen = dict(piece.strip().partition("=")[::2] for piece in parameters.split(";"))
        shape = chosen.get("as")
        if shape is None:
            return "object"
        if chosen.get("g") == "meta.k8s.io" and chosen.get("v") == "v1":
            if shape == "Table":
                return "table"
            if shape in ("PartialObjectMetadata", "PartialObjectMetadataList"):
                return "metadata"
    raise errors.not_acceptable("application/json")


def write_options(query: Mapping[str, str], user_agent: str) -> Options:
    """Options of a write.

    Raises:
        ApiError: 400 or 422 for values that are none.
    """
    dry_run = query.get("dryRun")
    if dry_run not in (None, "All"):
        raise errors.unprocessable(
            "meta.k8s.io", "CreateOptions", "", [errors.not_supported("dryRun", dry_run, ("All",))]
        )
    validation = query.get("fieldValidation") or "Warn"
    if validation not in ("Strict", "Warn", "Ignore"):
        problem = errors.not_supported("fieldValidation", validation, ("", "Ignore", "Strict", "Warn"))
        raise errors.unprocessable("meta.k8s.io", "CreateOptions", "", [problem])
    given = query.get("fieldManager", "")
    if len(given) > 128:
        raise errors.unprocessable("meta.k8s.io", "CreateOptions", "", [errors.too_long("fieldManager", 128)])
    force = query.get("force")
    return Options(
        manager=given or user_agent.partition("/")[0][:128] or "unknown",
        explicit_manager=bool(given),
        dry_run=dry_run == "All",
        validation=validation,
        force=None if force is None else is_true(force),
    )


def is_true(text: str | None) -> bool:
    """A boolean parameter."""
    return (text or "").lower() in ("1", "t", "true")


def number(query: Mapping[str, str], name: str) -> int | None:
    """A numeric parameter; None where it is absent or empty.

    Raises:
        ApiError: 400 for text that is no number.
    """
    text = query.get(name)
    if not text:
        return None
    try:
        return int(text)
    except ValueError as error:
        raise errors.bad_request(f"{name}: {text!r} is not a number") from error


def metadata_only(obj: dict[str, Any]) -> dict[str, Any]:
    """The PartialObjectMetadata of an object."""
    return {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": obj["metadata"]}
